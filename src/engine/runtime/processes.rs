//! The processes that open a device together, and what they agree on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::key_values::{self, KeyError, KeyValues};
use crate::error::{Error, Kind, kind};

/// How long a process waits for the others to reach the same program: they may still be reading data. A process that has died
/// is noticed sooner, by whoever watches the processes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The processes that open a device together, each with devices of its own, and this one's place among them.
#[derive(Clone)]
pub struct Processes {
    /// This process's number, from 0.
    pub index: usize,
    /// The number of processes.
    pub count: usize,
    /// The store that all of them share. Only one mesh may be opened over it, because every key is put once.
    pub store: Arc<dyn KeyValues>,
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {}", self.index, self.count)
    }
}

/// Marks an error that every process has got, see [`Processes::lead`] and [`Processes::agree`]. It is a context of the error, so that
/// `error.is::<OfAll>()` finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfAll(&'static str);

/// Marks the error of process 0 that it has told to the others.
const OF_FIRST: OfAll = OfAll("process 0");

impl fmt::Display for OfAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Marks an error of a program that runs in several processes. Another process may be its cause, such as one that has died. It is a
/// context of the error, so that `error.is::<OfSeveral>()` finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfSeveral;

impl fmt::Display for OfSeveral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a program of several processes")
    }
}

/// What process 0 tells the others of something that it has done.
#[derive(Serialize, Deserialize)]
enum Told<T> {
    Done(T),
    Failed { kind: Kind, message: String },
}

impl Processes {
    /// Lets process 0 do something, and gives its outcome to all processes, an error with its [kind](crate::error::kind) and
    /// marked with [`OfAll`]. All of them call this with the same name, which can be used once.
    ///
    /// # Errors
    /// The error of process 0. When the store fails, or process 0 does not call this within an hour.
    pub fn lead<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let key = format!("vnca/lead/{name}");
        if self.index > 0 {
            let told =
                self.store.get(&key, PATIENCE).with_context(|| format!("waiting for process 0: {name}"))?;
            let told = serde_json::from_slice(&told);
            return match told.with_context(|| format!("process 0 tells something else of {name}"))? {
                Told::Done(value) => Ok(value),
                Told::Failed { kind, message } => Err(again(kind, message).context(OF_FIRST)),
            };
        }
        let outcome = act();
        let told = match &outcome {
            Ok(value) => Told::Done(value),
            Err(error) => Told::Failed { kind: kind(error), message: format!("{error:#}") },
        };
        let put = self.store.put(&key, &serde_json::to_vec(&told)?);
        match (outcome, put) {
            (Ok(value), Ok(())) => Ok(value),
            (Err(error), Ok(())) => Err(error.context(OF_FIRST)),
            // The others will not hear of it this way.
            (Err(error), Err(_)) => Err(error),
            (Ok(_), Err(error)) => Err(error).context("telling the other processes"),
        }
    }

    /// Checks that all processes pass the same text, such as a configuration. Each name can be used once.
    ///
    /// # Errors
    /// On every process, when one text differs from that of process 0: names the process and the first line that differs. When
    /// the store fails, or a process does not call this within an hour.
    pub fn agree(&self, name: &str, own: &str) -> Result<()> {
        let Processes { index, count, store } = self;
        let agreed = key_values::agree(store.as_ref(), (*index, *count), name, own, PATIENCE);
        agreed.map_err(|error| match error.chain().any(|cause| cause.is::<KeyError>()) {
            true => error,
            false => anyhow::Error::from(Error::Usage(error)).context(OfAll("the processes differ")),
        })
    }
}

/// Returns an error of another process, of its kind.
fn again(kind: Kind, message: String) -> anyhow::Error {
    match kind {
        Kind::Usage => Error::Usage(anyhow!(message)).into(),
        Kind::Data => Error::Data(anyhow!(message)).into(),
        Kind::Device => Error::Device(anyhow!(message)).into(),
        Kind::Io => std::io::Error::other(message).into(),
        Kind::NotFinite | Kind::Other => anyhow!(message),
    }
}

/// The number of keys after which their first half is forgotten.
const FORGET_AFTER: usize = 64;

