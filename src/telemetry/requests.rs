//! Requests and jobs: how they ended.

use std::{collections::BTreeMap, time::Duration};

use metrics::{counter, gauge, histogram};
use tracing::{info, warn};

use super::{Metric, in_flight, labels, millis, routing, watch};
use crate::{
    error::{Error, ErrorKind},
    pb,
};

const REQUESTS: &str = "imagegate_requests_total";
const REQUEST_SECONDS: &str = "imagegate_request_duration_seconds";
const RESCUED: &str = "imagegate_rescued_requests_total";
const FALLBACKS: &str = "imagegate_fallbacks_total";
/// Has buckets of its own.
pub(super) const PHASE_SECONDS: &str = "imagegate_phase_duration_seconds";
const JOBS_RUNNING: &str = "imagegate_jobs_running";
const JOBS: &str = "imagegate_jobs_total";
const WEBHOOKS: &str = "imagegate_webhooks_total";

/// Seconds: most phases take next to nothing, a call as long as an image.
pub(super) const PHASE_BUCKETS: &[f64] =
    &[0.0005, 0.005, 0.05, 0.25, 1.0, 2.5, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36];

/// What there is.
pub(super) const METRICS: &[Metric] = &[
    Metric::counter(REQUESTS, "Finished requests by operation and outcome."),
    Metric::histogram(REQUEST_SECONDS, "Time from a request's arrival to its outcome."),
    Metric::histogram(PHASE_SECONDS, "Time that finished requests spent in a phase, if they came to it."),
    Metric::counter(RESCUED, "Requests that a later target answered after an earlier one failed."),
    Metric::counter(
        FALLBACKS,
        "Targets that failed before another one answered, by provider and kind of error.",
    ),
    Metric::gauge(JOBS_RUNNING, "Jobs being worked on."),
    Metric::counter(JOBS, "Jobs that are over, by state."),
    Metric::counter(WEBHOOKS, "Webhooks, by whether they were taken in the end."),
];

/// A request that ended.
#[derive(Debug)]
pub struct Finished<'a> {
    /// Ours.
    pub request_id: &'a str,
    /// The caller's.
    pub trace_id: &'a str,
    /// Who called; empty if nobody knows.
    pub caller: &'a str,
    /// Id of the config, or how the route came to be.
    pub route: &'a str,
    /// What was asked for.
    pub operation: &'static str,
    /// `ok` or an error kind.
    pub outcome: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Who answered, or failed last.
    pub provider: &'a str,
    /// Which model answered.
    pub model: &'a str,
    /// Provider calls.
    pub calls: usize,
    /// What was tried.
    pub report: &'a pb::RouteReport,
    /// Where its time went.
    pub timings: &'a pb::Timings,
    /// From its arrival.
    pub duration: Duration,
    /// The error's text.
    pub message: &'a str,
}

/// A request ends, one that began with [`request_begins`].
pub fn request_ends(request: &Finished<'_>) {
    in_flight::request_is_over();
    counter!(REQUESTS, "operation" => request.operation, "outcome" => request.outcome).increment(1);
    histogram!(REQUEST_SECONDS, "operation" => request.operation).record(request.duration.as_secs_f64());
    phases(request.timings);
    request.report.attempts.iter().for_each(routing::cancelled);
    if request.outcome == "ok" {
        fallbacks(request.report);
    }
    if watch::is_on() {
        // Its record is shown instead.
        return;
    }
    info!(
        request_id = request.request_id,
        trace_id = request.trace_id,
        caller = request.caller,
        route = request.route,
        operation = request.operation,
        outcome = request.outcome,
        status = request.status,
        provider = request.provider,
        model = request.model,
        attempts = request.calls,
        duration_ms = millis(request.duration),
        error = request.message,
        "request"
    );
}

/// Notes a request that was refused before anything was tried.
pub fn rejected(request_id: &str, trace_id: &str, error: &Error) {
    counter!(REQUESTS, "operation" => "rejected", "outcome" => error.kind.name()).increment(1);
    let (outcome, status, message) = (error.kind.name(), error.status, error.message.as_str());
    if watch::is_on() {
        return watch::show_rejected(request_id, error);
    }
    info!(request_id, trace_id, outcome, status, attempts = 0, error = message, "request");
}

fn phases(timings: &pb::Timings) {
    let phases = [
        ("routing", timings.routing_us),
        ("cache", timings.cache_us),
        ("waiting", timings.waiting_us),
        ("upstream", timings.upstream_us),
        ("verifying", timings.verifying_us),
    ];
    for (phase, us) in phases.into_iter().filter(|(_, us)| *us > 0) {
        histogram!(PHASE_SECONDS, "phase" => phase).record(Duration::from_micros(us).as_secs_f64());
    }
}

/// Each target that was called in vain counts once, for its last failure.
fn fallbacks(report: &pb::RouteReport) {
    let in_vain =
        report.attempts.iter().filter(|attempt| attempt.target != report.target && attempt.is_call());
    let failed: BTreeMap<&str, (&str, ErrorKind)> = in_vain
        .filter_map(|attempt| {
            let kind = ErrorKind::from_name(&attempt.outcome).filter(|kind| *kind != ErrorKind::Cancelled)?;
            Some((attempt.target.as_str(), (attempt.provider.as_str(), kind)))
        })
        .collect();
    for (provider, cause) in failed.into_values() {
        counter!(FALLBACKS, "provider" => labels::provider(provider), "cause" => cause.name()).increment(1);
    }
}

/// Notes a request that a later target answered after an earlier one had failed.
pub fn rescued(request_id: &str, provider: &str, attempts: &str) {
    counter!(RESCUED, "provider" => labels::provider(provider)).increment(1);
    warn!(request_id, attempts, "another target answered");
}

/// Notes that a job begins.
pub fn job_begins() {
    gauge!(JOBS_RUNNING).increment(1.0);
}

/// Notes that a job is over.
pub fn job_ends(state: &'static str) {
    gauge!(JOBS_RUNNING).decrement(1.0);
    counter!(JOBS, "state" => state).increment(1);
}

/// Notes a webhook, taken or given up.
pub fn webhook(taken: bool) {
    counter!(WEBHOOKS, "taken" => if taken { "true" } else { "false" }).increment(1);
}
