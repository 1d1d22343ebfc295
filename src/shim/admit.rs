//! Requests are let in by the bytes that they bring. One that is not is told so at once, whatever of it is still to come.

use axum::{
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    middleware::Next,
    response::Response,
};
use http_body::Body as _;

use super::{Shim, answer, request};
use crate::{admission::caller, guarded::Guarded};

/// Runs a request once it has its place, which it has until its answer has been written.
pub async fn admitted(State(shim): State<Shim>, mut request: Request, next: Next) -> Response {
    DefaultBodyLimit::max(shim.max_body_bytes).apply(&mut request);
    // Who does not say how much it brings is taken to bring the most that is allowed.
    let bytes = request.body().size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.unwrap_or(usize::MAX).min(shim.max_body_bytes);
    match shim.admission.admit(caller(request.headers()), bytes).await {
        Ok(place) => next.run(request).await.map(|body| Body::new(Guarded::new(body, place))),
        Err(error) => {
            let (head, body) = request.into_parts();
            request::throw_away(body);
            answer::error(&error, &head.headers)
        }
    }
}
