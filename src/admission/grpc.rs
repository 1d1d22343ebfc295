//! Requests over gRPC: a message says its length in front of it, so a call has its place before the message is read.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{Admission, caller};
use crate::{framing, guarded::Guarded};

/// A service whose calls begin once they have a place, and have it until their answers have been written.
#[derive(Clone)]
pub struct Admitted<S> {
    service: S,
    admission: Admission,
    /// Whoever sends more is told so by the service.
    max_message_bytes: usize,
}

impl<S> Admitted<S> {
    /// A service with room for its calls.
    pub const fn new(service: S, admission: Admission, max_message_bytes: usize) -> Self {
        Self { service, admission, max_message_bytes }
    }
}

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let next = self.service.clone();
        // The one that is ready.
        let mut service = mem::replace(&mut self.service, next);
        let (admission, max_message_bytes) = (self.admission.clone(), self.max_message_bytes);
        Box::pin(async move {
            let (head, mut body) = request.into_parts();
            let begun = Begun::read(&mut body).await;
            let bytes = begun.announced().unwrap_or(0).min(max_message_bytes);
            match admission.admit(caller(&head.headers), bytes).await {
                Ok(place) => {
                    let frames = stream::iter(begun.0).chain(BodyStream::new(body));
                    let body = Body::new(StreamBody::new(frames));
                    let answer = service.call(Request::from_parts(head, body)).await?;
                    Ok(answer.map(|body| Body::new(Guarded::new(body, place))))
                }
                Err(error) => Ok(error.to_status().into_http()),
            }
        })
    }
}

/// What was read of a call to know how much it brings.
struct Begun(Vec<Result<Frame<Bytes>, Status>>);

impl Begun {
    /// Reads on until the length is there, or will not be.
    async fn read(body: &mut Body) -> Self {
        let mut begun = Self(Vec::with_capacity(1));
        while begun.announced().is_none() {
            match body.frame().await {
                Some(Ok(frame)) if frame.is_data() => begun.0.push(Ok(frame)),
                Some(end) => {
                    begun.0.push(end);
                    break;
                }
                None => break,
            }
        }
        begun
    }

    /// The message's length.
    fn announced(&self) -> Option<usize> {
        let data = self.0.iter().flatten().filter_map(Frame::data_ref);
        framing::announced(data.flatten().copied()).map(|(_, length)| length)
    }
}

impl<S> fmt::Debug for Admitted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").field("admission", &self.admission).finish_non_exhaustive()
    }
}
