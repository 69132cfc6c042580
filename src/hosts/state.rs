//! What the coordinator knows of a run, and its rules, without the network.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use prost::bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use super::messages::{Barrier, KeyValue, RegisterTask, refusal};
use super::{Failure, Settings};

/// Longest message about a failure in characters: HTTP limits the size of headers, which carry it.
const LONGEST_REASON: usize = 1000;

/// The code that refuses a process whose index a running run has.
pub const TAKEN: Code = Code::AlreadyExists;

/// A run, shared by the tasks that answer its processes.
pub struct Run {
    processes: usize,
    settings: Settings,
    /// Distinguishes this coordinator from the one of an earlier run.
    pub incarnation: u64,
    state: Mutex<State>,
    /// Wakes all that wait for a change of the state.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// The processes that have joined, by index.
    members: Vec<Option<Member>>,
    /// Number of registrations so far.
    tickets: u64,
    /// All have joined.
    complete: bool,
    keys: HashMap<String, Bytes>,
    /// The latest barrier of each name.
    barriers: HashMap<String, Meeting>,
    leaving: BTreeSet<usize>,
    failure: Option<Failure>,
    /// The coordinator takes no more requests.
    closed: bool,
}

struct Member {
    incarnation: u64,
    /// Number of the registration that waits for the others.
    ticket: u64,
    heard: Instant,
}

/// One use of a barrier.
struct Meeting {
    counter: i64,
    arrived: BTreeSet<usize>,
    /// Outlives the meeting's place in the map: a process may start the next use before all have heard of
    /// this one's end.
    end: Arc<OnceLock<Result<(), String>>>,
}

type Answer<T> = Result<T, Status>;

impl State {
    /// Returns whether every process has asked to leave.
    fn ended(&self) -> bool {
        self.leaving.len() == self.members.len()
    }

    /// Returns the error that ends whatever waits, if any.
    fn broken(&self) -> Option<Status> {
        match &self.failure {
            Some(failure) => Some(refusal(Code::Unavailable, &failure.reason, failure.process)),
            None if self.closed => Some(closed()),
            None => None,
        }
    }

    /// Ends the run. The first failure is the cause of the later ones and stays.
    fn fail(&mut self, process: usize, reason: String) {
        self.failure.get_or_insert(Failure { process: Some(process), reason });
    }

    /// Checks a registration and returns what is wrong with it.
    fn misfit(&self, request: &RegisterTask, processes: usize) -> Option<(Code, String)> {
        let process = request.process;
        let wrong = |problem| Some((Code::FailedPrecondition, problem));
        let Some(place) = usize::try_from(process).ok().and_then(|p| self.members.get(p)) else {
            let last = processes - 1;
            return wrong(format!(
                "process {process} is not one of the run's {processes}, which are 0 to {last}"
            ));
        };
        let other = request.processes.filter(|&other| other as usize != processes);
        if let Some(other) = other {
            return wrong(format!(
                "process {process} was started for {other} processes, process 0 for {processes}"
            ));
        }
        let member = place.as_ref()?;
        if member.incarnation == request.incarnation {
            return None;
        }
        match self.complete {
            false => wrong(format!(
                "process {process} was started twice: two processes have joined with this index"
            )),
            // Perhaps the earlier process has died, and the others do not know it yet.
            true => Some((TAKEN, format!("process {process} has joined already, and its run has not ended"))),
        }
    }
}

impl Run {
    pub fn new(processes: usize, settings: &Settings) -> Run {
        let members = (0..processes).map(|_| None).collect();
        Run {
            processes,
            settings: settings.clone(),
            incarnation: super::incarnation(),
            state: Mutex::new(State { members, ..State::default() }),
            changed: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half changed, so that a panic elsewhere does not
        // matter.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the state and wakes all that wait for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_replace(());
        result
    }

    /// Waits until a function of the state returns something; `None` if it has not by a deadline.
    async fn wait<T>(&self, until: Option<Instant>, mut ready: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(result) = ready(&self.lock()) {
                return Some(result);
            }
            match until {
                Some(until) => timeout_at(until, changed.changed()).await.ok()?.ok()?,
                None => changed.changed().await.ok()?,
            }
        }
    }

    /// Refuses the requests of processes that have joined another coordinator, such as that of the run
    /// before.
    pub fn check(&self, coordinator: Option<u64>) -> Answer<()> {
        match coordinator {
            Some(other) if other != self.incarnation => {
                let problem = "the coordinator was started anew: this process belongs to an earlier run";
                Err(refusal(Code::FailedPrecondition, problem, Some(0)))
            }
            _ => Ok(()),
        }
    }

