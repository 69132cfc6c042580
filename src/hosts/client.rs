//! The membership of a process in a run of several.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http::uri::PathAndQuery;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::messages::{
    Barrier, Call, DeleteKeyValue, Fail, GetKeyValue, Heartbeat, Incarnations, InsertKeyValue, KeyValue,
    KeyValueAnswer, LARGEST, PollForError, Protobuf, RegisterTask, ShutdownTask, TryGetKeyValue, reported,
};
use super::state::TAKEN;
use super::{Failure, Settings};
use crate::engine::key_values::{self, KeyError, KeyValues};
use crate::error::valid;

/// Time that opening a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Pause before a failed request is repeated.
const PAUSE: Duration = Duration::from_millis(250);

/// Time by which the coordinator's own answer about a limit may come later than the limit.
const GRACE: Duration = Duration::from_secs(5);

type Callback = Box<dyn FnOnce(Failure) + Send>;

/// The membership of this process in a run of several.
///
/// All functions block, and can be called from any thread. A session that is dropped without
/// [`Session::leave`] or [`Session::fail`] looks to the others like a process that died.
pub struct Session {
    link: Arc<Link>,
    processes: usize,
    /// How often this process has been at each barrier.
    barriers: Mutex<HashMap<String, i64>>,
    runtime: Option<Runtime>,
}

/// What a session's background tasks share with its callers.
struct Link {
    grpc: Grpc<Channel>,
    address: String,
    process: usize,
    incarnations: Incarnations,
    settings: Settings,
    failure: watch::Sender<Option<Failure>>,
    callbacks: Mutex<Vec<Callback>>,
    /// This process ends its part itself. What happens to the run from then on is no failure to report.
    over: AtomicBool,
}

impl Session {
    /// Joins the run whose coordinator is at `HOST:PORT` as `process` of `processes`, and waits until all
    /// have joined.
    ///
    /// # Errors
    /// When no coordinator answers, a process is missing, or a run that has this index already has not ended
    /// after `settings.join`. When two processes join
    /// with one index, with different numbers of processes, or with an index beyond the number: on each
    /// process, as a [`Failure`] in the chain of causes. [`Error::Invalid`](crate::error::Error::Invalid) for
    /// arguments that contradict each other.
    pub fn join(address: &str, process: usize, processes: usize, settings: &Settings) -> Result<Session> {
        settings.check(processes)?;
        valid!(
            process < processes,
            "process",
            "{process} is not less than the number of processes, {processes}"
        );
        let endpoint = Endpoint::from_shared(format!("http://{address}")).ok();
        let endpoint = endpoint.filter(|e| e.uri().port().is_some() && e.uri().host() != Some(""));
        let endpoint =
            endpoint.with_context(|| format!("{address:?} is not HOST:PORT"))?.connect_timeout(CONNECT);
        let runtime = super::runtime()?;
        let incarnation = super::incarnation();
        let request =
            RegisterTask { incarnation, process: process as i32, processes: Some(processes as i32) };
        let (join, place) = (settings.join, address.to_owned());
        let (grpc, service) = wait_for(&runtime, async move {
            let grpc = Grpc::new(endpoint.connect_lazy());
            let grpc = grpc.max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
            let service = register(&grpc, &request, &place, join).await;
            service.map(|service| (grpc, service))
        })?;
        let link = Arc::new(Link {
            grpc,
            address: address.to_owned(),
            process,
            incarnations: Incarnations { task: incarnation, service },
            settings: settings.clone(),
            failure: watch::Sender::new(None),
            callbacks: Mutex::default(),
            over: AtomicBool::new(false),
        });
        runtime.spawn(send_heartbeats(link.clone()));
        runtime.spawn(hear_of_failures(link.clone()));
        Ok(Session { link, processes, barriers: Mutex::default(), runtime: Some(runtime) })
    }

    /// Returns the index of this process.
    pub fn process(&self) -> usize {
        self.link.process
    }

    /// Returns the number of processes of the run.
    pub fn processes(&self) -> usize {
        self.processes
    }

    /// Returns why the run cannot go on, once it cannot. From then on every other function returns this as
    /// its error.
    pub fn failure(&self) -> Option<Failure> {
        self.link.failure.borrow().clone()
    }

    /// Calls a function once when the run fails, on a thread of its own. If it has failed already, at once.
    pub fn on_failure(&self, callback: impl FnOnce(Failure) + Send + 'static) {
        let mut callbacks = self.link.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.push(Box::new(callback));
        if let Some(failure) = self.failure() {
            notify(&mut callbacks, &failure);
        }
    }

