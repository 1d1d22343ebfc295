//! What one request carries down the strategy tree, and what the tree leaves behind in it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::HeaderMap;
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

use crate::{
    admission::Held,
    cache::{Cache, Embedder},
    config::{
        Settings,
        condition::Facts,
        identity::Identity,
        memory::Keeps,
        plan::{BaseUrl, Upstream},
    },
    digest::scramble,
    error::{Error, Result},
    health::{Elsewhere, Health},
    images::Pieces,
    otlp::Traced,
    pb::{self, BillingClass, stream_image_response::Event},
    phases::{Phase, Phases},
    quota::{Ledger, Metered},
    trace::TraceContext,
    worker::Workers,
};

/// One request on its way to a target. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Call {
    /// What the caller asked for.
    pub request: Arc<pb::ImageRequest>,
    /// Facts about the request as a whole.
    pub ctx: Arc<RequestContext>,
    /// When this part of the plan has to be done: the caller's deadline, or an earlier one from above.
    pub deadline: Instant,
    /// What somebody else can take over.
    pub elsewhere: Elsewhere,
    /// A balance has chosen this very target, and thereby decided on its share while it comes back.
    pub is_chosen: bool,
}

/// The outcome of an attempt that has none yet.
const RUNNING: &str = "running";

/// Where previews and progress go. The other end also takes the answer, which may fail.
pub type Events = mpsc::Sender<Box<std::result::Result<Event, Status>>>;

/// Facts about a request as a whole.
pub struct RequestContext {
    /// Ours, unique.
    pub request_id: String,
    /// The caller's, else the request id. Never empty.
    pub trace_id: String,
    /// What goes along with every call, unless spans are made.
    pub trace: TraceContext,
    /// Where spans of it go, if they are wanted.
    pub traced: Option<Traced>,
    /// When the caller stops waiting. Never extended; strategies only shorten what they pass on.
    pub deadline: Instant,
    /// The caller's headers, for `forward_headers`.
    pub headers: HeaderMap,
    /// What the caller says about the request (`x-portkey-metadata`), for conditions; null if nothing.
    pub metadata: Value,
    /// All chance in this request comes from here.
    pub seed: u64,
    /// Provider and credential that came with the request, for targets that have none.
    pub upstream: Option<Arc<Upstream>>,
    /// What the request log keeps of the request's content.
    pub keeps: Keeps,
    /// What the request's headers set over the config, at every target.
    pub overrides: Overrides,
    /// Where targets find their workers.
    pub workers: Arc<Workers>,
    /// What past requests tell about targets and strategies.
    pub health: Arc<Health>,
    /// Who calls; empty where everybody may.
    pub caller: String,
    /// Whose caller that is.
    pub tenant: String,
    /// What is used of limits.
    pub ledger: Arc<Ledger>,
    /// The limits that the request comes under.
    pub metered: Vec<Metered>,
    /// Answers of past requests.
    pub cache: Arc<Cache>,
    /// Who compares prompts, if somebody does.
    pub embedder: Option<Arc<Embedder>>,
    /// The configuration that was in force when the request came.
    pub settings: Arc<Settings>,
    /// Where previews and progress go, if somebody wants them.
    pub events: Option<Events>,
    /// A preview was delivered: the caller has seen part of this target's answer, no other may follow.
    pub committed: AtomicBool,
    /// What happened so far.
    pub record: Record,
    /// The request's bytes, and those of its answer as far as it has come.
    pub held: Held,
}

/// Headers that beat the config at every level, as the reference has it.
#[derive(Debug, Default)]
pub struct Overrides {
    /// `x-portkey-request-timeout`
    pub request_timeout: Option<Duration>,
    /// `x-portkey-custom-host`
    pub custom_host: Option<BaseUrl>,
    /// `x-portkey-forward-headers`
    pub forward_headers: Option<Vec<String>>,
    /// `x-portkey-strict-open-ai-compliance: false`
    pub not_strict: bool,
    /// `x-portkey-cache-namespace`
    pub cache_namespace: Option<String>,
    /// `x-portkey-cache-force-refresh: true`
    pub cache_refresh: bool,
    /// `x-portkey-debug: false`: nothing of the request or its answer is kept.
    pub keep_nothing: bool,
}

/// What happened during a request, in order.
#[derive(Debug)]
pub struct Record(Mutex<Happened>);

