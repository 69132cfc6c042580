//! Progress bars, and the same as lines of a log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{
    HumanDuration, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressState, ProgressStyle,
};

use super::{is_silent, to_stderr};

/// Half of a rate comes from this time before now.
const HALF_TIME: Duration = Duration::from_secs(20);

/// Measures the rate of steps between which something else is done: the time of that does not count.
#[derive(Debug)]
pub struct Pace {
    step: usize,
    since: Instant,
    /// Steps and seconds, of which a part is forgotten as time passes.
    steps: f64,
    seconds: f64,
    /// Bits of the rate, for the thread that shows it.
    rate: Arc<AtomicU64>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace::start(0)
    }
}

impl Pace {
    /// Starts now, at a step.
    pub fn start(step: usize) -> Pace {
        Pace { step, since: Instant::now(), steps: 0.0, seconds: 0.0, rate: Arc::default() }
    }

    /// Counts the steps up to this one, and the time up to `now`.
    pub fn reach(&mut self, step: usize, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        let kept = (-seconds / HALF_TIME.as_secs_f64()).exp2();
        self.steps = self.steps * kept + step.saturating_sub(self.step) as f64;
        self.seconds = self.seconds * kept + seconds;
        (self.step, self.since) = (step, now);
        if self.steps > 0.0 && self.seconds > 0.0 {
            self.rate.store((self.steps / self.seconds).to_bits(), Ordering::Relaxed);
        }
    }

    /// Leaves out the time up to `now`.
    pub fn skip_to(&mut self, now: Instant) {
        self.since = now;
    }
}

/// Returns a progress bar with rate and ETA. Shows it on stderr if that is a terminal; otherwise prints lines.
pub fn bar(length: usize, unit: &str) -> ProgressBar {
    paced_bar(length, unit, None)
}

/// Returns a progress bar like [`bar`], whose rate is that of a pace.
pub fn paced_bar(length: usize, unit: &str, pace: Option<&Pace>) -> ProgressBar {
    // An error may end what the bar belongs to. Its message then begins on a line of its own.
    let bar = ProgressBar::new(length as u64).with_finish(ProgressFinish::AndClear);
    if is_silent() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        return bar;
    }
    let rate = pace.map(|pace| pace.rate.clone());
    let per_second = move |bar: f64| match &rate {
        Some(rate) => f64::from_bits(rate.load(Ordering::Relaxed)),
        None => bar,
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {far}  {msg}") {
        let (unit, per_second) = (unit.to_string(), per_second.clone());
        let far = move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
            let all = state.len().unwrap_or(0);
            let _ = w.write_str(&progress_text(state.pos(), all, &unit, per_second(state.per_sec())));
        };
        bar.set_style(style.with_key("far", far));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    if bar.is_hidden() {
        print_progress_lines(&bar, unit, Duration::from_secs(60), per_second, |line| to_stderr(&line));
    }
    bar
}

/// Returns a spinner, which shows that something goes on.
pub fn spinner() -> ProgressBar {
    if is_silent() { ProgressBar::hidden() } else { ProgressBar::new_spinner() }
}

/// Prints the progress as a line at intervals until the bar is finished. Serves logs, where no terminal shows the bar.
fn print_progress_lines(
    bar: &ProgressBar,
    unit: &str,
    every: Duration,
    per_second: impl Fn(f64) -> f64 + Send + 'static,
    say: impl Fn(String) + Send + 'static,
) {
    let (bar, unit) = (bar.downgrade(), unit.to_string());
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(every);
            let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) else { return };
            let all = bar.length().unwrap_or(0);
            let far = progress_text(bar.position(), all, &unit, per_second(bar.per_sec()));
            say(format!("{far}  {}", bar.message()).trim_end().to_string());
        }
    });
}

/// Formats the progress, for a bar and for a line of a log. A rate of 0 is not known yet.
fn progress_text(done: u64, all: u64, unit: &str, per_second: f64) -> String {
    let left = Duration::try_from_secs_f64(all.saturating_sub(done) as f64 / per_second);
    match left {
        Ok(left) => format!("{done}/{all} {unit}  {per_second:.2}/s  ETA {}", HumanDuration(left)),
        Err(_) => format!("{done}/{all} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_progress_is_printed_as_lines_until_the_bar_is_finished() {
        let bar = ProgressBar::hidden();
        bar.set_length(10);
        bar.set_position(5);
        bar.set_message("loss 2.00");
        let (sender, lines) = std::sync::mpsc::channel();
        let say = move |line| drop(sender.send(line));
        print_progress_lines(&bar, "steps", Duration::from_millis(1), |_| 0.5, say);
        let line = lines.recv().expect("a line");
        assert_eq!(line, "5/10 steps  0.50/s  ETA 10 seconds  loss 2.00");
        bar.finish_and_clear();
        // The thread ends and closes the channel.
        assert!(lines.iter().count() < 1000);
    }

    #[test]
    fn an_unknown_rate_gives_no_remaining_time() {
        assert_eq!(progress_text(3, 9, "steps", 0.0), "3/9 steps");
    }

    #[test]
    fn the_pace_leaves_out_what_is_between_the_steps() {
        let mut pace = Pace::start(100);
        let rate = |pace: &Pace| f64::from_bits(pace.rate.load(Ordering::Relaxed));
        let mut now = pace.since;
        let mut work = |pace: &mut Pace, step, seconds| {
            now += Duration::from_secs(seconds);
            pace.reach(step, now);
            now
        };
        work(&mut pace, 110, 5);
        assert_eq!(rate(&pace), 2.0);
        // An evaluation of an hour.
        let evaluated = work(&mut pace, 130, 10) + Duration::from_secs(3600);
        pace.skip_to(evaluated);
        assert!((rate(&pace) - 2.0).abs() < 1e-9);
        pace.reach(140, evaluated + Duration::from_secs(5));
        assert!((rate(&pace) - 2.0).abs() < 1e-9, "{}", rate(&pace));
        // After a half time, steps of another pace have a half of the weight, and soon all of it.
        let mut later = evaluated + Duration::from_secs(5);
        for step in 141..=240 {
            later += Duration::from_secs(1);
            pace.reach(step, later);
        }
        assert!((rate(&pace) - 1.0).abs() < 0.05, "{}", rate(&pace));
    }
}
