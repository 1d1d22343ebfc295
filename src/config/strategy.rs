//! `strategy`: how a node chooses among its targets.

use std::time::Duration;

use serde_json::Value;

use super::{
    condition::{Condition, Field},
    policies::Breaker,
    read::Object,
};

/// How a node chooses among its targets.
#[derive(Debug)]
pub struct Strategy {
    /// Which way.
    pub mode: Mode,
    /// Statuses that let the next target try; none means any failure.
    pub on_status_codes: Option<Vec<u16>>,
    /// What a content refusal does.
    pub on_refusal: OnRefusal,
    /// What a target does that cannot serve the request.
    pub on_unsupported: OnUnsupported,
    /// For all targets below.
    pub breaker: Option<Option<Breaker>>,
}

/// The strategies, each with what only it has.
#[derive(Debug)]
pub enum Mode {
    /// The first target only.
    Single,
    /// In order, until one succeeds.
    Fallback,
    /// One of them.
    Loadbalance(Policy),
    /// The one that the request's own facts name.
    Conditional {
        /// The first that holds names the target.
        cases: Vec<Case>,
        /// The target if none holds.
        default: Option<String>,
    },
    /// The next one as soon as the one before is late; the first answer wins.
    Hedge {
        /// What late is.
        after: Duration,
        /// Extra calls per request on average.
        budget: f64,
    },
}

/// How a balance chooses.
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// By chance, in proportion to the weights.
    Weighted,
    /// One after the other.
    RoundRobin,
    /// The one with the fewest calls in flight.
    LeastBusy,
    /// The faster of two, by recent latency and calls in flight.
    LeastLatency,
    /// The same one for the same values of some fields.
    Sticky(Sticky),
    /// The one with the lowest expected price.
    Cheapest,
}

/// What keeps a request with a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Sticky {
    /// Fields whose values together name a session.
    pub fields: Vec<Field>,
    /// How long a session keeps its target, counted from its first request.
    pub ttl: Duration,
}

/// One case of a conditional.
#[derive(Debug)]
pub struct Case {
    /// When.
    pub query: Condition,
    /// The name of a target.
    pub then: String,
}

/// What a content refusal does in a fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefusal {
    /// The next target tries, as with any failure.
    #[default]
    Fallback,
    /// The caller gets it.
    Return,
}

/// What happens to a target that cannot serve the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnsupported {
    /// The next one tries.
    #[default]
    Skip,
    /// The request fails.
    Fail,
}

/// The reference's default.
const STICKY_TTL_S: u64 = 3600;

/// Extra calls of a hedge without `budget`, per request.
const HEDGE_BUDGET: f64 = 0.05;

const POLICIES: &str = "weighted, round_robin, least_busy, least_latency, sticky, cheapest";

impl Strategy {
    /// Reads `strategy`.
    pub fn read(mut object: Object<'_>) -> Option<Self> {
        let said = object.required("mode").map(|value| value.as_str().unwrap_or_default());
        let mode = match said? {
            "single" => Some(Mode::Single),
            "fallback" => Some(Mode::Fallback),
            "loadbalance" => read_policy(&mut object).map(Mode::Loadbalance),
            "conditional" => read_cases(&mut object),
            "hedge" => read_hedge(&mut object),
            _ => {
                object.problem(
                    "mode",
                    "Invalid 'mode' value. Must be one of: single, loadbalance, fallback, conditional, hedge",
                );
                None
            }
        };
        ignore_fields_of_others(&mut object);
        let strategy = mode.map(|mode| Self {
            mode,
            on_status_codes: object.statuses("on_status_codes"),
            on_refusal: object
                .choice("on_refusal", &[("fallback", OnRefusal::Fallback), ("return", OnRefusal::Return)])
                .unwrap_or_default(),
            on_unsupported: object
                .choice("on_unsupported", &[("skip", OnUnsupported::Skip), ("fail", OnUnsupported::Fail)])
                .unwrap_or_default(),
            breaker: Breaker::read_in(&mut object),
        });
        if strategy.is_some() {
            object.finish();
        }
        strategy
    }
}