#[derive(Debug)]
struct Happened {
    phases: Phases,
    attempts: Vec<pb::Attempt>,
    /// What each attempt is expected to cost, as far as prices are known.
    prices: Vec<Option<f64>>,
    /// What pauses were asked for, by attempt.
    retry_after: BTreeMap<u32, Duration>,
    at_risk: AtRisk,
    cost_lines: Vec<pb::CostLine>,
    warnings: Vec<pb::Warning>,
    retry_count: i32,
    cache_status: pb::CacheStatus,
}

/// What may have been paid for attempts that gave nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AtRisk {
    /// As far as prices are known.
    pub usd: f64,
    /// An attempt of unknown price is among them.
    pub unknown: bool,
}

/// An attempt that has begun. One that is dropped unfinished was cancelled, and may have been billed.
#[derive(Debug)]
pub struct Running {
    ctx: Arc<RequestContext>,
    index: usize,
    started: Instant,
    /// The provider is done, and what it gave is looked at.
    answered: AtomicBool,
    finished: bool,
}

/// A phase that lasts until this is dropped.
#[derive(Debug)]
pub struct InPhase {
    ctx: Arc<RequestContext>,
    phase: Phase,
}

/// A target's good answer to a request. Cheap to clone.
#[derive(Clone)]
pub struct Reply {
    /// The target's place in the config.
    pub target: String,
    /// Who answered.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// In the caller's order; `data` is empty, the bytes are beside it.
    pub images: Vec<(pb::Image, Pieces)>,
    /// What the provider counted.
    pub usage: Option<pb::Usage>,
    /// What the provider was asked for.
    pub applied: pb::Applied,
    /// Parameters that reached the provider otherwise than written.
    pub warnings: Vec<pb::Warning>,
    /// Retries before this answer.
    pub retry_count: i32,
    /// Whether it was made for this request.
    pub cache_status: pb::CacheStatus,
    /// False: the answer may have fields that OpenAI's API does not.
    pub strict_open_ai_compliance: bool,
}

impl Call {
    /// A request at the top of its plan.
    pub fn new(request: Arc<pb::ImageRequest>, ctx: Arc<RequestContext>) -> Self {
        let deadline = ctx.deadline;
        Self { request, ctx, deadline, elsewhere: Elsewhere::default(), is_chosen: false }
    }

    /// What is left of the time.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The same call with no more time than `limit`.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self { deadline: self.deadline.min(Instant::now() + limit), ..self.clone() }
    }

    /// The same call where `other` can also take over.
    #[must_use]
    pub fn or(&self, other: Elsewhere) -> Self {
        let known = self.elsewhere;
        let elsewhere = Elsewhere {
            if_broken: known.if_broken || other.if_broken,
            if_paused: known.if_paused || other.if_paused,
        };
        Self { elsewhere, ..self.clone() }
    }

    /// What conditions are about.
    pub fn facts(&self) -> Facts<'_> {
        Facts { metadata: &self.ctx.metadata, request: &self.request }
    }
}

impl AtRisk {
    /// Whether no more than `cap` may have been paid, in USD. Nobody knows that of an unknown price.
    pub fn is_within(self, cap: f64) -> bool {
        !self.unknown && self.usd <= cap
    }

    /// This and another possible payment.
    #[must_use]
    pub fn plus(self, price: Option<f64>) -> Self {
        Self { usd: self.usd + price.unwrap_or_default(), unknown: self.unknown || price.is_none() }
    }
}

