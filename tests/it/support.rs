//! A worker that does what a script says, and a router over it, in one process or across connections.

use std::{
    collections::{HashMap, VecDeque},
    io::Cursor,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use imagegate::{
    config::{self, providers::Providers, saved::Saved},
    egress::Egress,
    error::{Error, ErrorKind, Result},
    params, pb,
    pb::{
        Operation, generate_response::Event, stream_image_response::Event as Answer,
        worker_service_server::WorkerService,
    },
    pool::{Pool, Service},
    router::{self, Router, SharedRouter, State},
    store::journal::Journal,
    transport,
    worker::{self, EventStream, SharedWorker, Workers},
};
use serde_json::{Value, json};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

/// How the roles meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// At the generated traits: messages are moved.
    OneProcess,
    /// Through tonic, over a pipe in memory.
    Connected,
}

/// What a scripted worker does with one call.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// As many images as asked for, in the size asked for.
    Good,
    /// These images.
    Images(Vec<Bytes>),
    /// The chunks of these images, and by which numbers of theirs the answer's images are known.
    ChunksFirst(Vec<Bytes>, Vec<u32>),
    /// Good images with these facts.
    Done(Box<pb::GenerateDone>),
    /// An error before anything else.
    Fail(Error),
    /// A status as a worker in another language might send it.
    Status(Status),
    /// An error in the middle of the image.
    FailLate(Error),
    /// Never an answer.
    Silent,
    /// Half an image, then nothing more.
    Stalled,
    /// The stream ends without its last event.
    EndsEarly,
    /// All images withheld by the provider's filter.
    Withheld,
    /// One image less than asked for.
    TooFew,
    /// Half a PNG.
    Truncated,
    /// A page instead of an image.
    Html,
    /// Something else, later.
    After(Duration, Box<Outcome>),
    /// That many previews first.
    Previews(u32, Box<Outcome>),
    /// It depends on the request.
    By(fn(&pb::ImageRequest) -> Outcome),
}

/// A worker that follows a script.
pub struct Worker {
    record: pb::Provider,
    script: Mutex<HashMap<String, VecDeque<Outcome>>>,
    requests: Mutex<Vec<pb::GenerateRequest>>,
    called: watch::Sender<usize>,
    dropped: watch::Sender<usize>,
    in_flight: Arc<AtomicUsize>,
}

/// A router with its workers.
pub struct Gateway {
    router: SharedRouter,
    mode: Mode,
    /// The router itself, whoever is between it and the test.
    local: Router,
    connections: Arc<AtomicUsize>,
    /// Aborted when the gateway goes.
    servers: JoinSet<()>,
}

enum Act {
    Wait(Duration),
    WaitForever,
    Say(Box<Event>),
    Fail(Status),
}

/// Counts a call that ends before it is finished.
struct InFlight {
    finished: bool,
    dropped: watch::Sender<usize>,
    in_flight: Arc<AtomicUsize>,
}

/// Tells in which mode a test failed.
struct Trying(Mode);

/// Runs a test in one process and across connections.
pub async fn both_ways(test: impl AsyncFn(Mode)) {
    for mode in [Mode::OneProcess, Mode::Connected] {
        let _trying = Trying(mode);
        test(mode).await;
    }
}

/// A model that can do everything and takes any size.
pub fn model(name: &str) -> pb::ModelCapability {
    let rule = |name: &str| pb::ParameterRule { name: name.into(), ..Default::default() };
    pb::ModelCapability {
        model: name.into(),
        operations: [Operation::Generate, Operation::Edit, Operation::Inpaint, Operation::Variation]
            .map(Into::into)
            .into(),
        max_n: 10,
        size: Some(pb::SizeRule {
            rule: Some(pb::size_rule::Rule::Free(pb::FreeSize::default())),
            auto: true,
        }),
        formats: vec![pb::ImageFormat::Png.into()],
        parameters: ["seed", "style", "negative_prompt", "user", "steps"].map(rule).into(),
        max_partial_images: 3,
        max_inputs: 4,
        ..Default::default()
    }
}

