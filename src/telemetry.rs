//! Logs and metrics: set-up, and the only list of their names.
//!
//! One `info` line per finished request, each attempt at `debug`. Prompts, images and keys are never passed
//! to anything in here.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{debug, error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    error::Error,
    pb,
    quota::{Kind, Subject},
};

const REQUESTS: &str = "imagegate_requests_total";
const REQUEST_SECONDS: &str = "imagegate_request_duration_seconds";
const IN_FLIGHT: &str = "imagegate_requests_in_flight";
const ATTEMPTS: &str = "imagegate_attempts_total";
const ATTEMPT_SECONDS: &str = "imagegate_attempt_duration_seconds";
const FALLBACKS: &str = "imagegate_rescued_requests_total";
const BREAKERS_OPEN: &str = "imagegate_breakers_open";
const BREAKER_TRANSITIONS: &str = "imagegate_breaker_transitions_total";
const SKIPS: &str = "imagegate_targets_skipped_total";
const RETRIES_WITHHELD: &str = "imagegate_retries_withheld_total";
const HEDGES: &str = "imagegate_hedges_total";
const CACHE_LOOKUPS: &str = "imagegate_cache_lookups_total";
const CACHE_BYTES: &str = "imagegate_cache_bytes";
const EMBEDDINGS_FAILURES: &str = "imagegate_embeddings_failures_total";
const JOBS_RUNNING: &str = "imagegate_jobs_running";
const JOBS: &str = "imagegate_jobs_total";
const WEBHOOKS: &str = "imagegate_webhooks_total";
const CONFIG_RELOADS: &str = "imagegate_config_reloads_total";
const HTTP_IN_FLIGHT: &str = "imagegate_http_requests_in_flight";
const CALLS_IN_FLIGHT: &str = "imagegate_worker_calls_in_flight";
const CALLS: &str = "imagegate_worker_calls_total";
const ENDPOINTS: &str = "imagegate_endpoints";
const ENDPOINT_EJECTIONS: &str = "imagegate_endpoint_ejections_total";
const CERTIFICATE_EXPIRES: &str = "imagegate_tls_certificate_expiry_timestamp_seconds";
const REDIS_UP: &str = "imagegate_redis_up";
const REDIS_ERRORS: &str = "imagegate_redis_errors_total";
const STORE_ERRORS: &str = "imagegate_store_errors_total";
const STORE_UP: &str = "imagegate_store_up";
const LOG_WRITTEN: &str = "imagegate_request_log_written_total";
const LOG_WRITE_SECONDS: &str = "imagegate_request_log_write_duration_seconds";
const LOG_RECOVERED: &str = "imagegate_request_log_recovered_total";
const LOG_LOST: &str = "imagegate_request_log_lost_total";
const OVER_QUOTA: &str = "imagegate_over_quota_total";
const BUDGET_USED: &str = "imagegate_budget_used_ratio";
const DIGESTS_SKIPPED: &str = "imagegate_request_log_digests_skipped_total";
const LOGGED_IMAGES_LOST: &str = "imagegate_request_log_images_lost_total";
const IMAGES_UP: &str = "imagegate_images_up";
const IMAGES_ERRORS: &str = "imagegate_images_errors_total";
const REFUSALS_NOT_LOGGED: &str = "imagegate_refused_requests_not_logged_total";
const UNKNOWN_PRICES: &str = "imagegate_unknown_prices_total";
const TLS_REFUSALS: &str = "imagegate_tls_refusals_total";
const ISSUER_UP: &str = "imagegate_jwt_issuer_up";
const ISSUER_FETCHES: &str = "imagegate_jwt_key_fetches_total";

/// Seconds: an image takes from one second to several minutes.
const BUCKETS: &[f64] =
    &[0.01, 0.05, 0.25, 1.0, 2.5, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36];

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For a person.
    #[default]
    Text,
    /// For a query.
    Json,
}

