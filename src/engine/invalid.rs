//! The error for an invalid value that a caller passed.

use std::fmt;

/// Reports a field whose value is out of range or inconsistent with another field. Displays as `FIELD PROBLEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Name of the field in the struct that holds it.
    pub field: &'static str,
    /// What is wrong, as a phrase that begins with the value: `"0 is not positive"`.
    pub problem: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl std::error::Error for Invalid {}

/// Returns an [`Invalid`] error for a field from the enclosing function unless a condition holds.
macro_rules! valid {
    ($condition:expr, $field:expr, $($problem:tt)+) => {
        if !$condition {
            return Err($crate::engine::invalid::Invalid { field: $field, problem: format!($($problem)+) }.into());
        }
    };
}
pub(crate) use valid;
