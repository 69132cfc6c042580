//! Exit codes, and the formatting of errors for the terminal.

use super::environment;
use crate::error::{Error, Kind, kind};

/// The exit codes of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An error that has no other code.
    Failure = 1,
    /// The command line, the environment or the configuration file is wrong.
    Usage = 2,
    /// A file cannot be read, or its content is not what was expected.
    BadInput = 3,
    /// A device or its library is not available.
    Device = 4,
    /// Training stopped before an update, because the loss or the gradient was not finite.
    NotFinite = 5,
    /// Another process of the run failed or died.
    OtherProcess = 6,
    /// Stopped by SIGHUP, because its terminal was closed, after the state was saved.
    HungUp = 129,
    /// Stopped by Ctrl-C after the state was saved.
    Interrupted = 130,
    /// Stopped by SIGUSR1, a job scheduler's warning, after the state was saved.
    Warned = 138,
    /// Stopped by SIGUSR2, another job scheduler's warning, after the state was saved.
    WarnedAgain = 140,
    /// Stopped by SIGTERM after the state was saved.
    Terminated = 143,
    /// Stopped by SIGXCPU, at the limit of processor time, after the state was saved.
    OutOfTime = 152,
}

impl Exit {
    /// All exit codes other than success, each with its meaning for the help text.
    pub const ALL: [(Exit, &'static str); 12] = [
        (Exit::Failure, "something else went wrong"),
        (Exit::Usage, "the command line, environment or configuration file is wrong"),
        (Exit::BadInput, "a file cannot be read or is not what it should be"),
        (Exit::Device, "a device or its library is not available"),
        (Exit::NotFinite, "the loss or gradient was not finite: training stopped before the update"),
        (Exit::OtherProcess, "another process of the run failed or died"),
        (Exit::HungUp, "SIGHUP: the state was saved"),
        (Exit::Interrupted, "Ctrl-C: the state was saved"),
        (Exit::Warned, "SIGUSR1: the state was saved"),
        (Exit::WarnedAgain, "SIGUSR2: the state was saved"),
        (Exit::Terminated, "SIGTERM: the state was saved"),
        (Exit::OutOfTime, "SIGXCPU: the state was saved"),
    ];
}

/// Returns the exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> Exit {
    match kind(error) {
        Kind::Usage => Exit::Usage,
        Kind::Data => Exit::BadInput,
        Kind::Device => Exit::Device,
        Kind::NotFinite => Exit::NotFinite,
        Kind::Io | Kind::Other => Exit::Failure,
    }
}

/// Returns the flag that sets a field.
fn flag(field: &str) -> String {
    match field {
        "batch" => "batch-size".into(),
        "loss.samples" => "train-samples".into(),
        "pool.size" => "pool-size".into(),
        "pool.recovery_steps" => "recovery-steps".into(),
        "pool.steps_min" => "nca-steps-min".into(),
        other => other.strip_prefix("loss.").unwrap_or(other).replace('_', "-"),
    }
}

/// Returns the environment variable that has set an option, if one has and the command line does not have the option.
fn from_variable(flag: &str) -> Option<String> {
    let name = format!("VNCA_{}", flag.replace('-', "_").to_uppercase());
    std::env::var_os(&name)?;
    (!environment::is_given(flag)).then_some(name)
}

/// Formats an error for the terminal: its chain of causes, with flags instead of field names.
pub fn describe(error: &anyhow::Error) -> String {
    let link = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<Error>() {
        Some(Error::Invalid { field, problem }) => {
            let flag = flag(field);
            let origin = from_variable(&flag).map(|name| format!(" (from the environment variable {name})"));
            format!("--{flag} {problem}{}", origin.unwrap_or_default())
        }
        Some(error @ Error::NotFinite { .. }) => {
            format!("{error}. Try a lower --learning-rate or --clip-norm")
        }
        Some(error @ Error::OtherExamples { .. }) => {
            format!("{error}: pass the run's own images with --data")
        }
        Some(Error::Usage(_) | Error::Data(_) | Error::Device(_)) | None => cause.to_string(),
    };
    error.chain().map(link).collect::<Vec<_>>().join(": ")
}