impl RequestContext {
    /// A number of 0 to 1 by chance: another for another `n` or another place, always the same in one request.
    pub fn dice(&self, place: Identity, n: u64) -> f64 {
        let place = place.to_u64().rotate_left(17);
        (scramble(self.seed ^ place ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 11) as f64
            / (1_u64 << 53) as f64
    }

    /// What goes along with the call of an attempt.
    pub fn trace_of(&self, attempt: u32) -> TraceContext {
        self.traced.as_ref().map_or_else(|| self.trace.clone(), |traced| traced.attempt(attempt))
    }

    /// Whether the caller has already seen part of an answer.
    pub fn is_committed(&self) -> bool {
        self.committed.load(Ordering::Relaxed)
    }

    /// Passes progress on. A slow reader misses some of it.
    pub fn progress(&self, progress: pb::Progress) {
        if let Some(events) = &self.events {
            _ = events.try_send(Box::new(Ok(Event::Progress(progress))));
        }
    }

    /// Passes a preview on and commits the request to this target.
    pub async fn preview(&self, preview: pb::PartialImage) {
        if let Some(events) = &self.events {
            if !self.committed.swap(true, Ordering::Relaxed) {
                self.record.lock().phases.preview();
            }
            _ = events.send(Box::new(Ok(Event::PartialImage(preview)))).await;
        }
    }

    /// Notes that an attempt begins, which is expected to cost `price` USD.
    pub fn begin(self: &Arc<Self>, target: &str, provider: &str, model: &str, price: Option<f64>) -> Running {
        let mut happened = self.record.lock();
        let index = happened.attempts.len();
        happened.prices.push(price);
        happened.phases.enter(Phase::Upstream);
        let started_ms = happened.age_ms();
        happened.attempts.push(pb::Attempt {
            number: u32::try_from(index + 1).unwrap_or(u32::MAX),
            target: target.to_owned(),
            provider: provider.to_owned(),
            model: model.to_owned(),
            outcome: RUNNING.into(),
            started_ms,
            ..Default::default()
        });
        let ctx = Arc::clone(self);
        Running { ctx, index, started: Instant::now(), answered: AtomicBool::new(false), finished: false }
    }

    /// Notes what the request is doing, as long as the result lives.
    pub fn enter(self: &Arc<Self>, phase: Phase) -> InPhase {
        self.record.lock().phases.enter(phase);
        InPhase { ctx: Arc::clone(self), phase }
    }

    /// Notes that a target was passed over without a call, and why, for machines.
    pub fn skip(&self, target: &str, provider: &str, model: &str, error: &Error, reason: &str) {
        let mut happened = self.record.lock();
        happened.prices.push(Some(0.0));
        let started_ms = happened.age_ms();
        let number = u32::try_from(happened.attempts.len() + 1).unwrap_or(u32::MAX);
        happened.attempts.push(pb::Attempt {
            number,
            target: target.to_owned(),
            provider: provider.to_owned(),
            model: model.to_owned(),
            outcome: pb::Attempt::SKIPPED.into(),
            message: error.message.clone(),
            reason: reason.into(),
            billing: BillingClass::NotSent.into(),
            started_ms,
            ..Default::default()
        });
    }
}

impl Happened {
    /// Since the request came.
    fn age_ms(&self) -> u64 {
        u64::try_from(self.phases.arrived().elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn note_risk(&mut self, index: usize, billing: BillingClass) {
        if matches!(billing, BillingClass::Unknown | BillingClass::Unspecified | BillingClass::Billed) {
            self.at_risk = self.at_risk.plus(self.prices[index]);
        }
        if matches!(billing, BillingClass::Unknown | BillingClass::Unspecified) {
            let attempt = &self.attempts[index];
            self.cost_lines.push(pb::CostLine {
                item: "request".into(),
                provider: attempt.provider.clone(),
                model: attempt.model.clone(),
                quantity: 1.0,
                source: pb::CostSource::UnknownBilling.into(),
                attempt: attempt.number,
                ..Default::default()
            });
        }
    }
}

impl Record {
    /// Of a request that has just arrived.
    pub fn new(arrived: Instant) -> Self {
        Self(Mutex::new(Happened {
            phases: Phases::new(arrived),
            attempts: Vec::new(),
            prices: Vec::new(),
            retry_after: BTreeMap::new(),
            at_risk: AtRisk::default(),
            cost_lines: Vec::new(),
            warnings: Vec::new(),
            retry_count: 0,
            cache_status: pb::CacheStatus::default(),
        }))
    }

    /// When the request came.
    pub fn arrived(&self) -> Instant {
        self.lock().phases.arrived()
    }

    /// Its route is known.
    pub fn routed(&self) {
        self.lock().phases.leave(Phase::Routing);
    }

    /// Where its time went so far.
    pub fn timings(&self) -> pb::Timings {
        self.lock().phases.timings()
    }

    fn lock(&self) -> MutexGuard<'_, Happened> {
        // Nothing that holds this lock can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attempts so far.
    pub fn attempts(&self) -> Vec<pb::Attempt> {
        self.lock().attempts.clone()
    }

    /// How many provider calls there were so far.
    pub fn calls(&self) -> usize {
        self.lock().attempts.iter().filter(|attempt| attempt.is_call()).count()
    }

    /// What pause an attempt was answered with, if with any.
    pub fn retry_after(&self, attempt: u32) -> Option<Duration> {
        self.lock().retry_after.get(&attempt).copied()
    }

    /// Cost lines so far.
    pub fn cost_lines(&self) -> Vec<pb::CostLine> {
        self.lock().cost_lines.clone()
    }

    /// Warnings of targets that did not answer.
    pub fn warnings(&self) -> Vec<pb::Warning> {
        self.lock().warnings.clone()
    }

    /// Retries of the last target that failed, see `RouteReport.retry_count`.
    pub fn retry_count(&self) -> i32 {
        self.lock().retry_count
    }

    /// What the cache had to do with the last target that failed.
    pub fn cache_status(&self) -> pb::CacheStatus {
        self.lock().cache_status
    }

    /// What may have been paid for nothing once another attempt of this price has begun as well: for those that
    /// failed, and for all that run but the cheapest, since whichever answers first makes the others useless.
    pub fn at_risk_beside(&self, price: Option<f64>) -> AtRisk {
        let happened = self.lock();
        // Several calls of one target make up one answer.
        let mut running: BTreeMap<&str, AtRisk> = BTreeMap::new();
        for (attempt, price) in happened.attempts.iter().zip(&happened.prices) {
            if attempt.outcome == RUNNING {
                let target = running.entry(&attempt.target).or_default();
                *target = target.plus(*price);
            }
        }
        let another = AtRisk::default().plus(price);
        let cheapest = running.values().fold(another.usd, |usd, target| usd.min(target.usd));
        let unknown =
            !running.is_empty() && (another.unknown || running.values().any(|target| target.unknown));
        let all = running.values().fold(another.usd, |usd, target| usd + target.usd);
        let AtRisk { usd, unknown: before } = happened.at_risk;
        AtRisk { usd: usd + all - cheapest, unknown: before || unknown }
    }

    /// Notes how the retries of a target ended that failed.
    pub fn set_retry_count(&self, count: i32) {
        self.lock().retry_count = count;
    }

    /// Notes what the cache had to do with a target that failed.
    pub fn set_cache_status(&self, status: pb::CacheStatus) {
        self.lock().cache_status = status;
    }

    /// Adds what a target had to change, for a request that fails in the end.
    pub fn warn(&self, warnings: Vec<pb::Warning>) {
        self.lock().warnings.extend(warnings);
    }
}

impl Running {
    /// The attempt's number, from 1.
    pub fn number(&self) -> u32 {
        u32::try_from(self.index + 1).unwrap_or(u32::MAX)
    }

    /// Notes that the provider is done, and what it gave is looked at from now on.
    pub fn answered(&self) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            let phases = &mut self.ctx.record.lock().phases;
            phases.leave(Phase::Upstream);
            phases.enter(Phase::Verifying);
        }
    }

