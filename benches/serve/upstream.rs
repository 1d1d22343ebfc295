//! The other ends of the comparison, each in a process of its own: a provider that answers at once, and a
//! reverse proxy that only copies.

use std::{
    convert::Infallible,
    future::Future,
    io::{Read as _, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::picture::image_text;

/// Sizes of the base64 text, by the name they have in paths.
pub const SIZES: [(&str, usize); 7] = [
    ("1k", 1 << 10),
    ("16k", 16 << 10),
    ("256k", 256 << 10),
    ("1m", 1 << 20),
    ("2m", 2 << 20),
    ("8m", 8 << 20),
    ("32m", 32 << 20),
];

/// The image that is sent twice, the first time as a preview of itself.
pub const PREVIEWED: usize = 256 << 10;
const PAINTING: Duration = Duration::from_millis(20);

type Body = BoxBody<Bytes, Infallible>;

/// A provider. `/200/2m/…` waits 200 ms and answers with 2 MB, as Stability does where the path is Stability's; `/0/500/…`
/// fails; `/0/preview/…` sends a preview at once and the image a while later. `/v1/traces` and `/v1/metrics` take what is
/// sent. With a folder that has a certificate it speaks TLS.
pub async fn mock(certificate: Option<&Path>) -> Result<()> {
    let tls = certificate.map(super::tls::acceptor).transpose()?;
    let text = image_text(PREVIEWED)?;
    let event = |kind: &str, more: &str| {
        let kind = format!("image_generation.{kind}");
        Bytes::from(format!("event: {kind}\ndata: {{\"type\":\"{kind}\",\"b64_json\":\"{text}\"{more}}}\n\n"))
    };
    let events = [event("partial_image", ",\"partial_image_index\":0"), event("completed", "")];
    let mut answers = Vec::with_capacity(SIZES.len());
    for (name, length) in SIZES {
        let text = image_text(length)?;
        let openai = format!("{{\"created\":1700000000,\"data\":[{{\"b64_json\":\"{text}\"}}]}}");
        let stability =
            format!("{{\"artifacts\":[{{\"base64\":\"{text}\",\"seed\":1,\"finishReason\":\"SUCCESS\"}}]}}");
        answers.push((name, [Bytes::from(openai), Bytes::from(stability)]));
    }
    serve(tls, move |request: Request<Incoming>| {
        let (answers, events) = (answers.clone(), events.clone());
        async move {
            let (parts, body) = request.into_parts();
            let received = body.collect().await;
            if parts.uri.path().starts_with("/v1/") {
                return respond(StatusCode::OK, Bytes::new());
            }
            let mut path = parts.uri.path().split('/').skip(1);
            let delay = path.next().and_then(|delay| delay.parse().ok());
            let size = path.next().unwrap_or_default();
            let answer = answers.iter().find(|(name, _)| *name == size);
            if received.is_ok() && size == "preview" {
                return respond_with(StatusCode::OK, "text/event-stream", spread(events));
            }
            if size == "500" {
                let failed =
                    Bytes::from_static(br#"{"error":{"message":"it failed","type":"server_error"}}"#);
                return respond(StatusCode::INTERNAL_SERVER_ERROR, failed);
            }
            let is_stability = path.any(|part| part == "text-to-image");
            let (Ok(_), Some(delay), Some((_, [openai, stability]))) = (received, delay, answer) else {
                return respond(StatusCode::NOT_FOUND, Bytes::new());
            };
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            respond(StatusCode::OK, if is_stability { stability } else { openai }.clone())
        }
    })
    .await
}

fn respond(status: StatusCode, json: Bytes) -> Response<Body> {
    respond_with(status, "application/json", Full::new(json).boxed())
}

fn respond_with(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// The first at once, each other one a while later.
fn spread<const N: usize>(events: [Bytes; N]) -> Body {
    let events = futures::stream::iter(events.into_iter().enumerate()).then(async |(i, event)| {
        if i > 0 {
            tokio::time::sleep(PAINTING).await;
        }
        Ok(Frame::data(event))
    });
    BodyExt::boxed(StreamBody::new(events))
}

/// The limit: the same bytes through the same HTTP library, copied and not looked at.
pub async fn proxy(upstream: &str) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build::<_, Incoming>(connector);
    let upstream: http::uri::Authority = upstream.parse()?;
    serve(None, move |mut request: Request<Incoming>| {
        let (client, upstream) = (client.clone(), upstream.clone());
        async move {
            let path = request.uri().path_and_query().cloned();
            let mut uri = Uri::builder().scheme("http").authority(upstream);
            if let Some(path) = path {
                uri = uri.path_and_query(path);
            }
            request.headers_mut().remove(http::header::HOST);
            let forwarded = async {
                *request.uri_mut() = uri.build().ok()?;
                client.request(request).await.ok()
            };
            match forwarded.await {
                Some(response) => response.map(BodyExt::boxed),
                None => respond(StatusCode::BAD_GATEWAY, Bytes::new())
                    .map(|body| body.map_err(|never| match never {}).boxed()),
            }
        }
    })
    .await
}

/// Serves on a free port, says which, and ends with the process that started this one.
async fn serve<H, F, B>(tls: Option<TlsAcceptor>, handle: H) -> Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send,
    B: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", listener.local_addr()?)?;
    stdout.flush()?;
    std::thread::spawn(|| {
        _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (handle, tls) = (handle.clone(), tls.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A connection that breaks off is the load's to notice.
            match tls {
                None => _ = http.serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
