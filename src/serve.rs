//! What all roles share: listening, health, probes, draining on SIGTERM.
//!
//! The only place that spawns tasks.

use std::{
    future::{Future, IntoFuture as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
    serve::ListenerExt as _,
};
use futures::TryStreamExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use crate::{
    pb::{
        DESCRIPTORS,
        router_service_server::{RouterService, SERVICE_NAME as ROUTER},
        worker_service_server::{SERVICE_NAME as WORKER, WorkerService},
    },
    transport,
};

/// Descriptors of the health service, so that reflection can show it.
const HEALTH_DESCRIPTORS: &[u8] = tonic_health::pb::FILE_DESCRIPTOR_SET;

/// The servers of one process.
#[derive(Debug)]
pub struct Servers {
    /// End by themselves when draining begins.
    tasks: JoinSet<Result<()>>,
    /// Answers to the very end.
    admin: JoinSet<Result<()>>,
    /// Cancelled when draining begins.
    draining: CancellationToken,
    ready: Arc<AtomicBool>,
    health: Vec<HealthReporter>,
    grace: Duration,
}

/// What a gRPC listener serves.
#[derive(Debug)]
pub enum Grpc<R, W> {
    /// `RouterService`, with the largest request in bytes.
    Router(R, usize),
    /// `WorkerService`.
    Worker(W),
}

impl Servers {
    /// No servers yet. In-flight requests get `grace` to finish.
    pub fn new(grace: Duration) -> Self {
        Self {
            tasks: JoinSet::new(),
            admin: JoinSet::new(),
            draining: CancellationToken::new(),
            ready: Arc::new(AtomicBool::new(false)),
            health: Vec::new(),
            grace,
        }
    }

    /// Serves HTTP.
    pub async fn http(
        &mut self,
        role: &'static str,
        address: SocketAddr,
        routes: Router,
    ) -> Result<SocketAddr> {
        let (listener, bound) = bind(role, address).await?;
        let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
        let draining = self.draining.clone().cancelled_owned();
        let server = axum::serve(listener, routes).with_graceful_shutdown(draining).into_future();
        self.tasks.spawn(async move { server.await.context("HTTP server") });
        Ok(bound)
    }

    /// Serves gRPC with health and reflection.
    pub async fn grpc<R: RouterService, W: WorkerService>(
        &mut self,
        role: &'static str,
        address: SocketAddr,
        service: Grpc<R, W>,
    ) -> Result<SocketAddr> {
        let (listener, bound) = bind(role, address).await?;
        let (health, health_service) = tonic_health::server::health_reporter();
        // grpcurl and Python's client still speak the older protocol.
        let name = match &service {
            Grpc::Router(..) => ROUTER,
            Grpc::Worker(_) => WORKER,
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(HEALTH_DESCRIPTORS)
                .with_service_name(name)
                .with_service_name("grpc.health.v1.Health")
        };
        let server = transport::server()
            .add_service(health_service)
            .add_service(reflection().build_v1().context("reflection")?)
            .add_service(reflection().build_v1alpha().context("reflection")?);
        let server = match service {
            Grpc::Router(router, max_request_bytes) => {
                health.set_service_status(ROUTER, ServingStatus::Serving).await;
                server.add_service(transport::router_server(router, max_request_bytes))
            }
            Grpc::Worker(worker) => {
                health.set_service_status(WORKER, ServingStatus::Serving).await;
                server.add_service(transport::worker_server(worker))
            }
        };
        self.health.push(health);
        // tonic sets this only on connections that it accepts itself; without it a small answer waits 40 ms for
        // the other side's acknowledgement.
        let incoming = TcpListenerStream::new(listener).inspect_ok(|stream| _ = stream.set_nodelay(true));
        let draining = self.draining.clone().cancelled_owned();
        let server = server.serve_with_incoming_shutdown(incoming, draining);
        self.tasks.spawn(async move { server.await.context("gRPC server") });
        Ok(bound)
    }

    /// Serves probes and metrics.
    pub async fn admin(&mut self, address: SocketAddr, metrics: PrometheusHandle) -> Result<SocketAddr> {
        let ready = Arc::clone(&self.ready);
        let routes = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state(ready)
            .route("/metrics", get(async move || render(&metrics)));
        let (listener, bound) = bind("admin", address).await?;
        self.admin
            .spawn(async move { axum::serve(listener, routes).into_future().await.context("admin server") });
        Ok(bound)
    }

    /// Runs something beside the servers until draining begins.
    pub fn background(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let draining = self.draining.clone();
        self.tasks.spawn(async move {
            draining.run_until_cancelled(work).await;
            Ok(())
        });
    }

    /// Runs something that is told when draining begins, and then has the grace period to finish.
    pub fn until_drained<F>(&mut self, work: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = work(self.draining.clone());
        self.tasks.spawn(async move {
            work.await;
            Ok(())
        });
    }

    /// Runs until SIGTERM or SIGINT, then lets in-flight requests finish.
    ///
    /// # Errors
    /// A server failed, or requests were still in flight after the grace period.
    pub async fn run(mut self) -> Result<()> {
        self.ready.store(true, Ordering::Relaxed);
        let failed = tokio::select! {
            () = asked_to_stop() => None,
            failed = self.failure() => Some(failed),
        };
        info!("draining");
        self.ready.store(false, Ordering::Relaxed);
        for health in &mut self.health {
            for service in [ROUTER, WORKER, ""] {
                health.set_service_status(service, ServingStatus::NotServing).await;
                // Ends the streams of those who watch it, which would hold up draining.
                health.clear_service_status(service).await;
            }
        }
        self.draining.cancel();
        if let Some(error) = failed {
            return Err(error);
        }
        self.drain().await
    }

    /// Waits for a server to fail. Background work may end.
    async fn failure(&mut self) -> anyhow::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return error.into(),
                None => std::future::pending().await,
            }
        }
    }

    async fn drain(mut self) -> Result<()> {
        let grace = self.grace;
        let finished = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok(Err(error)) = ended {
                    warn!(%error, "while draining");
                }
            }
        };
        if tokio::time::timeout(grace, finished).await.is_err() {
            bail!("requests were still in flight after {} s", grace.as_secs());
        }
        info!("drained");
        Ok(())
    }
}

async fn bind(role: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for {role}"))?;
    let bound = listener.local_addr()?;
    info!(role, address = %bound, "listening");
    Ok((listener, bound))
}

async fn readyz(State(ready): State<Arc<AtomicBool>>) -> (StatusCode, &'static str) {
    if ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}

fn render(metrics: &PrometheusHandle) -> impl IntoResponse + use<> {
    // Histograms keep every sample until they are rendered or swept.
    metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

/// SIGTERM is Kubernetes', SIGINT a person's.
async fn asked_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        warn!("signals cannot be received; the process can only be killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Every SIGHUP from now on, also one that comes while nobody waits.
#[derive(Debug)]
pub struct Hangups(Option<Signal>);

impl Hangups {
    /// Begins to listen. Where signals cannot be received, none ever comes.
    pub fn new() -> Self {
        Self(signal(SignalKind::hangup()).ok())
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        match &mut self.0 {
            Some(hangup) => _ = hangup.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Default for Hangups {
    fn default() -> Self {
        Self::new()
    }
}
