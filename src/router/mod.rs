//! The router: `RouterService` in this process.
//!
//! Authenticates, finds the plan, runs it, and reports what happened. Callers hold it as [`SharedRouter`],
//! whether it is here or behind a connection.

pub mod dry_run;
mod incoming;
mod log;
mod recorded;
mod refusals;
pub mod remote;
mod replay;
pub mod report;
pub mod resolve;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::HeaderMap;
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};
use tonic::{Request, Response, Status};

use self::{
    log::RequestLog,
    refusals::{Refusal, Refusals},
    replay::{Answered, Idempotency, Replays},
    resolve::Resolved,
};
use crate::{
    cache::{Cache, Embedder},
    call::{Call, Events, Record, RequestContext},
    config::{
        Problem, Settings,
        callers::{Caller, Scope},
        plan::{Plan, Source},
        providers::Providers,
        saved::DEFAULT_TENANT,
    },
    error::{Error, ErrorKind, Result},
    fleet::Fleet,
    health::Health,
    images::Pieces,
    issuers::Issuers,
    jobs::{self, JobStream, Jobs, Made, Webhook},
    merge::merge,
    pb::{
        self, Job, Operation, planned_target::Decision, router_service_server::RouterService,
        stream_image_response::Event,
    },
    phases::Phase,
    quota::{Exceeded, Ledger, Metered},
    route,
    store::journal::Journal,
    telemetry,
    worker::{Workers, http::Http},
};

/// What a router answers to `StreamImage`.
pub type EventStream =
    Pin<Box<dyn Stream<Item = std::result::Result<pb::StreamImageResponse, Status>> + Send>>;

/// A router in this process, or the adapter of one elsewhere: the same to its callers.
pub type SharedRouter = Arc<dyn RouterService<StreamImageStream = EventStream, WatchJobStream = JobStream>>;

/// Metadata of an answer that streams.
pub const REQUEST_ID: &str = "x-imagegate-request-id";
/// Metadata of an answer that streams.
pub const TRACE_ID: &str = "x-portkey-trace-id";

/// Previews and progress that may wait for a slow reader.
const EVENTS_WAITING: usize = 16;

/// The router.
#[derive(Clone, Debug)]
pub struct Router {
    state: Arc<ArcSwap<State>>,
    shared: Arc<Shared>,
}

/// What lasts from request to request, whatever the configuration.
#[derive(Debug)]
struct Shared {
    health: Arc<Health>,
    replays: Replays,
    cache: Arc<Cache>,
    jobs: Jobs,
    /// What is used of limits.
    ledger: Arc<Ledger>,
    /// What is shared with other routers.
    fleet: Option<Arc<Fleet>>,
    /// Where finished requests are noted.
    journal: Option<Arc<Journal>>,
    refusals: Refusals,
    /// Where chance comes from: the next seed, or the system's own.
    seeds: Option<AtomicU64>,
}

/// Everything that a change of configuration replaces at once.
#[derive(Debug)]
pub struct State {
    settings: Arc<Settings>,
    workers: Arc<Workers>,
    providers: Providers,
    issuers: Arc<Issuers>,
    embedder: Option<Arc<Embedder>>,
    /// For webhooks.
    http: Option<Arc<Http>>,
}

impl State {
    /// Puts settings and workers together. `built_in` are the providers of this binary.
    pub fn new(settings: Arc<Settings>, workers: Arc<Workers>, built_in: &Providers) -> Self {
        let providers = built_in.clone().with_all_own(workers.providers());
        let issuers = Arc::default();
        Self { settings, workers, providers, issuers, embedder: None, http: None }
    }

    /// The same with those who vouch for callers.
    #[must_use]
    pub fn trusting(self, issuers: Arc<Issuers>) -> Self {
        Self { issuers, ..self }
    }

    /// The same with these connections, for webhooks and the embeddings endpoint that the settings may name.
    #[must_use]
    pub fn reaching(self, http: &Arc<Http>) -> Self {
        let endpoint = self.settings.embeddings.clone();
        let embedder = endpoint.map(|endpoint| Arc::new(Embedder::new(endpoint, Arc::clone(http))));
        Self { embedder, http: Some(Arc::clone(http)), ..self }
    }
}

impl Router {
    /// A router with its first state.
    pub fn new(state: State) -> Self {
        Self::with(state, None, None, None)
    }

