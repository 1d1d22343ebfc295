//! Targets: their calls, what was passed over, breakers, retries, the cache.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics::{SharedString, counter, gauge, histogram};
use tracing::{debug, warn};

use super::{Metric, labels, millis};
use crate::{
    error::{Error, ErrorKind},
    pb,
    quota::nanos,
};

const ATTEMPTS: &str = "imagegate_attempts_total";
const ATTEMPT_SECONDS: &str = "imagegate_attempt_duration_seconds";
const IMAGES: &str = "imagegate_images_total";
const COST: &str = "imagegate_cost_nano_usd_total";
const UNKNOWN_PRICES: &str = "imagegate_unknown_prices_total";
const SKIPS: &str = "imagegate_targets_skipped_total";
const BREAKERS: &str = "imagegate_breakers";
const BREAKERS_OPEN: &str = "imagegate_breakers_open";
const BREAKER_TRANSITIONS: &str = "imagegate_breaker_transitions_total";
const RETRIES_WITHHELD: &str = "imagegate_retries_withheld_total";
const HEDGES: &str = "imagegate_hedges_total";
const CACHE_LOOKUPS: &str = "imagegate_cache_lookups_total";
const CACHE_SAVED: &str = "imagegate_cache_saved_nano_usd_total";
const CACHE_BYTES: &str = "imagegate_cache_bytes";
const EMBEDDINGS_FAILURES: &str = "imagegate_embeddings_failures_total";

/// What a breaker can be.
const STATES: [&str; 3] = ["closed", "open", "half_open"];

/// What there is.
pub(super) const METRICS: &[Metric] = &[
    Metric::counter(ATTEMPTS, "Provider calls by provider, outcome and billing class."),
    Metric::histogram(ATTEMPT_SECONDS, "Time of one provider call, body included."),
    Metric::counter(IMAGES, "Images that providers gave, by provider and model."),
    Metric::counter(
        COST,
        "Billionths of a dollar that calls cost, as far as prices are known, by provider and model.",
    ),
    Metric::counter(UNKNOWN_PRICES, "Calls of whose cost a part is unknown for want of a price, by model."),
    Metric::counter(SKIPS, "Targets passed over without a call, by provider and reason."),
    Metric::gauge(
        BREAKERS,
        "Targets that were called lately, by provider and state of their circuit breaker.",
    ),
    Metric::gauge(BREAKERS_OPEN, "Targets that are left alone after too many failures, by provider."),
    Metric::counter(BREAKER_TRANSITIONS, "Circuit breakers that opened or closed, by provider."),
    Metric::counter(RETRIES_WITHHELD, "Retries that a config allowed and did not happen, by reason."),
    Metric::counter(HEDGES, "Calls that were late, by whether another target was called beside them."),
    Metric::counter(CACHE_LOOKUPS, "Targets with a cache that a request came to, by what was found."),
    Metric::counter(
        CACHE_SAVED,
        "Billionths of a dollar that answers from the cache would have cost, at list price.",
    ),
    Metric::gauge(CACHE_BYTES, "Memory that kept answers take."),
    Metric::counter(EMBEDDINGS_FAILURES, "Prompts that could not be compared with others."),
];

/// A provider call that ended.
#[derive(Debug)]
pub struct Called<'a> {
    /// Ours.
    pub request_id: &'a str,
    /// The target's place in the config.
    pub target: &'a str,
    /// Who was called.
    pub provider: &'a str,
    /// Which model.
    pub model: &'a str,
    /// The entry of the provider's record that the model comes under.
    pub entry: &'a str,
    /// Why it failed, if it did.
    pub error: Option<&'a Error>,
    /// Images that it gave.
    pub images: usize,
    /// What it cost in USD, as far as prices are known.
    pub usd: f64,
    /// A part of its cost has no price.
    pub is_unpriced: bool,
    /// From its beginning.
    pub duration: Duration,
}

