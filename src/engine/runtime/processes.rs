//! The processes that open a device together, and what they agree on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::engine::key_values::KeyValues;

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
    use crate::engine::key_values::KeyError;

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
