//! A run of several processes: process 0 hosts a [`Coordinator`], and every process joins it with a
//! [`Session`].
//!
//! A session is the store through which the PJRT clients of the processes find each other
//! ([`KeyValues`](crate::engine::key_values::KeyValues)), and it learns when another process fails or dies.
//! Devices exchange their data themselves; none of it goes through here.
//!
//! ```no_run
//! use vnca::hosts::{Coordinator, Session, Settings};
//!
//! # fn main() -> anyhow::Result<()> {
//! # let (process, processes) = (0, 2);
//! let settings = Settings::default();
//! let coordinator = match process {
//!     0 => Some(Coordinator::start("[::]:8482", processes, &settings)?),
//!     _ => None,
//! };
//! let session = Session::join("host0:8482", process, processes, &settings)?;
//! session.on_failure(|failure| {
//!     eprintln!("{failure}");
//!     std::process::exit(1);
//! });
//! // ... the work ...
//! session.leave()?;
//! drop(coordinator);
//! # Ok(())
//! # }
//! ```
//!
//! The protocol is the coordination service of XLA in the version of jaxlib 0.10.2, without encryption and
//! without passwords: whoever reaches the port can write to the store. Use it in a network that only the
//! run's machines reach.

use std::fmt;
use std::time::Duration;

use crate::error::valid;

mod client;
pub mod found;
mod messages;
mod server;
mod state;

pub use client::Session;
pub use server::Coordinator;

/// How long the processes of a run wait for each other. All of them use the same settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Time between two heartbeats of a process.
    pub heartbeat: Duration,
    /// Time without a heartbeat after which a process counts as dead, and time without an answer after which
    /// the coordinator does.
    pub dead_after: Duration,
    /// Time within which all processes have to join.
    pub join: Duration,
    /// Time that a process waits for the others to leave.
    pub leave: Duration,
}

impl Default for Settings {
    /// Heartbeats every 5 s, death after 20 s, 5 min to join and to leave.
    fn default() -> Settings {
        let five_minutes = Duration::from_secs(300);
        Settings {
            heartbeat: Duration::from_secs(5),
            dead_after: Duration::from_secs(20),
            join: five_minutes,
            leave: five_minutes,
        }
    }
}

impl Settings {
    /// Checks the settings and the number of processes.
    fn check(&self, processes: usize) -> anyhow::Result<()> {
        valid!(
            (1..=i32::MAX as usize).contains(&processes),
            "processes",
            "{processes} is not a number of processes"
        );
        valid!(!self.heartbeat.is_zero(), "heartbeat", "is zero");
        let (heartbeat, dead_after) = (self.heartbeat, self.dead_after);
        valid!(
            dead_after / 2 >= heartbeat,
            "dead_after",
            "{dead_after:?} is less than two heartbeats of {heartbeat:?}"
        );
        Ok(())
    }
}

/// Why a run of several processes cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process that failed; `None` when the coordinator, of another program, does not name it.
    pub process: Option<usize>,
    /// The reason as a sentence, with the process.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Failure {}

/// Returns a number that differs between starts of a process.
fn incarnation() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Zero would mean that the sender has none.
    RandomState::new().build_hasher().finish().max(1)
}

/// Starts a runtime with one thread of its own, so that callers need none.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).thread_name("vnca-hosts").enable_io().enable_time().build()
}