    /// A router that shares what it can with others, and notes what it has done.
    pub fn in_fleet(state: State, fleet: Option<Arc<Fleet>>, journal: Option<Arc<Journal>>) -> Self {
        Self::with(state, fleet, journal, None)
    }

    /// A router that leaves nothing to chance: the same requests in the same order, the same choices.
    pub fn seeded(state: State, seed: u64) -> Self {
        Self::with(state, None, None, Some(AtomicU64::new(seed)))
    }

    fn with(
        state: State,
        fleet: Option<Arc<Fleet>>,
        journal: Option<Arc<Journal>>,
        seeds: Option<AtomicU64>,
    ) -> Self {
        let shared = Arc::new(Shared { journal, ..Shared::new(&state, fleet, seeds) });
        Self { state: Arc::new(ArcSwap::from_pointee(state)), shared }
    }

    /// What is used of limits.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// Provider calls in flight.
    pub fn calls_in_flight(&self) -> u64 {
        self.shared.health.in_flight()
    }

    /// How often circuit breakers have opened and closed.
    pub fn breaker_changes(&self) -> u64 {
        self.shared.health.breaker_changes()
    }

    /// Carries out jobs until `draining`, and then those that run to their end.
    pub async fn run_jobs(&self, draining: impl Future<Output = ()>) {
        self.shared.jobs.run(draining).await;
    }

    /// Shares with other routers as long as it runs.
    pub async fn run_fleet(self) {
        if let Some(fleet) = &self.shared.fleet {
            fleet.run(&self.shared.health, &|key| self.shared.cache.forget(key)).await;
        }
    }

    /// Tells other routers what they do not know yet, before this one ends.
    pub async fn leave_fleet(&self) {
        if let Some(fleet) = &self.shared.fleet {
            fleet.flush().await;
        }
    }

    /// Replaces settings and workers. Requests in flight finish with the old ones.
    pub fn replace(&self, state: State) {
        self.shared.cache.resize(state.settings.limits.cache_bytes);
        self.state.store(Arc::new(state));
    }

    /// Before a caller is looked for: has the keys fetched that its token may need.
    pub async fn prepare(&self, headers: &HeaderMap) {
        let issuers = Arc::clone(&self.state.load().issuers);
        issuers.prepare(&resolve::credentials(headers)).await;
    }

    /// Whether everybody may do everything, because nobody has a key.
    pub fn is_open(&self) -> bool {
        self.state.load().settings.callers.are_everybody()
    }

    /// Who manages what the gateway remembers.
    ///
    /// # Errors
    /// 401 without a valid key, 403 without the scope, and where everybody is let in.
    pub fn manager(&self, headers: &HeaderMap, scope: Scope) -> Result<Caller> {
        let state = self.state.load();
        if state.settings.callers.are_everybody() {
            return Ok(Caller::anybody());
        }
        let caller = resolve::authenticate(headers, &state.settings, &state.issuers, scope)?;
        caller.map(|caller| Caller::clone(&caller)).ok_or_else(|| {
            let message =
                "an API key is required: `auth: open` lets everybody make images, and nobody manage";
            Error::new(ErrorKind::Unauthenticated, message)
        })
    }

    /// Settings and providers as they are now.
    pub fn known(&self) -> (Arc<Settings>, Providers) {
        let state = self.state.load();
        (Arc::clone(&state.settings), state.providers.clone())
    }

