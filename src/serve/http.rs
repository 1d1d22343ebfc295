//! What happens to every HTTP request of the shim: it is counted, and while draining its connection ends with it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::telemetry;

/// Counts a request until its answer has been written, and asks clients to come back on another connection once
/// this process is about to go.
pub async fn watched(State(ready): State<Arc<AtomicBool>>, request: Request, next: Next) -> Response {
    let in_flight = InFlight::new();
    let mut response = next.run(request).await.map(|body| Body::new(Watched { body, _in_flight: in_flight }));
    if !ready.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
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

struct Watched {
    body: Body,
    _in_flight: InFlight,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
