//! Which requests: the parameters in the address that the log and the analytics share.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Refused, WORKSPACE, moment, text, whole};
use crate::{config::read::Object, pb};

const UNITS: &str = "requests are not searched by what they were counted in";
const CENTS: &str = "costs are searched in dollars, with min_cost_usd and max_cost_usd";
const WEIGHTED: &str = "requests are not searched by feedback";

/// Parameters of the reference's that this gateway cannot honour.
pub const REFUSED: [Refused; 13] = [
    WORKSPACE,
    ("workspace_slug", WORKSPACE.1),
    ("total_units_min", UNITS),
    ("total_units_max", UNITS),
    ("prompt_token_min", UNITS),
    ("prompt_token_max", UNITS),
    ("completion_token_min", UNITS),
    ("completion_token_max", UNITS),
    ("cost_min", CENTS),
    ("cost_max", CENTS),
    ("weighted_feedback_min", WEIGHTED),
    ("weighted_feedback_max", WEIGHTED),
    ("span_id", "requests are searched by trace_id"),
];

/// Reads the filter. Each field has our name and, where there is one, the reference's.
pub fn read(query: &mut Object<'_>) -> pb::RequestFilter {
    let mut filter = pb::RequestFilter {
        from_unix_ms: bound(query, "from_unix_ms", "time_of_generation_min"),
        until_unix_ms: bound(query, "until_unix_ms", "time_of_generation_max"),
        provider: text(query, "provider"),
        model: text(query, "model"),
        config: either(query, "config", "configs"),
        caller: either(query, "caller", "api_key_ids"),
        virtual_key: either(query, "virtual_key", "virtual_keys"),
        statuses: statuses(query),
        success: flag(query, "success"),
        fallback: flag(query, "fallback"),
        refused: flag(query, "refused"),
        trace_id: text(query, "trace_id"),
        metadata: metadata(query),
        min_cost_usd: number(query, "min_cost_usd"),
        max_cost_usd: number(query, "max_cost_usd"),
        cache_status: cache_status(query),
        config_version: whole(query, "config_version", 1, u64::from(u32::MAX))
            .and_then(|version| version.try_into().ok())
            .unwrap_or_default(),
    };
    if let Some(said) = one_of(query, "ai_org_model") {
        match said.split_once("__") {
            Some((provider, model)) => {
                filter.provider = provider.into();
                filter.model = model.into();
            }
            None => query
                .problem("ai_org_model", format!("'{said}' is not a provider, two underscores and a model")),
        }
    }
    filter
}

fn bound(query: &mut Object<'_>, ours: &str, theirs: &str) -> Option<i64> {
    let time = moment(query, theirs);
    let millis = whole(query, ours, 0, i64::MAX.unsigned_abs()).and_then(|millis| i64::try_from(millis).ok());
    if time.is_some() && millis.is_some() {
        query.problem(theirs, format!("says the same as {ours}; give one of them"));
    }
    millis.or(time)
}

fn either(query: &mut Object<'_>, ours: &str, theirs: &str) -> String {
    let (one, other) = (text(query, ours), one_of(query, theirs).unwrap_or_default().to_owned());
    if !one.is_empty() && !other.is_empty() {
        query.problem(theirs, format!("says the same as {ours}; give one of them"));
    }
    if one.is_empty() { other } else { one }
}

/// A list in the reference, of which this gateway takes one.
fn one_of<'a>(query: &mut Object<'a>, name: &str) -> Option<&'a str> {
    let said = several(query, name);
    if said.len() > 1 {
        query.problem(name, "requests are searched by one of these at a time");
    }
    said.first().copied()
}

/// What a name says that may come several times, or once with commas.
fn several<'a>(query: &mut Object<'a>, name: &str) -> Vec<&'a str> {
    let said = match query.value(name) {
        Some(Value::Array(_)) => query.texts(name).unwrap_or_default(),
        _ => query.text(name).into_iter().collect(),
    };
    said.into_iter().flat_map(|said| said.split(',')).map(str::trim).filter(|said| !said.is_empty()).collect()
}

fn statuses(query: &mut Object<'_>) -> Vec<u32> {
    let mut statuses = Vec::new();
    for name in ["statuses", "status_code"] {
        for said in several(query, name) {
            match said.parse() {
                Ok(status @ 100..=599) => statuses.push(status),
                _ => query.problem(name, format!("'{said}' is not an HTTP status; allowed: 100 to 599")),
            }
        }
    }
    statuses
}

fn metadata(query: &mut Object<'_>) -> BTreeMap<String, String> {
    let said = text(query, "metadata");
    if said.is_empty() {
        return BTreeMap::new();
    }
    let Ok(fields) = serde_json::from_str::<Map<String, Value>>(&said) else {
        query.problem("metadata", "Expected a JSON object such as {\"user\":\"mia\"}");
        return BTreeMap::new();
    };
    let written = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    fields.into_iter().map(|(name, value)| (name, written(value))).collect()
}

/// As the log spells it, or as the header `x-portkey-cache-status` does.
fn cache_status(query: &mut Object<'_>) -> String {
    let said = text(query, "cache_status");
    let name = said.to_ascii_lowercase().replace(' ', "_");
    let known = pb::CacheStatus::names();
    if !name.is_empty() && !known.contains(&name.as_str()) {
        query.problem("cache_status", format!("'{said}' is not allowed; allowed: {}", known.join(", ")));
    }
    name
}

fn flag(query: &mut Object<'_>, name: &str) -> Option<bool> {
    query.choice(name, &[("true", true), ("false", false), ("1", true), ("0", false)])
}

fn number(query: &mut Object<'_>, name: &str) -> Option<f64> {
    let said = query.text(name)?;
    let number = said.parse().ok().filter(|number: &f64| number.is_finite());
    if number.is_none() {
        query.problem(name, format!("'{said}' is not a number"));
    }
    number
}