/// A PNG of this size in one shade.
pub fn png(width: u32, height: u32, shade: u8) -> Bytes {
    encoded(&image::RgbImage::from_pixel(width, height, image::Rgb([shade, shade, shade])))
}

/// A PNG that does not compress: about three bytes per pixel.
pub fn large_png(side: u32) -> Bytes {
    let mut state = 1_u32;
    encoded(&image::RgbImage::from_fn(side, side, |_, _| {
        image::Rgb([(); 3].map(|()| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }))
    }))
}

fn encoded(picture: &image::RgbImage) -> Bytes {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner().into()
}

/// A target of the provider `paint` with this model.
pub fn target(model: &str) -> Value {
    json!({"provider": "paint", "override_params": {"model": model}})
}

/// A fallback over targets of the provider `paint`.
pub fn fallback(models: &[&str]) -> Value {
    json!({"strategy": {"mode": "fallback"}, "targets": models.iter().map(|m| target(m)).collect::<Vec<_>>()})
}

/// A config with some more fields.
pub fn with(mut config: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

/// A request with these parameters and some prompt.
pub fn ask(fields: &Value) -> pb::ImageRequest {
    let mut request = pb::ImageRequest { prompt: "a cat".into(), ..Default::default() };
    for (name, value) in fields.as_object().unwrap() {
        params::set(&mut request, name, value).unwrap();
    }
    request
}

/// A message with these headers.
pub fn message<T>(message: T, headers: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// `config.targets[0] rate_limited 429` for each attempt.
pub fn attempts(report: &pb::RouteReport) -> Vec<String> {
    let line = |attempt: &pb::Attempt| format!("{} {} {}", attempt.target, attempt.outcome, attempt.status);
    report.attempts.iter().map(line).collect()
}

/// The report of an answer.
pub fn report(result: &pb::ImageResult) -> &pb::RouteReport {
    result.report.as_ref().unwrap()
}

/// Field and action of each warning.
pub fn warnings(result: &pb::ImageResult) -> Vec<String> {
    let line = |warning: &pb::Warning| format!("{} {}", warning.field, warning.action().as_str_name());
    report(result).warnings.iter().map(line).collect()
}

/// A provider's answer with this error status.
pub fn fails(status: u16) -> Outcome {
    let error = Error::new(ErrorKind::from_http_status(status), "no").with_status(status);
    Outcome::Fail(error.billed(pb::BillingClass::RejectedUnbilled))
}

/// A 429 that asks for a pause.
pub fn rate_limited(pause: Duration) -> Outcome {
    let mut error =
        Error::new(ErrorKind::RateLimited, "slow down").billed(pb::BillingClass::RejectedUnbilled);
    error.retry_after = Some(pause);
    Outcome::Fail(error)
}

/// An answer after so many milliseconds.
pub fn slow(millis: u64) -> Outcome {
    Outcome::After(Duration::from_millis(millis), Box::new(Outcome::Good))
}

/// An address on this machine where nobody listens.
pub fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

impl Worker {
    /// A worker that serves the provider `paint` with the models `a` to `d`.
    pub fn paint() -> Arc<Self> {
        Self::new("paint", ["a", "b", "c", "d"].map(model).into())
    }

    /// A worker that serves a provider without credential.
    pub fn new(provider: &str, models: Vec<pb::ModelCapability>) -> Arc<Self> {
        Self::of(pb::Provider { name: provider.into(), models, keyless: true, ..Default::default() })
    }

    /// A worker that serves a provider with a credential.
    pub fn locked(provider: &str, models: Vec<pb::ModelCapability>) -> Arc<Self> {
        Self::of(pb::Provider { name: provider.into(), models, ..Default::default() })
    }

    fn of(record: pb::Provider) -> Arc<Self> {
        Arc::new(Self {
            record,
            script: Mutex::default(),
            requests: Mutex::default(),
            called: watch::Sender::new(0),
            dropped: watch::Sender::new(0),
            in_flight: Arc::default(),
        })
    }

    /// What calls for a model meet, one after the other; the last one repeats. Without a script: `Good`.
    pub fn script(self: &Arc<Self>, model: &str, outcomes: impl Into<VecDeque<Outcome>>) -> Arc<Self> {
        self.script.lock().unwrap().insert(model.to_owned(), outcomes.into());
        Arc::clone(self)
    }

    /// The calls so far.
    pub fn requests(&self) -> Vec<pb::GenerateRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// The images that were asked for so far.
    pub fn images(&self) -> Vec<pb::ImageRequest> {
        self.requests().into_iter().map(|request| request.image.unwrap()).collect()
    }

    /// The models of the calls so far.
    pub fn models_called(&self) -> Vec<String> {
        self.images().into_iter().map(|image| image.model).collect()
    }

    /// The only call so far.
    pub fn only_request(&self) -> pb::GenerateRequest {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1);
        requests.remove(0)
    }

    /// Waits until that many calls have come.
    pub async fn is_called(&self, times: usize) {
        reaches(&self.called, times).await;
    }

    /// Waits until that many calls were dropped.
    pub async fn is_dropped(&self, times: usize) {
        reaches(&self.dropped, times).await;
    }

    /// Calls that were dropped so far.
    pub fn dropped(&self) -> usize {
        *self.dropped.borrow()
    }

    /// Calls that have neither ended nor been dropped.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn next(&self, model: &str) -> Outcome {
        let mut script = self.script.lock().unwrap();
        match script.get_mut(model) {
            None => Outcome::Good,
            Some(outcomes) if outcomes.len() > 1 => outcomes.pop_front().unwrap(),
            Some(outcomes) => outcomes[0].clone(),
        }
    }
}