    /// Checks a config that a tenant wants to save.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check_config(&self, tenant: &str, config: &Value) -> Result<(), Vec<Problem>> {
        let state = self.state.load();
        state.settings.check_config(tenant, config, &state.providers).map(drop)
    }

    /// Why a tenant's saved config cannot be run now; empty if it can.
    pub fn problem(&self, tenant: &str, slug: &str) -> String {
        let version = self.state.load().settings.config_of(tenant, slug);
        version.and_then(|version| version.plan.err()).unwrap_or_default()
    }

    /// A tenant's saved configs that use a virtual key.
    pub fn configs_with(&self, tenant: &str, virtual_key: &str) -> Vec<String> {
        let state = self.state.load();
        let configs = state.settings.tenants.get(tenant).into_iter().flat_map(|realm| &realm.configs);
        let uses = |plan: &Plan| {
            let mut uses = false;
            plan.visit(&mut |target| {
                let Source::Fixed(upstream) = &target.source else { return };
                uses |= upstream.virtual_key.as_deref() == Some(virtual_key);
            });
            uses
        };
        configs
            .filter(|(_, version)| version.plan.as_ref().is_ok_and(|plan| uses(plan)))
            .map(|(slug, _)| slug.clone())
            .collect()
    }

    async fn answer<T>(
        &self,
        request: Request<T>,
        image: Option<pb::ImageRequest>,
        operation: Operation,
    ) -> Result<pb::ImageResult> {
        self.prepare(request.metadata().as_ref()).await;
        let started = self.start(request.metadata().as_ref(), image, operation, None)?.admit().await?;
        let mut result = result(started.run().await?);
        for (image, pieces) in &mut result.1 {
            image.data = std::mem::take(pieces).into_bytes();
        }
        result.0.images = result.1.into_iter().map(|(image, _)| image).collect();
        Ok(result.0)
    }

    /// Who asks about jobs.
    async fn caller<T>(&self, request: &Request<T>) -> Result<String> {
        let headers = request.metadata().as_ref();
        self.prepare(headers).await;
        let state = self.state.load();
        let caller = resolve::authenticate(headers, &state.settings, &state.issuers, Scope::Generate)?;
        Ok(caller.map_or_else(String::new, |caller| caller.id.clone()))
    }

    async fn submit(&self, headers: &HeaderMap, request: pb::SubmitImageRequest) -> Result<Job> {
        let pb::SubmitImageRequest { image, wait_ms } = request;
        let wait = Duration::from_millis(wait_ms);
        let mut headers = headers.clone();
        self.prepare(&headers).await;
        // How long this call may take says nothing of the job.
        headers.remove("grpc-timeout");
        // Previews nobody can be shown would be paid for.
        let image = pb::ImageRequest { partial_images: None, ..image.unwrap_or_default() };
        let state = self.state.load_full();
        let key = state.settings.webhook_key.as_ref();
        let webhook = Webhook::read(&headers, key, state.http.as_ref())
            .and_then(|webhook| self.shared.jobs.admit(state.settings.limits.jobs).map(|()| webhook))
            .map_err(|error| self.refuse(&Ids::new(&headers), &headers, &image, error))?;
        let (sender, progress) = mpsc::channel(EVENTS_WAITING);
        let started = self
            .start(&headers, Some(image), Operation::Unspecified, Some(sender))?
            .admit()
            .await?
            .afford()?;
        let ctx = Arc::clone(&started.call.ctx);
        let new = jobs::New {
            operation: started.call.request.effective_operation(),
            model: started.call.request.model.clone(),
            request_id: ctx.request_id.clone(),
            caller: ctx.caller.clone(),
            webhook,
        };
        let is_quick = !wait.is_zero() && started.usual_time().await.is_none_or(|usual| usual < wait);
        let run = async move {
            let (mut result, images) = result(started.run().await?);
            let images = images.into_iter().map(|(image, pieces)| {
                result.images.push(image);
                pieces
            });
            Ok(Made { images: images.collect(), result })
        };
        let job = self.shared.jobs.submit(new, progress, run);
        Ok(if is_quick { self.shared.jobs.wait(job, wait).await } else { job })
    }

    /// Everything before the first attempt.
    fn start(
        &self,
        headers: &HeaderMap,
        image: Option<pb::ImageRequest>,
        operation: Operation,
        events: Option<Events>,
    ) -> Result<Started> {
        let ids = Ids::new(headers);
        let image = asked_for(image, operation);
        match self.resolve(headers, &image, events, &ids) {
            Ok((call, Resolved { route, .. })) => {
                let idempotency = Idempotency::read(headers, &call.ctx.caller, &call.request)
                    .map_err(|error| self.refuse(&ids, headers, &image, error))?;
                let operation = call.request.effective_operation();
                let plan = Arc::clone(&route.plan);
                let log = RequestLog::begin(&call, route, operation, self.shared.journal.clone());
                Ok(Started { plan, call, log, idempotency, shared: Arc::clone(&self.shared) })
            }
            Err(error) => Err(self.refuse(&ids, headers, &image, error)),
        }
    }

    /// Notes a request that was refused before anything was tried.
    fn refuse(&self, ids: &Ids, headers: &HeaderMap, image: &pb::ImageRequest, error: Error) -> Error {
        let error = ids.reject(error);
        if let Some(journal) = &self.shared.journal {
            let State { settings, providers, issuers, .. } = &**self.state.load();
            self.shared
                .refusals
                .note(journal, &Refusal { ids, headers, image, error: &error, settings, providers, issuers });
        }
        error
    }

    /// Who calls, which plan, and the request at its top.
    fn resolve(
        &self,
        headers: &HeaderMap,
        image: &Arc<pb::ImageRequest>,
        events: Option<Events>,
        ids: &Ids,
    ) -> Result<(Call, Resolved)> {
        let state = self.state.load_full();
        let (settings, issuers) = (&state.settings, &state.issuers);
        let mut resolved = resolve::resolve(headers, &image.model, settings, &state.providers, issuers)?;
        incoming::check(image)?;
        let metadata = resolved.metadata(incoming::metadata(headers));
        let caller = resolved.caller.as_deref();
        let tenant = caller.map_or(DEFAULT_TENANT, |caller| &caller.tenant).to_owned();
        let ctx = Arc::new(RequestContext {
            metered: Metered::of_request(caller, &tenant, &metadata, &state.settings.quotas),
            ledger: Arc::clone(&self.shared.ledger),
            request_id: ids.request_id.clone(),
            trace_id: ids.trace_id.clone(),
            deadline: Instant::now() + incoming::time_limit(headers, state.settings.limits.total_timeout)?,
            headers: resolve::without_credentials(headers, settings, issuers),
            metadata,
            seed: self.shared.seed(),
            health: Arc::clone(&self.shared.health),
            caller: caller.map_or_else(String::new, |caller| caller.id.clone()),
            tenant,
            cache: Arc::clone(&self.shared.cache),
            embedder: state.embedder.clone(),
            upstream: resolved.upstream.take(),
            keeps: resolved.keeps(&state.settings),
            overrides: std::mem::take(&mut resolved.overrides),
            workers: Arc::clone(&state.workers),
            settings: Arc::clone(&state.settings),
            events,
            committed: AtomicBool::new(false),
            record: Record::new(ids.arrived),
        });
        Ok((Call::new(Arc::clone(image), ctx), resolved))
    }
}

