//! Errors that a caller can act on.
//!
//! Functions of this crate return [`anyhow::Result`]. Where a caller may want to act, an [`Error`] is in the chain of causes;
//! [`kind`] finds it, whatever context was added:
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

/// Why something cannot be done.
#[derive(Debug)]
pub enum Error {
    /// A value that the caller passed is out of range or inconsistent with another one. Displays as `FIELD PROBLEM`.
    Invalid {
        /// Name of the field in the struct that holds the value.
        field: &'static str,
        /// What is wrong, as a phrase that begins with the value or a verb: `"0 is not positive"`.
        problem: String,
    },
    /// The caller asked for something that there is not, such as a device of an unknown kind.
    Usage(anyhow::Error),
    /// A file cannot be read or is not what it should be.
    Data(anyhow::Error),
    /// A device or its library cannot be had.
    Device(anyhow::Error),
    /// A loss or gradient is not finite. Training stopped before the update.
    NotFinite {
        /// The step, counted from 1.
        step: usize,
        /// The step's loss.
        loss: f32,
        /// Global norm of the step's gradient.
        grad_norm: f32,
        /// Whether the state before the step was saved, in words.
        saved: String,
    },
    /// The examples are not those that the run was trained on.
    OtherExamples {
        /// Which ones: `"training"` or `"test"`.
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
            // The error itself is what this one displays.
            Error::Usage(error) | Error::Data(error) | Error::Device(error) => error.chain().nth(1),
            Error::Invalid { .. } | Error::NotFinite { .. } | Error::OtherExamples { .. } => None,
        }
    }
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pass another value.
    Usage,
    /// Mend or replace a file.
    Data,
    /// Look at the device, its library and who else uses it.
    Device,
    /// Train with a lower learning rate or a lower limit of the gradient's norm.
    NotFinite,
    /// Look at the file system: the error's chain has the [`io::Error`].
    Io,
    /// Nothing that the library knows.
    Other,
}

/// Returns what kind an error is of: that of the first [`Error`] in its chain of causes.
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

/// Gives errors a kind.
pub(crate) trait Tag<T> {
    /// Wraps the error as this variant of [`Error`], unless its chain has one already.
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

/// Returns [`Error::Invalid`] for a field from the enclosing function unless a condition holds.
macro_rules! valid {
    ($condition:expr, $field:expr, $($problem:tt)+) => {
        if !$condition {
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
    fn a_kind_stays_under_context_and_the_text_is_as_without_it() {
        let plain = || -> anyhow::Result<()> { Err(anyhow!("the cause").context("the file")) };
        let tagged = plain().tag(Error::Data).context("outside");
        let error = tagged.tag(Error::Device).unwrap_err();
        assert_eq!(kind(&error), Kind::Data);
        assert_eq!(format!("{error:#}"), "outside: the file: the cause");
        assert_eq!(kind(&plain().unwrap_err()), Kind::Other);
        assert_eq!(kind(&anyhow::Error::from(io::Error::other("disk")).context("cannot write")), Kind::Io);
    }
}
