//! Targets: their calls, what was passed over, breakers, retries, the cache.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tracing::{debug, warn};

use super::millis;
use crate::{error::Error, pb};

const ATTEMPTS: &str = "imagegate_attempts_total";
const ATTEMPT_SECONDS: &str = "imagegate_attempt_duration_seconds";
const UNKNOWN_PRICES: &str = "imagegate_unknown_prices_total";
const SKIPS: &str = "imagegate_targets_skipped_total";
const BREAKERS_OPEN: &str = "imagegate_breakers_open";
const BREAKER_TRANSITIONS: &str = "imagegate_breaker_transitions_total";
const RETRIES_WITHHELD: &str = "imagegate_retries_withheld_total";
const HEDGES: &str = "imagegate_hedges_total";
const CACHE_LOOKUPS: &str = "imagegate_cache_lookups_total";
const CACHE_BYTES: &str = "imagegate_cache_bytes";
const EMBEDDINGS_FAILURES: &str = "imagegate_embeddings_failures_total";

/// Says what each metric is.
pub(super) fn describe() {
    describe_counter!(ATTEMPTS, "Provider calls by provider, outcome and billing class.");
    describe_histogram!(ATTEMPT_SECONDS, "Time of one provider call, body included.");
    describe_counter!(UNKNOWN_PRICES, "Calls of whose cost a part is unknown for want of a price, by model.");
    describe_counter!(SKIPS, "Targets passed over without a call, by provider and reason.");
    describe_gauge!(BREAKERS_OPEN, "Targets that are left alone after too many failures, by provider.");
    describe_counter!(BREAKER_TRANSITIONS, "Circuit breakers that opened or closed, by provider.");
    describe_counter!(RETRIES_WITHHELD, "Retries that a config allowed and did not happen, by reason.");
    describe_counter!(HEDGES, "Calls that were late, by whether another target was called beside them.");
    describe_counter!(CACHE_LOOKUPS, "Targets with a cache that a request came to, by what was found.");
    describe_gauge!(CACHE_BYTES, "Memory that kept answers take.");
    describe_counter!(EMBEDDINGS_FAILURES, "Prompts that could not be compared with others.");
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
