//! The store through which the processes of a run find each other: names with values that all of them see.
//!
//! PJRT clients of several processes exchange their topology and the ids of their collectives through it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

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

    /// Forgets a key that nobody asks for any more. A store that keeps all of them may do nothing.
    ///
    /// # Errors
    /// When the store cannot be reached.
    fn delete(&self, _key: &str) -> Result<(), KeyError> {
        Ok(())
    }
}

/// Checks that all of `count` processes, of which this is the one with number `index`, pass the same text, such as a
/// configuration. Each name can be used once.
///
/// # Errors
/// On every process, when one text differs from that of process 0: names the process and the first line that differs. When a
/// process does not call this within `patience`, or the store fails.
pub fn agree(
    store: &dyn KeyValues,
    (index, count): (usize, usize),
    name: &str,
    own: &str,
    patience: Duration,
) -> Result<()> {
    let key = |part: &str| format!("vnca/agree/{name}/{part}");
    let text = |key: &str| -> Result<String> {
        let value =
            store.get(key, patience).with_context(|| format!("the processes do not agree on {name} yet"))?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    };
    // Process 0 compares, so that everyone has the same result, and each text travels once.
    if index > 0 {
        store.put(&key(&index.to_string()), own.as_bytes())?;
    } else {
        let mut verdict = String::new();
        for process in 1..count {
            if let Some(difference) = difference(own, &text(&key(&process.to_string()))?) {
                verdict = format!("process {process} does not agree with process 0 on {name}: {difference}");
                break;
            }
        }
        store.put(&key("verdict"), verdict.as_bytes())?;
    }
    let verdict = text(&key("verdict"))?;
    ensure!(verdict.is_empty(), verdict);
    Ok(())
}

/// Describes the first line in which two texts differ.
fn difference(first: &str, other: &str) -> Option<String> {
    let (mut of_first, mut of_other) = (first.lines(), other.lines());
    for number in 1.. {
        match (of_first.next(), of_other.next()) {
            (None, None) => break,
            (one, two) if one == two => {}
            (one, two) => {
                let show = |line: Option<&str>| line.map_or("missing".to_owned(), |line| format!("{line:?}"));
                return Some(format!("line {number} is {}, that of process 0 is {}", show(two), show(one)));
            }
        }
    }
    (first != other).then(|| "only the ends of lines differ".to_owned())
}