    /// Waits until all processes are at the barrier of this name. A name can be used again.
    ///
    /// # Errors
    /// When not all came within the time of the first that was there; the error names the missing ones. When
    /// the run fails.
    pub fn barrier(&self, name: &str, limit: Duration) -> Result<()> {
        let counter = {
            let mut barriers = self.barriers.lock().unwrap_or_else(PoisonError::into_inner);
            let counter = barriers.entry(name.to_owned()).or_default();
            *counter += 1;
            *counter - 1
        };
        let request = Barrier {
            incarnations: self.link.stamp(),
            id: name.to_owned(),
            timeout_ms: i64::try_from(limit.as_millis()).unwrap_or(i64::MAX),
            members: Vec::new(),
            process: self.link.process as i32,
            counter,
        };
        self.call(request, limit.saturating_add(GRACE))?;
        Ok(())
    }

    /// Checks that all processes pass the same text, such as a configuration. Each name can be used once.
    ///
    /// # Errors
    /// On every process, when one text differs from that of process 0: names the process and the first line
    /// that differs. When a process does not call this within `settings.join`, or the run fails.
    pub fn agree(&self, name: &str, own: &str) -> Result<()> {
        let patience = self.link.settings.join;
        key_values::agree(self, (self.process(), self.processes), name, own, patience)
    }

    /// Tells all other processes that this one ends, and why. Call it before the process exits with an error.
    ///
    /// # Errors
    /// When the coordinator cannot be reached. The others then learn of the end by the missing heartbeats.
    pub fn fail(&self, message: &str) -> Result<()> {
        self.link.over.store(true, Ordering::SeqCst);
        if self.failure().is_some() {
            return Ok(());
        }
        let (incarnations, process) = (self.link.stamp(), self.link.process as i32);
        let request = Fail { incarnations, process, message: message.to_owned() };
        self.call(request, self.link.settings.dead_after)?;
        Ok(())
    }

    /// Waits until all processes want to leave, and leaves. Process 0 can end the coordinator afterwards.
    ///
    /// # Errors
    /// When not all call this within `settings.leave`, or when the run has failed.
    pub fn leave(&self) -> Result<()> {
        self.link.over.store(true, Ordering::SeqCst);
        let (incarnations, process) = (self.link.stamp(), self.link.process as i32);
        let limit = self.link.settings.leave.saturating_add(GRACE);
        self.call(ShutdownTask { incarnations, process }, limit)?;
        Ok(())
    }

    /// Sends a request and waits for the answer, for a limited time, and not longer than the run is in order.
    fn request<M: Call>(&self, message: M, limit: Duration) -> Result<M::Answer, Status> {
        let link = self.link.clone();
        let runtime = self.runtime.as_ref().expect("is there until drop");
        wait_for(runtime, async move {
            let mut failure = link.failure.subscribe();
            tokio::select! {
                biased;
                answer = timeout(limit, send(&link.grpc, message)) => answer.unwrap_or_else(|_| Err(late(limit))),
                failed = failure.wait_for(Option::is_some) => {
                    let failure = failed.ok().and_then(|failure| failure.clone());
                    Err(Status::unavailable(failure.map_or_else(String::new, |failure| failure.reason)))
                }
            }
        })
    }

    fn call<M: Call>(&self, message: M, limit: Duration) -> Result<M::Answer> {
        self.request(message, limit).map_err(|status| match (reported(&status), status.code()) {
            // The run goes on: only this call was wrong or too late.
            (Some(problem), Code::DeadlineExceeded | Code::Internal) => anyhow!(problem.reason),
            (Some(failure), _) => failure.into(),
            (None, _) => match self.failure() {
                Some(failure) => failure.into(),
                None => {
                    anyhow!("the coordinator at {} does not answer: {}", self.link.address, cause(&status))
                }
            },
        })
    }

    fn key_call<M: Call>(&self, key: &str, message: M, limit: Duration) -> Result<M::Answer, KeyError> {
        self.request(message, limit).map_err(|status| match status.code() {
            Code::DeadlineExceeded => {
                KeyError::DeadlineExceeded(format!("no value for {key:?} within {limit:?}"))
            }
            Code::NotFound => KeyError::NotFound(status.message().to_owned()),
            Code::AlreadyExists => KeyError::AlreadyExists(status.message().to_owned()),
            _ => KeyError::Unavailable(format!(
                "the store of the run at {}: {}",
                self.link.address,
                cause(&status)
            )),
        })
    }
}

impl KeyValues for Session {
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, KeyError> {
        let incarnations = self.link.stamp();
        let answer = self.key_call(key, GetKeyValue { incarnations, key: key.to_owned() }, timeout)?;
        Ok(value(answer))
    }

    fn try_get(&self, key: &str) -> Result<Vec<u8>, KeyError> {
        let incarnations = self.link.stamp();
        let request = TryGetKeyValue { incarnations, key: key.to_owned() };
        Ok(value(self.key_call(key, request, self.link.settings.dead_after)?))
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), KeyError> {
        let entry = KeyValue { key: key.to_owned(), value: value.to_vec().into() };
        let incarnations = self.link.stamp();
        let request = InsertKeyValue { incarnations, entry: Some(entry), overwrite: false };
        self.key_call(key, request, self.link.settings.dead_after)
    }

