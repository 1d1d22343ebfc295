//! What a config says about trying again, leaving alone, and remembering: `retry`, `breaker`, `cache`.

use std::time::Duration;

use super::read::Object;

/// When a target is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// After the first try.
    pub attempts: u32,
    /// Which statuses.
    pub on_status_codes: Vec<u16>,
    /// Wait as long as the provider asks.
    pub use_retry_after_header: bool,
    /// Longest wait of our own.
    pub max_delay: Duration,
    /// Draw each wait from the whole range below the exponential limit, so that callers that failed together
    /// do not come back together.
    pub jitter: bool,
    /// Retries per request that the target may have on average; none: no limit.
    pub budget: Option<f64>,
    /// Retries stop when this much may have been paid for failed attempts, in USD.
    pub max_duplicate_spend_usd: Option<f64>,
}

/// When a target is left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    /// That many failures in a row.
    pub consecutive_failures: Option<u32>,
    /// This share of failures among the results of `window`, 0 to 1.
    pub failure_ratio: Option<f64>,
    /// Fewer results than this have no ratio.
    pub min_requests: u32,
    /// How far back the ratio looks.
    pub window: Duration,
    /// How long until one request may probe the target.
    pub cooldown: Duration,
    /// Statuses that count as failures; none: whatever means that the target does not work.
    pub failure_statuses: Option<Vec<u16>>,
}

/// Which answers are kept, and for whom.
#[derive(Clone, Debug, PartialEq)]
pub struct CachePolicy {
    /// What counts as the same request.
    pub mode: CacheMode,
    /// How long an answer is given again.
    pub max_age: Duration,
    /// Separates entries of one caller.
    pub namespace: Option<String>,
}

/// What counts as the same request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheMode {
    /// The same in everything.
    Simple,
    /// Also a prompt whose embedding is as near as this (cosine), the rest being the same.
    Semantic {
        /// 0 to 1.
        threshold: f64,
    },
}

/// Statuses that a retry without `on_status_codes` repeats.
pub const RETRY_STATUSES: [u16; 6] = [429, 500, 502, 503, 504, 529];

/// The share of retries in a target's traffic without `retry.budget`, as service proxies have it.
const RETRY_BUDGET: f64 = 0.2;

/// Seven in a row: at 30 % errors one request in 4,600 ends such a row, while an outage shows within seconds.
const CONSECUTIVE_FAILURES: u32 = 7;
const FAILURE_RATIO: f64 = 0.6;
const MIN_REQUESTS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
const COOLDOWN: Duration = Duration::from_secs(15);

/// The reference's limits of `cache.max_age` in seconds: default a week, at most 90 days.
const CACHE_AGE_S: u64 = 604_800;
const MAX_CACHE_AGE_S: u64 = 7_776_000;
const CACHE_THRESHOLD: f64 = 0.95;

impl Retry {
    /// Reads `retry`.
    pub fn read(mut object: Object<'_>) -> Option<Self> {
        object.required("attempts");
        let attempts = object.whole("attempts", 0, 10);
        let retry = Self {
            attempts: attempts.unwrap_or_default() as u32,
            on_status_codes: object.statuses("on_status_codes").unwrap_or_else(|| RETRY_STATUSES.to_vec()),
            // The reference's schema and its changelog spell it differently.
            use_retry_after_header: object.flag("use_retry_after_header").unwrap_or_default()
                | object.flag("use_retry_after_headers").unwrap_or_default(),
            max_delay: object.millis("max_delay_ms").unwrap_or(Duration::from_secs(16)),
            jitter: object.flag("jitter").unwrap_or(true),
            budget: match object.value("budget") {
                Some(serde_json::Value::Bool(false)) => None,
                Some(_) => object.between("budget", 0.0, 10.0),
                None => Some(RETRY_BUDGET),
            },
            max_duplicate_spend_usd: object.between("max_duplicate_spend_usd", 0.0, 1e6),
        };
        object.finish();
        attempts.map(|_| retry)
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive_failures: Some(CONSECUTIVE_FAILURES),
            failure_ratio: Some(FAILURE_RATIO),
            min_requests: MIN_REQUESTS,
            window: WINDOW,
            cooldown: COOLDOWN,
            failure_statuses: None,
        }
    }
}

