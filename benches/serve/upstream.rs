//! The other ends of the comparison, each in a process of its own: a provider that answers at once, and a
//! reverse proxy that only copies.

use std::{
    convert::Infallible,
    future::Future,
    io::{Read as _, Write as _},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, Uri, body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, task::JoinSet};

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

/// A provider. `/200/2m/…` waits 200 ms and answers with 2 MB, as Stability does where the path is Stability's; `/0/500/…`
/// fails. `/v1/traces` and `/v1/metrics` take what is sent.
pub async fn mock() -> Result<()> {
    let mut answers = Vec::with_capacity(SIZES.len());
    for (name, length) in SIZES {
        let text = image_text(length)?;
        let openai = format!("{{\"created\":1700000000,\"data\":[{{\"b64_json\":\"{text}\"}}]}}");
        let stability =
            format!("{{\"artifacts\":[{{\"base64\":\"{text}\",\"seed\":1,\"finishReason\":\"SUCCESS\"}}]}}");
        answers.push((name, [Bytes::from(openai), Bytes::from(stability)]));
    }
    serve(move |request: Request<Incoming>| {
        let answers = answers.clone();
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

fn respond(status: StatusCode, json: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(json));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// The limit: the same bytes through the same HTTP library, copied and not looked at.
pub async fn proxy(upstream: &str) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build::<_, Incoming>(connector);
    let upstream: http::uri::Authority = upstream.parse()?;
    serve(move |mut request: Request<Incoming>| {
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
async fn serve<H, F, B>(handle: H) -> Result<()>
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
        let handle = handle.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // A connection that breaks off is the load's to notice.
            _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}
