//! Connections as a gRPC listener takes them: tuned, and over TLS where that is configured.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::{telemetry, tls, transport};

/// How long a handshake may take, and how many there may be at once.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 1024;

/// How long the other side may take to close a connection that has been closed here.
const LINGER: Duration = Duration::from_secs(5);

/// The same for a connection that has been turned away.
const PART_WITHIN: Duration = Duration::from_secs(1);

/// What is read at a time of what nobody wants.
const SCRATCH_BYTES: usize = 4096;

/// A connection. It is not given up before the other side has closed it, too: a socket that is closed with something
/// unread in it, such as a window update, resets the connection, and then what had been written and not yet arrived is
/// lost.
pub struct Accepted {
    wire: Either<TcpStream, tokio_rustls::server::TlsStream<TcpStream>>,
    /// Since nothing more is written.
    lingers: Option<Pin<Box<Sleep>>>,
}

/// Every connection that can be spoken to. Those that fail the handshake are logged.
pub fn connections(
    listener: TcpListener,
    tls: Option<Arc<tls::Tls>>,
) -> impl Stream<Item = io::Result<Accepted>> {
    TcpListenerStream::new(listener)
        .map(move |wire| accept(wire, tls.clone()))
        .buffer_unordered(HANDSHAKES)
        .filter_map(std::future::ready)
}

async fn accept(wire: io::Result<TcpStream>, tls: Option<Arc<tls::Tls>>) -> Option<io::Result<Accepted>> {
    let wire = match wire {
        Ok(wire) => wire,
        Err(error) => return Some(Err(error)),
    };
    // The other side may have gone already.
    transport::tune(&wire).ok()?;
    let Some(tls) = tls else { return Some(Ok(Accepted::new(Either::Left(wire)))) };
    let peer = wire.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.ip().to_string());
    match timeout(HANDSHAKE_WITHIN, tls.accept(wire)).await {
        Ok(Ok(wire)) => Some(Ok(Accepted::new(Either::Right(wire)))),
        Ok(Err((error, wire))) => {
            telemetry::handshake_refused(&peer, tls::kind(&error), &tls::explain(&error));
            part(wire).await;
            None
        }
        Err(_) => {
            telemetry::handshake_refused(&peer, "timeout", "the handshake takes too long");
            None
        }
    }
}

/// Lets the other side read why it is turned away. It may have begun to speak already, and a socket that is closed with
/// something unread in it resets its connection.
async fn part(mut wire: TcpStream) {
    let mut scratch = [0; SCRATCH_BYTES];
    let parting = async {
        wire.shutdown().await?;
        while wire.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    _ = timeout(PART_WITHIN, parting).await;
}

impl Accepted {
    fn new(wire: Either<TcpStream, tokio_rustls::server::TlsStream<TcpStream>>) -> Self {
        Self { wire, lingers: None }
    }
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingers.is_none() {
            ready!(Pin::new(&mut this.wire).poll_shutdown(cx))?;
        }
        let lingers = this.lingers.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [0; SCRATCH_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.wire).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return lingers.as_mut().poll(cx).map(Ok),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}