/// A request with the operation that its call stands for, if it names none.
fn asked_for(image: Option<pb::ImageRequest>, operation: Operation) -> Arc<pb::ImageRequest> {
    let mut image = image.unwrap_or_default();
    if image.operation() == Operation::Unspecified {
        image.operation = operation.into();
    }
    Arc::new(image)
}

/// How a request is known.
struct Ids {
    request_id: String,
    trace_id: String,
    arrived: Instant,
}

impl Ids {
    fn new(headers: &HeaderMap) -> Self {
        let request_id = uuid::Uuid::now_v7().to_string();
        let trace_id = incoming::trace_id(headers).unwrap_or_else(|| request_id.clone());
        Self { request_id, trace_id, arrived: Instant::now() }
    }

    /// Counts a request that was refused before anything was tried.
    fn reject(&self, mut error: Error) -> Error {
        let Self { request_id, trace_id, .. } = self;
        telemetry::rejected(request_id, trace_id, &error);
        let (request_id, trace_id) = (request_id.clone(), trace_id.clone());
        error.report = Some(Box::new(pb::RouteReport { request_id, trace_id, ..Default::default() }));
        error
    }
}

impl Shared {
    fn new(state: &State, fleet: Option<Arc<Fleet>>, seeds: Option<AtomicU64>) -> Self {
        let limits = &state.settings.limits;
        let cache = Arc::new(Cache::new(limits.cache_bytes).shared(fleet.clone()));
        Self {
            health: Arc::default(),
            replays: Replays::new(limits.idempotency_bytes, fleet.clone()),
            cache,
            ledger: Ledger::new(fleet.clone()),
            fleet,
            journal: None,
            refusals: Refusals::default(),
            jobs: Jobs::new(&state.settings.data_dir),
            seeds,
        }
    }

    fn seed(&self) -> u64 {
        match &self.seeds {
            Some(next) => next.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed),
            None => uuid::Uuid::new_v4().as_u128() as u64,
        }
    }
}

/// A request whose plan is about to run.
struct Started {
    plan: Arc<Plan>,
    call: Call,
    log: RequestLog,
    idempotency: Option<Idempotency>,
    shared: Arc<Shared>,
}

impl Started {
    /// Counts the request where it has a rate limit.
    async fn admit(self) -> Result<Self> {
        let ctx = &self.call.ctx;
        match ctx.ledger.admit(&ctx.metered).await {
            Ok(()) => Ok(self),
            Err(exceeded) => Err(self.turn_away(exceeded)),
        }
    }

    /// Refuses a request that nothing is left for.
    fn afford(self) -> Result<Self> {
        match self.call.ctx.ledger.check(&self.call.ctx.metered) {
            Ok(()) => Ok(self),
            Err(exceeded) => Err(self.turn_away(exceeded)),
        }
    }

