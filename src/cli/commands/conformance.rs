//! `vnca conformance`.

use serde_json::json;

use super::progress::spinner;
use super::{DeviceOptions, Outcome, inform, print};
use crate::cli::error::Exit;
use crate::cli::hosts::HostOptions;
use crate::engine::conformance::{self, Check};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    hosts: HostOptions,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    args.hosts.run(Some(&args.device.device), |hosts| check(args, &args.device.together(hosts)))
}

fn check(args: &Args, device: &DeviceOptions) -> Outcome {
    let mesh = device.open(conformance::MOST_REPLICAS, None)?;
    inform(&format!("device  {}", mesh.describe()));
    let bar = spinner();
    let checks = conformance::run(&mesh, |family| {
        bar.set_message(family.to_string());
        bar.tick();
    });
    bar.finish_and_clear();
    let failed: Vec<&Check> = checks.iter().filter(|check| check.error.is_some()).collect();
    if args.json {
        let figures = json!({"device": mesh.describe(), "devices": mesh.devices(), "passed": checks.len() - failed.len(),
            "failed": failed.len(), "checks": checks});
        print(&figures.to_string())?;
    } else {
        print(&table(&checks))?;
        print(&format!(
            "{} of {} cases passed on {} device(s)",
            checks.len() - failed.len(),
            checks.len(),
            mesh.devices()
        ))?;
    }
    Ok((!failed.is_empty()).then_some(Exit::Failure))
}

/// Formats a line for each family and for each failed case.
fn table(checks: &[Check]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for family in checks.chunk_by(|a, b| a.family == b.family) {
        let passed = family.iter().filter(|check| check.error.is_none()).count();
        let verdict = if passed == family.len() { "ok" } else { "BAD" };
        lines.push(format!("{verdict:4} {:16} {passed} of {}", family[0].family, family.len()));
        for check in family {
            lines.extend(check.error.as_ref().map(|error| format!("     {}: {error}", check.name)));
        }
    }
    lines.join("\n")
}