/// Starts logging to standard error. `RUST_LOG` says how much.
pub fn init_logs(format: LogFormat) {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    if !filter.to_string().contains("sqlx") {
        // What the store's driver says of an outage is said by us, once; so is what a database says through it, whose
        // target is `sqlx::postgres::notice`.
        filter = filter.add_directive("sqlx=off".parse().expect("it is a directive"));
    }
    // It tells each try of its own, with the address of an object, which nobody else shall know.
    filter = filter.add_directive("object_store=warn".parse().expect("it is a directive"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, in tests, leaves the first one's logger in place.
    _ = match format {
        LogFormat::Text => logs.with_target(false).try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
}

/// Starts counting. The handle renders the Prometheus text.
///
/// # Errors
/// If something counts in this process already.
pub fn init_metrics() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| error.to_string())?;
    describe_counter!(REQUESTS, "Finished requests by operation and outcome.");
    describe_histogram!(REQUEST_SECONDS, "Time from a request's arrival to its outcome.");
    describe_gauge!(IN_FLIGHT, "Requests being worked on.");
    describe_counter!(ATTEMPTS, "Provider calls by provider, outcome and billing class.");
    describe_histogram!(ATTEMPT_SECONDS, "Time of one provider call, body included.");
    describe_counter!(FALLBACKS, "Requests that a later target answered after an earlier one failed.");
    describe_gauge!(BREAKERS_OPEN, "Targets that are left alone after too many failures, by provider.");
    describe_counter!(BREAKER_TRANSITIONS, "Circuit breakers that opened or closed, by provider.");
    describe_counter!(SKIPS, "Targets passed over without a call, by provider and reason.");
    describe_counter!(RETRIES_WITHHELD, "Retries that a config allowed and did not happen, by reason.");
    describe_counter!(HEDGES, "Calls that were late, by whether another target was called beside them.");
    describe_counter!(CACHE_LOOKUPS, "Targets with a cache that a request came to, by what was found.");
    describe_gauge!(CACHE_BYTES, "Memory that kept answers take.");
    describe_counter!(EMBEDDINGS_FAILURES, "Prompts that could not be compared with others.");
    describe_gauge!(JOBS_RUNNING, "Jobs being worked on.");
    describe_counter!(JOBS, "Jobs that are over, by state.");
    describe_counter!(WEBHOOKS, "Webhooks, by whether they were taken in the end.");
    describe_counter!(CONFIG_RELOADS, "Configuration changes seen, by outcome.");
    describe_gauge!(HTTP_IN_FLIGHT, "HTTP requests being worked on.");
    describe_gauge!(CALLS_IN_FLIGHT, "Calls that this worker is working on.");
    describe_counter!(CALLS, "Calls that this worker has begun.");
    describe_gauge!(ENDPOINTS, "Endpoints of the processes behind this one, by service and state.");
    describe_counter!(ENDPOINT_EJECTIONS, "Endpoints that were left alone for a while, by service.");
    describe_gauge!(CERTIFICATE_EXPIRES, "When this process's certificate ends.");
    describe_gauge!(REDIS_UP, "Whether Redis answers in time: 1 or 0.");
    describe_counter!(REDIS_ERRORS, "What was asked of Redis in vain, by operation.");
    describe_counter!(STORE_ERRORS, "What was asked of the store in vain.");
    describe_gauge!(STORE_UP, "Whether the store answers and takes what is written: 1 or 0.");
    describe_counter!(LOG_WRITTEN, "Requests that were written to the request log.");
    describe_histogram!(LOG_WRITE_SECONDS, "Time of writing one batch to the request log.");
    describe_counter!(LOG_RECOVERED, "Requests that a process left unwritten and a later one took over.");
    describe_counter!(LOG_LOST, "Requests that are missing in the request log, by reason.");
    describe_counter!(OVER_QUOTA, "What limits did not allow, by whose they are and of what.");
    describe_gauge!(
        BUDGET_USED,
        "The used part of budgets in the period that runs, when something of it was used last."
    );
    describe_counter!(
        DIGESTS_SKIPPED,
        "Images that the request log has no digest of: too many came at once."
    );
    describe_counter!(LOGGED_IMAGES_LOST, "Images that the request log should have kept, by reason.");
    describe_gauge!(IMAGES_UP, "Whether the folder or bucket of images takes them: 1 or 0.");
    describe_counter!(
        IMAGES_ERRORS,
        "What was asked of the folder or bucket of images in vain, by operation."
    );
    describe_counter!(
        REFUSALS_NOT_LOGGED,
        "Requests refused before their route was known that the request log had no room for."
    );
    describe_counter!(UNKNOWN_PRICES, "Calls of whose cost a part is unknown for want of a price, by model.");
    describe_counter!(TLS_REFUSALS, "Connections whose TLS handshake failed, by reason.");
    describe_gauge!(ISSUER_UP, "Whether an issuer's keys could be had the last time: 1 or 0.");
    describe_counter!(ISSUER_FETCHES, "How often keys of an issuer were asked for, by outcome.");
    Ok(handle)
}

/// Notes whether an issuer's keys could be had.
pub fn issuer_asked(issuer: &str, ok: bool) {
    // Issuers are as many as the file names, so the label is bounded.
    gauge!(ISSUER_UP, "issuer" => issuer.to_owned()).set(if ok { 1.0 } else { 0.0 });
    let outcome = if ok { "ok" } else { "failed" };
    counter!(ISSUER_FETCHES, "issuer" => issuer.to_owned(), "outcome" => outcome).increment(1);
}

/// Says once that an issuer's keys cannot be had.
pub fn issuer_away(issuer: &str, reason: &str) {
    error!(issuer, reason, "the keys of an issuer cannot be had: those that are known stay in use");
}

/// Says once that an issuer's keys can be had again.
pub fn issuer_back(issuer: &str) {
    info!(issuer, "the keys of an issuer can be had again");
}

/// Says that somebody could not sign in to the dashboard at an issuer.
pub fn sign_in_failed(issuer: &str, reason: &str) {
    warn!(issuer, reason, "somebody could not sign in to the dashboard");
}

/// Notes one provider call.
pub fn attempt<T>(
    request_id: &str,
    target: &str,
    provider: &str,
    model: &str,
    outcome: &Result<T, Error>,
    duration: Duration,
) {
    let (name, billing) = match outcome {
        Ok(_) => ("ok", pb::BillingClass::Billed),
        Err(error) => (error.kind.name(), error.billing),
    };
    // Providers are as many as there are workers, so the label is bounded. Models are not.
    counter!(ATTEMPTS, "provider" => provider.to_owned(), "outcome" => name, "billing" => billing.name())
        .increment(1);
    histogram!(ATTEMPT_SECONDS, "provider" => provider.to_owned()).record(duration.as_secs_f64());
    let message = outcome.as_ref().err().map_or("", |error| error.message.as_str());
    debug!(
        request_id,
        target,
        provider,
        model,
        outcome = name,
        billing = billing.name(),
        duration_ms = millis(duration),
        error = message,
        "attempt"
    );
}

/// Notes a call that was paid for, nobody knows how much. `model` is the entry of the provider's record: there are no
/// more of these than workers describe, however many models callers name.
pub fn price_unknown(provider: &str, model: &str) {
    static SAID: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());
    let of = (provider.to_owned(), model.to_owned());
    counter!(UNKNOWN_PRICES, "provider" => of.0.clone(), "model" => of.1.clone()).increment(1);
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(of) {
        warn!(provider, model, "a call has no price: write one under `prices`, or its cost stays unknown");
    }
}

