//! The command line of the program `vnca`: parses arguments, runs a verb, prints errors and sets the exit code.
//!
//! The public parts are those that tests and tools share with the program: the parser, the options of training, and the
//! report's models and optimiser by name.

mod commands;
pub mod config;
mod environment;
mod error;
pub mod hosts;
pub mod huge_pages;
pub mod image_options;
pub mod models;
pub mod optimiser;
pub mod options;
mod origin;
pub mod pretrained;
mod values;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use commands::{
    Outcome, ais, conformance, convert, data, doctor, eval, figures, grow, inspect, interpolate, label,
    latents, page, planes, probe, reconstruct, recover, reproduce, run_exported, sample, to_stderr, train,
    tsne,
};
#[cfg(feature = "xla")]
use commands::{compile, export};
use error::{Exit, describe, exit_code};

/// Train, evaluate and study Variational Neural Cellular Automata on XLA devices.
#[derive(Debug, Parser)]
#[command(name = "vnca", version, after_help = after_help(), propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Also show the messages of the XLA library
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Load programs from a folder that `vnca export` wrote instead of building them
    #[arg(long, global = true, value_name = "DIR", env = "VNCA_PROGRAMS")]
    #[allow(dead_code, reason = "the verbs that run programs take it as an option of the device")]
    programs: Option<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model: a run folder with metrics, pictures and checkpoints
    Train(Box<train::Args>),
    /// Measure the IWELBO of a trained model over a test set
    Eval(eval::Args),
    /// Check the IWELBO by another estimate of log p(x), annealed importance sampling
    ///
    /// Chains of latents pass from q(z | x) to p(x, z) at --temperatures inverse temperatures, with a move of Hamiltonian Monte Carlo
    /// at each. The mean over --chains gives an estimate that is in the mean at most log p(x), as the IWELBO is, and closer to it the
    /// more temperatures there are. Prints both for the same images, 100 evenly spaced ones by default, and their difference. If the
    /// IWELBO is higher beyond the noise, and still so with more temperatures, it is too high.
    Ais(ais::Args),
    /// Find the labels of binarized images from their grey originals
    ///
    /// Each image gets the label of its most likely original, which maximises the sum over pixels of
    /// log Bernoulli(pixel; grey / 255).
    ///
    /// Writes to the folder --out: labels.npy (u8), indices.npy (i32, the index of the original) and margins.npy (f32, by how
    /// many nats the original is more likely than the next best one; infinite if no other original is possible).
    Label(label::Args),
    /// Write the latents of images, and the cells that grow from them, as arrays
    ///
    /// Arrays for n images, float32: means, logvars and samples of the latents' distribution, (n, Z) each; with --states also
    /// the cells' final states, (n, 32, 32, Z), whose channel 0 is the pixel's logit. Labels (n,), uint8, if they are known.
    /// Arrays are written in parts, so that they may exceed the memory.
    Latents(latents::Args),
    /// Draw a t-SNE map of latents, and measure how well it separates the classes
    ///
    /// The accuracies are the share of points with the label of most of their nearest neighbours, among the latents' means and
    /// in the map. Equal seeds give equal maps, bit for bit.
    Tsne(tsne::Args),
    /// Train a linear probe that predicts an image's label from each single cell
    ///
    /// The probe is a softmax regression on every cell's final state (32 x 32 cells of Z numbers per image), trained on 80 % of
    /// the images and tested on the others. Writes to --out: probe.npz (weight (10, Z) and bias (10,)), positions.npy and
    /// positions.png (accuracy at each position of the grid) and prior.png (channel 0 of samples of the prior, the class
    /// predicted from each cell, and its softmax value).
    Probe(probe::Args),
    /// Show samples of the prior
    Sample(sample::Args),
    /// Show images above their reconstructions
    Reconstruct(reconstruct::Args),
    /// Show the interpolation between two samples or two images
    Interpolate(interpolate::Args),
    /// Show how samples grow, as a grid and an animation
    Grow(grow::Args),
    /// Damage grown pictures and show and measure their recovery
    Recover(recover::Args),
    /// Write an interactive page: one HTML file that grows pictures in a browser
    Page(page::Args),
    /// Show channels of grown cells as stacked planes
    Planes(planes::Args),
    /// Draw the report's figures and table of results from runs, as files and as one page, report.html
    Figures(figures::Args),
    /// Train the report's models, evaluate them and write a table beside the published results
    ///
    /// Each model is trained with --seeds seeds. The folder --out gets the runs, their evaluations, the figures, and the table as
    /// table.html and table.md. Run again, the command goes on where it was stopped, and repeats no finished part.
    ///
    /// With --ingredients, trains each known improvement of a model alone instead, and writes the table of their effects on
    /// validation images.
    Reproduce(Box<reproduce::Args>),
    /// Convert weights to another file type: .npz, .safetensors or Equinox's .eqx
    Convert(convert::Args),
    /// List the parameters of a model or a checkpoint
    Inspect(inspect::Args),
    /// Fetch or verify data sets
    Data(data::Args),
    /// Write a model's programs to files
    #[cfg(feature = "xla")]
    Export(export::Args),
    /// Run a single exported program
    RunExported(run_exported::Args),
    /// Compile for TPUs and GPUs without one: memory, work and time of each program
    #[cfg(feature = "xla")]
    Compile(compile::Args),
    /// Check that a device computes right results and refuses wrong arguments
    ///
    /// Checks every operation, loops and their gradients, random draws, collectives over 1, 2, 4 and 8 devices (as many as
    /// exist), transfers, donation and wrong arguments. The expected results were computed without any device.
    Conformance(conformance::Args),
    /// Check the library, the devices and the memory
    ///
    /// The chosen device must work. Problems of other devices are reported, but are no failure.
    Doctor(doctor::Args),
}

