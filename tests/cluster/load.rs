//! Clients: requests that arrive at a constant rate whatever becomes of the others, and a check of every byte that
//! comes back.
//!
//! HTTP is written by hand, because it runs on the same cores as what it loads. Connections are kept as SDKs keep
//! them: used again, given up at `Connection: close`, at the other side's end, and when idle for a while. A request
//! is sent once, unless the client is told to behave as an SDK.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use imagegate::pb::{self, router_service_client::RouterServiceClient};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use crate::{picture::Size, service::Service, upstream::MODEL};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an idle connection is kept: half of what the scenarios give a role that is asked to stop, as SDKs keep
/// theirs for 5 s.
const KEEP: Duration = Duration::from_secs(1);

const CONNECT: Duration = Duration::from_secs(2);

const READ_BYTES: usize = 256 << 10;

/// Errors of one kind that a report shows.
const SHOWN_ERRORS: usize = 8;

static NEXT: AtomicUsize = AtomicUsize::new(1);

/// Who sends the requests.
pub enum Client {
    /// To shims.
    Http(Http),
    /// To a router.
    Grpc(RouterServiceClient<Channel>),
}

/// A client's connections.
pub struct Http {
    service: Service,
    habit: Habit,
    /// The last one used at the back.
    idle: Mutex<VecDeque<Connection>>,
    repeated: AtomicUsize,
}

/// How a client treats its connections.
#[derive(Clone, Copy, Debug)]
struct Habit {
    /// How long an idle one is kept.
    keeps: Duration,
    takes: Takes,
    /// How often a request is sent again whose connection broke.
    repeats: usize,
}

/// Of the idle connections.
#[derive(Clone, Copy, Debug)]
enum Takes {
    /// So that those that are not needed grow old.
    Newest,
    /// So that all are used in turn.
    Oldest,
}

/// A connection over HTTP/1.1.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    used: Instant,
    /// Whether the other side takes another request.
    pub is_reusable: bool,
}

/// What is wrong with a request.
enum Failed {
    Connection(String),
    Answer(String),
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The saved config that they name.
    pub route: &'static str,
    pub size: Size,
}

/// A running load.
pub struct Load {
    arrivals: JoinSet<()>,
    stop: CancellationToken,
    samples: Arc<Mutex<Vec<Sample>>>,
    sent: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct Sample {
    id: String,
    sent: Instant,
    latency: Duration,
    outcome: Result<(), String>,
}

/// What became of requests.
#[derive(Clone, Debug)]
pub struct Report(Vec<Sample>);

struct Head {
    status: u16,
    text: String,
    length: usize,
    closes: bool,
}

impl Client {
    /// Over HTTP/1.1.
    pub fn http(service: Service) -> Arc<Self> {
        Self::with_habit(service, Habit { keeps: KEEP, takes: Takes::Newest, repeats: 0 })
    }

    /// The same, behaving as OpenAI's SDKs where they keep connections for long: each is used in turn, a request
    /// whose connection broke is sent once more.
    pub fn sdk(service: Service) -> Arc<Self> {
        Self::with_habit(service, Habit { keeps: Duration::MAX, takes: Takes::Oldest, repeats: 1 })
    }

    fn with_habit(service: Service, habit: Habit) -> Arc<Self> {
        let (idle, repeated) = (Mutex::default(), AtomicUsize::default());
        Arc::new(Self::Http(Http { service, habit, idle, repeated }))
    }

    /// Connections that a client over HTTP keeps and does not use, and requests that it has sent again.
    pub fn idle_and_repeated(&self) -> (usize, usize) {
        match self {
            Self::Http(http) => (http.idle.lock().unwrap().len(), http.repeated.load(Ordering::Relaxed)),
            Self::Grpc(_) => panic!("a client over gRPC has one connection"),
        }
    }

    /// Over gRPC, with a client that is not the gateway's own.
    pub fn grpc(address: SocketAddr) -> Arc<Self> {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Arc::new(Self::Grpc(RouterServiceClient::new(channel).max_decoding_message_size(usize::MAX)))
    }