/// Notes a request that was refused before anything was tried.
pub fn rejected(request_id: &str, trace_id: &str, error: &Error) {
    counter!(REQUESTS, "operation" => "rejected", "outcome" => error.kind.name()).increment(1);
    let (outcome, status, message) = (error.kind.name(), error.status, error.message.as_str());
    info!(request_id, trace_id, outcome, status, attempts = 0, error = message, "request");
}

/// Notes what was asked of the store in vain.
pub fn store_failed(reason: &str) {
    counter!(STORE_ERRORS).increment(1);
    debug!(reason, "the store failed");
}

/// How the store stands, from the best to the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreState {
    /// Nothing is wrong.
    #[default]
    Well,
    /// It takes seconds.
    Slow,
    /// It answers, and takes nothing that is written.
    Unwritten,
    /// It does not answer.
    Away,
}

/// Notes whether the store answers and takes what is written.
pub fn store_up(up: bool) {
    gauge!(STORE_UP).set(if up { 1.0 } else { 0.0 });
}

/// Says once how the store stands now. `reason` is its own, if it has one.
pub fn store_changed(state: StoreState, reason: &str) {
    match state {
        StoreState::Well => info!("the store is well again"),
        StoreState::Slow => {
            warn!("the store is slow: requests do not wait for it, whoever manages something does");
        }
        StoreState::Unwritten => error!(
            reason,
            "the store takes nothing that is written: requests go on and wait for the log, nothing can be saved"
        ),
        StoreState::Away => {
            error!(reason, "the store is away: requests go on with what is known, nothing can be managed");
        }
    }
}

