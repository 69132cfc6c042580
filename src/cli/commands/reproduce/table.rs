//! The table, as a page, as Markdown and as JSON.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};

use super::plan::{BASE, Recipe, Size};
use super::results::{Estimate, Finished, difference};
use super::{Args, Cell, Setting, quoted};
use crate::cli::commands::Report;
use crate::cli::commands::figures::{minus, published_results};
use crate::cli::config::TrainConfig;
use crate::cli::models::Kind;
use crate::engine::shape::Precision;
use crate::files;
use crate::study::figure::page::Page;

/// A row of the table.
struct Row<'a> {
    cell: &'a Cell,
    runs: &'a [Finished],
    /// The bound over the seeds.
    iwelbo: Option<Estimate>,
    /// Its difference from the run without a change.
    effect: Option<Estimate>,
}

/// Writes `table.html` and `table.md`, and returns their content as JSON.
///
/// # Errors
/// When a file cannot be written.
pub fn write(args: &Args, setting: &Setting, cells: &[Cell], finished: &[Vec<Finished>]) -> Result<Report> {
    let mut rows: Vec<Row<'_>> =
        cells.iter().zip(finished).map(|(c, runs)| row(c, runs, cells, finished)).collect();
    if setting.ingredients {
        // The run without a change first, then the best change.
        let rank = |row: &Row<'_>| match &row.cell.change {
            Some((name, _)) if name == BASE => f64::NEG_INFINITY,
            _ => -row.effect.map_or(f64::NEG_INFINITY, |effect| effect.mean),
        };
        let place = |kind: Kind| Kind::ALL.iter().position(|k| *k == kind);
        rows.sort_by(|a, b| place(a.cell.kind).cmp(&place(b.cell.kind)).then(rank(a).total_cmp(&rank(b))));
    }
    let (head, body) = if setting.ingredients { effects(&rows) } else { bounds(&rows) };
    let title =
        if setting.ingredients { "The effect of each change" } else { "The report's results, reproduced" };
    let notes = notes(setting, &rows);
    let [html, md] = ["table.html", "table.md"].map(|name| args.out.join(name));
    files::write_bytes(&html, page(title, &head, &body, &notes, &rows))?;
    files::write_bytes(&md, markdown(title, &head, &body, &notes))?;
    let json = json!({
        "verb": "reproduce",
        "table": html.to_string_lossy(),
        "size": setting.size,
        "rows": rows.iter().map(as_json).collect::<Vec<_>>(),
    });
    Ok(Report { json, text: html.display().to_string() })
}

fn row<'a>(cell: &'a Cell, runs: &'a [Finished], cells: &[Cell], finished: &'a [Vec<Finished>]) -> Row<'a> {
    let values: Vec<f64> = runs.iter().filter_map(|run| run.number("iwelbo")).collect();
    let is_base =
        |other: &Cell| other.kind == cell.kind && other.change.as_ref().is_some_and(|(name, _)| name == BASE);
    let base = cells.iter().position(is_base).map(|at| &finished[at]);
    Row {
        cell,
        runs,
        iwelbo: Estimate::new(&values),
        effect: base.and_then(|base| difference("iwelbo", runs, base)),
    }
}

