//! What all roles share: listening, health, probes, draining on SIGTERM.
//!
//! Servers are tasks of their own, and so is what runs beside them.

mod accept;
mod http;
mod reflection;

use std::{
    future::{Future, IntoFuture as _},
    io,
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
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, pb::health_server::SERVICE_NAME as HEALTH, server::HealthReporter};
use tracing::{info, warn};

use crate::{
    admin::Admin,
    admission::{Admission, Held, grpc::Admitted},
    config::file::Shutdown,
    pb::{
        admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN},
        router_service_server::{RouterService, SERVICE_NAME as ROUTER},
        worker_service_server::{SERVICE_NAME as WORKER, WorkerService},
    },
    telemetry::{self, Metrics},
    tls::Tls,
    transport,
};

/// Services that a probe can ask for: whether to send requests here, and whether to let this process live.
const READINESS: &str = "readiness";
const LIVENESS: &str = "liveness";

/// Connections that may wait to be accepted, as far as the system allows. Whoever comes beyond them tries again after a
/// second, then after two and four: with tokio's 1,024 some of a crowd wait a minute.
const BACKLOG: u32 = 8192;

/// How often what histograms hold is put together.
const TIDY_EVERY: Duration = Duration::from_secs(30);

/// The servers of one process.
#[derive(Debug)]
pub struct Servers {
    /// From the beginning: process 1 of a container would not notice one that comes before anybody listens.
    signals: Signals,
    /// End by themselves when draining begins.
    tasks: JoinSet<Result<()>>,
    /// Go on to the very end.
    admin: JoinSet<Result<()>>,
    /// Cancelled when draining begins.
    draining: CancellationToken,
    ready: Arc<AtomicBool>,
    /// Of the gRPC listeners, with their service.
    health: Vec<(&'static str, HealthReporter)>,
    /// Of the admin listener.
    probes: Option<HealthReporter>,
    shutdown: Shutdown,
}

/// What a gRPC listener serves.
#[derive(Debug)]
pub enum Grpc<R, W> {
    /// `RouterService` and `AdminService`, with the largest request in bytes.
    Router(R, Admin, usize),
    /// `WorkerService`.
    Worker(W),
}

impl Servers {
    /// No servers yet.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            signals: Signals::new(),
            tasks: JoinSet::new(),
            admin: JoinSet::new(),
            draining: CancellationToken::new(),
            ready: Arc::new(AtomicBool::new(false)),
            health: Vec::new(),
            probes: None,
            shutdown,
        }
    }

    /// Serves HTTP.
    pub async fn http(
        &mut self,
        role: &'static str,
        address: SocketAddr,
        routes: Router,
    ) -> Result<SocketAddr> {
        telemetry::shim_begins();
        let (listener, bound) = bind(role, address)?;
        let (ready, draining) = (Arc::clone(&self.ready), self.draining.clone());
        self.tasks.spawn(async move {
            http::serve(listener, routes, ready, draining).await;
            Ok(())
        });
        Ok(bound)
    }

    /// Serves gRPC with health and reflection, over TLS if there is any. Requests that may be large need a place.
    pub async fn grpc<R: RouterService<StreamImageStream: Unpin>, W: WorkerService<GenerateStream: Unpin>>(
        &mut self,
        role: &'static str,
        address: SocketAddr,
        service: Grpc<R, W>,
        tls: Option<&Arc<Tls>>,
        admission: Admission,
    ) -> Result<SocketAddr> {
        let (listener, bound) = bind(role, address)?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let (name, services): (_, &[&str]) = match &service {
            Grpc::Router(..) => (ROUTER, &[ROUTER, ADMIN, HEALTH]),
            Grpc::Worker(_) => (WORKER, &[WORKER, HEALTH]),
        };
        let server = transport::server()
            .add_service(health_service)
            .add_service(reflection::v1(services))
            .add_service(reflection::v1alpha(services));
        let server = match service {
            Grpc::Router(router, admin, max_request_bytes) => {
                telemetry::router_begins();
                server
                    .add_service(Admitted::new(
                        transport::router_server(router, max_request_bytes),
                        admission,
                        max_request_bytes,
                    ))
                    .add_service(AdminServiceServer::new(admin))
            }
            Grpc::Worker(worker) => {
                telemetry::worker_begins();
                let worker = transport::worker_server(worker);
                server.add_service(Admitted::new(worker, admission, transport::MESSAGE_BYTES))
            }
        };
        self.health.push((name, health));
        let incoming = accept::connections(listener, tls.cloned());
        let draining = self.draining.clone().cancelled_owned();
        let server = server.serve_with_incoming_shutdown(incoming, draining);
        self.tasks.spawn(async move { server.await.context("gRPC server") });
        Ok(bound)
    }

    /// Serves probes and metrics, and these pages beside them. Probes may also ask over gRPC, in plain text whatever the
    /// roles speak.
    pub async fn admin(
        &mut self,
        address: SocketAddr,
        metrics: Metrics,
        pages: Router,
    ) -> Result<SocketAddr> {
        let ready = Arc::clone(&self.ready);
        let (health, health_service) = tonic_health::server::health_reporter();
        for service in [READINESS, ""] {
            health.set_service_status(service, ServingStatus::NotServing).await;
        }
        health.set_service_status(LIVENESS, ServingStatus::Serving).await;
        self.probes = Some(health);
        // Counted where it changes a dozen times a request, told where somebody asks.
        let metrics = Arc::new(metrics.looking(|| telemetry::bytes_in_flight(Held::by_all())));
        let rendered = Arc::clone(&metrics);
        let routes = Router::new()
            .route_service(&health_path(&health_service), health_service)
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state(ready)
            .route("/metrics", get(async move || render(&rendered)))
            .merge(pages);
        let (listener, bound) = bind("admin", address)?;
        let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
        self.admin
            .spawn(async move { axum::serve(listener, routes).into_future().await.context("admin server") });
        // Also where nobody comes for them.
        self.until_the_end(async move {
            loop {
                tokio::time::sleep(TIDY_EVERY).await;
                metrics.tidy();
            }
        });
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

    /// Runs something until the process ends.
    pub fn until_the_end(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.admin.spawn(async move {
            work.await;
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

    /// Runs until SIGTERM or SIGINT, answers on while load balancers notice, then lets in-flight requests finish.
    ///
    /// # Errors
    /// A server failed, or requests were still in flight after the grace period.
    pub async fn run(mut self) -> Result<()> {
        self.ready.store(true, Ordering::Relaxed);
        self.say(ServingStatus::Serving).await;
        let failed = tokio::select! {
            () = self.signals.next() => None,
            failed = failure(&mut self.tasks) => Some(failed),
        };
        self.ready.store(false, Ordering::Relaxed);
        self.say(ServingStatus::NotServing).await;
        let delay = self.shutdown.delay;
        if failed.is_none() && !delay.is_zero() {
            info!(delay_s = delay.as_secs(), "not ready any more, still answering");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // Somebody is in a hurry.
                () = self.signals.next() => {}
            }
        }
        info!("draining");
        for (service, health) in &mut self.health {
            for service in [service, ""] {
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

    /// Tells everybody who asks.
    async fn say(&self, status: ServingStatus) {
        let listeners = self.health.iter().map(|(service, health)| (*service, health));
        let probes = self.probes.iter().map(|health| (READINESS, health));
        for (service, health) in listeners.chain(probes) {
            for service in [service, ""] {
                health.set_service_status(service, status).await;
            }
        }
    }

    async fn drain(mut self) -> Result<()> {
        let grace = self.shutdown.grace;
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

/// Waits for a server to fail. Background work may end.
async fn failure(tasks: &mut JoinSet<Result<()>>) -> anyhow::Error {
    loop {
        match tasks.join_next().await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => return error,
            Some(Err(error)) => return error.into(),
            None => std::future::pending().await,
        }
    }
}

fn bind(role: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = listen(address).with_context(|| format!("cannot listen on {address} for {role}"))?;
    let bound = listener.local_addr()?;
    info!(role, address = %bound, "listening");
    Ok((listener, bound))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn readyz(State(ready): State<Arc<AtomicBool>>) -> (StatusCode, &'static str) {
    if ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}

fn render(metrics: &Metrics) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

/// Requests to stop: SIGTERM is Kubernetes', SIGINT a person's.
#[derive(Debug)]
struct Signals(Option<(Signal, Signal)>);

impl Signals {
    fn new() -> Self {
        let both =
            signal(SignalKind::terminate()).and_then(|one| Ok((one, signal(SignalKind::interrupt())?)));
        if both.is_err() {
            warn!("signals cannot be received; the process can only be killed");
        }
        Self(both.ok())
    }

    async fn next(&mut self) {
        match &mut self.0 {
            Some((terminate, interrupt)) => tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            },
            None => std::future::pending().await,
        }
    }
}

/// Where a health service answers.
fn health_path<T: tonic::server::NamedService>(_: &T) -> String {
    format!("/{}/{{*method}}", T::NAME)
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
