//! From headers and a message to a request whose plan is about to run, and its run.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use http::HeaderMap;
use prost::Message as _;
use tokio::time::Instant;
use tonic::Status;

use super::{
    Router, Shared, State, incoming,
    log::RequestLog,
    refusals::Refusal,
    replay::{Answered, Idempotency},
    report,
    resolve::{self, Resolved},
};
use crate::{
    admission::Held,
    call::{Call, Events, Record, RequestContext},
    config::{plan::Plan, saved::DEFAULT_TENANT},
    error::{Error, Result},
    images::Pieces,
    otlp::Traced,
    pb::{self, Operation, planned_target::Decision, stream_image_response::Event},
    phases::Phase,
    quota::{Exceeded, Metered},
    route, telemetry,
    trace::TraceContext,
};

impl Router {
    /// Everything before the first attempt.
    pub(super) fn start(
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
    pub(super) fn refuse(
        &self,
        ids: &Ids,
        headers: &HeaderMap,
        image: &pb::ImageRequest,
        error: Error,
    ) -> Error {
        let error = ids.reject(error);
        if let Some(traced) = self.traced(headers, ids) {
            traced.refuse(image, &ids.trace_id, &error, ids.arrived.elapsed());
        }
        if let Some(journal) = &self.shared.journal {
            let State { settings, providers, issuers, .. } = &**self.state.load();
            self.shared
                .refusals
                .note(journal, &Refusal { ids, headers, image, error: &error, settings, providers, issuers });
        }
        error
    }

    /// The request's place in its trace, where spans are made.
    fn traced(&self, headers: &HeaderMap, ids: &Ids) -> Option<Traced> {
        let exporter = self.shared.otlp.as_ref()?;
        Some(Traced::begin(exporter, headers, ids.id, ids.context.as_ref()))
    }

    /// Who calls, which plan, and the request at its top.
    pub(super) fn resolve(
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
        let traced = self.traced(headers, ids);
        let ctx = Arc::new(RequestContext {
            metered: Metered::of_request(caller, &tenant, &metadata, &state.settings.quotas),
            ledger: Arc::clone(&self.shared.ledger),
            request_id: ids.request_id.clone(),
            trace_id: ids.trace_id.clone(),
            trace: ids.context.clone().unwrap_or_else(|| TraceContext::begin(ids.id)),
            traced,
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
            held: Held::new(image.encoded_len()),
        });
        Ok((Call::new(Arc::clone(image), ctx), resolved))
    }
}

/// A request with the operation that its call stands for, if it names none.
pub fn asked_for(image: Option<pb::ImageRequest>, operation: Operation) -> Arc<pb::ImageRequest> {
    let mut image = image.unwrap_or_default();
    if image.operation() == Operation::Unspecified {
        image.operation = operation.into();
    }
    Arc::new(image)
}

/// How a request is known.
pub struct Ids {
    pub id: uuid::Uuid,
    pub request_id: String,
    pub trace_id: String,
    /// The caller's.
    pub context: Option<TraceContext>,
    pub arrived: Instant,
}

impl Ids {
    pub fn new(headers: &HeaderMap) -> Self {
        let id = uuid::Uuid::now_v7();
        let request_id = id.to_string();
        let context = TraceContext::read(headers);
        let of_caller = incoming::trace_id(headers).or(context.as_ref().map(TraceContext::trace_id));
        let trace_id = of_caller.unwrap_or(&request_id).to_owned();
        Self { id, request_id, trace_id, context, arrived: Instant::now() }
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

/// A request whose plan is about to run.
pub struct Started {
    plan: Arc<Plan>,
    pub call: Call,
    log: RequestLog,
    idempotency: Option<Idempotency>,
    shared: Arc<Shared>,
}

impl Started {
    /// Counts the request where it has a rate limit.
    pub async fn admit(self) -> Result<Self> {
        let ctx = &self.call.ctx;
        match ctx.ledger.admit(&ctx.metered).await {
            Ok(()) => Ok(self),
            Err(exceeded) => Err(self.turn_away(exceeded)),
        }
    }

    /// Refuses a request that nothing is left for.
    pub fn afford(self) -> Result<Self> {
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
    pub async fn usual_time(&self) -> Option<Duration> {
        let targets = route::explain(&self.plan, &self.call).await;
        let first =
            targets.into_iter().find(|target| target.decision() == Decision::Tried && !target.cached)?;
        Duration::try_from_secs_f64(first.state?.latency_s?).ok()
    }

    pub async fn run(self) -> Result<Answered> {
        let Self { plan, call, log, idempotency, shared } = self;
        // Until it is this request's turn.
        let waiting = idempotency.is_some().then(|| call.ctx.enter(Phase::Waiting));
        // Else it is in this future once, and twice in that of `once`.
        let run = Box::pin(async {
            drop(waiting);
            // An answer that is there already is paid for.
            call.ctx.ledger.check(&call.ctx.metered).map_err(Exceeded::refuse)?;
            let reply = route::run(&plan, &call).await?;
            Ok(Answered { report: report::of_reply(&call.ctx, &reply), reply })
        });
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
    pub async fn run_to_events(self) -> Vec<std::result::Result<Event, Status>> {
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
pub fn result(answered: Answered) -> (pb::ImageResult, Vec<(pb::Image, Pieces)>) {
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

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("call", &self.call).finish_non_exhaustive()
    }
}
