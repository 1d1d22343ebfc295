//! One connection, driven by the request that uses it.
//!
//! It has no task of its own. Who reads an answer's body also reads the socket: one piece is in memory at a time, and it
//! is looked at on the core that has just received it.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    vec,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{Builder, Connection, SendRequest},
    },
};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Idle;
use crate::sized_body::SizedBody;

/// What is read from a socket at once: a buffer grows up to this while there is always more to read.
const READ_BYTES: usize = 128 << 10;

/// The body of a request.
pub type RequestBody = SizedBody<vec::IntoIter<Bytes>>;

/// TCP, perhaps with TLS.
pub type Wire = MaybeHttpsStream<TokioIo<TcpStream>>;

/// A connection.
#[derive(Debug)]
pub struct Link {
    requests: SendRequest<RequestBody>,
    connection: Connection<Wire, RequestBody>,
    /// It has come to its end and must not be driven any more.
    is_over: bool,
}

impl Link {
    /// Speaks HTTP over a wire.
    pub async fn open(wire: Wire) -> hyper::Result<Box<Self>> {
        let (requests, connection) = Builder::new().max_buf_size(READ_BYTES).handshake(wire).await?;
        let mut link = Box::new(Self { requests, connection, is_over: false });
        poll_fn(|cx| {
            link.drive(cx);
            link.requests.poll_ready(cx)
        })
        .await?;
        Ok(link)
    }

    /// Whether the next request can be sent. What has come of the other side's end is seen here.
    pub fn is_ready(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.drive(&mut cx);
        !self.is_over && matches!(self.requests.poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// Sends a request and waits for the answer's head. The error has the request if nothing of it was sent.
    pub async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let mut answer = pin!(self.requests.try_send_request(request));
        poll_fn(|cx| {
            self.drive(cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.is_over {
            self.is_over = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
    }
}

/// The body of an answer. Read to its end, its connection is kept for the next request; dropped before, it is closed.
#[derive(Debug)]
pub struct AnswerBody {
    body: Incoming,
    link: Option<Box<Link>>,
    idle: Arc<Idle>,
    origin: Box<str>,
}

impl AnswerBody {
    pub(super) const fn new(body: Incoming, link: Box<Link>, idle: Arc<Idle>, origin: Box<str>) -> Self {
        Self { body, link: Some(link), idle, origin }
    }

    /// How long it says it is.
    pub fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// The next piece.
    ///
    /// # Errors
    /// It broke off.
    pub async fn next(&mut self) -> hyper::Result<Option<Bytes>> {
        let piece = poll_fn(|cx| self.poll_piece(cx)).await;
        match (&piece, self.link.take()) {
            (Ok(None), Some(mut link)) => {
                if link.is_ready() {
                    self.idle.put(std::mem::take(&mut self.origin), link);
                }
            }
            (_, link) => self.link = link,
        }
        piece
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<Option<Bytes>>> {
        if let Poll::Ready(piece) = self.poll_body(cx) {
            return Poll::Ready(piece);
        }
        // What the connection reads is the body's next piece.
        if let Some(link) = &mut self.link {
            link.drive(cx);
        }
        self.poll_body(cx)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<Option<Bytes>>> {
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                None => return Poll::Ready(Ok(None)),
                Some(Ok(piece)) => return Poll::Ready(Ok(Some(piece))),
                // Trailers say nothing of an image.
                Some(Err(_)) => {}
            }
        }
    }
}