/// Notes requests that were written to the log.
pub fn log_written(requests: usize, took: Duration) {
    counter!(LOG_WRITTEN).increment(requests as u64);
    histogram!(LOG_WRITE_SECONDS).record(took.as_secs_f64());
}

/// Notes requests that will be missing in the log.
pub fn log_lost(reason: &'static str, requests: usize) {
    counter!(LOG_LOST, "reason" => reason).increment(requests as u64);
    debug!(reason, requests, "requests are missing in the log");
}

/// Notes images that the log will have no digest of.
pub fn digests_skipped(images: usize) {
    counter!(DIGESTS_SKIPPED).increment(images as u64);
}

/// Notes images that the log should have kept.
pub fn logged_images_lost(reason: &'static str, images: usize) {
    counter!(LOGGED_IMAGES_LOST, "reason" => reason).increment(images as u64);
    debug!(reason, images, "images are missing in the log");
}

/// Notes a refused request that is not kept because there are so many.
pub fn refusal_not_logged() {
    counter!(REFUSALS_NOT_LOGGED).increment(1);
}

/// Notes requests that an earlier process left unwritten: those that are whole, and those that are not.
pub fn log_found(requests: usize, torn: usize) {
    counter!(LOG_RECOVERED).increment(requests as u64);
    counter!(LOG_LOST, "reason" => "crash").increment(torn as u64);
    if requests + torn > 0 {
        info!(requests, torn, "a process ended before it had written its request log; this one does");
    }
}

/// Says that requests wait in files for the next start.
pub fn log_left(requests: usize) {
    warn!(
        requests,
        "the store did not take the end of the request log: it waits in data_dir for the next start"
    );
}

/// Says that what waits to be written is in memory only.
pub fn log_unprotected(reason: &str) {
    warn!(
        reason,
        "data_dir/journal cannot be used: a process that is killed loses what waits for the request log"
    );
}

/// Notes a request or a call that a limit did not allow.
pub fn over_quota(subject: &Subject, is_budget: bool) {
    let limit = if is_budget { "budget" } else { "rate" };
    counter!(OVER_QUOTA, "subject" => subject.kind.name(), "limit" => limit).increment(1);
}

