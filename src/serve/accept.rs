//! Connections as a gRPC listener takes them: tuned, and over TLS where that is configured.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::{telemetry, tls, transport};

/// How long a handshake may take, and how many there may be at once.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 1024;

/// A connection.
pub struct Accepted(Either<TcpStream, tokio_rustls::server::TlsStream<TcpStream>>);

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
    let Some(tls) = tls else { return Some(Ok(Accepted(Either::Left(wire)))) };
    let peer = wire.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.ip().to_string());
    match timeout(HANDSHAKE_WITHIN, tls.accept(wire)).await {
        Ok(Ok(wire)) => Some(Ok(Accepted(Either::Right(wire)))),
        Ok(Err(error)) => {
            telemetry::handshake_refused(&peer, tls::kind(&error), &tls::explain(&error));
            None
        }
        Err(_) => {
            telemetry::handshake_refused(&peer, "timeout", "the handshake takes too long");
            None
        }
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
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
