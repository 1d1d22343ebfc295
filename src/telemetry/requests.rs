//! Requests and jobs: how they ended.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tracing::{info, warn};

use super::{in_flight, millis};
use crate::error::Error;

const REQUESTS: &str = "imagegate_requests_total";
const REQUEST_SECONDS: &str = "imagegate_request_duration_seconds";
const FALLBACKS: &str = "imagegate_rescued_requests_total";
const JOBS_RUNNING: &str = "imagegate_jobs_running";
const JOBS: &str = "imagegate_jobs_total";
const WEBHOOKS: &str = "imagegate_webhooks_total";

/// Says what each metric is.
pub(super) fn describe() {
    describe_counter!(REQUESTS, "Finished requests by operation and outcome.");
    describe_histogram!(REQUEST_SECONDS, "Time from a request's arrival to its outcome.");
    describe_counter!(FALLBACKS, "Requests that a later target answered after an earlier one failed.");
    describe_gauge!(JOBS_RUNNING, "Jobs being worked on.");
    describe_counter!(JOBS, "Jobs that are over, by state.");
    describe_counter!(WEBHOOKS, "Webhooks, by whether they were taken in the end.");
}

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
    info!(request_id, trace_id, outcome, status, attempts = 0, error = message, "request");
}

/// Notes a request that a later target answered after an earlier one had failed.
pub fn rescued(request_id: &str, provider: &str, attempts: &str) {
    counter!(FALLBACKS, "provider" => provider.to_owned()).increment(1);
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