/// Notes how much of a budget is used. Values of metadata are without number, and are left out.
pub fn budget_used(subject: &Subject, used: i64, nanos: i64) {
    if subject.kind != Kind::Metadata {
        let (tenant, id) = (subject.tenant.clone(), subject.id.clone());
        gauge!(BUDGET_USED, "subject" => subject.kind.name(), "tenant" => tenant, "name" => id)
            .set(used as f64 / nanos.max(1) as f64);
    }
}

/// Says once that a budget has reached what somebody wants to know of.
pub fn budget_alert(subject: &Subject, period: &str, used: i64, nanos: i64) {
    let usd = |nanos: i64| nanos as f64 / 1e9;
    warn!(%subject, period, used_usd = usd(used), budget_usd = usd(nanos), "a budget has reached its alert threshold");
}

/// Notes what was asked of the place of images in vain.
pub fn images_failed(operation: &'static str, reason: &str) {
    counter!(IMAGES_ERRORS, "operation" => operation).increment(1);
    debug!(operation, reason, "the place of images failed");
}

/// Notes whether the place of images does what it is asked for.
pub fn images_up(up: bool) {
    gauge!(IMAGES_UP).set(if up { 1.0 } else { 0.0 });
}

/// Says once that images cannot be kept.
pub fn images_away(reason: &str) {
    error!(
        reason,
        "the place of images is away: images asked for as url fail, all others go on; the request log keeps none"
    );
}

