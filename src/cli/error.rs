//! Exit codes, and errors that carry one.

use std::fmt;

use crate::engine::invalid::Invalid;

/// The exit codes of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something went wrong that is none of the below.
    Failure = 1,
    /// The command line, the environment or the configuration file is wrong.
    Usage = 2,
    /// A file that was given cannot be read or is not what it should be.
    BadInput = 3,
    /// A device or its library cannot be had.
    Device = 4,
    /// Training stopped before an update, because the loss or the gradient was not finite.
    NotFinite = 5,
    /// Stopped by Ctrl-C after the state was saved.
    Interrupted = 130,
    /// Stopped by SIGTERM after the state was saved.
    Terminated = 143,
}

impl Exit {
    /// All exit codes other than success, each with its meaning for the help text.
    pub const ALL: [(Exit, &'static str); 7] = [
        (Exit::Failure, "something else went wrong"),
        (Exit::Usage, "the command line, environment or configuration file is wrong"),
        (Exit::BadInput, "a file cannot be read or is not what it should be"),
        (Exit::Device, "a device or its library cannot be had"),
        (Exit::NotFinite, "the loss or gradient was not finite: training stopped before the update"),
        (Exit::Interrupted, "Ctrl-C: the state was saved"),
        (Exit::Terminated, "SIGTERM: the state was saved"),
    ];
}

/// An error with its exit code.
#[derive(Debug)]
struct Coded {
    exit: Exit,
    error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Coded {}

/// Attaches exit codes to errors.
pub trait WithExit<T> {
    /// Attaches an exit code to the error, unless it already has one.
    ///
    /// # Errors
    /// The same error, with the code.
    fn exit(self, exit: Exit) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithExit<T> for Result<T, E> {
    fn exit(self, exit: Exit) -> anyhow::Result<T> {
        self.map_err(|error| coded(exit, error.into()))
    }
}

/// Attaches an exit code to an error, unless it already has one.
pub fn coded(exit: Exit, error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Coded>() {
        Some(_) => error,
        None => Coded { exit, error }.into(),
    }
}

/// Returns the exit code of an error: its own, [`Exit::Usage`] for an [`Invalid`] value, else [`Exit::Failure`].
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let invalid = || error.chain().any(|cause| cause.is::<Invalid>());
    match error.downcast_ref::<Coded>() {
        Some(coded) => coded.exit,
        None if invalid() => Exit::Usage,
        None => Exit::Failure,
    }
}

/// Formats an error for the terminal: its chain of causes, with flags in the place of field names.
pub fn describe(error: &anyhow::Error) -> String {
    if let Some(coded) = error.downcast_ref::<Coded>() {
        return describe(&coded.error);
    }
    let link = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<Invalid>() {
        Some(Invalid { field, problem }) => format!("--{} {problem}", field.replace('_', "-")),
        None => cause.to_string(),
    };
    error.chain().map(link).collect::<Vec<_>>().join(": ")
}