    /// Lets a process join, and waits until all have. A mistake ends the run for all, since it can never be
    /// complete. Once it is complete, only the newcomer is refused.
    pub async fn register(&self, request: RegisterTask) -> Answer<()> {
        let (incarnation, process) = (request.incarnation, request.process.max(0) as usize);
        let ticket = self.change(|state| {
            if let Some((code, problem)) = state.misfit(&request, self.processes) {
                if !state.complete {
                    state.fail(process, problem.clone());
                }
                return Err(refusal(code, problem, Some(process)));
            }
            let heard = Instant::now();
            state.tickets += 1;
            let ticket = state.tickets;
            state.members[process] = Some(Member { incarnation, ticket, heard });
            if !state.complete && state.members.iter().all(Option::is_some) {
                state.complete = true;
                state.members.iter_mut().flatten().for_each(|member| member.heard = heard);
            }
            Ok(ticket)
        })?;
        // A process that ends while it waits for the others has not joined: it may be started again.
        let _withdraw = Withdraw { run: self, process, ticket };
        let complete = |state: &State| match state.broken() {
            Some(error) => Some(Err(error)),
            None => state.complete.then_some(Ok(())),
        };
        let limit = self.settings.join;
        self.wait(deadline(limit), complete).await.unwrap_or_else(|| {
            let late = |names: &str| format!("{names} of {} did not join within {limit:?}", self.processes);
            self.give_up(|state, process| state.members[process].is_none(), late)
        })
    }

    pub fn heartbeat(&self, process: i32, incarnation: u64) -> Answer<()> {
        let mut state = self.lock();
        let member = state.members.get_mut(process as usize).and_then(Option::as_mut);
        match member.filter(|member| member.incarnation == incarnation) {
            Some(member) => member.heard = Instant::now(),
            None => {
                let problem = format!("process {process} sends heartbeats, but has not joined");
                return Err(refusal(Code::FailedPrecondition, problem, usize::try_from(process).ok()));
            }
        }
        Ok(())
    }

    /// Declares processes dead whose last heartbeat is too old.
    pub fn bury_the_dead(&self) {
        let limit = self.settings.dead_after;
        let silent = |state: &State| {
            let watched = state.complete && !state.ended() && state.failure.is_none();
            let late = |member: &Option<Member>| member.as_ref().is_some_and(|m| m.heard.elapsed() > limit);
            if watched { state.members.iter().position(late) } else { None }
        };
        let dead = silent(&self.lock());
        if let Some(process) = dead {
            let reason = format!("process {process} has died or hangs: it sent no heartbeat for {limit:?}");
            self.change(|state| state.fail(process, reason));
        }
    }

    /// Ends the run because a process says that it fails.
    pub fn fail(&self, process: i32, message: &str) -> Answer<()> {
        let process = self.index(process)?;
        let reason = format!("process {process} failed: {message}").chars().take(LONGEST_REASON).collect();
        self.change(|state| state.fail(process, reason));
        Ok(())
    }

    /// Waits until the run fails or ends, and returns why.
    pub async fn failure(&self) -> Status {
        let over = |state: &State| match state.broken() {
            None if state.ended() => Some(refusal(Code::Cancelled, "all processes have left", None)),
            broken => broken,
        };
        self.wait(None, over).await.unwrap_or_else(closed)
    }

    /// Waits until all processes want to leave.
    pub async fn leave(&self, process: i32) -> Answer<()> {
        let process = self.index(process)?;
        self.change(|state| state.leaving.insert(process));
        let limit = self.settings.leave;
        let all = |state: &State| match state.ended() {
            true => Some(Ok(())),
            false => state.broken().map(Err),
        };
        self.wait(deadline(limit), all).await.unwrap_or_else(|| {
            let late = |names: &str| format!("{names} did not leave within {limit:?} of process {process}");
            self.give_up(|state, process| !state.leaving.contains(&process), late)
        })
    }

    /// Ends the run because a time is over, unless nobody is missing any more. `reason` gets the names of the missing.
    fn give_up(
        &self,
        is_missing: impl Fn(&State, usize) -> bool,
        reason: impl FnOnce(&str) -> String,
    ) -> Answer<()> {
        self.change(|state| {
            let absent: Vec<usize> = (0..self.processes).filter(|&p| is_missing(state, p)).collect();
            if let [first, ..] = absent[..] {
                state.fail(first, reason(&names(&absent)));
            }
            state.broken().map_or(Ok(()), Err)
        })
    }

