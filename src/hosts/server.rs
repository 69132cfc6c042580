//! The coordinator as a gRPC server.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Request, Response};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::service_fn;

use super::Settings;
use super::messages::{
    Barrier, BarrierAnswer, Call, DeleteKeyValue, Fail, GetKeyValue, Heartbeat, InsertKeyValue, KeyValue,
    KeyValueAnswer, LARGEST, PollForError, Protobuf, RegisterTask, ServiceIncarnation, ShutdownTask,
    TryGetKeyValue,
};
use super::state::Run;

/// Time for the last answers to reach the other processes after the coordinator was dropped.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The store of a run of several processes, and the place that all of them send heartbeats to. Process 0
/// hosts it.
///
/// Drop it after the session of process 0 has left. Dropped earlier, it ends the run for the others.
pub struct Coordinator {
    run: Arc<Run>,
    address: SocketAddr,
    /// Stops taking connections when it is dropped.
    stop: Option<oneshot::Sender<()>>,
    stopped: mpsc::Receiver<()>,
    runtime: Option<Runtime>,
}

impl Coordinator {
    /// Starts the coordinator at `HOST:PORT`. The host `[::]` stands for all addresses of this machine, port
    /// 0 for a free one.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid) for settings that contradict each other. When the
    /// address is not one of this machine or its port is in use.
    pub fn start(address: &str, processes: usize, settings: &Settings) -> Result<Coordinator> {
        settings.check(processes)?;
        let listener = listen(address).with_context(|| {
            format!("the coordinator cannot listen at {address}: choose another port, or end what uses it")
        })?;
        let address = listener.local_addr()?;
        let runtime = super::runtime()?;
        let run = Arc::new(Run::new(processes, settings));
        let (stop, stopping) = oneshot::channel::<()>();
        let (finished, stopped) = mpsc::channel();
        let incoming = {
            let _in_runtime = runtime.enter();
            TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true))
        };
        let shared = run.clone();
        let service = service_fn(move |request| route(shared.clone(), request));
        runtime.spawn(async move {
            let stopping = async { drop(stopping.await) };
            // Heartbeats must not queue behind requests that wait for a value.
            let server = Server::builder().max_concurrent_streams(u32::MAX);
            if let Err(error) = server.serve_with_incoming_shutdown(service, incoming, stopping).await {
                log::error!("the coordinator has stopped: {error}");
            }
            let _ = finished.send(());
        });
        let (shared, pause) = (run.clone(), settings.heartbeat / 2);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                shared.bury_the_dead();
            }
        });
        Ok(Coordinator { run, address, stop: Some(stop), stopped, runtime: Some(runtime) })
    }

    /// Returns the address that the coordinator listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.run.close();
        drop(self.stop.take());
        let _ = self.stopped.recv_timeout(LAST_ANSWERS);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Opens a port.
fn listen(address: &str) -> std::io::Result<TcpListener> {
    let mut addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    // [::] takes IPv4 connections too, but some systems have no IPv6.
    if let Some(all) = addresses.iter().find(|a| a.is_ipv6() && a.ip().is_unspecified()) {
        addresses.push((Ipv4Addr::UNSPECIFIED, all.port()).into());
    }
    let listener = TcpListener::bind(&addresses[..])?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers a request.
async fn route(run: Arc<Run>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        RegisterTask::PATH => answer(run, request, register).await,
        Heartbeat::PATH => answer(run, request, heartbeat).await,
        PollForError::PATH => answer(run, request, poll_for_error).await,
        ShutdownTask::PATH => answer(run, request, shut_down).await,
        InsertKeyValue::PATH => answer(run, request, insert).await,
        GetKeyValue::PATH => answer(run, request, get).await,
        TryGetKeyValue::PATH => answer(run, request, try_get).await,
        DeleteKeyValue::PATH => answer(run, request, delete).await,
        Barrier::PATH => answer(run, request, barrier).await,
        Fail::PATH => answer(run, request, fail).await,
        _ => Status::unimplemented(format!("this coordinator has no method {path}")).into_http(),
    };
    Ok(response)
}

/// Reads a request's message and writes the answer of a function of it.
async fn answer<M, F>(run: Arc<Run>, request: Request<Body>, handle: fn(Arc<Run>, M) -> F) -> Response<Body>
where
    M: Call,
    F: Future<Output = Result<M::Answer, Status>> + Send + 'static,
{
    let service = service_fn(move |message: tonic::Request<M>| {
        let (run, message) = (run.clone(), message.into_inner());
        async move {
            run.check(message.coordinator())?;
            handle(run, message).await.map(tonic::Response::new)
        }
    });
    let grpc = Grpc::new(Protobuf::<M::Answer, M>::new());
    let mut grpc = grpc.max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    grpc.unary(service, request).await
}

async fn register(run: Arc<Run>, request: RegisterTask) -> Result<ServiceIncarnation, Status> {
    run.register(request).await?;
    Ok(ServiceIncarnation { incarnation: run.incarnation })
}

async fn heartbeat(run: Arc<Run>, request: Heartbeat) -> Result<ServiceIncarnation, Status> {
    run.heartbeat(request.process, request.incarnation)?;
    Ok(ServiceIncarnation { incarnation: run.incarnation })
}

async fn poll_for_error(run: Arc<Run>, _: PollForError) -> Result<(), Status> {
    Err(run.failure().await)
}

async fn shut_down(run: Arc<Run>, request: ShutdownTask) -> Result<(), Status> {
    run.leave(request.process).await
}

async fn insert(run: Arc<Run>, request: InsertKeyValue) -> Result<(), Status> {
    run.put(request.entry, request.overwrite)
}

async fn get(run: Arc<Run>, request: GetKeyValue) -> Result<KeyValueAnswer, Status> {
    let value = run.get(&request.key).await?;
    Ok(KeyValueAnswer { entry: Some(KeyValue { key: request.key, value }) })
}

async fn try_get(run: Arc<Run>, request: TryGetKeyValue) -> Result<KeyValueAnswer, Status> {
    let value = run.try_get(&request.key)?;
    Ok(KeyValueAnswer { entry: Some(KeyValue { key: request.key, value }) })
}

async fn delete(run: Arc<Run>, request: DeleteKeyValue) -> Result<(), Status> {
    run.delete(&request.key, request.directory);
    Ok(())
}

async fn barrier(run: Arc<Run>, request: Barrier) -> Result<BarrierAnswer, Status> {
    let counter = request.counter;
    run.barrier(request).await?;
    Ok(BarrierAnswer { counter })
}

async fn fail(run: Arc<Run>, request: Fail) -> Result<(), Status> {
    run.fail(request.process, &request.message)
}