/// Numbers what process 0 leads, so that it needs no names, and lets the store forget what all have heard.
pub(super) struct Led {
    processes: Processes,
    count: AtomicUsize,
    agreements: AtomicUsize,
}

impl Led {
    pub fn new(processes: &Processes) -> Led {
        Led { processes: processes.clone(), count: AtomicUsize::new(0), agreements: AtomicUsize::new(0) }
    }

    /// Does what [`Processes::agree`] does, whether the name was used before or not.
    pub fn agree(&self, name: &str, own: &str) -> Result<()> {
        match self.agreements.fetch_add(1, Ordering::Relaxed) {
            0 => self.processes.agree(name, own),
            number => self.processes.agree(&format!("{name} ({})", number + 1), own),
        }
    }

    /// Does what [`Processes::lead`] does. All processes have to call it in the same order.
    pub fn next<T: Serialize + DeserializeOwned>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let (block, within) = (number / FORGET_AFTER, number % FORGET_AFTER);
        if within == 0 && block > 0 {
            self.forget(block - 1)?;
        }
        self.processes.lead(&number.to_string(), act)
    }

    /// Forgets the block before this one, whose keys this process has heard. All have heard those of the earlier block when they
    /// say that they have heard this one's.
    fn forget(&self, block: usize) -> Result<()> {
        let Processes { index, count, store } = &self.processes;
        let heard = |block: usize, process: usize| format!("vnca/heard/{block}/{process}");
        if *index > 0 {
            return Ok(store.put(&heard(block, *index), b"")?);
        }
        let Some(earlier) = block.checked_sub(1) else { return Ok(()) };
        for process in 1..*count {
            let key = heard(earlier, process);
            store.get(&key, PATIENCE).with_context(|| format!("waiting for process {process}"))?;
            store.delete(&key)?;
        }
        for number in earlier * FORGET_AFTER..block * FORGET_AFTER {
            store.delete(&format!("vnca/lead/{number}"))?;
        }
        Ok(())
    }
}

/// Lets the processes decide together whether to take a program from their caches.
///
/// A process that compiles may wait for what the others find out while they compile the same program: GPU compilers share the
/// timing of kernels. So either all of them compile a program or none does.
pub(super) struct Agreement {
    processes: Processes,
    programs: AtomicUsize,
}

impl Agreement {
    pub fn new(processes: &Processes) -> Agreement {
        Agreement { processes: processes.clone(), programs: AtomicUsize::new(0) }
    }

