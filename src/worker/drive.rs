//! Carries out a job of a provider that speaks HTTP: sends what the provider says, reads what comes back,
//! waits and downloads where it must. No strategy, no retries.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures::{FutureExt as _, StreamExt as _};
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use url::Url;

use super::{
    EventStream,
    http::{Http, Trust, forward},
    incoming::Incoming,
    relay::{self, Relay, Said},
    scrub::Credentials,
    sse::EventReader,
    tokens::Tokens,
};
use crate::{
    admission,
    config::spec::Secret,
    error::{Error, ErrorKind, Result},
    images::Pieces,
    merge::merge,
    pb::{
        self, BillingClass, FinishReason, credential::Credential, generate_response::Event,
        input_image::Source, worker_service_server::WorkerService,
    },
    provider::{self, Answer, AnswerBody, Job, Output, Provider, Step, Watched},
    trace::TraceContext,
};

/// Largest image that is fetched for a caller or from a provider, in bytes.
const MAX_FETCH_BYTES: usize = 64 << 20;

/// How much longer than the provider says a poll may wait, as a share.
const POLL_SPREAD: f64 = 0.2;

/// How often a job is asked after that answers only when it is done, and how long that may take: what an earlier
/// answer said must not be acted on much later.
const WATCH_EVERY: Duration = Duration::from_secs(1);
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// What the worker holds itself of virtual keys, by their names.
pub type Secrets = BTreeMap<String, Held>;

/// What makes up a credential that the worker holds.
#[derive(Clone, Debug)]
pub struct Held {
    /// A key.
    pub api_key: Option<Secret>,
    /// The provider's settings, with credentials among them.
    pub options: Options,
}

/// A provider's settings, which are not shown: credentials may be among them.
#[derive(Clone, Default)]
pub struct Options(pub BTreeMap<String, String>);

/// A worker for one provider.
#[derive(Clone)]
pub struct HttpWorker {
    provider: Arc<dyn Provider>,
    http: Arc<Http>,
    tokens: Arc<Tokens>,
    secrets: Arc<ArcSwap<Secrets>>,
}

/// What all requests of a job have in common.
struct Manner {
    /// Whether the operator vouches for the upstream's host.
    upstream: Trust,
    /// Whether the operator vouches for where to log in, which is part of the credential.
    login: Trust,
    /// Headers that the caller forwards.
    headers: BTreeMap<String, String>,
    /// Goes along, if the call has one.
    trace: Option<TraceContext>,
}

impl HttpWorker {
    /// Puts a provider on the connections of this process.
    pub fn new(provider: Arc<dyn Provider>, http: Arc<Http>, secrets: Arc<ArcSwap<Secrets>>) -> Self {
        Self { provider, http, tokens: Arc::default(), secrets }
    }

    fn name(&self) -> &str {
        &self.provider.record().name
    }

    fn job(&self, request: pb::GenerateRequest, trace: Option<TraceContext>) -> Result<(Job, Manner)> {
        let upstream = request.upstream.unwrap_or_default();
        let trust = |from_caller| if from_caller { Trust::Stranger } else { Trust::Operator };
        let base_url = match upstream.base_url.trim_end_matches('/') {
            "" => self.provider.default_base_url(),
            url => url,
        };
        let mut job = Job::new(request.image.unwrap_or_default(), base_url);
        match upstream.credential.and_then(|credential| credential.credential) {
            None => {}
            Some(Credential::ApiKey(key)) => job.api_key = Some(key.into()),
            Some(Credential::HeldByWorker(name)) => {
                let secrets = self.secrets.load();
                let held = secrets.get(&name).ok_or_else(|| {
                    let message = format!("the worker holds no credential \"{name}\"");
                    Error::new(ErrorKind::PermissionDenied, message)
                })?;
                job.api_key = held.api_key.as_ref().map(|key| key.0.clone());
                job.options.extend(held.options.0.clone());
            }
        }
        job.options.extend(upstream.options);
        let manner = Manner {
            upstream: trust(upstream.base_url_from_caller),
            login: trust(upstream.from_caller),
            headers: upstream.headers,
            trace,
        };
        Ok((job, manner))
    }

    async fn run(self, request: Request<pb::GenerateRequest>, mut relay: Relay) -> Result<Vec<Said>> {
        let trace = TraceContext::read(request.metadata().as_ref());
        let request = request.into_inner();
        let announce_answer = request.announce_answer;
        let (job, manner) = self.job(request, trace)?;
        let mut credentials = Credentials::of(&job, &manner.headers);
        let done = self.carry_out(job, manner, announce_answer, &mut relay, &mut credentials).await;
        done.map(|output| relay.end(output)).map_err(|error| credentials.hidden_in(error))
    }