/// Says once that images are kept again.
pub fn images_back() {
    info!("the place of images is there again");
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

/// Notes that a target was passed over without a call.
pub fn skipped(provider: &str, reason: &'static str) {
    counter!(SKIPS, "provider" => provider.to_owned(), "reason" => reason).increment(1);
}

/// Notes that a circuit breaker opened or closed.
pub fn breaker(provider: &str, open: bool) {
    let (to, change) = if open { ("open", 1.0) } else { ("closed", -1.0) };
    counter!(BREAKER_TRANSITIONS, "provider" => provider.to_owned(), "to" => to).increment(1);
    gauge!(BREAKERS_OPEN, "provider" => provider.to_owned()).increment(change);
    warn!(provider, to, "circuit breaker");
}

/// Notes that an open circuit breaker was forgotten.
pub fn breaker_forgotten(provider: &str) {
    gauge!(BREAKERS_OPEN, "provider" => provider.to_owned()).decrement(1.0);
}

/// Notes a retry that did not happen although the config has one.
pub fn retry_withheld(reason: &'static str) {
    counter!(RETRIES_WITHHELD, "reason" => reason).increment(1);
}

/// Notes that a call was late, and whether another target was called beside it.
pub fn hedge(called: bool) {
    counter!(HEDGES, "called" => if called { "yes" } else { "no" }).increment(1);
}

/// Notes what the cache had for a request.
pub fn cache_lookup(status: pb::CacheStatus) {
    let Some(status) = status.name() else { return };
    counter!(CACHE_LOOKUPS, "status" => status).increment(1);
}

/// Notes how much the cache holds.
pub fn cache_bytes(bytes: usize) {
    gauge!(CACHE_BYTES).set(bytes as f64);
}

/// Notes that nobody could say what a prompt means.
pub fn embeddings_failed(reason: &str) {
    counter!(EMBEDDINGS_FAILURES).increment(1);
    warn!(reason, "embeddings");
}

/// Notes that the configuration was read again.
pub fn config_reload(ok: bool) {
    counter!(CONFIG_RELOADS, "outcome" => if ok { "ok" } else { "rejected" }).increment(1);
}

/// Notes how many endpoints of a service stand so, more than before.
pub fn endpoints(service: &str, state: &'static str, more: f64) {
    gauge!(ENDPOINTS, "service" => service.to_owned(), "state" => state).increment(more);
}

/// A role begins: what it counts is there from the beginning, as autoscalers take what is not there for unknown.
pub fn router_begins() {
    gauge!(IN_FLIGHT).increment(0.0);
    for outcome in ["ok", "rejected"] {
        counter!(CONFIG_RELOADS, "outcome" => outcome).increment(0);
    }
}

/// A role begins, see [`router_begins`].
pub fn shim_begins() {
    gauge!(HTTP_IN_FLIGHT).increment(0.0);
}

/// A role begins, see [`router_begins`].
pub fn worker_begins() {
    gauge!(CALLS_IN_FLIGHT).increment(0.0);
    counter!(CALLS).increment(0);
}

/// Notes that an endpoint is left alone for a while.
pub fn endpoint_ejected(service: &str, endpoint: &str, reason: &str) {
    counter!(ENDPOINT_EJECTIONS, "service" => service.to_owned()).increment(1);
    warn!(service, endpoint, reason, "endpoint ejected");
}

/// Notes that an endpoint cannot be connected to.
pub fn endpoint_unreachable(service: &str, endpoint: &str, reason: &str) {
    warn!(service, endpoint, reason, "endpoint unreachable");
}

/// Notes that an endpoint was found, left, or is back.
pub fn endpoint_changed(service: &str, endpoint: &str, what: &'static str) {
    info!(service, endpoint, "{what}");
}

/// Notes that a service's name stands for nothing now.
pub fn name_unresolved(service: &str, host: &str, reason: &str) {
    warn!(service, host, reason, "name not resolved; what is known of it stays in use");
}

/// Notes new certificates.
pub fn certificate_reloaded() {
    info!("certificate reloaded");
}

/// Notes certificates that cannot be used.
pub fn certificate_refused(reason: &str) {
    error!(reason, "certificate refused; the old one stays in force");
}

/// Notes when our certificate ends, in seconds since 1970.
pub fn certificate_expires(at: i64) {
    gauge!(CERTIFICATE_EXPIRES).set(at as f64);
}

/// Notes something asked of Redis in vain.
pub fn redis_failed(operation: &'static str, reason: &str) {
    counter!(REDIS_ERRORS, "operation" => operation).increment(1);
    debug!(operation, reason, "redis");
}

/// Notes that Redis does not answer any more.
pub fn redis_away(reason: &str) {
    warn!(reason, "redis is away: what routers share is each router's own until it is back");
}

/// Notes that Redis answers again.
pub fn redis_back() {
    info!("redis is back");
}

/// Notes that Redis answers and does not write.
pub fn redis_refuses(reason: &str) {
    warn!(reason, "redis refuses to write: what routers make from now on is each router's own");
}

/// Notes that Redis writes again.
pub fn redis_writes_again() {
    info!("redis writes again");
}

/// Notes whether Redis answers.
pub fn redis_up(is_up: bool) {
    gauge!(REDIS_UP).set(if is_up { 1.0 } else { 0.0 });
}

/// Notes a connection that was not accepted.
pub fn handshake_refused(peer: &str, kind: &'static str, reason: &str) {
    counter!(TLS_REFUSALS, "reason" => kind).increment(1);
    warn!(peer, reason, "TLS handshake refused");
}

/// A call to this worker begins.
pub fn call_begins() {
    counter!(CALLS).increment(1);
    gauge!(CALLS_IN_FLIGHT).increment(1.0);
}

/// A call to this worker ends.
pub fn call_ends() {
    gauge!(CALLS_IN_FLIGHT).decrement(1.0);
}

/// HTTP requests more, or less, are being worked on.
pub fn http_in_flight(more: f64) {
    gauge!(HTTP_IN_FLIGHT).increment(more);
}

/// A request begins.
pub fn request_begins() {
    gauge!(IN_FLIGHT).increment(1.0);
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
    gauge!(IN_FLIGHT).decrement(1.0);
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

/// Notes a request that a later target answered after an earlier one had failed.
pub fn rescued(request_id: &str, provider: &str, attempts: &str) {
    counter!(FALLBACKS, "provider" => provider.to_owned()).increment(1);
    warn!(request_id, attempts, "another target answered");
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