    fn turn_away(self, exceeded: Exceeded) -> Error {
        let error = report::of_error(&self.call.ctx, exceeded.refuse());
        self.log.fail(&error);
        error
    }

    /// How long the first target usually takes, if it has been seen.
    async fn usual_time(&self) -> Option<Duration> {
        let targets = route::explain(&self.plan, &self.call).await;
        let first =
            targets.into_iter().find(|target| target.decision() == Decision::Tried && !target.cached)?;
        Duration::try_from_secs_f64(first.state?.latency_s?).ok()
    }

    async fn run(self) -> Result<Answered> {
        let Self { plan, call, log, idempotency, shared } = self;
        // Until it is this request's turn.
        let waiting = idempotency.is_some().then(|| call.ctx.enter(Phase::Waiting));
        let run = async {
            drop(waiting);
            // An answer that is there already is paid for.
            call.ctx.ledger.check(&call.ctx.metered).map_err(Exceeded::refuse)?;
            let reply = route::run(&plan, &call).await?;
            Ok(Answered { report: report::of_reply(&call.ctx, &reply), reply })
        };
        let outcome = match idempotency {
            Some(idempotency) => shared.replays.once(idempotency, &call, run).await,
            None => run.await,
        };
        match outcome {
            Ok(answered) => {
                log.succeed(&answered);
                Ok(answered)
            }
            Err(error) => {
                let error = report::of_error(&call.ctx, error);
                log.fail(&error);
                Err(error)
            }
        }
    }

    /// The answer as the events of a stream.
    async fn run_to_events(self) -> Vec<std::result::Result<Event, Status>> {
        let (mut result, images) = match self.run().await {
            Ok(answered) => result(answered),
            Err(error) => return vec![Err(error.into())],
        };
        let mut events = Vec::with_capacity(images.len() + 1);
        for (index, (image, pieces)) in (0..).zip(images) {
            let chunk = |data| Event::ImageChunk(pb::ImageChunk { image_index: index, data });
            events.extend(pieces.into_iter().map(chunk));
            result.images.push(image);
        }
        events.push(Event::Result(result));
        events.into_iter().map(Ok).collect()
    }
}

/// The result without its images, and the images.
fn result(answered: Answered) -> (pb::ImageResult, Vec<(pb::Image, Pieces)>) {
    let Answered { report, reply } = answered;
    let result = pb::ImageResult {
        created_unix_s: pb::unix_now(),
        images: Vec::new(),
        applied: Some(reply.applied),
        usage: reply.usage,
        report: Some(report),
    };
    (result, reply.images)
}

#[tonic::async_trait]
impl RouterService for Router {
    type StreamImageStream = EventStream;
    type WatchJobStream = JobStream;

    async fn generate_image(
        &self,
        mut request: Request<pb::GenerateImageRequest>,
    ) -> Result<Response<pb::GenerateImageResponse>, Status> {
        let image = request.get_mut().image.take();
        let result = self.answer(request, image, Operation::Generate).await?;
        Ok(Response::new(pb::GenerateImageResponse { result: Some(result) }))
    }

    async fn edit_image(
        &self,
        mut request: Request<pb::EditImageRequest>,
    ) -> Result<Response<pb::EditImageResponse>, Status> {
        let image = request.get_mut().image.take();
        let result = self.answer(request, image, Operation::Edit).await?;
        Ok(Response::new(pb::EditImageResponse { result: Some(result) }))
    }

    async fn vary_image(
        &self,
        mut request: Request<pb::VaryImageRequest>,
    ) -> Result<Response<pb::VaryImageResponse>, Status> {
        let image = request.get_mut().image.take();
        let result = self.answer(request, image, Operation::Variation).await?;
        Ok(Response::new(pb::VaryImageResponse { result: Some(result) }))
    }

    async fn stream_image(
        &self,
        mut request: Request<pb::StreamImageRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let image = request.get_mut().image.take();
        let (sender, receiver) = mpsc::channel(EVENTS_WAITING);
        self.prepare(request.metadata().as_ref()).await;
        let started = self.start(request.metadata().as_ref(), image, Operation::Unspecified, Some(sender))?;
        let started = started.admit().await?;
        let ctx = Arc::clone(&started.call.ctx);
        let events = merge(receiver, started.run_to_events())
            .map(|event| Ok(pb::StreamImageResponse { event: Some(event?) }));
        let mut response: Response<EventStream> = Response::new(Box::pin(events));
        // Known at once, for those who have to send headers before the first preview.
        for (name, id) in [(REQUEST_ID, &ctx.request_id), (TRACE_ID, &ctx.trace_id)] {
            if let Ok(id) = id.parse() {
                response.metadata_mut().insert(name, id);
            }
        }
        Ok(response)
    }