async fn reaches(counter: &watch::Sender<usize>, times: usize) {
    let mut counter = counter.subscribe();
    let reached = timeout(Duration::from_secs(60), counter.wait_for(|count| *count >= times)).await;
    reached.expect("it did not happen in a minute").unwrap();
}

impl Outcome {
    /// An error of this kind.
    pub fn fail(error: Error) -> [Self; 1] {
        [Self::Fail(error)]
    }

    fn acts(&self, request: &pb::ImageRequest) -> Vec<Act> {
        let good = || {
            let pb::Dimensions { width, height } =
                request.dimensions().unwrap_or(pb::Dimensions { width: 16, height: 12 });
            let shade = |i: usize| (request.seed.unwrap_or(100) as usize + i) as u8;
            (0..request.wanted()).map(|i| png(width, height, shade(i))).collect::<Vec<_>>()
        };
        match self {
            Self::Good => images(good(), pb::GenerateDone::default()),
            Self::Images(found) => images(found.clone(), pb::GenerateDone::default()),
            Self::ChunksFirst(found, chunks) => {
                let mut acts = images(found.clone(), pb::GenerateDone::default());
                acts.pop();
                let images = vec![pb::Image::default(); chunks.len()];
                let done = pb::GenerateDone { images, chunks: chunks.clone(), ..Default::default() };
                acts.push(say(Event::Done(done)));
                acts
            }
            Self::Done(done) => images(good(), pb::GenerateDone::clone(done)),
            Self::Fail(error) => vec![Act::Fail(error.to_status())],
            Self::Status(status) => vec![Act::Fail(status.clone())],
            Self::FailLate(error) => {
                let mut acts = halves(&good()[0]);
                acts[1] = Act::Fail(error.to_status());
                acts
            }
            Self::Silent => vec![Act::WaitForever],
            Self::Stalled => {
                let mut acts = halves(&good()[0]);
                acts[1] = Act::WaitForever;
                acts
            }
            Self::EndsEarly => halves(&good()[0]),
            Self::Withheld => {
                let image = pb::Image {
                    finish_reason: pb::FinishReason::ContentFiltered.into(),
                    ..Default::default()
                };
                let images = vec![image; request.wanted()];
                vec![say(Event::Done(pb::GenerateDone { images, ..Default::default() }))]
            }
            Self::TooFew => {
                let mut some = good();
                some.pop();
                images(some, pb::GenerateDone::default())
            }
            Self::Truncated => {
                let cut = |png: Bytes| png.slice(..png.len() / 2);
                images(good().into_iter().map(cut).collect(), pb::GenerateDone::default())
            }
            Self::Html => {
                let page = Bytes::from_static(b"<!doctype html><html><body>bad gateway</body></html>");
                images(vec![page; request.wanted()], pb::GenerateDone::default())
            }
            Self::After(pause, then) => {
                let mut acts = vec![Act::Wait(*pause)];
                acts.extend(then.acts(request));
                acts
            }
            Self::Previews(count, then) => {
                let preview = |partial_index| {
                    say(Event::PartialImage(pb::PartialImage {
                        data: png(8, 8, 0),
                        format: pb::ImageFormat::Png.into(),
                        partial_index,
                        image_index: 0,
                    }))
                };
                let mut acts: Vec<Act> = (0..*count).map(preview).collect();
                acts.extend(then.acts(request));
                acts
            }
            Self::By(outcome) => outcome(request).acts(request),
        }
    }
}