/// Notes one provider call.
pub fn attempt(call: &Called<'_>) {
    let (outcome, billing, message) = match call.error {
        None => ("ok", pb::BillingClass::Billed, ""),
        Some(error) => (error.kind.name(), error.billing, error.message.as_str()),
    };
    count(call.provider, outcome, billing);
    let (provider, model) = (labels::provider(call.provider), labels::model(call.provider, call.entry));
    histogram!(ATTEMPT_SECONDS, "provider" => provider.clone()).record(call.duration.as_secs_f64());
    if call.images > 0 {
        counter!(IMAGES, "provider" => provider.clone(), "model" => model.clone())
            .increment(call.images as u64);
    }
    if call.usd > 0.0 {
        counter!(COST, "provider" => provider.clone(), "model" => model.clone())
            .increment(nano_usd(call.usd));
    }
    if call.is_unpriced {
        counter!(UNKNOWN_PRICES, "provider" => provider.clone(), "model" => model.clone()).increment(1);
        say_unpriced(call, (provider, model));
    }
    debug!(
        request_id = call.request_id,
        target = call.target,
        provider = call.provider,
        model = call.model,
        outcome,
        billing = billing.name(),
        duration_ms = millis(call.duration),
        error = message,
        "attempt"
    );
}

/// Says once for each model that nobody knows what it costs.
fn say_unpriced(call: &Called<'_>, labels: (SharedString, SharedString)) {
    static SAID: Mutex<BTreeSet<(SharedString, SharedString)>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(labels) {
        let (provider, model) = (call.provider, call.entry);
        warn!(provider, model, "a call has no price: write one under `prices`, or its cost stays unknown");
    }
}

/// Notes a call that was given up with its request, or because another one was quicker. Nobody was there to tell of it.
pub(super) fn cancelled(attempt: &pb::Attempt) {
    if attempt.outcome == ErrorKind::Cancelled.name() {
        count(&attempt.provider, ErrorKind::Cancelled.name(), attempt.billing());
    }
}

fn count(provider: &str, outcome: &'static str, billing: pb::BillingClass) {
    let provider = labels::provider(provider);
    counter!(ATTEMPTS, "provider" => provider, "outcome" => outcome, "billing" => billing.name())
        .increment(1);
}

fn nano_usd(usd: f64) -> u64 {
    u64::try_from(nanos(usd)).unwrap_or_default()
}

/// Notes that a target was passed over without a call.
pub fn skipped(provider: &str, reason: &'static str) {
    counter!(SKIPS, "provider" => labels::provider(provider), "reason" => reason).increment(1);
}

/// Notes that a circuit breaker opened or closed.
pub fn breaker(provider: &str, open: bool) {
    let to = if open { "open" } else { "closed" };
    counter!(BREAKER_TRANSITIONS, "provider" => labels::provider(provider), "to" => to).increment(1);
    warn!(provider, to, "circuit breaker");
}

/// Notes how all breakers stand: the provider and the state of each. A provider that was there once stays, with 0.
pub fn breakers<'a>(standing: impl Iterator<Item = (&'a str, &'static str)>) {
    static SEEN: Mutex<BTreeMap<SharedString, [u32; STATES.len()]>> = Mutex::new(BTreeMap::new());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.values_mut().for_each(|counts| *counts = Default::default());
    for (provider, state) in standing {
        let counts = seen.entry(labels::provider(provider)).or_default();
        if let Some(at) = STATES.iter().position(|name| *name == state) {
            counts[at] += 1;
        }
    }
    for (provider, counts) in &*seen {
        for (state, count) in STATES.iter().zip(counts) {
            gauge!(BREAKERS, "provider" => provider.clone(), "state" => *state).set(f64::from(*count));
        }
        let [_, open, half_open] = counts;
        gauge!(BREAKERS_OPEN, "provider" => provider.clone()).set(f64::from(open + half_open));
    }
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

/// Notes an answer from the cache: what a call would have cost at list price, if that is known.
pub fn cache_saved(provider: &str, entry: &str, usd: Option<f64>) {
    let (provider, model) = (labels::provider(provider), labels::model(provider, entry));
    counter!(CACHE_SAVED, "provider" => provider, "model" => model).increment(usd.map_or(0, nano_usd));
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