    fn delete(&self, key: &str) -> Result<(), KeyError> {
        let incarnations = self.link.stamp();
        let request = DeleteKeyValue { incarnations, key: key.to_owned(), directory: false };
        self.key_call(key, request, self.link.settings.dead_after)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A session may be dropped on a thread of another runtime, where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

impl Link {
    /// Returns what requests carry to say which starts of processes they belong to.
    fn stamp(&self) -> Option<Incarnations> {
        Some(self.incarnations.clone())
    }

    /// Reports a failure of the run, unless this process has ended its part. Only the first one counts.
    fn fail(&self, failure: Failure) {
        let mut callbacks = self.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.over.load(Ordering::SeqCst) || self.failure.borrow().is_some() {
            return;
        }
        self.failure.send_replace(Some(failure.clone()));
        notify(&mut callbacks, &failure);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || self.failure.borrow().is_some()
    }
}

/// Runs a future on the runtime and waits for its result. Unlike `block_on`, also on a thread of another
/// runtime.
fn wait_for<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = done.send(future.await);
    });
    result.recv().expect("the task sends its result")
}

/// Calls all that wait for a failure, on a thread that may block.
fn notify(callbacks: &mut Vec<Callback>, failure: &Failure) {
    let (callbacks, failure) = (std::mem::take(callbacks), failure.clone());
    std::thread::spawn(move || callbacks.into_iter().for_each(|callback| callback(failure.clone())));
}

async fn send<M: Call>(grpc: &Grpc<Channel>, message: M) -> Result<M::Answer, Status> {
    let mut grpc = grpc.clone();
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let (path, codec) = (PathAndQuery::from_static(M::PATH), Protobuf::<M, M::Answer>::new());
    Ok(grpc.unary(tonic::Request::new(message), path, codec).await?.into_inner())
}

/// Joins a run, and returns the coordinator's incarnation. Repeats what does not reach the coordinator until
/// the time is over.
async fn register(
    grpc: &Grpc<Channel>,
    request: &RegisterTask,
    address: &str,
    join: Duration,
) -> Result<u64> {
    let start = Instant::now();
    loop {
        let left = join.saturating_sub(start.elapsed()).saturating_add(GRACE);
        let answer = timeout(left, send(grpc, request.clone())).await;
        let status = match answer {
            Ok(Ok(answer)) => return Ok(answer.incarnation),
            Ok(Err(status)) => status,
            Err(_) => late(left),
        };
        // A process that was started again waits until the others have noticed that it had died, and join anew.
        let waits = status.code() == TAKEN && start.elapsed() < join;
        if let Some(failure) = reported(&status).filter(|_| !waits) {
            return Err(anyhow::Error::from(failure).context(format!("cannot join the run at {address}")));
        }
        if status.code() == Code::Unimplemented {
            bail!("what answers at {address} is not a coordinator of this version: {}", status.message());
        }
        if start.elapsed() >= join {
            bail!(
                "no coordinator at {address} within {join:?}: is process 0 running and its port open? {}",
                cause(&status)
            );
        }
        sleep(PAUSE).await;
    }
}

async fn send_heartbeats(link: Arc<Link>) {
    let (pause, limit) = (link.settings.heartbeat, link.settings.dead_after);
    let mut heard = Instant::now();
    loop {
        sleep(pause).await;
        let incarnations = link.stamp();
        let (incarnation, process) = (link.incarnations.task, link.process as i32);
        let request = Heartbeat { incarnations, incarnation, process };
        let status = match timeout(pause, send(&link.grpc, request)).await {
            Ok(Ok(_)) => {
                heard = Instant::now();
                continue;
            }
            Ok(Err(status)) => status,
            Err(_) => late(pause),
        };
        if link.is_over() {
            return;
        }
        if let Some(failure) = reported(&status) {
            link.fail(failure);
        } else if heard.elapsed() >= limit {
            let reason = format!(
                "process 0 has died or hangs: its coordinator at {} has not answered for {limit:?}: {}",
                link.address,
                cause(&status)
            );
            link.fail(Failure { process: Some(0), reason });
        }
    }
}

/// Waits for the coordinator's word that the run has failed. Whether the coordinator itself is alive, the
/// heartbeats tell.
async fn hear_of_failures(link: Arc<Link>) {
    while !link.is_over() {
        let (incarnations, process) = (link.stamp(), link.process as i32);
        let answer = send(&link.grpc, PollForError { incarnations, process }).await;
        match answer.as_ref().err().and_then(reported) {
            Some(failure) => link.fail(failure),
            None => sleep(PAUSE).await,
        }
    }
}

fn late(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {limit:?}"))
}

fn value(answer: KeyValueAnswer) -> Vec<u8> {
    answer.entry.unwrap_or_default().value.into()
}

/// Formats an error of the network with its causes, which partly repeat each other.
fn cause(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) && message != "transport error" {
            let _ = write!(text, ": {message}");
        }
        source = error.source();
    }
    text
}