/// The reference accepts these with every mode; there they mean nothing.
fn ignore_fields_of_others(object: &mut Object<'_>) {
    for name in ["conditions", "default", "sticky"] {
        object.value(name);
    }
}

fn read_policy(object: &mut Object<'_>) -> Option<Policy> {
    let sticky = object.object("sticky").and_then(read_sticky);
    match object.text("policy") {
        None if object.value("policy").is_some() => None,
        // The reference has no policies; there a balance is sticky as soon as it has `sticky`.
        None | Some("weighted") => Some(sticky.map_or(Policy::Weighted, Policy::Sticky)),
        Some("sticky") => {
            if sticky.is_none() && !object.has("sticky") {
                object.problem(
                    "sticky",
                    "Required: the fields to hash, such as { hash_fields: [metadata.user] }",
                );
            }
            Some(sticky.map_or(Policy::Weighted, Policy::Sticky))
        }
        Some(name) => {
            if object.has("sticky") {
                object.problem("sticky", format!("has no meaning with policy {name}; remove one of them"));
            }
            let policy = match name {
                "round_robin" => Policy::RoundRobin,
                "least_busy" => Policy::LeastBusy,
                "least_latency" => Policy::LeastLatency,
                "cheapest" => Policy::Cheapest,
                _ => {
                    object.problem("policy", format!("'{name}' is not allowed; allowed: {POLICIES}"));
                    return None;
                }
            };
            Some(policy)
        }
    }
}

fn read_sticky(mut object: Object<'_>) -> Option<Sticky> {
    let enabled = object.flag("enabled").unwrap_or(true);
    let mut fields = Vec::new();
    let names = object.texts("hash_fields");
    if enabled && names.as_ref().is_some_and(Vec::is_empty) {
        object.problem("hash_fields", "at least one field is required");
    }
    for (i, name) in names.unwrap_or_default().into_iter().enumerate() {
        match Field::parse(name) {
            Ok(field) => fields.push(field),
            Err(message) => object.problem(&format!("hash_fields.{i}"), message),
        }
    }
    if enabled && !object.has("hash_fields") {
        object.problem("hash_fields", "Required");
    }
    let ttl = object.whole("ttl", 1, 31_536_000).unwrap_or(STICKY_TTL_S);
    object.finish();
    (enabled && !fields.is_empty()).then_some(Sticky { fields, ttl: Duration::from_secs(ttl) })
}

fn read_cases(object: &mut Object<'_>) -> Option<Mode> {
    let conditions = object.list("conditions").unwrap_or_default();
    if conditions.is_empty() {
        object.problem("conditions", "No conditions passed in the query router");
    }
    let cases: Vec<Option<Case>> =
        conditions.iter().enumerate().map(|(i, condition)| read_case(object, i, condition)).collect();
    let default = object.text("default").map(str::to_owned);
    Some(Mode::Conditional { cases: cases.into_iter().collect::<Option<_>>()?, default })
}

fn read_case(object: &Object<'_>, i: usize, condition: &Value) -> Option<Case> {
    let path = object.at(&format!("conditions.{i}"));
    let mut condition = Object::open(condition, path, object.problems())?;
    let query = condition.required("query");
    let query = query.and_then(|query| Condition::read(query, &condition.at("query"), condition.problems()));
    condition.required("then");
    let then = condition.text("then").map(str::to_owned);
    condition.finish();
    Some(Case { query: query?, then: then? })
}

fn read_hedge(object: &mut Object<'_>) -> Option<Mode> {
    object.required("after_ms");
    // Not `millis`, for which 0 is "not set".
    let after = object.between("after_ms", 1.0, 86_400_000.0);
    let budget = object.between("budget", 0.0, 1.0).unwrap_or(HEDGE_BUDGET);
    Some(Mode::Hedge { after: Duration::from_secs_f64(after? / 1000.0), budget })
}