    /// What an attempt that ends now was in.
    fn phase(&self) -> Phase {
        if self.answered.load(Ordering::Relaxed) { Phase::Verifying } else { Phase::Upstream }
    }

    /// Notes how the attempt ended and what it cost.
    pub fn finish<T>(
        mut self,
        outcome: &Result<T>,
        upstream_request_id: &str,
        cost_lines: Vec<pb::CostLine>,
    ) -> Duration {
        self.finished = true;
        let duration = self.started.elapsed();
        let phase = self.phase();
        let mut happened = self.ctx.record.lock();
        happened.phases.leave(phase);
        happened.cost_lines.extend(cost_lines);
        if let Err(error) = outcome {
            happened.note_risk(self.index, error.billing);
            let number = self.number();
            happened.retry_after.extend(error.retry_after.map(|pause| (number, pause)));
        }
        let attempt = &mut happened.attempts[self.index];
        attempt.duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        attempt.upstream_request_id = upstream_request_id.to_owned();
        match outcome {
            Ok(_) => {
                attempt.outcome = "ok".into();
                attempt.status = 200;
                attempt.billing = BillingClass::Billed.into();
            }
            Err(error) => {
                attempt.outcome = error.kind.name().into();
                attempt.status = error.status.into();
                attempt.message.clone_from(&error.message);
                attempt.billing = error.billing.into();
                if attempt.upstream_request_id.is_empty() {
                    attempt.upstream_request_id.clone_from(&error.upstream_request_id);
                }
            }
        }
        duration
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let phase = self.phase();
        let mut happened = self.ctx.record.lock();
        happened.phases.leave(phase);
        happened.note_risk(self.index, BillingClass::Unknown);
        let attempt = &mut happened.attempts[self.index];
        attempt.outcome = "cancelled".into();
        attempt.duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        attempt.billing = BillingClass::Unknown.into();
    }
}

impl Drop for InPhase {
    fn drop(&mut self) {
        self.ctx.record.lock().phases.leave(self.phase);
    }
}

// Without what the caller has sent: a credential is among its headers.
impl fmt::Debug for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestContext")
            .field("request_id", &self.request_id)
            .field("trace_id", &self.trace_id)
            .field("caller", &self.caller)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("target", &self.target)
            .field("model", &self.model)
            .field("images", &self.images.len())
            .finish_non_exhaustive()
    }
}