    pub fn put(&self, entry: Option<KeyValue>, overwrite: bool) -> Answer<()> {
        let KeyValue { key, value } = entry.unwrap_or_default();
        self.change(|state| {
            if !overwrite && state.keys.contains_key(&key) {
                let problem = format!("the key {key:?} has a value already");
                return Err(refusal(Code::AlreadyExists, problem, None));
            }
            state.keys.insert(key, value);
            Ok(())
        })
    }

    /// Forgets a key, and with `directory` those below it.
    pub fn delete(&self, key: &str, directory: bool) {
        let below = |other: &str| other.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'));
        let mut state = self.lock();
        state.keys.remove(key);
        if directory {
            state.keys.retain(|other, _| !below(other));
        }
    }

    pub fn try_get(&self, key: &str) -> Answer<Bytes> {
        let missing = || refusal(Code::NotFound, format!("the key {key:?} has no value"), None);
        self.lock().keys.get(key).cloned().ok_or_else(missing)
    }

    /// Waits until a key has a value. The caller sets the time by giving up.
    pub async fn get(&self, key: &str) -> Answer<Bytes> {
        let value = |state: &State| match state.keys.get(key) {
            Some(value) => Some(Ok(value.clone())),
            None => state.broken().map(Err),
        };
        self.wait(None, value).await.unwrap_or_else(|| Err(closed()))
    }

    /// Waits until all processes are at a barrier.
    pub async fn barrier(&self, request: Barrier) -> Answer<()> {
        let process = self.index(request.process)?;
        if !request.members.is_empty() && request.members.len() != self.processes {
            return Err(refusal(Code::Unimplemented, "barriers are for all processes of a run", None));
        }
        let (id, counter, processes) = (&request.id, request.counter, self.processes);
        let end = self.change(|state| {
            let new = || Meeting { counter, arrived: BTreeSet::new(), end: Arc::default() };
            let meeting = state.barriers.entry(id.clone()).or_insert_with(new);
            if meeting.counter < counter && meeting.end.get().is_some() {
                *meeting = new();
            }
            if meeting.counter != counter {
                let problem = format!("process {process} is at use {counter} of the barrier {id:?}");
                let problem = format!("{problem}, others are at use {}", meeting.counter);
                return Err(refusal(Code::Internal, problem, Some(process)));
            }
            meeting.arrived.insert(process);
            if meeting.arrived.len() == processes {
                let _ = meeting.end.set(Ok(()));
            }
            Ok(meeting.end.clone())
        })?;
        let over = |state: &State| match end.get() {
            Some(result) => Some(result.clone().map_err(|late| refusal(Code::DeadlineExceeded, late, None))),
            None => state.broken().map(Err),
        };
        let limit = Duration::from_millis(request.timeout_ms.max(0) as u64);
        if let Some(result) = self.wait(deadline(limit), over).await {
            return result;
        }
        // The first whose time is over ends the barrier for all, so that all have the same result.
        let late = self.change(|state| {
            let arrived = state.barriers.get(id).filter(|m| m.counter == counter).map(|m| &m.arrived);
            let missing = |p: &usize| arrived.is_some_and(|arrived| !arrived.contains(p));
            let absent: Vec<usize> = (0..processes).filter(missing).collect();
            let late = format!("{} did not come to the barrier {id:?} within {limit:?}", names(&absent));
            end.get_or_init(|| Err(late)).clone()
        });
        late.map_err(|late| refusal(Code::DeadlineExceeded, late, None))
    }

    /// Ends everything that waits.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    fn index(&self, process: i32) -> Answer<usize> {
        let index = usize::try_from(process).ok().filter(|&index| index < self.processes);
        let problem = || format!("process {process} is not one of the run's {}", self.processes);
        index.ok_or_else(|| refusal(Code::InvalidArgument, problem(), None))
    }
}

/// Takes a registration back when its process stops waiting for the others before they have joined.
struct Withdraw<'r> {
    run: &'r Run,
    process: usize,
    ticket: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.run.change(|state| {
            let place = &mut state.members[self.process];
            if !state.complete && place.as_ref().is_some_and(|member| member.ticket == self.ticket) {
                *place = None;
            }
        });
    }
}

fn closed() -> Status {
    refusal(Code::Cancelled, "process 0 has ended the coordinator of the run", Some(0))
}

/// Returns the end of a time from now, `None` if it is too far away to be reached.
fn deadline(limit: Duration) -> Option<Instant> {
    Instant::now().checked_add(limit)
}

/// Names a few processes: "process 1", "processes 1, 2, 3 and 5 more".
fn names(processes: &[usize]) -> String {
    let shown: Vec<String> = processes.iter().take(8).map(usize::to_string).collect();
    let more = processes.len() - shown.len();
    let plural = if processes.len() == 1 { "process" } else { "processes" };
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{plural} {}{rest}", shown.join(", "))
}