type Text = (Vec<&'static str>, Vec<Vec<String>>);

/// The table of models beside the published bounds.
fn bounds(rows: &[Row<'_>]) -> Text {
    let head = vec![
        "",
        "size",
        "steps",
        "training a run",
        "IWELBO, nats",
        "its error over images",
        "published",
        "original paper",
    ];
    let cells = |row: &Row<'_>| {
        let published = published_results(row.cell.kind);
        let over_images = row.runs.first().and_then(|run| run.number("stderr"));
        vec![
            row.cell.kind.name().into(),
            row.size(),
            row.steps(),
            row.time(),
            row.bound(),
            over_images.map_or(NONE.into(), |error| format!("{error:.2}")),
            minus(published.iwelbo, 2),
            published.original.map_or(NONE.into(), |bound| minus(bound, 2)),
        ]
    };
    (head, rows.iter().map(cells).collect())
}

/// The table of the changes' effects.
fn effects(rows: &[Row<'_>]) -> Text {
    let head = vec!["", "change", "what it is", "IWELBO, nats", "effect, nats", "time of a run", "verdict"];
    let cells = |row: &Row<'_>| {
        let none = (NONE.to_string(), NONE.to_string());
        let (name, about) = row.cell.change.as_ref().unwrap_or(&none);
        let base = rows.iter().find(|r| r.cell.kind == row.cell.kind && r.is_base());
        let time = base.and_then(|base| Some(row.seconds()? / base.seconds()?));
        vec![
            row.cell.kind.name().into(),
            name.clone(),
            about.clone(),
            row.bound(),
            if row.is_base() { NONE.into() } else { row.effect.map_or(NONE.into(), |effect| effect.text()) },
            time.map_or(NONE.into(), |share| format!("{share:.2}")),
            row.verdict(),
        ]
    };
    (head, rows.iter().map(cells).collect())
}

const NONE: &str = "\u{2013}";

impl Row<'_> {
    fn is_base(&self) -> bool {
        self.cell.change.as_ref().is_some_and(|(name, _)| name == BASE)
    }

    fn diverged(&self) -> usize {
        self.runs.iter().filter(|run| run.not_finite.is_some()).count()
    }

    /// The bound over the seeds, with the number of runs that diverged.
    fn bound(&self) -> String {
        let text = self.iwelbo.map_or(NONE.into(), |bound| bound.text());
        match self.diverged() {
            0 => text,
            n => format!("{text} ({n} of {} diverged)", self.runs.len()),
        }
    }

    /// Whether an effect is larger than two standard errors.
    fn verdict(&self) -> String {
        let text = match self.effect {
            _ if self.is_base() => return NONE.into(),
            _ if self.diverged() > 0 => "worse: diverges",
            Some(Estimate { mean, stderr: Some(error) }) if mean > 2.0 * error => "better",
            Some(Estimate { mean, stderr: Some(error) }) if mean < -2.0 * error => "worse",
            Some(Estimate { stderr: Some(_), .. }) => "not clear",
            _ => "not known from one seed",
        };
        text.into()
    }

    /// The configuration that the first run has recorded.
    fn config(&self) -> Option<TrainConfig> {
        TrainConfig::from_run(&self.runs.first()?.run).ok()
    }

    fn size(&self) -> String {
        let Some(config) = self.config() else { return NONE.into() };
        let model = config.model;
        let steps = match model.kind {
            Kind::Baseline => String::new(),
            Kind::Doubling => format!(", {} steps a doubling", model.nca_steps),
            Kind::NonDoubling => format!(", {} steps", model.nca_steps),
        };
        let precision = if model.precision == Precision::Bf16 { ", bf16" } else { "" };
        format!("Z {}{steps}, batch {}{precision}", model.latent, config.batch_size)
    }

    fn steps(&self) -> String {
        let Some(config) = self.config() else { return NONE.into() };
        let optimiser = config.optimiser;
        let (steps, rate) = (config.steps, optimiser.learning_rate);
        let report = TrainConfig::report(self.cell.kind);
        if steps >= report.steps {
            return steps.to_string();
        }
        let schedule = if optimiser.end_factor == 1.0 {
            String::new()
        } else {
            format!(", rising over {} steps, then falling to 0", optimiser.warmup)
        };
        format!("{steps} of {}; learning rate {rate}{schedule}", report.steps)
    }

    /// Mean seconds of a run's training.
    fn seconds(&self) -> Option<f64> {
        let seconds = self.runs.iter().filter_map(Finished::seconds);
        Some(Estimate::new(&seconds.collect::<Vec<_>>())?.mean)
    }

    fn time(&self) -> String {
        let device = self.runs.iter().find_map(|run| Some(run.trained.as_ref()?.device.as_str()));
        match (self.seconds(), device) {
            (Some(seconds), Some(device)) if seconds < 600.0 => format!("{seconds:.0} s on {device}"),
            (Some(seconds), Some(device)) => format!("{:.2} h on {device}", seconds / 3600.0),
            _ => NONE.into(),
        }
    }
}