fn say(event: Event) -> Act {
    Act::Say(Box::new(event))
}

fn images(images: Vec<Bytes>, mut done: pb::GenerateDone) -> Vec<Act> {
    let mut acts = Vec::new();
    for (index, data) in (0..).zip(images) {
        acts.push(say(Event::ImageChunk(pb::ImageChunk { image_index: index, data })));
        done.images.push(pb::Image {
            seed: Some(u64::from(index)),
            revised_prompt: "a better cat".into(),
            ..Default::default()
        });
    }
    acts.push(say(Event::Done(done)));
    acts
}

fn halves(image: &Bytes) -> Vec<Act> {
    let (first, second) = (image.slice(..image.len() / 2), image.slice(image.len() / 2..));
    let chunk = |data| say(Event::ImageChunk(pb::ImageChunk { image_index: 0, data }));
    [first, second].map(chunk).into()
}

#[tonic::async_trait]
impl WorkerService for Worker {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        Ok(Response::new(pb::DescribeResponse { providers: vec![self.record.clone()] }))
    }

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<EventStream>, Status> {
        let request = request.into_inner();
        let image = request.image.clone().unwrap();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = Arc::clone(&self.in_flight);
        let mut in_flight = InFlight { finished: false, dropped: self.dropped.clone(), in_flight };
        self.requests.lock().unwrap().push(request);
        self.called.send_modify(|count| *count += 1);
        let mut acts = VecDeque::from(self.next(&image.model).acts(&image));
        // Like a provider: silence comes before the answer's head.
        while let Some(act) = acts.pop_front() {
            match act {
                Act::Wait(pause) => tokio::time::sleep(pause).await,
                Act::WaitForever => futures::future::pending().await,
                Act::Fail(status) => {
                    in_flight.finished = true;
                    return Err(status);
                }
                event @ Act::Say(_) => {
                    acts.push_front(event);
                    break;
                }
            }
        }
        let events = stream::unfold((acts, in_flight), async |(mut acts, mut in_flight)| {
            loop {
                let act = acts.pop_front();
                // Read to its end, not only to its last event.
                in_flight.finished = matches!(act, None | Some(Act::Fail(_)));
                let said = match act? {
                    Act::Wait(pause) => {
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    Act::WaitForever => futures::future::pending().await,
                    Act::Fail(status) => Err(status),
                    Act::Say(event) => Ok(pb::GenerateResponse { event: Some(*event) }),
                };
                return Some((said, (acts, in_flight)));
            }
        });
        Ok(Response::new(Box::pin(events)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.finished {
            self.dropped.send_modify(|count| *count += 1);
        }
    }
}

impl Gateway {
    /// A router that runs one config over one worker.
    pub fn over(mode: Mode, worker: &Arc<Worker>, config: &Value) -> Self {
        Self::new(mode, &format!("configs: {{it: {config}}}\ndefault_config: it\n"), &[worker])
    }

    /// A router that leaves nothing to chance, so that what follows from a draw is the same in every run.
    pub fn seeded(worker: &Arc<Worker>, config: &Value, seed: u64) -> Self {
        let yaml = format!("configs: {{it: {config}}}\ndefault_config: it\n");
        let saved = Saved::default();
        Self::start(Mode::OneProcess, &yaml, &[worker], &saved, |state| Router::seeded(state, seed))
    }

    /// A router with a whole configuration. In its environment, `PAINT_KEY` is `sk-stored`.
    pub fn new(mode: Mode, yaml: &str, workers: &[&Arc<Worker>]) -> Self {
        Self::start(mode, yaml, workers, &Saved::default(), Router::new)
    }

    /// The same with what was saved while it ran.
    pub fn remembering(mode: Mode, yaml: &str, workers: &[&Arc<Worker>], saved: &Saved) -> Self {
        Self::start(mode, yaml, workers, saved, Router::new)
    }

    /// The same in one process, with a journal for what is done.
    pub fn logging(worker: &Arc<Worker>, yaml: &str, saved: &Saved, journal: &Arc<Journal>) -> Self {
        let router = |state| Router::in_fleet(state, None, Some(Arc::clone(journal)), None);
        Self::start(Mode::OneProcess, yaml, &[worker], saved, router)
    }

    fn start(
        mode: Mode,
        yaml: &str,
        workers: &[&Arc<Worker>],
        saved: &Saved,
        router: impl FnOnce(State) -> Router,
    ) -> Self {
        let mut servers = JoinSet::new();
        let connections = Arc::<AtomicUsize>::default();
        let (state, max_body_bytes) = state(mode, yaml, workers, saved, &mut servers, &connections);
        let local = router(state);
        let here: SharedRouter = Arc::new(local.clone());
        let router = match mode {
            Mode::OneProcess => here,
            Mode::Connected => {
                let served = transport::router_server(router::remote::Served(here), max_body_bytes);
                let server = transport::server().add_service(served);
                Arc::new(router::remote::Remote::new(connect(
                    Service::Router,
                    &mut servers,
                    server,
                    &connections,
                )))
            }
        };
        Self { router, mode, local, connections, servers }
    }

    /// Another configuration for the same router.
    pub fn reload(&mut self, yaml: &str, workers: &[&Arc<Worker>]) {
        let saved = Saved::default();
        let (state, _) = state(self.mode, yaml, workers, &saved, &mut self.servers, &self.connections);
        self.local.replace(state);
    }

    /// Generates images.
    pub async fn generate(&self, fields: &Value) -> Result<pb::ImageResult> {
        self.generate_with(fields, &[]).await
    }

    /// Generates images for a caller with these headers.
    pub async fn generate_with(
        &self,
        fields: &Value,
        headers: &[(&'static str, &str)],
    ) -> Result<pb::ImageResult> {
        let image = Some(ask(fields));
        self.send(message(pb::GenerateImageRequest { image }, headers)).await
    }

    /// Generates images for a caller that waits no longer than this.
    pub async fn generate_within(&self, limit: Duration, fields: &Value) -> Result<pb::ImageResult> {
        let mut request = message(pb::GenerateImageRequest { image: Some(ask(fields)) }, &[]);
        request.set_timeout(limit);
        self.send(request).await
    }

    /// Sends a request as it is.
    pub async fn send(&self, request: Request<pb::GenerateImageRequest>) -> Result<pb::ImageResult> {
        let answer = self.router.generate_image(request).await.map_err(|status| Error::from_status(&status));
        Ok(answer?.into_inner().result.unwrap())
    }

    /// Connections that were made so far between the roles.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The router itself, for what is no call.
    pub fn local(&self) -> &Router {
        &self.local
    }

    /// The role itself, for the other calls.
    pub fn router(&self) -> &SharedRouter {
        &self.router
    }

    /// Streams images: the events before the end, and how it ended.
    pub async fn stream(&self, fields: &Value) -> (Vec<Answer>, Result<()>) {
        let request = Request::new(pb::StreamImageRequest { image: Some(ask(fields)) });
        let mut stream = match self.router.stream_image(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return (Vec::new(), Err(Error::from_status(&status))),
        };
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => events.extend(event.event),
                Err(status) => return (events, Err(Error::from_status(&status))),
            }
        }
        (events, Ok(()))
    }
}

/// What a router works with, and its limit for messages. In its environment, `PAINT_KEY` is `sk-stored`.
fn state(
    mode: Mode,
    yaml: &str,
    workers: &[&Arc<Worker>],
    saved: &Saved,
    servers: &mut JoinSet<()>,
    connections: &Arc<AtomicUsize>,
) -> (State, usize) {
    let built_in = workers.iter().fold(Providers::default(), |all, worker| all.with(&worker.record));
    let environment = |name: &str| (name == "PAINT_KEY").then(|| "sk-stored".to_owned());
    let settings = config::read(yaml, &built_in, &environment).unwrap().joined(saved, &built_in, 0);
    let mut known = Workers::default();
    for worker in workers {
        let here: SharedWorker = Arc::clone(worker) as _;
        let worker_service = match mode {
            Mode::OneProcess => here,
            Mode::Connected => {
                let served = transport::worker_server(worker::remote::Served(here));
                let server = transport::server().add_service(served);
                let service = Service::Worker(worker.record.name.clone());
                Arc::new(worker::remote::Remote::new(connect(service, servers, server, connections)))
            }
        };
        known.insert(worker.record.name.clone(), worker_service);
    }
    // A worker given to the harness serves its provider, wherever the configuration says it is.
    let elsewhere = settings.workers.iter().filter(|(provider, _)| !built_in.contains(provider));
    for (provider, addresses) in elsewhere {
        let pool = Pool::new(Service::Worker(provider.clone()), addresses.clone(), None);
        known.insert(provider.clone(), Arc::new(worker::remote::Remote::new(pool)));
    }
    let max_body_bytes = settings.limits.max_body_bytes;
    let has_embeddings = settings.embeddings.is_some();
    let state = State::new(Arc::new(settings), Arc::new(known), &built_in);
    if !has_embeddings {
        return (state, max_body_bytes);
    }
    _ = rustls::crypto::ring::default_provider().install_default();
    let http = Arc::new(worker::http::Http::try_new(Egress::default()).unwrap());
    (state.reaching(&http), max_body_bytes)
}

/// A client's end of a server without sockets, so that both follow the paused clock.
fn connect(
    service: Service,
    servers: &mut JoinSet<()>,
    server: tonic::transport::server::Router,
    connections: &Arc<AtomicUsize>,
) -> Pool {
    let connections = Arc::clone(connections);
    let (sender, receiver) = mpsc::unbounded_channel::<std::io::Result<DuplexStream>>();
    servers.spawn(async move {
        server.serve_with_incoming(UnboundedReceiverStream::new(receiver)).await.unwrap();
    });
    Pool::in_memory(service, move || {
        let (here, there) = tokio::io::duplex(64 * 1024);
        connections.fetch_add(1, Ordering::Relaxed);
        let sent = sender.send(Ok(there));
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused))?;
        Ok(here)
    })
}

impl Drop for Trying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a failed test says where")]
            {
                eprintln!("failed in mode {:?}", self.0);
            }
        }
    }
}

/// A worker behind a socket, in a runtime of its own: it runs beside the router and can die like a process.
pub fn elsewhere(worker: &Arc<Worker>) -> (tokio::runtime::Runtime, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let served = transport::worker_server(worker::remote::Served(Arc::clone(worker) as _));
    runtime.spawn(async move {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(
            tokio::net::TcpListener::from_std(listener).unwrap(),
        );
        transport::server().add_service(served).serve_with_incoming(incoming).await
    });
    (runtime, uri)
}