    async fn carry_out(
        self,
        mut job: Job,
        manner: Manner,
        announce_answer: bool,
        relay: &mut Relay,
        credentials: &mut Credentials,
    ) -> Result<Output> {
        self.fetch_inputs(&mut job).await?;
        let account = match self.provider.login(&job)? {
            Some(login) => Some(Box::pin(self.log_in(&mut job, login, &manner)).await?),
            None => None,
        };
        if let Some(token) = &job.token {
            credentials.add(token.expose_secret());
        }
        let (job, request) = self.start(job).await?;
        let mut farewell =
            Farewell { http: Arc::clone(&self.http), trust: manner.upstream, requests: Vec::new() };
        let mut note = String::new();
        let mut incoming = match self.provider.watch(&job) {
            Some(watch) => {
                let sent = self.send_watched(&job, request, watch, &manner, relay, &mut farewell);
                Box::pin(sent).await?
            }
            None => self.send(request, &manner).await?,
        };
        loop {
            if announce_answer && incoming.status.is_success() {
                relay.say("answering");
            }
            if incoming.is_event_stream() {
                return self.read_events(&job, &mut incoming, relay).await;
            }
            let mut answer = incoming.relayed(self.provider.image_members(), relay).await?;
            answer.note = note;
            let status = answer.status;
            if let (401 | 403, Some(account)) = (status.as_u16(), account) {
                self.tokens.forget(account);
            }
            let armed = std::mem::take(&mut farewell.requests);
            let step = self.provider.advance(&job, answer).inspect_err(|_| {
                // Asking failed, which says nothing of the job: it may still run, and cost.
                if !status.is_success() {
                    farewell.requests = armed;
                }
            })?;
            let next = match step {
                Step::Done(output) => return Ok(output),
                Step::Fetch { urls, output } => {
                    return self.fetch_images(&job, manner.upstream, urls, output).await;
                }
                Step::Next(next) => *next,
            };
            farewell.requests = manner.all(next.cancel);
            relay.tell(next.progress);
            note = next.note;
            tokio::time::sleep(next.after.mul_f64(1.0 + POLL_SPREAD * chance())).await;
            incoming = self.send(next.request, &manner).await?;
        }
    }

    /// Sees to the job's token. The account is returned that it belongs to.
    async fn log_in(
        &self,
        job: &mut Job,
        login: Box<dyn provider::Login>,
        manner: &Manner,
    ) -> Result<[u8; 32]> {
        let account = login.account();
        let token = self.tokens.get(account, async {
            let incoming = self.http.send(login.request(job)?, manner.login).await?;
            login.token(incoming.answer(&[]).await?)
        });
        // Whatever went wrong, no image was asked for.
        job.token = Some(token.await.map_err(|error| error.billed(BillingClass::NotSent))?);
        Ok(account)
    }

    async fn send(&self, request: http::Request<Pieces>, manner: &Manner) -> Result<Incoming> {
        self.http.send(manner.of(request), manner.upstream).await
    }

    /// Sends a request, and asks how its job is doing as long as there is no answer: first by `watch`.
    async fn send_watched(
        &self,
        job: &Job,
        request: http::Request<Pieces>,
        watch: http::Request<Pieces>,
        manner: &Manner,
        relay: &Relay,
        farewell: &mut Farewell,
    ) -> Result<Incoming> {
        let mut sent = pin!(self.send(request, manner));
        let mut next = Some(watch);
        while let Some(watch) = next {
            tokio::select! {
                incoming = &mut sent => {
                    // The job is over, whatever has become of it.
                    farewell.requests.clear();
                    return incoming;
                }
                watched = self.watch(job, watch, manner) => {
                    farewell.requests = manner.all(watched.cancel);
                    relay.tell(watched.progress);
                }
            }
            next = self.provider.watch(job);
        }
        sent.await
    }

    /// After a while, what an answer about a job tells. None, or a bad one, tells nothing.
    async fn watch(&self, job: &Job, request: http::Request<Pieces>, manner: &Manner) -> Watched {
        tokio::time::sleep(WATCH_EVERY).await;
        let answer = async { self.send(request, manner).await?.answer(&[]).await };
        match tokio::time::timeout(WATCH_TIMEOUT, answer).await {
            Ok(Ok(answer)) => self.provider.watched(job, answer),
            Ok(Err(_)) | Err(_) => Watched::default(),
        }
    }

