//! Several runs at a time, each in a process of its own with a share of the cores.
//!
//! A process repeats the command line with a hidden option that says which part of the study it does. Its results are the files of
//! the study's folder.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::num::NonZero;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::super::{bar, to_stderr};

/// How often a process is asked whether it has ended.
const POLL: Duration = Duration::from_millis(100);

/// Processes that run at the same time.
pub struct Jobs<'a> {
    /// The largest number of processes.
    pub at_once: usize,
    /// Holds a signal's number once this process was asked to stop. The others are asked then.
    pub signal: &'a AtomicUsize,
}

impl Jobs<'_> {
    /// Runs the command line once for each of the arguments that are added to it, and returns what each printed. After a signal or a
    /// failure no further process is started. Returns `None` after a signal.
    ///
    /// # Errors
    /// When a process fails. The message has its last lines.
    pub fn run(&self, arguments: &[[String; 2]], unit: &str) -> Result<Option<Vec<String>>> {
        let progress = bar(arguments.len(), unit);
        let (next, results) = (AtomicUsize::new(0), Mutex::new(vec![None; arguments.len()]));
        let failed = AtomicUsize::new(0);
        let is_over = || self.signal.load(Ordering::Relaxed) != 0 || failed.load(Ordering::Relaxed) != 0;
        let work = || -> Result<()> {
            while !is_over() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(one) = arguments.get(at) else { break };
                let printed = self.process(one, &|line| progress.suspend(|| to_stderr(line)));
                let printed = printed.inspect_err(|_| failed.store(1, Ordering::Relaxed))?;
                results.lock().unwrap_or_else(|e| e.into_inner())[at] = printed;
                progress.inc(1);
            }
            Ok(())
        };
        let outcomes: Vec<Result<()>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.at_once).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
                .collect()
        });
        progress.finish_and_clear();
        outcomes.into_iter().collect::<Result<()>>()?;
        let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
        Ok(results.into_iter().collect())
    }

    /// Runs one process, and passes on the command lines that it names. Returns what it printed; `None` after a signal.
    fn process(&self, arguments: &[String; 2], say: &dyn Fn(&str)) -> Result<Option<String>> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let share = (cores / self.at_once).max(1).to_string();
        let mut child = Command::new(env::current_exe().context("cannot find this program")?)
            .args(env::args_os().skip(1))
            .args(arguments)
            // The numbers of threads of XLA's client for CPUs, and of our own work.
            .envs([("NPROC", &share), ("RAYON_NUM_THREADS", &share)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start another process")?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (printed, said) = thread::scope(|scope| {
            let printed = scope.spawn(|| {
                let mut text = String::new();
                out.map(|mut out| out.read_to_string(&mut text));
                text
            });
            let said = scope.spawn(|| {
                let lines = err.into_iter().flat_map(|err| BufReader::new(err).lines().map_while(Result::ok));
                lines.collect::<Vec<_>>()
            });
            self.wait(&mut child);
            (printed.join().unwrap_or_default(), said.join().unwrap_or_default())
        });
        said.iter().filter(|line| line.starts_with("vnca ")).for_each(|line| say(line));
        if self.signal.load(Ordering::Relaxed) != 0 {
            return Ok(None);
        }
        let status = child.wait().context("cannot wait for a process")?;
        if !status.success() {
            let from = said.len().saturating_sub(5);
            bail!("a run failed ({status}):\n{}", said[from..].join("\n"));
        }
        Ok(Some(printed))
    }

    /// Waits for the end of a process, and asks it to stop after a signal.
    fn wait(&self, child: &mut Child) {
        let mut asked = false;
        while matches!(child.try_wait(), Ok(None)) {
            if !asked && self.signal.load(Ordering::Relaxed) != 0 {
                // It may have heard the signal itself, and may have ended since.
                asked = i32::try_from(child.id()).ok().and_then(Pid::from_raw).is_some_and(|process| {
                    let _ = kill_process(process, Signal::TERM);
                    true
                });
            }
            thread::sleep(POLL);
        }
    }
}