impl Breaker {
    /// What a node says about its targets' circuit breaker, in our words or the reference's. `breaker: false`
    /// switches it off.
    pub fn read_in(object: &mut Object<'_>) -> Option<Option<Self>> {
        let reference = object.object("cb_config").map(Self::read_reference);
        match object.value("breaker") {
            None => reference.map(Some),
            Some(_) if reference.is_some() => {
                object.problem("breaker", "a circuit breaker is either `breaker` or `cb_config`, not both");
                None
            }
            Some(serde_json::Value::Bool(on)) => Some(on.then(Self::default)),
            Some(_) => object.object("breaker").map(|breaker| Some(Self::read(breaker))),
        }
    }

    /// Reads `breaker`. What it does not say stays at its default.
    pub fn read(mut object: Object<'_>) -> Self {
        let default = Self::default();
        let seconds =
            |object: &mut Object<'_>, name| object.between(name, 0.1, 86_400.0).map(Duration::from_secs_f64);
        let breaker = Self {
            consecutive_failures: object
                .whole("consecutive_failures", 1, 10_000)
                .map_or(default.consecutive_failures, |count| Some(count as u32)),
            failure_ratio: object.between("failure_ratio", 0.01, 1.0).or(default.failure_ratio),
            min_requests: object
                .whole("min_requests", 1, 1_000_000)
                .map_or(default.min_requests, |n| n as u32),
            window: seconds(&mut object, "window_s").unwrap_or(default.window),
            cooldown: seconds(&mut object, "cooldown_s").unwrap_or(default.cooldown),
            failure_statuses: None,
        };
        object.finish();
        breaker
    }

    /// Reads the reference's `cb_config`.
    pub fn read_reference(mut object: Object<'_>) -> Self {
        object.required("failure_threshold");
        object.required("cooldown_interval");
        let breaker = Self {
            consecutive_failures: object.whole("failure_threshold", 1, 10_000).map(|count| count as u32),
            failure_ratio: object
                .between("failure_threshold_percentage", 1.0, 100.0)
                .map(|percent| percent / 100.0),
            min_requests: object.whole("minimum_requests", 1, 1_000_000).map_or(MIN_REQUESTS, |n| n as u32),
            window: WINDOW,
            // The reference's least.
            cooldown: object
                .whole("cooldown_interval", 30_000, 86_400_000)
                .map_or(COOLDOWN, Duration::from_millis),
            failure_statuses: object.statuses("failure_status_codes"),
        };
        object.finish();
        breaker
    }
}

impl CachePolicy {
    /// Reads `cache`.
    pub fn read(mut object: Object<'_>) -> Option<Self> {
        let mode = object.required("mode").and_then(|mode| match mode.as_str() {
            Some("simple") => Some(CacheMode::Simple),
            Some("semantic") => Some(CacheMode::Semantic { threshold: CACHE_THRESHOLD }),
            _ => {
                object.problem("mode", "Invalid 'cache.mode' value. Must be one of: simple, semantic");
                None
            }
        });
        let threshold = object.between("threshold", 0.0, 1.0);
        let max_age = object.whole("max_age", 1, MAX_CACHE_AGE_S).unwrap_or(CACHE_AGE_S);
        let namespace = object.text("namespace").map(str::to_owned);
        object.finish();
        let mode = match (mode?, threshold) {
            (CacheMode::Semantic { .. }, Some(threshold)) => CacheMode::Semantic { threshold },
            (mode, _) => mode,
        };
        Some(Self { mode, max_age: Duration::from_secs(max_age), namespace })
    }
}