    async fn submit_image(
        &self,
        mut request: Request<pb::SubmitImageRequest>,
    ) -> Result<Response<pb::SubmitImageResponse>, Status> {
        let message = std::mem::take(request.get_mut());
        let job = self.submit(request.metadata().as_ref(), message).await?;
        Ok(Response::new(pb::SubmitImageResponse { job: Some(job) }))
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        let caller = self.caller(&request).await?;
        let pb::GetJobRequest { id, omit_result } = request.into_inner();
        let (job, mut result) = self.shared.jobs.get(&id, &caller).await?;
        if omit_result {
            result = None;
        }
        for (i, image) in result.iter_mut().flat_map(|result| &mut result.images).enumerate() {
            let pieces: Vec<Bytes> = self.shared.jobs.image(&id, i).await?.try_collect().await?;
            image.data = pieces.into_iter().collect::<Pieces>().into_bytes();
        }
        Ok(Response::new(pb::GetJobResponse { job: Some(job), result }))
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        let caller = self.caller(&request).await?;
        let job = self.shared.jobs.cancel(&request.get_ref().id, &caller).await?;
        Ok(Response::new(pb::CancelJobResponse { job: Some(job) }))
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<JobStream>, Status> {
        let caller = self.caller(&request).await?;
        Ok(Response::new(self.shared.jobs.watch(&request.get_ref().id, &caller).await?))
    }

    async fn explain_route(
        &self,
        mut request: Request<pb::ExplainRouteRequest>,
    ) -> Result<Response<pb::ExplainRouteResponse>, Status> {
        let image = request.get_mut().image.take();
        let headers = request.metadata().as_ref();
        self.prepare(headers).await;
        let (call, resolved) =
            self.resolve(headers, &asked_for(image, Operation::Unspecified), None, &Ids::new(headers))?;
        let targets = route::explain(&resolved.route.plan, &call).await;
        let tried = targets.iter().filter(|target| target.decision() == Decision::Tried);
        let prices: Option<Vec<f64>> = tried.map(|target| target.price_usd).collect();
        Ok(Response::new(pb::ExplainRouteResponse {
            route: resolved.route.name,
            min_cost_usd: prices.iter().flatten().copied().reduce(f64::min),
            max_cost_usd: prices.iter().flatten().copied().reduce(f64::max),
            targets,
        }))
    }

    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let headers = request.metadata().as_ref();
        self.prepare(headers).await;
        let state = self.state.load_full();
        let caller = resolve::authenticate(headers, &state.settings, &state.issuers, Scope::Generate)?;
        let tenant = caller.as_ref().map_or(DEFAULT_TENANT, |caller| &caller.tenant);
        let granted = |id: &str| {
            let granted = caller.as_ref().and_then(|caller| caller.virtual_keys.as_ref());
            granted.is_none_or(|granted| granted.contains(id))
        };
        let mut models = Vec::new();
        for record in state.workers.records().await {
            let keys = state.settings.virtual_keys_of(tenant).iter();
            let keys = keys.filter(|(id, key)| key.provider == record.name && granted(id));
            let keys: Vec<_> = keys.collect();
            if keys.is_empty() && !state.providers.is_keyless(&record.name) {
                continue;
            }
            let listed = |id: String, model: &pb::ModelCapability| pb::ListedModel {
                id,
                provider: record.name.clone(),
                capability: Some(model.clone()),
            };
            let is_id = |model: &&pb::ModelCapability| !model.model.ends_with('*');
            for model in record.models.iter().filter(is_id) {
                models.push(listed(model.model.clone(), model));
            }
            for (key, upstream) in keys {
                let is_described = |id: &str| upstream.models.iter().any(|model| model.model == id);
                let others = record.models.iter().filter(|model| !is_described(&model.model));
                for model in upstream.models.iter().chain(others).filter(is_id) {
                    models.push(listed(format!("@{key}/{}", model.model), model));
                }
            }
        }
        Ok(Response::new(pb::ListModelsResponse { models }))
    }
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("call", &self.call).finish_non_exhaustive()
    }
}