    /// The Service that a client over HTTP goes to.
    pub fn service(&self) -> &Service {
        match self {
            Self::Http(http) => &http.service,
            Self::Grpc(_) => panic!("a client over gRPC has no Service"),
        }
    }

    async fn ask(&self, kind: Kind, id: &str) -> Result<(), String> {
        let asked = async {
            match self {
                Self::Http(http) => http.ask(kind, id).await,
                Self::Grpc(client) => ask_grpc(client.clone(), kind, id).await,
            }
        };
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }
}

impl Load {
    /// So many requests a second until it is stopped.
    pub fn start(client: &Arc<Client>, kind: Kind, per_second: u32) -> Self {
        Self::arrive(client, kind, usize::MAX, Duration::from_secs(1) / per_second)
    }

    /// That many requests at once.
    pub fn crowd(client: &Arc<Client>, kind: Kind, count: usize) -> Self {
        Self::arrive(client, kind, count, Duration::ZERO)
    }

    fn arrive(client: &Arc<Client>, kind: Kind, count: usize, interval: Duration) -> Self {
        let (client, stop) = (Arc::clone(client), CancellationToken::new());
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut arrivals = JoinSet::new();
        let (stopped, into) = (stop.clone(), Arc::clone(&samples));
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        arrivals.spawn(async move {
            let mut ticks = (!interval.is_zero()).then(|| tokio::time::interval(interval));
            if let Some(ticks) = &mut ticks {
                // One that is late makes no other one late.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            }
            let mut running = JoinSet::new();
            for _ in 0..count {
                if let Some(ticks) = &mut ticks
                    && stopped.run_until_cancelled(ticks.tick()).await.is_none()
                {
                    break;
                }
                let (client, into) = (Arc::clone(&client), Arc::clone(&into));
                counted.fetch_add(1, Ordering::Relaxed);
                running.spawn(async move {
                    let id = next_id(kind);
                    let sent = Instant::now();
                    let outcome = client.ask(kind, &id).await;
                    into.lock().unwrap().push(Sample { id, sent, latency: sent.elapsed(), outcome });
                });
                while running.try_join_next().is_some() {}
            }
            running.join_all().await;
        });
        Self { arrivals, stop, samples, sent }
    }

    /// Requests that were sent and not answered yet.
    pub fn in_flight(&self) -> usize {
        let answered = self.samples.lock().unwrap().len();
        self.sent.load(Ordering::Relaxed) - answered
    }

    /// What is known by now of the requests sent since then.
    pub fn since(&self, since: Instant) -> Report {
        let samples = self.samples.lock().unwrap();
        Report(samples.iter().filter(|sample| sample.sent >= since).cloned().collect())
    }

    /// Sends no more, waits for all answers, and tells what became of them.
    pub async fn stop(self) -> Report {
        self.stop.cancel();
        self.finished().await
    }

    /// Waits until all is sent and answered, which a load without an end never is.
    pub async fn finished(self) -> Report {
        self.arrivals.join_all().await;
        Report(std::mem::take(&mut *self.samples.lock().unwrap()))
    }
}

impl Report {
    /// Requests that were answered, or failed.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What failed.
    pub fn errors(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .filter_map(|sample| sample.outcome.as_ref().err().map(|error| format!("{}: {error}", sample.id)))
    }

    /// The latency that this share of the requests did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut latencies: Vec<Duration> = self.0.iter().map(|sample| sample.latency).collect();
        latencies.sort_unstable();
        let last = latencies.len().saturating_sub(1);
        latencies.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }

