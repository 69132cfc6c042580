//! `vnca inspect`.

use anyhow::Result;

use super::{Outcome, Source};
use crate::array::Array;
use crate::model::params::{Leaf, init};
use crate::random::Key;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Seed of the initial values that are listed when --model is given without --weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// How many first values are shown, as in the goldens.
const FIRST: usize = 3;

struct Row<'a> {
    leaf: &'a Leaf,
    sum: f64,
    l2: f64,
    first: Vec<f32>,
}

pub fn run(args: &Args) -> Outcome {
    let bare = args.source.run.is_none() && args.source.weights.is_none();
    let (model, arrays) = match bare {
        true => {
            let model = args.source.bare_model()?;
            (model, init(&model.leaves(), Key::new(args.seed)))
        }
        false => {
            let weights = args.source.load()?;
            (weights.model, weights.arrays)
        }
    };
    let leaves = model.leaves();
    let rows: Vec<Row<'_>> = leaves.iter().zip(&arrays).map(|(leaf, array)| row(leaf, array)).collect();
    if args.json { print_json(model.parameter_count(), &rows)? } else { print_table(model.parameter_count(), &rows) }
    Ok(None)
}

fn row<'a>(leaf: &'a Leaf, array: &Array) -> Row<'a> {
    array.with::<f32, _>(|values| {
        let (mut sum, mut squares) = (0f64, 0f64);
        for v in values {
            sum += f64::from(*v);
            squares += f64::from(*v).powi(2);
        }
        Row { leaf, sum, l2: squares.sqrt(), first: values.iter().take(FIRST).copied().collect() }
    })
}

fn print_json(parameters: usize, rows: &[Row<'_>]) -> Result<()> {
    let leaves: Vec<_> = rows
        .iter()
        .map(|r| serde_json::json!({"name": r.leaf.name, "shape": r.leaf.shape, "sum": r.sum, "l2": r.l2, "first": r.first}))
        .collect();
    println!("{}", serde_json::to_string(&serde_json::json!({"parameters": parameters, "leaves": leaves}))?);
    Ok(())
}

fn print_table(parameters: usize, rows: &[Row<'_>]) {
    let width = rows.iter().map(|r| r.leaf.name.len()).max().unwrap_or(0);
    println!("{:width$}  {:>20}  {:>9}  {:>12}  {:>12}  first values", "name", "shape", "count", "sum", "l2");
    for r in rows {
        let shape = format!("{:?}", r.leaf.shape);
        let count: usize = r.leaf.shape.iter().product();
        let first: Vec<String> = r.first.iter().map(|v| format!("{v:.6}")).collect();
        println!("{:width$}  {shape:>20}  {count:>9}  {:>12.6}  {:>12.6}  {}", r.leaf.name, r.sum, r.l2, first.join(" "));
    }
    println!("{parameters} parameters");
}