impl Command {
    /// Reports whether the verb may run much longer than a restart of the process takes.
    fn is_long(&self) -> bool {
        use Command::{Ais, Eval, Figures, Latents, Probe, Reproduce, Train};
        matches!(self, Train(_) | Eval(_) | Ais(_) | Figures(_) | Latents(_) | Probe(_) | Reproduce(_))
    }

    /// Reports whether the verb runs programs that `--programs` can replace.
    fn takes_programs(&self) -> bool {
        use Command::{Ais, Convert, Data, Doctor, Inspect, Reproduce, RunExported};
        let own = matches!(
            self,
            Ais(_) | Convert(_) | Data(_) | Doctor(_) | Inspect(_) | Reproduce(_) | RunExported(_)
        );
        #[cfg(feature = "xla")]
        let own = own || matches!(self, Command::Export(_) | Command::Compile(_));
        !own
    }

    fn run(self) -> Outcome {
        match self {
            Command::Train(args) => train::run(&args),
            Command::Eval(args) => eval::run(&args),
            Command::Ais(args) => ais::run(&args),
            Command::Label(args) => label::run(&args),
            Command::Latents(args) => latents::run(&args),
            Command::Tsne(args) => tsne::run(&args),
            Command::Probe(args) => probe::run(&args),
            Command::Sample(args) => sample::run(&args),
            Command::Reconstruct(args) => reconstruct::run(&args),
            Command::Interpolate(args) => interpolate::run(&args),
            Command::Grow(args) => grow::run(&args),
            Command::Recover(args) => recover::run(&args),
            Command::Page(args) => page::run(&args),
            Command::Planes(args) => planes::run(&args),
            Command::Figures(args) => figures::run(&args),
            Command::Reproduce(args) => reproduce::run(&args),
            Command::Convert(args) => convert::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Data(args) => data::run(&args),
            #[cfg(feature = "xla")]
            Command::Export(args) => export::run(&args),
            Command::RunExported(args) => run_exported::run(&args),
            #[cfg(feature = "xla")]
            Command::Compile(args) => compile::run(&args),
            Command::Conformance(args) => conformance::run(&args),
            Command::Doctor(args) => doctor::run(&args),
        }
    }
}

fn after_help() -> String {
    let codes: Vec<String> =
        Exit::ALL.iter().map(|(exit, meaning)| format!("  {:>3}  {meaning}", *exit as i32)).collect();
    format!("Exit codes:\n    0  success\n{}", codes.join("\n"))
}

/// Returns the table of verbs for the README, in Markdown: each verb's name and what it does.
pub fn verbs_table() -> String {
    let mut rows = vec!["| verb | what it does |".to_string(), "| --- | --- |".to_string()];
    for verb in Cli::command().get_subcommands() {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        rows.push(format!("| `vnca {}` | {about} |", verb.get_name()));
    }
    rows.join("\n")
}

/// Parses the command line. Refuses the flag `--programs` for verbs that run no programs. Ignores the environment variable for
/// them, because it may be set for other verbs.
fn checked(matches: &ArgMatches) -> Result<Cli, clap::Error> {
    let cli = Cli::from_arg_matches(matches)?;
    let is_given = matches.value_source("programs") == Some(ValueSource::CommandLine);
    if is_given && !cli.command.takes_programs() {
        let verb = matches.subcommand_name().unwrap_or_default();
        let message = format!("{verb} runs no programs that --programs could replace; omit the flag");
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
    }
    Ok(cli)
}

/// Adds the name of the environment variable that a wrong value came from. Clap names only the flag.
fn named_variable(mut error: clap::Error) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (Some(flag), Some(value)) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) else {
        return error;
    };
    // `--steps <N>`, `--skip-bad[=<BOOL>]`
    let name = flag.split([' ', '[', '=']).next().unwrap_or_default();
    let is_given = environment::is_given(name.trim_start_matches("--"));
    let command = Cli::command();
    let from_variable = command.get_subcommands().flat_map(|verb| verb.get_arguments()).find(|arg| {
        let has_value = |name| std::env::var_os(name).is_some_and(|found| found == *value);
        arg.get_long() == name.strip_prefix("--") && arg.get_env().is_some_and(has_value)
    });
    if let Some(variable) = from_variable.and_then(|arg| arg.get_env()).filter(|_| !is_given) {
        let tip = format!("the value comes from the environment variable {}", variable.display());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// Runs the command line of this process and returns its exit code. Prints errors to stderr.
pub fn main() -> ExitCode {
    let matches = Cli::command().try_get_matches().unwrap_or_else(|error| named_variable(error).exit());
    let cli = checked(&matches).unwrap_or_else(|error| error.exit());
    if cli.command.is_long() {
        huge_pages::restart_with_huge_pages();
    }
    environment::start_log(cli.verbose);
    if !matches!(cli.command, Command::Train(_) | Command::Reproduce(_)) {
        // Training has its own handling of signals.
        environment::end_on_signals_as_first_process();
    }
    match cli.command.run() {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(exit)) => ExitCode::from(exit as u8),
        Err(error) => {
            let red = if std::io::stderr().is_terminal() { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
            to_stderr(&format!("{}error{}: {}", red.0, red.1, describe(&error)));
            ExitCode::from(exit_code(&error) as u8)
        }
    }
}
