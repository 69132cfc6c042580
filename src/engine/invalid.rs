//! A value that a caller gave and that cannot be used.

use std::fmt;

/// A value out of its range, or that does not fit another one. Displays as `FIELD PROBLEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Name of the field, as in the structure that holds it.
    pub field: &'static str,
    /// What is wrong with it: begins with its value.
    pub problem: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl std::error::Error for Invalid {}

/// Returns with an [`Invalid`] of a field unless a condition holds.
macro_rules! valid {
    ($condition:expr, $field:expr, $($problem:tt)+) => {
        if !$condition {
            return Err($crate::engine::invalid::Invalid { field: $field, problem: format!($($problem)+) }.into());
        }
    };
}
pub(crate) use valid;