    /// Every request was answered with the bytes that were made for it.
    #[track_caller]
    pub fn assert_all_answered(&self, what: &str) {
        assert!(self.count() > 0, "{what}: nothing was sent");
        assert!(self.errors().next().is_none(), "{what}: {self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, failed) = (self.count(), self.errors().count());
        let [half, most, last] = [0.5, 0.99, 1.0].map(|share| self.quantile(share).as_millis());
        write!(f, "{count} requests, {failed} failed; half within {half} ms, 99 % {most} ms, all {last} ms")?;
        let started = self.0.iter().map(|sample| sample.sent).min();
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for sample in &self.0 {
            let Err(error) = &sample.outcome else { continue };
            *kinds.entry(without_times(error)).or_default() += 1;
        }
        for (kind, count) in kinds.iter().take(SHOWN_ERRORS) {
            write!(f, "\n  {count} times: {kind}")?;
        }
        let failed = self.0.iter().filter(|sample| sample.outcome.is_err());
        for sample in failed.take(SHOWN_ERRORS) {
            let at = sample.sent.duration_since(started.unwrap_or(sample.sent)).as_millis();
            write!(f, "\n  {} sent at {at} ms, failed after {} ms", sample.id, sample.latency.as_millis())?;
        }
        Ok(())
    }
}

impl Http {
    async fn ask(&self, kind: Kind, id: &str) -> Result<(), String> {
        let mut repeats = self.habit.repeats;
        loop {
            let asked = self.ask_once(kind, id).await;
            match asked {
                Err(Failed::Connection(_)) if repeats > 0 => {
                    repeats -= 1;
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                }
                asked => return asked.map_err(Failed::into_text),
            }
        }
    }

    async fn ask_once(&self, kind: Kind, id: &str) -> Result<(), Failed> {
        let mut connection = self.connection().await.map_err(Failed::Connection)?;
        let asked = connection.ask_for(kind, id).await;
        if connection.is_reusable {
            self.idle.lock().unwrap().push_back(connection);
        }
        asked
    }

    async fn connection(&self) -> Result<Connection, String> {
        loop {
            let taken = self.habit.takes.from(&mut self.idle.lock().unwrap());
            let Some(connection) = taken else { break };
            if connection.is_open() && connection.used.elapsed() < self.habit.keeps {
                return Ok(connection);
            }
        }
        let address = self.service.pick().ok_or("the Service has no address that is ready")?;
        Connection::open(address).await
    }
}

impl Takes {
    fn from(self, idle: &mut VecDeque<Connection>) -> Option<Connection> {
        match self {
            Self::Newest => idle.pop_back(),
            Self::Oldest => idle.pop_front(),
        }
    }
}

impl Connection {
    /// A new one.
    ///
    /// # Errors
    /// Nobody is there.
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = connect(address).await.map_err(|error| format!("{address}: connecting: {error}"))?;
        Ok(Self { stream, peer: address, used: Instant::now(), is_reusable: true })
    }

    /// One request of this kind.
    ///
    /// # Errors
    /// It was not answered with its picture.
    pub async fn ask(&mut self, kind: Kind) -> Result<(), String> {
        self.ask_for(kind, &next_id(kind)).await.map_err(Failed::into_text)
    }

