//! gRPC connections between roles: one place for their limits, so that no image meets a default of 4 MiB.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use h2::client;
use http::HeaderMap;
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Status, body::Body, server::NamedService, transport::Server};
use tower::Service;

use crate::{
    framing::Streamed,
    pb::{
        CHUNK_BYTES, ImageChunk,
        router_service_server::{RouterService, RouterServiceServer},
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};

/// Largest HTTP/2 frame accepted. h2 writes one frame per system call: with the usual 16 KiB a 2 MB image
/// costs 26 context switches, with 1 MiB 8.
const FRAME_BYTES: u32 = 1 << 20;

/// Flow control windows, so that an image is not one window per round trip over a network.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// A routing config may travel in a header, as large as the reference's server takes it.
const HEADER_LIST_BYTES: u32 = 64 << 10;

/// Largest message. Edits carry their inputs whole: 16 images of 50 MB are more than anybody sends.
pub const MESSAGE_BYTES: usize = 1 << 30;

/// A caller that is partitioned away is noticed after an interval and a timeout, instead of never.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection on which nothing moves is noticed to be dead by the kernel after 15 s, and three probes 5 s apart.
const TCP_KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// Calls of one connection at once. Our own callers open another connection long before.
const STREAMS: u32 = 10_000;

/// A caller's connection is asked to end after this, so that callers behind a load balancer of connections, too,
/// come to endpoints that were added.
const CONNECTION_AGE: Duration = Duration::from_secs(1800);

/// Streams of a connection that may end in a reset.
const MAX_RESETS: usize = 1 << 20;

/// How long a finished call may take to end. Its trailers come with the last message.
const END_WITHIN: Duration = Duration::from_millis(100);

/// The calls whose answers carry images.
pub const GENERATE: &str = "/imagegate.v1.WorkerService/Generate";
pub const STREAM_IMAGE: &str = "/imagegate.v1.RouterService/StreamImage";

/// What tonic serves.
pub trait GrpcServer:
    Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
    + NamedService
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> GrpcServer for S where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// HTTP/2 as a client.
pub fn client() -> client::Builder {
    let mut client = client::Builder::new();
    client
        .enable_push(false)
        .max_frame_size(FRAME_BYTES)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES);
    client
}

/// What all connections between the roles have in common.
///
/// # Errors
/// The socket is not one.
pub fn tune(wire: &TcpStream) -> io::Result<()> {
    wire.set_nodelay(true)?;
    SockRef::from(wire).set_tcp_keepalive(&TCP_KEEP_ALIVE)
}

/// A gRPC server without services.
pub fn server() -> Server {
    Server::builder()
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(STREAMS)
        .max_connection_age(CONNECTION_AGE)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        // Every caller that goes away is a reset here. The defaults end the whole connection after some of them,
        // as if it came from an attacker, and with it the requests of all others.
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
}

/// Lets a finished call end by itself. A stream that is dropped before its end is reset, and a connection with
/// many resets is closed by the other side.
pub async fn end<S: Stream + Unpin>(mut events: S) {
    _ = timeout(END_WITHIN, events.next()).await;
}

/// A worker's server without the default limit of messages.
pub fn worker_server<T: WorkerService<GenerateStream: Unpin>>(worker: T) -> impl GrpcServer {
    let worker = Arc::new(worker);
    let generated = WorkerServiceServer::from_arc(Arc::clone(&worker))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let generate = move |request| {
        let worker = Arc::clone(&worker);
        async move { worker.generate(request).await }
    };
    Streamed::new(generated, GENERATE, generate, MESSAGE_BYTES)
}

/// A router's server, whose callers may send no more than `max_request_bytes`.
pub fn router_server<T: RouterService<StreamImageStream: Unpin>>(
    router: T,
    max_request_bytes: usize,
) -> impl GrpcServer {
    let router = Arc::new(router);
    let generated = RouterServiceServer::from_arc(Arc::clone(&router))
        .max_decoding_message_size(max_request_bytes)
        .max_encoding_message_size(MESSAGE_BYTES);
    let stream_image = move |request| {
        let router = Arc::clone(&router);
        async move { router.stream_image(request).await }
    };
    Streamed::new(generated, STREAM_IMAGE, stream_image, max_request_bytes)
}

/// An image chunk as several messages of bounded size. Nothing is copied.
pub fn cut<M: Send + 'static>(
    mut chunk: ImageChunk,
    message: impl Fn(ImageChunk) -> M + Send + 'static,
) -> impl Stream<Item = Result<M, Status>> + Send {
    stream::iter(std::iter::from_fn(move || {
        if chunk.data.is_empty() {
            return None;
        }
        let data = chunk.data.split_to(chunk.data.len().min(CHUNK_BYTES));
        Some(Ok(message(ImageChunk { image_index: chunk.image_index, data })))
    }))
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_in_all_units() {
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("9u", Some(Duration::from_micros(9))),
            ("9n", Some(Duration::from_nanos(9))),
            ("9", None),
            ("S", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(grpc_timeout(&headers), expected, "{text}");
        }
    }
}