/// Says what the numbers are of, and what differs from the report.
fn notes(setting: &Setting, rows: &[Row<'_>]) -> Vec<String> {
    let summary =
        rows.iter().flat_map(|row| row.runs).find_map(|run| Some(&run.evaluation.as_ref()?.summary));
    let mut notes = Vec::new();
    if let Some(summary) = summary {
        notes.push(format!(
            "Bounds on log p(x) in nats, greater is better: {}, {} images, {} samples each. After \u{b1}: the standard error over \
             the seeds.",
            summary["data"].as_str().unwrap_or_default(),
            summary["images"],
            summary["samples"],
        ));
    }
    notes.push(match setting.valid {
        0 => "Trained on all training images. The last weights are evaluated: test images choose nothing."
            .into(),
        n => format!(
            "The last {n} training images are not trained on. {}",
            if setting.ingredients {
                "The table is of them, and of each run's last weights."
            } else {
                "They choose each run's best checkpoint."
            }
        ),
    });
    if setting.ingredients {
        notes.push(
            "Effects are differences from the runs without a change with the same seeds. Better and worse are effects of more than \
             two standard errors. Among many changes, some seem better by chance: repeat a winner with other seeds."
                .into(),
        );
    } else {
        notes.push(
            "Published: 128 samples on the 10,000 test images of static binarized MNIST, one run.".into(),
        );
    }
    if setting.recipe == Recipe::Best {
        notes.push(
            "Trained with the presets best-MODEL: not as in the report, and the non-doubling model grows from 4 x 4 cells.".into(),
        );
    }
    if setting.size == Size::Small {
        notes.push(
            "The models are smaller than the report's, so that the bounds do not compare with the published ones. --size report \
             trains the report's."
                .into(),
        );
    }
    notes
}

fn page(title: &str, head: &[&str], body: &[Vec<String>], notes: &[String], rows: &[Row<'_>]) -> String {
    let mut page = Page::new(title);
    page.section("table", "Table");
    page.table(head, body);
    notes.iter().for_each(|note| page.text(note));
    page.section("commands", "Commands");
    for run in rows.iter().flat_map(|row| row.runs) {
        run.commands().into_iter().for_each(|words| page.command(&quoted(words)));
    }
    page.html()
}

fn markdown(title: &str, head: &[&str], body: &[Vec<String>], notes: &[String]) -> String {
    let line =
        |cells: &mut dyn Iterator<Item = &str>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let mut text = format!("# {title}\n\n");
    text += &line(&mut head.iter().copied());
    text += &line(&mut head.iter().map(|_| "---"));
    for row in body {
        text += &line(&mut row.iter().map(String::as_str));
    }
    for note in notes {
        let _ = write!(text, "\n{note}\n");
    }
    text
}

fn as_json(row: &Row<'_>) -> Value {
    let published = published_results(row.cell.kind);
    json!({
        "model": row.cell.kind,
        "change": row.cell.change.as_ref().map(|(name, _)| name),
        "steps": row.cell.options.number("steps", row.cell.length.steps),
        "iwelbo": row.iwelbo,
        "effect": row.effect,
        "published": published.iwelbo,
        "training_seconds": row.seconds(),
        "runs": row.runs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_has_a_line_for_each_row() {
        let body = vec![vec!["a".to_string(), "1".into()], vec!["b".into(), "2".into()]];
        let text = markdown("T", &["", "x"], &body, &["Note.".into()]);
        assert_eq!(text, "# T\n\n|  | x |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n\nNote.\n");
    }
}
