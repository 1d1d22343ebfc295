//! A provider that speaks OpenAI's `POST /v1/images/generations`, refuses what OpenAI refuses, and remembers who
//! asked for what.
//!
//! The path before `/v1` says what it does: `/300/small/v1` waits 300 ms and answers with a small picture. The
//! last word of a prompt is the request's id, from which the picture is made.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::JoinSet, time::Instant};

use crate::picture::Size;

/// The credential that it takes.
pub const KEY: &str = "sk-cluster-3f9c1d";

/// The model that it has.
pub const MODEL: &str = "gpt-image-1";

/// Another one, as servers that speak OpenAI's dialect have it: it is asked for base64 by `response_format`.
pub const OTHER_MODEL: &str = "sd-turbo";

/// What OpenAI knows for GPT image models. Any other field is refused.
const FIELDS: [&str; 14] = [
    "prompt",
    "model",
    "n",
    "size",
    "quality",
    "user",
    "background",
    "moderation",
    "output_compression",
    "output_format",
    "partial_images",
    "safety_identifier",
    "stream",
    "input_fidelity",
];

/// A running provider.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Seen>,
    _server: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Seen {
    calls: Mutex<Vec<Call>>,
    refusals: Mutex<Vec<String>>,
    running: AtomicUsize,
}

/// A call that was accepted.
#[derive(Clone, Debug)]
struct Call {
    id: String,
    from: IpAddr,
    at: Instant,
}

/// An error in OpenAI's words.
struct Refused(StatusCode, String);

impl Upstream {
    /// Listens on a free port.
    pub async fn start(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&seen)));
        Self { address, seen, _server: server }
    }

    /// For a virtual key.
    pub fn base_url(&self, delay: Duration, size: Size) -> String {
        format!("http://{}/{}/{}/v1", self.address, delay.as_millis(), size.name())
    }

    /// Calls since then, by the host that they came from.
    pub fn calls_by_host(&self, since: Instant) -> HashMap<IpAddr, usize> {
        let mut counts = HashMap::new();
        for call in self.seen.calls.lock().unwrap().iter().filter(|call| call.at >= since) {
            *counts.entry(call.from).or_default() += 1;
        }
        counts
    }

    /// All calls so far.
    pub fn calls(&self) -> usize {
        self.seen.calls.lock().unwrap().len()
    }

    /// Ids that were called for more than once, with the number of calls.
    pub fn duplicates(&self) -> Vec<(String, usize)> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for call in self.seen.calls.lock().unwrap().iter() {
            *counts.entry(call.id.clone()).or_default() += 1;
        }
        counts.into_iter().filter(|(_, count)| *count > 1).collect()
    }

    /// Calls that have begun and are not answered.
    pub fn running(&self) -> usize {
        self.seen.running.load(Ordering::Relaxed)
    }

    /// What was refused so far. The gateway should send nothing of that kind.
    pub fn refusals(&self) -> Vec<String> {
        self.seen.refusals.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else { return };
        _ = stream.set_nodelay(true);
        let seen = Arc::clone(&seen);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let seen = Arc::clone(&seen);
                async move { Ok::<_, Infallible>(answer(request, peer.ip(), &seen).await) }
            });
            // A caller that goes away is the scenario's doing.
            _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(request: Request<Incoming>, from: IpAddr, seen: &Seen) -> Response<Full<Bytes>> {
    match images(request, from, seen).await {
        Ok(body) => respond(StatusCode::OK, body),
        Err(Refused(status, message)) => {
            let error = json!({"error": {
                "message": message, "type": "invalid_request_error", "param": null, "code": null,
            }});
            seen.refusals.lock().unwrap().push(message);
            respond(status, error.to_string())
        }
    }
}

async fn images(request: Request<Incoming>, from: IpAddr, seen: &Seen) -> Result<String, Refused> {
    let (parts, body) = request.into_parts();
    let refuse = |message: &str| Refused(StatusCode::BAD_REQUEST, message.to_owned());
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let body = body.collect().await.map_err(|_| refuse("The request was broken off."))?.to_bytes();
    if header(header::AUTHORIZATION) != Some(&format!("Bearer {KEY}")) {
        return Err(Refused(StatusCode::UNAUTHORIZED, "Incorrect API key provided.".into()));
    }
    let path: Vec<&str> = parts.uri.path().split('/').collect();
    let ["", delay, size, "v1", "images", "generations"] = path[..] else {
        let message = format!("Invalid URL ({} {})", parts.method, parts.uri.path());
        return Err(Refused(StatusCode::NOT_FOUND, message));
    };
    let delay = delay.parse().map(Duration::from_millis).map_err(|_| refuse("Invalid URL: no delay."))?;
    let size = Size::ALL.into_iter().find(|known| known.name() == size);
    let size = size.ok_or_else(|| refuse("Invalid URL: no size."))?;
    if parts.method != Method::POST {
        return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, format!("Not allowed: {}", parts.method)));
    }
    if header(header::CONTENT_TYPE) != Some("application/json") {
        return Err(refuse("Unsupported content type."));
    }
    let fields: Map<String, Value> = serde_json::from_slice(&body)
        .map_err(|_| refuse("We could not parse the JSON body of your request."))?;
    let model = fields.get("model").and_then(Value::as_str).unwrap_or_default();
    let is_known =
        |field: &str| FIELDS.contains(&field) || (model == OTHER_MODEL && field == "response_format");
    if let Some(unknown) = fields.keys().find(|field| !is_known(field)) {
        return Err(refuse(&format!("Unknown parameter: '{unknown}'.")));
    }
    if fields.get("response_format").is_some_and(|format| format != "b64_json") {
        return Err(refuse("Invalid 'response_format': this server has no links."));
    }
    if ![MODEL, OTHER_MODEL].contains(&model) {
        return Err(Refused(StatusCode::NOT_FOUND, "The model does not exist.".into()));
    }
    if fields.get("n").is_some_and(|n| n != 1) {
        return Err(refuse("Invalid 'n': this server makes one image."));
    }
    let prompt = fields.get("prompt").and_then(Value::as_str);
    let id = prompt.and_then(|prompt| prompt.rsplit(' ').next()).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| refuse("Missing required parameter: 'prompt'."))?;
    seen.calls.lock().unwrap().push(Call { id: id.to_owned(), from, at: Instant::now() });
    let _running = Running::new(&seen.running);
    tokio::time::sleep(delay).await;
    let text = size.text(id);
    Ok(format!(
        r#"{{"created":1700000000,"background":"opaque","data":[{{"b64_json":"{text}"}}],"output_format":"png","quality":"low","size":"1024x1024","usage":{{"input_tokens":8,"input_tokens_details":{{"image_tokens":0,"text_tokens":8}},"output_tokens":272,"total_tokens":280}}}}"#
    ))
}

/// Counts a call until it is answered or given up.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn respond(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    response.body(Full::new(body.into())).unwrap()
}
