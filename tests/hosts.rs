//! Several sessions of one run, in one process, over the loopback interface.
#![cfg(feature = "hosts")]

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use vnca::engine::key_values::{KeyError, KeyValues};
use vnca::hosts::{Coordinator, Failure, Session, Settings};

const SECOND: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(100);

/// Settings under which a death is known within a second.
fn brisk() -> Settings {
    Settings { heartbeat: SHORT, dead_after: 7 * SHORT, ..Settings::default() }
}

fn start(processes: usize, settings: &Settings) -> (Coordinator, String) {
    let coordinator = Coordinator::start("127.0.0.1:0", processes, settings).unwrap();
    let address = coordinator.address().to_string();
    (coordinator, address)
}

/// Calls a function with each index on a thread of its own, and returns the results in the order of the
/// indices.
fn each<T: Send>(indices: &[usize], work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = indices.iter().map(|&i| scope.spawn(move || work(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// Starts a run and lets all its processes join.
fn run<const N: usize>(settings: &Settings) -> (Coordinator, [Session; N]) {
    let (coordinator, address) = start(N, settings);
    let indices: Vec<usize> = (0..N).collect();
    let sessions = each(&indices, |i| Session::join(&address, i, N, settings).unwrap());
    (coordinator, sessions.try_into().ok().unwrap())
}

/// Waits for a session's failure.
fn failure(session: &Session) -> Failure {
    let (heard, failure) = mpsc::channel();
    session.on_failure(move |failure| heard.send(failure).unwrap());
    failure.recv_timeout(4 * SECOND).expect("the session hears of a failure")
}

fn text<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn a_key_is_put_once_and_read_by_all() {
    let (_coordinator, [zero, one]) = run::<2>(&Settings::default());
    assert_eq!(one.try_get("topology"), Err(KeyError::NotFound("the key \"topology\" has no value".into())));
    let large = vec![7; 8 << 20];
    zero.put("topology", &large).unwrap();
    assert_eq!(one.try_get("topology").unwrap(), large);
    assert_eq!(one.get("topology", SECOND).unwrap(), large);
    assert!(matches!(one.put("topology", b"other"), Err(KeyError::AlreadyExists(_))));
    assert_eq!(zero.try_get("topology").unwrap(), large);
    zero.put("empty", b"").unwrap();
    assert_eq!(one.get("empty", SECOND).unwrap(), b"");
    // A key that was forgotten can be put again.
    one.delete("empty").unwrap();
    one.delete("empty").unwrap();
    assert!(matches!(zero.try_get("empty"), Err(KeyError::NotFound(_))));
    zero.put("empty", b"again").unwrap();
    assert_eq!(one.try_get("empty").unwrap(), b"again");
}

#[test]
fn get_waits_for_a_value_for_a_limited_time() {
    let (_coordinator, [zero, one]) = run::<2>(&Settings::default());
    let begin = Instant::now();
    let late = one.get("never", 2 * SHORT).unwrap_err();
    assert_eq!(late, KeyError::DeadlineExceeded("no value for \"never\" within 200ms".into()));
    assert!(begin.elapsed() >= 2 * SHORT);
    thread::scope(|scope| {
        let reader = scope.spawn(|| one.get("later", Duration::MAX));
        thread::sleep(SHORT);
        assert!(!reader.is_finished());
        zero.put("later", b"value").unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), b"value");
    });
}

#[test]
fn barriers_wait_for_all_and_name_the_missing() {
    let (_coordinator, sessions) = run::<4>(&Settings::default());
    for _ in 0..3 {
        let begin = Instant::now();
        let ends = each(&[0, 1, 2, 3], |i| {
            if i == 3 {
                thread::sleep(SHORT);
            }
            sessions[i].barrier("again", SECOND).unwrap();
            begin.elapsed()
        });
        assert!(ends.iter().all(|end| *end >= SHORT), "{ends:?}");
    }
    let late = each(&[0, 2], |i| text(sessions[i].barrier("late", 2 * SHORT)));
    let expected = "processes 1, 3 did not come to the barrier \"late\" within 200ms";
    assert_eq!(late, [expected, expected]);
    // The run goes on.
    assert_eq!(sessions[0].failure(), None);
    each(&[0, 1, 2, 3], |i| sessions[i].barrier("next", SECOND).unwrap());
}

#[test]
fn processes_leave_together() {
    let (coordinator, sessions) = run::<3>(&brisk());
    let begin = Instant::now();
    each(&[0, 1, 2], |i| {
        if i == 2 {
            thread::sleep(8 * SHORT);
        }
        sessions[i].leave().unwrap();
        assert!(begin.elapsed() >= 8 * SHORT, "process {i} left before process 2");
    });
    let end = Instant::now();
    drop(coordinator);
    assert!(end.elapsed() < 5 * SHORT, "{:?}", end.elapsed());
    thread::sleep(8 * SHORT);
    assert!(sessions.iter().all(|session| session.failure().is_none()));
}

#[test]
fn who_stays_is_named_to_those_who_leave() {
    let (_coordinator, sessions) = run::<2>(&Settings { leave: 2 * SHORT, ..Settings::default() });
    assert_eq!(text(sessions[1].leave()), "process 0 did not leave within 200ms of process 1");
    assert_eq!(failure(&sessions[0]).process, Some(0));
}

#[test]
fn two_processes_with_one_index_are_refused_both() {
    let (_coordinator, address) = start(3, &Settings::default());
    let errors = each(&[0, 1, 1], |i| text(Session::join(&address, i, 3, &Settings::default())));
    let problem = "process 1 was started twice: two processes have joined with this index";
    assert_eq!(errors, [0; 3].map(|_| format!("cannot join the run at {address}: {problem}")));
}

#[test]
fn other_numbers_of_processes_are_refused() {
    let (_coordinator, address) = start(2, &Settings::default());
    let errors = each(&[0, 1], |i| text(Session::join(&address, i, 2 + i, &Settings::default())));
    let problem = "process 1 was started for 3 processes, process 0 for 2";
    assert_eq!(errors, [0; 2].map(|_| format!("cannot join the run at {address}: {problem}")));

    let (_coordinator, address) = start(2, &Settings::default());
    let error = text(Session::join(&address, 2, 3, &Settings::default()));
    assert!(error.ends_with("process 2 is not one of the run's 2, which are 0 to 1"), "{error}");
    let error = text(Session::join(&address, 2, 2, &Settings::default()));
    assert_eq!(error, "process 2 is not less than the number of processes, 2");
}

#[test]
fn a_complete_run_takes_nobody_and_goes_on() {
    let (coordinator, sessions) = run::<2>(&Settings::default());
    let soon = Settings { join: 3 * SHORT, ..Settings::default() };
    let error = text(Session::join(&coordinator.address().to_string(), 1, 2, &soon));
    assert!(error.contains("process 1 has joined already, and its run has not ended"), "{error}");
    each(&[0, 1], |i| sessions[i].barrier("after", SECOND).unwrap());
}

#[test]
fn a_process_that_is_started_again_waits_for_the_others() {
    let (coordinator, [zero, one]) = run::<2>(&brisk());
    let address = coordinator.address().to_string();
    thread::scope(|scope| {
        drop(one);
        let again = scope.spawn(|| Session::join(&address, 1, 2, &brisk()).map(drop));
        assert_eq!(failure(&zero).process, Some(1));
        assert!(!again.is_finished());
        drop((zero, coordinator));
        let _coordinator = Coordinator::start(&address, 2, &brisk()).unwrap();
        let _zero = Session::join(&address, 0, 2, &brisk()).unwrap();
        again.join().unwrap().unwrap();
    });
}

#[test]
fn a_process_that_never_comes_is_named() {
    let settings = Settings { join: 3 * SHORT, ..Settings::default() };
    let (_coordinator, address) = start(4, &settings);
    let errors = each(&[0, 2], |i| text(Session::join(&address, i, 4, &settings)));
    let problem = "processes 1, 3 of 4 did not join within 300ms";
    assert_eq!(errors, [0; 2].map(|_| format!("cannot join the run at {address}: {problem}")));
}

#[test]
fn a_session_waits_for_its_coordinator() {
    let settings = Settings { join: 4 * SECOND, ..Settings::default() };
    let free = start(1, &settings).1;
    thread::scope(|scope| {
        let joined = scope.spawn(|| Session::join(&free, 0, 1, &settings).map(drop));
        thread::sleep(3 * SHORT);
        let _coordinator = Coordinator::start(&free, 1, &settings).unwrap();
        joined.join().unwrap().unwrap();
    });
}

#[test]
fn addresses_without_a_coordinator_are_named() {
    let settings = Settings { join: 3 * SHORT, ..Settings::default() };
    let free = start(1, &settings).1;
    let error = text(Session::join(&free, 0, 1, &settings));
    assert!(error.starts_with(&format!("no coordinator at {free} within 300ms")), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
    for wrong in ["host", "host:port", "host:70000", "", ":1"] {
        let error = text(Session::join(wrong, 0, 1, &settings));
        assert_eq!(error, format!("{wrong:?} is not HOST:PORT"));
    }
}

#[test]
fn a_port_in_use_is_named() {
    let (_coordinator, address) = start(1, &Settings::default());
    let error = text(Coordinator::start(&address, 1, &Settings::default()));
    assert!(error.starts_with(&format!("the coordinator cannot listen at {address}: ")), "{error}");
    assert!(error.contains("in use"), "{error}");
}

#[test]
fn a_dead_process_is_known_to_all_others() {
    let (_coordinator, [zero, one, two]) = run::<3>(&brisk());
    let waits = || two.get("never", Duration::MAX);
    thread::scope(|scope| {
        let waiting = scope.spawn(waits);
        thread::sleep(2 * SHORT);
        drop(one);
        for session in [&zero, &two] {
            let failure = failure(session);
            assert_eq!(failure.process, Some(1));
            let reason = "process 1 has died or hangs: it sent no heartbeat for 700ms";
            assert_eq!(failure.reason, reason);
            assert_eq!(session.failure(), Some(failure));
            assert_eq!(text(session.barrier("after", SECOND)), reason);
        }
        // Nothing waits for what will never come.
        assert!(matches!(waiting.join().unwrap(), Err(KeyError::Unavailable(_))));
    });
    assert_eq!(text(zero.leave()), "process 1 has died or hangs: it sent no heartbeat for 700ms");
}

#[test]
fn a_coordinator_that_ends_is_known_at_once() {
    let (coordinator, sessions) = run::<2>(&Settings::default());
    let begin = Instant::now();
    drop(coordinator);
    assert_eq!(failure(&sessions[1]).process, Some(0));
    assert!(begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
}

#[test]
fn a_failing_process_tells_all_others_why() {
    let (_coordinator, [zero, one, two]) = run::<3>(&Settings::default());
    one.fail("the disk is full").unwrap();
    for session in [&zero, &two] {
        let failure = failure(session);
        assert_eq!(
            (failure.process, failure.to_string().as_str()),
            (Some(1), "process 1 failed: the disk is full")
        );
    }
    // It knows already.
    assert_eq!(one.failure(), None);
    // The first failure is the cause of the later ones.
    two.fail("process 1 failed").unwrap();
    assert_eq!(zero.failure().unwrap().process, Some(1));
}

#[test]
fn long_reasons_are_cut() {
    let (_coordinator, [zero, one]) = run::<2>(&Settings::default());
    one.fail(&"ä€".repeat(10_000)).unwrap();
    assert!(failure(&zero).reason.starts_with("process 1 failed: ä€ä€"));
}

#[test]
fn processes_agree_or_all_hear_who_does_not() {
    let (_coordinator, sessions) = run::<3>(&Settings::default());
    let same = each(&[0, 1, 2], |i| sessions[i].agree("configuration", "batch = 32\nsteps = 10"));
    assert!(same.iter().all(Result::is_ok), "{same:?}");
    let texts = ["a\nb = 1\nc", "a\nb = 1\nc", "a\nb = 2\nc"];
    let errors = each(&[0, 1, 2], |i| text(sessions[i].agree("model", texts[i])));
    let lines = r#"line 2 is "b = 2", that of process 0 is "b = 1""#;
    let expected = format!("process 2 does not agree with process 0 on model: {lines}");
    assert_eq!(errors, [0; 3].map(|_| expected.clone()));
    let texts = ["a\nb", "a", "a\nb"];
    let errors = each(&[0, 1, 2], |i| text(sessions[i].agree("data", texts[i])));
    assert!(errors[0].ends_with("on data: line 2 is missing, that of process 0 is \"b\""), "{errors:?}");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let settings = Settings { heartbeat: SECOND, dead_after: SECOND, ..Settings::default() };
    let error = text(Coordinator::start("127.0.0.1:0", 1, &settings));
    assert_eq!(error, "dead_after 1s is less than two heartbeats of 1s");
    let error = text(Coordinator::start("127.0.0.1:0", 0, &Settings::default()));
    assert_eq!(error, "processes 0 is not a number of processes");
}
