//! Our side of `tools/peers/coordination`: a coordinator, or a session that commands on stdin drive.
//!
//! `coordination serve PROCESSES SECONDS` prints the coordinator's address and serves until stdin ends.
//! `coordination join ADDRESS PROCESS PROCESSES SECONDS` joins and answers each line of stdin with one of
//! stdout. SECONDS is the time without heartbeats after which a process counts as dead.

use std::fmt::Display;
use std::io::{Write, stdin, stdout};
use std::process::exit;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vnca::engine::key_values::{KeyError, KeyValues};
use vnca::hosts::{Coordinator, Session, Settings};

fn settings(dead_after: &str) -> Result<Settings> {
    let dead_after = Duration::from_secs(dead_after.parse()?);
    let limit = Duration::from_secs(30);
    Ok(Settings { heartbeat: dead_after / 4, dead_after, join: limit, leave: limit })
}

fn say(line: impl Display) {
    println!("{line}");
    let _ = stdout().flush();
}

fn kind(error: &KeyError) -> &'static str {
    match error {
        KeyError::DeadlineExceeded(_) => "DEADLINE_EXCEEDED",
        KeyError::NotFound(_) => "NOT_FOUND",
        KeyError::AlreadyExists(_) => "ALREADY_EXISTS",
        KeyError::Unavailable(_) => "UNAVAILABLE",
    }
}

/// Carries out one command, and returns the answer without its first word.
fn command(session: &Session, words: &[&str]) -> Result<String, String> {
    let key_error = |error: KeyError| format!("{}: {error}", kind(&error));
    let error = |error: anyhow::Error| format!("FAILED: {error:#}");
    let time = |millis: &str| Duration::from_millis(millis.parse().unwrap_or(0));
    let text = |value: Vec<u8>| match value.len() {
        0..100 => String::from_utf8_lossy(&value).into_owned(),
        long => format!("{long} bytes"),
    };
    match *words {
        ["put", key, value] => session.put(key, value.as_bytes()).map(|()| String::new()).map_err(key_error),
        ["fill", key, bytes] => {
            let value = vec![b'x'; bytes.parse().unwrap_or(0)];
            session.put(key, &value).map(|()| String::new()).map_err(key_error)
        }
        ["get", key, millis] => session.get(key, time(millis)).map(text).map_err(key_error),
        ["delete", key] => session.delete(key).map(|()| String::new()).map_err(key_error),
        ["try", key] => session.try_get(key).map(text).map_err(key_error),
        ["barrier", name, millis] => {
            session.barrier(name, time(millis)).map(|()| String::new()).map_err(error)
        }
        ["fail", reason] => session.fail(reason).map(|()| String::new()).map_err(error),
        ["leave"] => session.leave().map(|()| String::new()).map_err(error),
        _ => Err(format!("FAILED: no such command: {words:?}")),
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", processes, seconds] => {
            let coordinator = Coordinator::start("127.0.0.1:0", processes.parse()?, &settings(seconds)?)?;
            say(coordinator.address());
            stdin().lines().for_each(drop);
        }
        ["join", address, process, processes, seconds] => {
            let session = Session::join(address, process.parse()?, processes.parse()?, &settings(seconds)?);
            let session = session.context("join")?;
            session.on_failure(|failure| {
                say(format!("failure {:?} {failure}", failure.process));
                exit(3);
            });
            say("ok joined");
            for line in stdin().lines() {
                let line = line?;
                say(match command(&session, &line.split(' ').collect::<Vec<_>>()) {
                    Ok(answer) => format!("ok {answer}"),
                    Err(problem) => format!("error {problem}"),
                });
            }
        }
        _ => bail!("usage: coordination serve PROCESSES SECONDS | join ADDRESS PROCESS PROCESSES SECONDS"),
    }
    Ok(())
}