    /// Readable without a request means that the other side has ended it.
    pub fn is_open(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits until the other side ends it, and gives what it says before that.
    ///
    /// # Errors
    /// It is reset.
    pub async fn ended(&mut self) -> io::Result<Vec<u8>> {
        let mut last = Vec::new();
        self.stream.read_to_end(&mut last).await?;
        Ok(last)
    }

    async fn ask_for(&mut self, kind: Kind, id: &str) -> Result<(), Failed> {
        let body = format!(r#"{{"model":"{MODEL}","prompt":"a lighthouse at dusk, {id}"}}"#);
        let request = format!(
            "POST /v1/images/generations HTTP/1.1\r\nhost: images.example\r\nx-portkey-config: {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            kind.route,
            body.len(),
        );
        let peer = self.peer;
        self.is_reusable = false;
        let exchanged = exchange(&mut self.stream, &request).await;
        let (head, body) = exchanged.map_err(|error| Failed::Connection(format!("{peer}: {error}")))?;
        self.is_reusable = !head.closes;
        self.used = Instant::now();
        let wrong = |why: String| Failed::Answer(format!("{peer}: {why}"));
        let text = std::str::from_utf8(&body).map_err(|_| wrong("an answer that is no text".into()))?;
        if head.status != 200 {
            let attempts = head.text.lines().find(|line| line.starts_with("x-imagegate-attempts"));
            return Err(wrong(format!("{} {text} {}", head.status, attempts.unwrap_or_default())));
        }
        check(text, &kind.size.text(id)).map_err(wrong)
    }
}

impl Failed {
    fn into_text(self) -> String {
        match self {
            Self::Connection(text) | Self::Answer(text) => text,
        }
    }
}

fn next_id(kind: Kind) -> String {
    format!("{}-{:06}", kind.size.name(), NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let connected = timeout(CONNECT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream, request: &str) -> Result<(Head, Vec<u8>), String> {
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("sending: {error}"))?;
    let mut received = Vec::with_capacity(4096);
    let end = loop {
        let read = stream.read_buf(&mut received).await.map_err(|error| format!("waiting: {error}"))?;
        if read == 0 {
            return Err(format!("closed after {} bytes of the head", received.len()));
        }
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let mut body = received.split_off(end);
    let head = Head::read(&received)?;
    body.reserve(head.length.saturating_sub(body.len()).min(READ_BYTES));
    while body.len() < head.length {
        let read = stream.read_buf(&mut body).await.map_err(|error| format!("reading: {error}"))?;
        if read == 0 {
            return Err(format!("closed after {} of {} bytes of the body", body.len(), head.length));
        }
    }
    if body.len() > head.length {
        return Err(format!("{} bytes of the body instead of {}", body.len(), head.length));
    }
    Ok((head, body))
}

impl Head {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| format!("no answer of HTTP: {text}"))?;
        let value = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let length = value("content-length").and_then(|length| length.parse().ok());
        let length = length.ok_or_else(|| format!("an answer without content-length: {text}"))?;
        let closes = value("connection") == Some("close");
        Ok(Self { status, length, closes, text })
    }
}

/// One image, and it is the right one. The rest is JSON.
fn check(answer: &str, expected: &str) -> Result<(), String> {
    const BEFORE: &str = "\"b64_json\":\"";
    let (before, rest) = answer.split_once(BEFORE).ok_or_else(|| format!("no image in {answer}"))?;
    let (image, after) = rest.split_once('"').ok_or("an image without an end")?;
    let around = format!("{before}{BEFORE}\"{after}");
    let json: Value = serde_json::from_str(&around).map_err(|error| format!("{error} in {around}"))?;
    if json["data"].as_array().is_none_or(|images| images.len() != 1) {
        return Err(format!("not one image: {around}"));
    }
    if image != expected {
        return Err(different(image.as_bytes(), expected.as_bytes()));
    }
    Ok(())
}

async fn ask_grpc(mut client: RouterServiceClient<Channel>, kind: Kind, id: &str) -> Result<(), String> {
    let image = pb::ImageRequest {
        prompt: format!("a lighthouse at dusk, {id}"),
        model: MODEL.into(),
        ..Default::default()
    };
    let mut request = Request::new(pb::GenerateImageRequest { image: Some(image) });
    request.metadata_mut().insert("x-portkey-config", kind.route.parse().map_err(|_| "route")?);
    let answer = client.generate_image(request).await.map_err(|status| format!("{status:?}"))?;
    let images = answer.into_inner().result.ok_or("no result")?.images;
    let [image] = &images[..] else { return Err(format!("{} images", images.len())) };
    let expected = kind.size.picture(id);
    if image.data != expected {
        return Err(different(&image.data, &expected));
    }
    Ok(())
}

/// So that failures of one kind are shown once: `1003ms` becomes `ms`.
fn without_times(error: &str) -> String {
    let mut parts = error.split("ms ");
    let mut text = parts.next().unwrap_or_default().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    for part in parts {
        text += "ms ";
        text += part.trim_end_matches(|c: char| c.is_ascii_digit());
    }
    text
}

fn different(found: &[u8], expected: &[u8]) -> String {
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
    format!(
        "another image: {} instead of {} bytes, different from {} on",
        found.len(),
        expected.len(),
        at.unwrap_or(found.len().min(expected.len()))
    )
}
