//! Errors that a caller can act on.
//!
//! Functions of this crate return [`anyhow::Result`]. If a caller may want to act on an error, its chain of causes contains an
//! [`Error`]. [`kind`] finds it below any context:
//!
//! ```
//! use vnca::error::{Kind, kind};
//! use vnca::model::report;
//! use vnca::model::Grow;
//!
//! let mut model = report::doubling(256, 5, 8);
//! model.latent = 0;
//! let error = model.check().unwrap_err().context("my model");
//! assert_eq!(kind(&error), Kind::Usage);
//! ```

use std::{fmt, io};

use serde::{Deserialize, Serialize};

/// An error that a caller can act on.
#[derive(Debug)]
pub enum Error {
    /// A value that the caller passed is out of range or inconsistent with another one. Displays as `FIELD PROBLEM`.
    Invalid {
        /// Name of the field in the struct that holds the value.
        field: &'static str,
        /// The problem, as a phrase that begins with the value or a verb: `"0 is not positive"`.
        problem: String,
    },
    /// The caller asked for something that does not exist, such as a device of an unknown kind.
    Usage(anyhow::Error),
    /// A file cannot be read, or its content is not what was expected.
    Data(anyhow::Error),
    /// A device or its library is not available.
    Device(anyhow::Error),
    /// A loss or gradient is not finite. Training stopped before the update.
    NotFinite {
        /// The step, counted from 1.
        step: usize,
        /// The step's loss.
        loss: f32,
        /// Global norm of the step's gradient.
        grad_norm: f32,
        /// Text that reports whether the state before the step was saved.
        saved: String,
    },
    /// The examples differ from those that the run was trained on.
    OtherExamples {
        /// The part of the data: `"training"` or `"test"`.
        part: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid { field, problem } => write!(f, "{field} {problem}"),
            Error::Usage(error) | Error::Data(error) | Error::Device(error) => error.fmt(f),
            Error::NotFinite { step, loss, grad_norm, saved } => write!(
                f,
                "step {step}: loss {}, gradient norm {}: not finite, so training stopped before the update; {saved}",
                number(*loss),
                number(*grad_norm)
            ),
            Error::OtherExamples { part } => {
                write!(f, "the {part} images are not those of the run that is resumed")
            }
        }
    }
}

/// Formats a number that may be huge.
fn number(value: f32) -> String {
    if value.is_finite() && value.abs() >= 1e7 { format!("{value:.3e}") } else { value.to_string() }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Display shows the wrapped error itself, so its source is the next cause.
            Error::Usage(error) | Error::Data(error) | Error::Device(error) => error.chain().nth(1),
            Error::Invalid { .. } | Error::NotFinite { .. } | Error::OtherExamples { .. } => None,
        }
    }
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Pass another value.
    Usage,
    /// Repair or replace a file.
    Data,
    /// Check the device, its library and other processes that use it.
    Device,
    /// Train with a lower learning rate or a lower limit on the gradient norm.
    NotFinite,
    /// Check the file system. The chain of causes contains the [`io::Error`].
    Io,
    /// No specific action.
    Other,
}

/// Returns the kind of the first [`Error`] in a chain of causes.
pub fn kind(error: &anyhow::Error) -> Kind {
    match find(error) {
        Some(Error::Invalid { .. } | Error::Usage(_)) => Kind::Usage,
        Some(Error::Data(_)) => Kind::Data,
        Some(Error::Device(_)) => Kind::Device,
        Some(Error::NotFinite { .. }) => Kind::NotFinite,
        Some(Error::OtherExamples { .. }) => Kind::Other,
        None if error.chain().any(|cause| cause.is::<io::Error>()) => Kind::Io,
        None => Kind::Other,
    }
}

/// Returns the first [`Error`] in a chain of causes.
pub fn find(error: &anyhow::Error) -> Option<&Error> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// Wraps errors in a variant of [`Error`].
pub(crate) trait Tag<T> {
    /// Wraps the error in a variant of [`Error`], unless its chain already contains one.
    fn tag(self, variant: fn(anyhow::Error) -> Error) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Tag<T> for Result<T, E> {
    fn tag(self, variant: fn(anyhow::Error) -> Error) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            if find(&error).is_some() { error } else { variant(error).into() }
        })
    }
}

/// Makes the enclosing function return [`Error::Invalid`] for a field unless a condition holds.
macro_rules! valid {
    ($condition:expr, $field:expr, $($problem:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err($crate::error::Error::Invalid { field: $field, problem: format!($($problem)+) }.into());
        }
    };
}
pub(crate) use valid;

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn context_keeps_the_kind_and_tagging_keeps_the_text() {
        let plain = || -> anyhow::Result<()> { Err(anyhow!("the cause").context("the file")) };
        let tagged = plain().tag(Error::Data).context("outside");
        let error = tagged.tag(Error::Device).unwrap_err();
        assert_eq!(kind(&error), Kind::Data);
        assert_eq!(format!("{error:#}"), "outside: the file: the cause");
        assert_eq!(kind(&plain().unwrap_err()), Kind::Other);
        assert_eq!(kind(&anyhow::Error::from(io::Error::other("disk")).context("cannot write")), Kind::Io);
    }
}