    /// A mask may have to be drawn anew, and an input to be looked at, which takes long enough to be in the way of
    /// other requests.
    async fn start(&self, job: Job) -> Result<(Job, http::Request<Pieces>)> {
        if job.request.mask.is_none() && job.request.inputs.is_empty() {
            let request = self.provider.start(&job)?;
            return Ok((job, request));
        }
        let provider = Arc::clone(&self.provider);
        let started =
            tokio::task::spawn_blocking(move || provider.start(&job).map(|request| (job, request))).await;
        started.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "preparing the request failed")))
    }

    async fn read_events(&self, job: &Job, incoming: &mut Incoming, relay: &Relay) -> Result<Output> {
        let mut reader = EventReader::new(self.provider.image_members());
        while let Some(event) = incoming.next_event(&mut reader).await? {
            // `[DONE]` and the like are no JSON.
            let body = if event.skeleton.trim_ascii_start().starts_with(b"{") {
                AnswerBody::Json { skeleton: event.skeleton, images: event.images }
            } else {
                AnswerBody::Raw(event.skeleton)
            };
            let answer = Answer {
                status: incoming.status,
                headers: incoming.headers.clone(),
                body,
                address: incoming.address(),
                note: String::new(),
            };
            match self.provider.event(job, answer)? {
                provider::Event::Done(output) => return Ok(output),
                provider::Event::Partial { index, data } => {
                    relay.show(index, data).await;
                }
                provider::Event::Ignored => {}
            }
        }
        Err(Error::bad_answer("the provider's event stream ended before the image was complete"))
    }

    /// Inputs given as addresses become bytes, for providers that do not fetch them.
    async fn fetch_inputs(&self, job: &mut Job) -> Result<()> {
        let capability = self.provider.record().capability(&job.request.model);
        if capability.is_some_and(|known| known.accepts_input_urls) {
            return Ok(());
        }
        for (i, input) in job.request.inputs.iter_mut().enumerate() {
            let Some(Source::Url(url)) = &input.source else { continue };
            let image = self.http.fetch(url, Trust::Stranger, MAX_FETCH_BYTES).await.map_err(|error| {
                Error::invalid("image", format!("image {i} cannot be fetched: {}", error.message))
            })?;
            input.source = Some(Source::Data(image));
        }
        Ok(())
    }

    async fn fetch_images(
        &self,
        job: &Job,
        trust: Trust,
        urls: Vec<String>,
        mut output: Output,
    ) -> Result<Output> {
        let base = Url::parse(&job.base_url).ok();
        let origin = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        for (image, url) in to_fetch(&mut output.images).zip(urls) {
            // The operator vouches for its own upstream, wherever that is, and for nobody else.
            let same = Url::parse(&url).ok().as_ref().map(origin) == base.as_ref().map(origin);
            let trust = if same { trust } else { Trust::Stranger };
            image.data = self.http.fetch(&url, trust, MAX_FETCH_BYTES).await?;
        }
        Ok(output)
    }
}

#[tonic::async_trait]
impl WorkerService for HttpWorker {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> std::result::Result<Response<pb::DescribeResponse>, Status> {
        let providers = vec![self.provider.record().clone()];
        Ok(Response::new(pb::DescribeResponse { providers }))
    }

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> std::result::Result<Response<EventStream>, Status> {
        let (sender, receiver) = mpsc::channel(relay::WAITING);
        let name = self.name().to_owned();
        let held = Arc::new(admission::Held::default());
        let relay = Relay::new(sender, Arc::clone(&held), request.get_ref().chunks_first);
        let run = self.clone().run(request, relay).map(move |outcome| {
            outcome.unwrap_or_else(|mut error| {
                if error.provider.is_empty() {
                    error.provider = name;
                }
                vec![Err(error.into())]
            })
        });
        let events = merge(receiver, run).map(move |event| {
            if let Ok(Event::ImageChunk(chunk)) = &event {
                // Whoever gets it holds it now.
                held.release(chunk.data.len());
            }
            Ok(pb::GenerateResponse { event: Some(event?) })
        });
        Ok(Response::new(Box::pin(events)))
    }
}

impl Manner {
    fn of(&self, mut request: http::Request<Pieces>) -> http::Request<Pieces> {
        let headers = request.headers_mut();
        if let Some(trace) = &self.trace {
            trace.put(headers);
        }
        forward(headers, &self.headers);
        request
    }

    fn all(&self, requests: Vec<http::Request<Pieces>>) -> Vec<http::Request<Pieces>> {
        requests.into_iter().map(|request| self.of(request)).collect()
    }
}

/// What a job leaves to be said to its provider if it is dropped.
struct Farewell {
    http: Arc<Http>,
    trust: Trust,
    requests: Vec<http::Request<Pieces>>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        for request in self.requests.drain(..) {
            self.http.send_later(request, self.trust);
        }
    }
}

/// The images that lie at addresses; one that was withheld has none.
fn to_fetch(images: &mut [pb::Image]) -> impl Iterator<Item = &mut pb::Image> {
    let withheld = |image: &pb::Image| {
        matches!(image.finish_reason(), FinishReason::ContentFiltered | FinishReason::Error)
    };
    images.iter_mut().filter(move |image| image.data.is_empty() && !withheld(image))
}

/// A number of 0 to 1.
fn chance() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX)
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl std::fmt::Debug for HttpWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HttpWorker").field(&self.name()).finish()
    }
}

#[cfg(test)]
mod tests;
