//! The store through which the processes of a run find each other: names with values that all of them see.
//!
//! PJRT clients of several processes exchange their topology and the ids of their collectives through it.

use std::fmt;
use std::time::Duration;

/// Why a store did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Nobody put a value for the key in time.
    DeadlineExceeded(String),
    /// The key has no value yet.
    NotFound(String),
    /// The key has a value already.
    AlreadyExists(String),
    /// The store cannot be reached, or has ended.
    Unavailable(String),
}

impl KeyError {
    /// Returns the message.
    pub fn message(&self) -> &str {
        match self {
            KeyError::DeadlineExceeded(text)
            | KeyError::NotFound(text)
            | KeyError::AlreadyExists(text)
            | KeyError::Unavailable(text) => text,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for KeyError {}

/// A store of keys that all processes of a run share. Every key is put once.
pub trait KeyValues: Send + Sync {
    /// Waits until a key has a value, and returns it.
    ///
    /// # Errors
    /// [`KeyError::DeadlineExceeded`] when it has none after `timeout`.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, KeyError>;

    /// Returns a key's value without waiting.
    ///
    /// # Errors
    /// [`KeyError::NotFound`] when it has none.
    fn try_get(&self, key: &str) -> Result<Vec<u8>, KeyError>;

    /// Gives a key its value.
    ///
    /// # Errors
    /// [`KeyError::AlreadyExists`] when it has one.
    fn put(&self, key: &str, value: &[u8]) -> Result<(), KeyError>;
}
