//! Processes that a test starts together.

use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the processes of a test may take. They share the cores with other tests.
const LIMIT: Duration = Duration::from_secs(400);

/// Processes that were started. They are killed when a test fails.
pub struct Started(pub Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Started {
    /// Waits until all processes have ended, and lets `check` see meanwhile which have. A failure contains what they `printed`.
    pub fn wait(
        mut self,
        check: impl Fn(&[Option<ExitStatus>]),
        printed: impl Fn() -> String,
    ) -> Vec<ExitStatus> {
        let begin = Instant::now();
        loop {
            let ended: Vec<_> = self.0.iter_mut().map(|child| child.try_wait().unwrap()).collect();
            check(&ended);
            if let Some(all) = ended.iter().copied().collect() {
                return all;
            }
            assert!(begin.elapsed() < LIMIT, "the processes do not end: {ended:?}\n{}", printed());
            sleep(Duration::from_millis(20));
        }
    }
}
