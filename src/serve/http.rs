//! HTTP connections as the shim takes them, and what happens to every request on them: it is counted, and while draining its
//! connection ends with it.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, header},
    response::Response,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, error};

use crate::{
    guarded::Guarded,
    telemetry,
    transport::{KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT},
};

/// What is read at a time of a request, at most, and so the largest head. As hyper has it, 400 KB, a crowd of uploads
/// takes more memory for what is on its way than for what has come.
const READ_BYTES: usize = 128 << 10;

/// How long a client may take for a request's head, and how long a connection may wait for its next request: longer than load
/// balancers keep theirs, up to 600 s, or one of them would send a request just as it is closed here.
const HEAD_WITHIN: Duration = Duration::from_secs(620);

/// How long to wait for file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Serves connections until draining begins, and those that are there until they are done. Once this process is not `ready` any
/// more, clients are asked to come back on another connection.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    ready: Arc<AtomicBool>,
    draining: CancellationToken,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(READ_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let service = service_fn(move |request| answer(routes.clone(), request, Arc::clone(&ready)));
    let (connections, mut tasks) = (GracefulShutdown::new(), JoinSet::new());
    while let Some(accepted) = draining.run_until_cancelled(listener.accept()).await {
        let wire = match accepted {
            Ok((wire, _)) => wire,
            Err(error) => {
                if !is_of_one_connection(&error) {
                    error!(%error, "cannot accept connections");
                    sleep(ACCEPT_AGAIN).await;
                }
                continue;
            }
        };
        _ = wire.set_nodelay(true);
        let connection = server.serve_connection(TokioIo::new(wire), service.clone()).into_owned();
        let connection = connections.watch(connection);
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(error, "a connection broke");
            }
        });
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    connections.shutdown().await;
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// Counts a request until its answer has been written. Not a layer of the routes: of those each request makes copies of what
/// lies below, in boxes.
async fn answer(
    routes: Router,
    request: Request<Incoming>,
    ready: Arc<AtomicBool>,
) -> Result<Response, Infallible> {
    let in_flight = InFlight::new();
    let mut response = routes.oneshot(request).await?.map(|body| Body::new(Guarded::new(body, in_flight)));
    if !ready.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

struct InFlight;

impl InFlight {
    fn new() -> Self {
        telemetry::http_in_flight(1.0);
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        telemetry::http_in_flight(-1.0);
    }
}
