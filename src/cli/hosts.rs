//! Verbs that several processes run together, each with devices of its own: who they are, and how they end.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use signal_hook::low_level;

use super::commands::{Outcome, be_silent, to_stderr};
use super::error::{Exit, describe};
use crate::engine::key_values::{KeyError, KeyValues};
use crate::engine::runtime::{OfAll, OfSeveral, Processes};
use crate::error::{Kind, kind};
use crate::hosts::found::{Found, Given, find};
use crate::hosts::{Coordinator, Session, Settings};

mod metadata;

/// The key under which a process tells the others that a signal asks the run to stop.
const STOP: &str = "vnca/stop";

/// How often a process looks for a signal that it has to tell the others.
const LOOK: Duration = Duration::from_millis(100);

/// This process's place among several.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Several processes")]
pub struct HostOptions {
    /// HOST:PORT of process 0, as the others reach it [default: from the scheduler]
    #[arg(long, value_name = "HOST:PORT", env = "VNCA_COORDINATOR")]
    coordinator: Option<String>,
    /// Number of processes that run this command together, each with devices of its own; 1 for this one alone [default: from
    /// the scheduler: a TPU pod, Kubernetes, Open MPI or Slurm]
    #[arg(long, value_name = "N", env = "VNCA_PROCESSES")]
    processes: Option<usize>,
    /// Number of this process, from 0 [default: from the scheduler]
    #[arg(long, value_name = "I", env = "VNCA_PROCESS")]
    process: Option<usize>,
    /// Seconds to wait until all processes are there
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        env = "VNCA_JOIN_TIMEOUT",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    join_timeout: u64,
}

/// The processes that run a verb together; by default this one alone.
#[derive(Default)]
pub struct Hosts {
    /// `None` if this process is alone.
    several: Option<Several>,
}

struct Several {
    processes: Processes,
    session: Arc<Session>,
}

impl HostOptions {
    /// Runs a verb, together with the other processes if there are any. `device` is the one that the verb will open, if it is
    /// known yet.
    ///
    /// When this process fails, the others end too, with [`Exit::OtherProcess`]. An error that all of them have got ends each with
    /// the error's own code.
    ///
    /// # Errors
    /// The verb's errors. When the options or the environment contradict each other, or the processes do not find each other.
    pub fn run(&self, device: Option<&str>, verb: impl FnOnce(&Hosts) -> Outcome) -> Outcome {
        let Some(found) = self.find(device)? else { return verb(&Hosts::default()) };
        let Found { processes: count, process: index, how, .. } = &found;
        let (index, count) = (*index, *count);
        if index > 0 {
            be_silent();
        }
        let settings = Settings { join: Duration::from_secs(self.join_timeout), ..Settings::default() };
        let place = found.coordinator.clone().context("several processes have a coordinator")?;
        if index == 0 {
            to_stderr(&format!(
                "hosts   {count} processes, coordinator {place} ({how}); waiting for all of them"
            ));
        }
        let coordinator = match found.listen_at().filter(|_| index == 0) {
            Some(address) => Some(Coordinator::start(&address, count, &settings)?),
            None => None,
        };
        let session = Session::join(&place, index, count, &settings)
            .with_context(|| format!("process {index} of {count} ({how})"))?;
        session.on_failure(move |failure| {
            to_stderr(&format!("error: process {index} ends: {failure}"));
            // The verb may wait for the other processes for good. Files are complete at any moment.
            low_level::exit(Exit::OtherProcess as i32);
        });
        log::info!("process {index} of {count}, coordinator {place} ({how})");
        let session = Arc::new(session);
        let store: Arc<dyn KeyValues> = session.clone();
        let several = Several { processes: Processes { index, count, store }, session: session.clone() };
        let hosts = Hosts { several: Some(several) };
        let outcome = hosts
            .agree("the version", concat!("vnca ", env!("CARGO_PKG_VERSION")))
            .and_then(|()| verb(&hosts));
        let ended = end(&session, &settings, &outcome);
        drop(coordinator);
        // What the verb has to say comes first.
        match outcome {
            Err(error) if error.is::<OfAll>() => Err(error),
            outcome => {
                outcome.and_then(|exit| ended.map(|()| exit)).with_context(|| format!("process {index}"))
            }
        }
    }

    /// Returns this process's place among several; `None` if it is alone.
    fn find(&self, device: Option<&str>) -> Result<Option<Found>> {
        let given =
            Given { coordinator: self.coordinator.clone(), processes: self.processes, process: self.process };
        if given.processes == Some(1) {
            return Ok(None);
        }
        let metadata = metadata::Metadata::new(device == Some("tpu"));
        let lookup = |name: &str| std::env::var(name).ok().or_else(|| metadata.get(name));
        let found = find(&given, lookup)?;
        if found.processes == 1 {
            return Ok(None);
        }
        if device.is_none_or(|device| device == "cpu") && given == Given::default() {
            // A sweep of runs on CPUs, each of them alone.
            log::info!("{} processes ({}): on the device cpu each is alone", found.processes, found.how);
            return Ok(None);
        }
        Ok(Some(found))
    }
}

