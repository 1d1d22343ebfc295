//! The answering side: one call of a service by hand, in front of what tonic has generated for all of them.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, header};
use http_body::Frame;
use tonic::{Request, Response, Status, body::Body, codec::Streaming, server::NamedService};
use tonic_prost::ProstDecoder;
use tower::Service;

use super::{GRPC, MayCarry, write};

/// So many bytes of small messages that are there already leave together.
const TOGETHER: usize = 32 << 10;

/// A service of which one call is answered by hand.
pub struct Streamed<G, F, Q> {
    generated: G,
    path: &'static str,
    answer: F,
    max_request_bytes: usize,
    request: PhantomData<fn(Q)>,
}

impl<G, F, Q> Streamed<G, F, Q> {
    /// The call at this path is answered by `answer`, all others by the generated service.
    pub const fn new(generated: G, path: &'static str, answer: F, max_request_bytes: usize) -> Self {
        Self { generated, path, answer, max_request_bytes, request: PhantomData }
    }
}

impl<G: NamedService, F, Q> NamedService for Streamed<G, F, Q> {
    const NAME: &'static str = G::NAME;
}

impl<G, F, Q, A, S, M> Service<http::Request<Body>> for Streamed<G, F, Q>
where
    G: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    G::Future: Send + 'static,
    F: Fn(Request<Q>) -> A + Clone + Send + 'static,
    Q: prost::Message + Default + 'static,
    A: Future<Output = Result<Response<S>, Status>> + Send,
    S: Stream<Item = Result<M, Status>> + Send + Unpin + 'static,
    M: MayCarry,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.generated.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Whoever compresses is told by tonic what is taken.
        if request.uri().path() != self.path || request.headers().contains_key("grpc-encoding") {
            return Box::pin(self.generated.call(request));
        }
        let (answer, max_request_bytes) = (self.answer.clone(), self.max_request_bytes);
        Box::pin(async move {
            let answered = match read(request, max_request_bytes).await {
                Ok(request) => answer(request).await,
                Err(status) => Err(status),
            };
            Ok(answered.map_or_else(Status::into_http, stream))
        })
    }
}

/// The one message of a request.
async fn read<Q: prost::Message + Default + 'static>(
    request: http::Request<Body>,
    max_bytes: usize,
) -> Result<Request<Q>, Status> {
    let (parts, body) = request.into_parts();
    let decoder = ProstDecoder::<Q>::new(Default::default());
    let mut messages = Streaming::new_request(decoder, body, None, Some(max_bytes));
    let message = messages.message().await?.ok_or_else(|| Status::internal("a call without a message"))?;
    Ok(Request::from_http(http::Request::from_parts(parts, message)))
}

fn stream<S, M>(answer: Response<S>) -> http::Response<Body>
where
    S: Stream<Item = Result<M, Status>> + Send + Unpin + 'static,
    M: MayCarry,
{
    let (metadata, messages, extensions) = answer.into_parts();
    let body = Outgoing { messages: messages.fuse(), uncopied: None, end: None };
    let mut response = http::Response::new(Body::new(body));
    *response.headers_mut() = metadata.into_headers();
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    *response.extensions_mut() = extensions;
    response
}

/// Messages as frames of HTTP/2, and then a status.
struct Outgoing<S: Stream> {
    messages: futures::stream::Fuse<S>,
    /// What belongs behind the last frame.
    uncopied: Option<Bytes>,
    /// Once it is known.
    end: Option<HeaderMap>,
}

impl<S, M> http_body::Body for Outgoing<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: MayCarry,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(data) = this.uncopied.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let mut together = BytesMut::new();
        while this.end.is_none() && this.uncopied.is_none() && together.len() < TOGETHER {
            let status = match this.messages.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    this.uncopied = write(message, &mut together);
                    continue;
                }
                Poll::Ready(Some(Err(status))) => status,
                Poll::Ready(None) => Status::ok(""),
                Poll::Pending if together.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            };
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            this.end = Some(trailers);
        }
        if !together.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(together.freeze()))));
        }
        // An empty map: they have been given.
        let trailers = this.end.as_mut().map(std::mem::take).filter(|trailers| !trailers.is_empty());
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl<G: Clone, F: Clone, Q> Clone for Streamed<G, F, Q> {
    fn clone(&self) -> Self {
        Self { generated: self.generated.clone(), answer: self.answer.clone(), ..*self }
    }
}

impl<G, F, Q> fmt::Debug for Streamed<G, F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed").field("path", &self.path).finish_non_exhaustive()
    }
}
