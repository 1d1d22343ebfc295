//! What happened, in the order it happened, and the hash of it.
//!
//! Identifiers that differ from run to run (request ids, the wall clock) never get here.

use std::{
    fmt::Write as _,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use imagegate::pb::{self, BillingClass};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// One request of a caller.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// Which picture the caller wants. The same for its retries.
    pub intent: u64,
    /// From 1.
    pub try_number: u32,
    /// Virtual time since the beginning, as all times here.
    pub start: Duration,
    /// When the caller was answered or went away.
    pub end: Duration,
    /// When the caller wanted to be answered at the latest.
    pub deadline: Duration,
    /// How it ended.
    pub ended: Ended,
    /// What the router says it tried. An error that lists many attempts is cut to the last ones.
    pub attempts: Vec<pb::Attempt>,
    /// Who answered, as provider and model, and the target's place in the config; empty if nobody did.
    pub answered_by: (String, String),
    /// See `answered_by`.
    pub target: String,
    /// What the router says it cost.
    pub reported_usd: f64,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With images.
    Answered,
    /// With an error of this kind and HTTP status.
    Failed(&'static str, u16),
    /// The caller went away.
    Left,
    /// Not at all, long after its deadline.
    Hung,
}

/// One call of a provider.
#[derive(Clone, Debug)]
pub struct CallRecord {
    /// Place in the list of requests. None if the prompt was replaced on the way.
    pub request: Option<usize>,
    /// Who was called.
    pub provider: String,
    /// For which model.
    pub model: String,
    /// How many images.
    pub images: usize,
    /// Virtual time since the beginning, as all times here.
    pub start: Duration,
    /// When it was answered or given up.
    pub end: Duration,
    /// How it ended.
    pub outcome: CallOutcome,
    /// Whether it costs money.
    pub billing: BillingClass,
    /// What it costs if it does.
    pub price_usd: f64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// It runs.
    Running,
    /// With images.
    Answered,
    /// With this status.
    Failed(u16),
    /// The provider was at its limit.
    TurnedAway(u16),
    /// The content was refused.
    Refused,
    /// Nobody waited any longer.
    Cancelled,
}

/// Where everybody writes.
#[derive(Debug)]
pub struct Journal {
    beginning: Instant,
    happened: Mutex<Happened>,
}

#[derive(Debug, Default)]
struct Happened {
    requests: Vec<RequestRecord>,
    calls: Vec<CallRecord>,
    trace: Sha256,
    line: String,
}

impl RequestRecord {
    /// How long the caller waited beyond its deadline.
    pub fn overshoot(&self) -> Duration {
        self.end.saturating_sub(self.deadline)
    }

    /// How long it took.
    pub fn latency(&self) -> Duration {
        self.end - self.start
    }
}

impl Happened {
    fn trace(&mut self, line: std::fmt::Arguments<'_>) {
        self.line.clear();
        // Writing to a text cannot fail.
        _ = self.line.write_fmt(line);
        self.trace.update(&self.line);
    }
}

impl Journal {
    /// An empty one.
    pub fn begin(beginning: Instant) -> Self {
        Self { beginning, happened: Mutex::default() }
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        self.beginning.elapsed()
    }

    /// Notes that a caller sends a request; its place.
    pub fn request_starts(&self, intent: u64, try_number: u32, limit: Duration) -> usize {
        let now = self.now();
        let mut happened = self.lock();
        happened.requests.push(RequestRecord {
            intent,
            try_number,
            start: now,
            end: now,
            deadline: now + limit,
            ended: Ended::Hung,
            attempts: Vec::new(),
            answered_by: Default::default(),
            target: String::new(),
            reported_usd: 0.0,
        });
        happened.requests.len() - 1
    }

    /// Notes how a request ended, and what the router reports of it.
    pub fn request_ends(&self, place: usize, ended: Ended, report: Option<pb::RouteReport>) {
        let now = self.now();
        let mut happened = self.lock();
        let report = report.unwrap_or_default();
        let target = if ended == Ended::Answered { report.target } else { String::new() };
        let RequestRecord { intent, try_number, start, .. } = happened.requests[place];
        let wanted = format_args!("request {place} for {intent}.{try_number} {start:?}");
        happened.trace(format_args!("{wanted} {now:?} {ended:?} {target}\n"));
        let request = &mut happened.requests[place];
        request.reported_usd = report.cost_lines.iter().filter_map(|line| line.amount_usd).sum();
        if ended == Ended::Answered {
            request.answered_by = (report.provider, report.model);
        }
        request.attempts = report.attempts;
        request.target = target;
        request.end = now;
        request.ended = ended;
    }

    /// Notes that a call reaches a provider; its place.
    pub fn call_starts(&self, call: CallRecord) -> usize {
        let mut happened = self.lock();
        let place = happened.calls.len();
        let CallRecord { request, provider, model, start, .. } = &call;
        happened.trace(format_args!("call {place} of {request:?} {provider} {model} {start:?}\n"));
        happened.calls.push(call);
        place
    }

    /// Notes how a call ended.
    pub fn call_ends(&self, place: usize, outcome: CallOutcome, billing: BillingClass) {
        let now = self.now();
        let mut happened = self.lock();
        happened.trace(format_args!("call {place} ends {now:?} {outcome:?}\n"));
        let call = &mut happened.calls[place];
        (call.end, call.outcome, call.billing) = (now, outcome, billing);
    }

    /// Everything, and the hash of it.
    pub fn finish(&self) -> (Vec<RequestRecord>, Vec<CallRecord>, String) {
        let Happened { requests, calls, trace, .. } = mem::take(&mut *self.lock());
        let hash = trace.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (requests, calls, hash)
    }

    fn lock(&self) -> MutexGuard<'_, Happened> {
        // One thread, and nothing that could panic half way.
        self.happened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