    /// Reports whether every process has loaded the program. All processes ask, in the same order of programs.
    ///
    /// # Errors
    /// When the store fails, a process does not ask within an hour, or asks for another program.
    pub fn all_loaded(&self, program: &str, loaded: bool) -> Result<bool> {
        let Processes { index, count, store } = &self.processes;
        let number = self.programs.fetch_add(1, Ordering::Relaxed);
        let key = |process: usize| format!("vnca/programs/{number}/{process}");
        let answer = |loaded: bool| format!("{} {program}", if loaded { "loaded" } else { "compiles" });
        store.put(&key(*index), answer(loaded).as_bytes()).context("telling the other processes")?;
        let mut all = loaded;
        for process in (0..*count).filter(|process| process != index) {
            let said = store
                .get(&key(process), PATIENCE)
                .with_context(|| format!("waiting until process {process} compiles {program}"))?;
            let said = String::from_utf8_lossy(&said);
            all &= said == answer(true);
            ensure!(
                said == answer(true) || said == answer(false),
                "program {number} of process {process} is another one ({said}) than that of process {index} ({program}): \
                 all processes must compile the same programs in the same order"
            );
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    /// A store in the memory of one process. Its users wait without a pause.
    #[derive(Default)]
    struct Memory(Mutex<HashMap<String, Vec<u8>>>);

    impl KeyValues for Memory {
        fn get(&self, key: &str, _timeout: Duration) -> Result<Vec<u8>, KeyError> {
            loop {
                if let Ok(value) = self.try_get(key) {
                    return Ok(value);
                }
                thread::yield_now();
            }
        }

        fn try_get(&self, key: &str) -> Result<Vec<u8>, KeyError> {
            self.0.lock().unwrap().get(key).cloned().ok_or_else(|| KeyError::NotFound(key.into()))
        }

        fn put(&self, key: &str, value: &[u8]) -> Result<(), KeyError> {
            match self.0.lock().unwrap().insert(key.into(), value.to_vec()) {
                None => Ok(()),
                Some(_) => Err(KeyError::AlreadyExists(key.into())),
            }
        }

        fn delete(&self, key: &str) -> Result<(), KeyError> {
            self.0.lock().unwrap().remove(key);
            Ok(())
        }
    }

    /// Runs the same work in a thread for each of three processes. Returns their results and the store.
    fn three<T: Send>(work: impl Fn(Processes) -> T + Sync) -> (Vec<T>, Arc<Memory>) {
        let memory = Arc::new(Memory::default());
        let results = thread::scope(|scope| {
            let start = |index| {
                let (work, store) = (&work, memory.clone());
                scope.spawn(move || work(Processes { index, count: 3, store }))
            };
            let threads: Vec<_> = (0..3).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        (results, memory)
    }

    #[test]
    fn all_processes_get_the_outcome_of_process_0_and_the_store_forgets_it() {
        let (results, memory) = three(|processes| {
            let led = Led::new(&processes);
            let outcomes = (0..5 * FORGET_AFTER).map(|i| led.next(|| Ok((i, processes.index))).unwrap());
            outcomes.collect::<Vec<_>>()
        });
        let expected: Vec<_> = (0..5 * FORGET_AFTER).map(|i| (i, 0)).collect();
        assert!(results.iter().all(|result| *result == expected));
        let kept = memory.0.lock().unwrap().len();
        assert!(kept <= 2 * FORGET_AFTER + 2 * 3, "{kept} keys are left");
    }

    #[test]
    fn all_processes_get_the_error_of_process_0_with_its_kind() {
        let (errors, _) = three(|processes| {
            let damaged = || anyhow::Error::from(Error::Data(anyhow!("is damaged")));
            let failed = || -> Result<u8> { Err(damaged().context("the file")) };
            processes.lead("name", failed).unwrap_err()
        });
        for error in errors {
            assert_eq!(
                (format!("{error:#}"), kind(&error)),
                ("process 0: the file: is damaged".into(), Kind::Data)
            );
            assert!(error.context("outside").is::<OfAll>());
        }
    }

    #[test]
    fn a_disagreement_is_an_error_of_all() {
        let (errors, _) = three(|processes| {
            processes.agree("the colour", "red").unwrap();
            let own = if processes.index == 2 { "a\nblue" } else { "a\nred" };
            processes.agree("the size", own).unwrap_err()
        });
        for error in errors {
            let text = "the processes differ: process 2 does not agree with process 0 on the size: line 2 is \"blue\", \
                        that of process 0 is \"red\"";
            assert_eq!((format!("{error:#}").as_str(), kind(&error)), (text, Kind::Usage));
            assert!(error.is::<OfAll>());
        }
    }

    /// Lets a thread for each process ask for each of its programs in turn.
    fn ask(programs: &[&[(&str, bool)]]) -> Vec<Vec<Result<bool>>> {
        let store: Arc<dyn KeyValues> = Arc::new(Memory::default());
        thread::scope(|scope| {
            let asking: Vec<_> = programs
                .iter()
                .enumerate()
                .map(|(index, programs)| {
                    let processes = Processes { index, count: 2, store: store.clone() };
                    scope.spawn(move || {
                        let agreement = Agreement::new(&processes);
                        programs.iter().map(|(name, own)| agreement.all_loaded(name, *own)).collect()
                    })
                })
                .collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn a_program_is_loaded_by_all_or_by_none() {
        let answers =
            ask(&[&[("a", true), ("b", true), ("c", false)], &[("a", false), ("b", true), ("c", false)]]);
        for own in answers {
            assert_eq!(own.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [false, true, false]);
        }
    }

    #[test]
    fn another_order_of_programs_is_refused() {
        for (other, own) in ask(&[&[("a", true)], &[("b", true)]]).into_iter().zip(["a", "b"]) {
            let error = other.into_iter().next().unwrap().unwrap_err().to_string();
            assert!(error.contains(&format!("({own})")) && error.contains("the same order"), "{error}");
        }
    }
}
