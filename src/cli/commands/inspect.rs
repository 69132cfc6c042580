//! `vnca inspect`.

use anyhow::Result;
use serde_json::Value;

use super::{Outcome, Report, Source, Weights};
use crate::cli::pretrained::Card;
use crate::engine::array::Array;
use crate::nn::params::Leaf;

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

/// Number of first values shown, the same as in the golden files.
const FIRST: usize = 3;

struct Row<'a> {
    leaf: &'a Leaf,
    sum: f64,
    l2: f64,
    first: Vec<f32>,
}

pub fn run(args: &Args) -> Outcome {
    let Weights { model, arrays, card, .. } = args.source.load_or_init(args.seed)?;
    let leaves = model.vae().leaves();
    let rows: Vec<Row<'_>> = leaves.iter().zip(&arrays).map(|(leaf, array)| row(leaf, array)).collect();
    let count = model.vae().parameter_count();
    let mut report = Report { json: json(count, &rows), text: table(count, &rows) };
    if let Some(card) = card {
        report.json["card"] = serde_json::to_value(&card)?;
        report.text = format!("{}\n\n{}", describe(&card)?, report.text);
    }
    report.print(args.json)
}

/// Formats the facts of a card that the list of parameters lacks.
fn describe(card: &Card) -> Result<String> {
    let Card { description, data, licence_of_data, steps, command, iwelbo, model, .. } = card;
    let model = serde_json::to_value(model)?;
    let sizes: Vec<String> =
        model.as_object().into_iter().flatten().map(|(k, v)| format!("{k} {v}")).collect();
    Ok(format!(
        "{description}\nmodel     {}\ndata      {data} ({licence_of_data})\ntraining  {steps} steps: {command}\nIWELBO    {iwelbo}",
        sizes.join(", ").replace('"', "")
    ))
}

fn row<'a>(leaf: &'a Leaf, array: &Array) -> Row<'a> {
    array.with_elements::<f32, _>(|values| {
        let (mut sum, mut squares) = (0f64, 0f64);
        for v in values {
            sum += f64::from(*v);
            squares += f64::from(*v).powi(2);
        }
        Row { leaf, sum, l2: squares.sqrt(), first: values.iter().take(FIRST).copied().collect() }
    })
}

fn json(parameters: usize, rows: &[Row<'_>]) -> Value {
    let leaf = |r: &Row<'_>| {
        let Row { leaf, sum, l2, first } = r;
        serde_json::json!({"name": leaf.name, "shape": leaf.shape, "sum": sum, "l2": l2, "first": first})
    };
    let leaves: Vec<_> = rows.iter().map(leaf).collect();
    serde_json::json!({"parameters": parameters, "leaves": leaves})
}

fn table(parameters: usize, rows: &[Row<'_>]) -> String {
    let width = rows.iter().map(|r| r.leaf.name.len()).max().unwrap_or(0);
    let mut lines = vec![format!(
        "{:width$}  {:>20}  {:>9}  {:>12}  {:>12}  first values",
        "name", "shape", "count", "sum", "l2"
    )];
    for Row { leaf, sum, l2, first } in rows {
        let shape = format!("{:?}", leaf.shape);
        let count: usize = leaf.shape.iter().product();
        let first: Vec<String> = first.iter().map(|v| format!("{v:.6}")).collect();
        let first = first.join(" ");
        lines
            .push(format!("{:width$}  {shape:>20}  {count:>9}  {sum:>12.6}  {l2:>12.6}  {first}", leaf.name));
    }
    lines.push(format!("{parameters} parameters"));
    lines.join("\n")
}