/// Ends this process's part of a run, so that the others end too if it has failed.
fn end(session: &Session, settings: &Settings, outcome: &Outcome) -> Result<()> {
    match outcome {
        Ok(_) => session.leave().context("all is done, but not all other processes have ended"),
        // All of them have got this error.
        Err(error) if error.is::<OfAll>() || kind(error) == Kind::NotFinite => session.leave(),
        Err(error) => {
            if may_be_of_another(error, session) {
                // The others notice a death by the missing heartbeats, and this process ends here.
                let begin = Instant::now();
                while begin.elapsed() < settings.dead_after + 2 * settings.heartbeat {
                    thread::sleep(LOOK);
                }
            }
            session.fail(&describe(error))
        }
    }
}

/// Reports whether an error may come from another process that has died: a program of all of them failed, or process 0 does not
/// answer any more. Then whatever needs its store fails too, such as the opening of a device.
fn may_be_of_another(error: &anyhow::Error, store: &dyn KeyValues) -> bool {
    error.is::<OfSeveral>() || matches!(store.try_get(STOP), Err(KeyError::Unavailable(_)))
}

impl Hosts {
    /// Returns the processes, if there are several.
    pub fn processes(&self) -> Option<&Processes> {
        self.several.as_ref().map(|several| &several.processes)
    }

    /// Reports whether this is process 0, which writes files and prints results.
    pub fn is_first(&self) -> bool {
        self.processes().is_none_or(|processes| processes.index == 0)
    }

    /// Lets process 0 do something, and gives its outcome to all; see [`Processes::lead`].
    ///
    /// # Errors
    /// The error of process 0, on all processes.
    pub fn lead<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match self.processes() {
            Some(processes) => processes.lead(name, act),
            None => act(),
        }
    }

    /// Checks that all processes pass the same text; see [`Processes::agree`].
    ///
    /// # Errors
    /// When a text differs, with the process and the line.
    pub fn agree(&self, name: &str, own: &str) -> Result<()> {
        self.processes().map_or(Ok(()), |processes| processes.agree(name, own))
    }

    /// Tells the other processes the number of the signal that this one has received, as soon as `received` returns one.
    pub fn pass_on(&self, received: impl Fn() -> usize + Send + 'static) {
        let Some(Several { session, .. }) = &self.several else { return };
        let session = Arc::downgrade(session);
        thread::spawn(move || {
            while received() == 0 {
                thread::sleep(LOOK);
            }
            if let Some(session) = session.upgrade() {
                tell(&session, received());
            }
        });
    }

    /// Returns the number of the first signal that a process has received; `own` if it is this one.
    pub fn stop_signal(&self, own: usize) -> usize {
        let Some(Several { session, .. }) = &self.several else { return own };
        if own != 0 {
            tell(session, own);
        }
        let told = session.try_get(STOP).ok().and_then(|told| String::from_utf8(told).ok()?.parse().ok());
        told.unwrap_or(own)
    }
}

/// Tells the others of a signal, unless one has been told.
fn tell(session: &Session, signal: usize) {
    // An error means that there was one before, or that the run has failed, which ends it anyway.
    let _ = session.put(STOP, signal.to_string().as_bytes());
}

/// Formats a value so that each line has a name and what it stands for.
///
/// # Errors
/// When the value cannot be serialised.
pub fn lines(value: &impl Serialize) -> Result<String> {
    fn add(lines: &mut Vec<String>, name: &str, value: &Value) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(field, value)| add(lines, field, value)),
            Value::String(text) => lines.push(format!("{name}: {text}")),
            value => lines.push(format!("{name}: {value}")),
        }
    }
    let mut lines = Vec::new();
    add(&mut lines, "", &serde_json::to_value(value)?);
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_value_has_a_line() {
        let text = lines(&json!({"a": 1, "b": {"c": "x", "d": null}, "seeds": [2, 3]})).unwrap();
        assert_eq!(text, "a: 1\nc: x\nd: null\nseeds: [2,3]");
    }

    #[test]
    fn an_error_after_the_loss_of_process_0_may_be_its() {
        let settings = Settings::default();
        let coordinator = Coordinator::start("127.0.0.1:0", 1, &settings).unwrap();
        let session = Session::join(&coordinator.address().to_string(), 0, 1, &settings).unwrap();
        let own = anyhow!("no such device");
        assert!(!may_be_of_another(&own, &session));
        assert!(may_be_of_another(&anyhow!("a socket was closed").context(OfSeveral), &session));
        drop(coordinator);
        assert!(may_be_of_another(&own, &session));
    }
}
