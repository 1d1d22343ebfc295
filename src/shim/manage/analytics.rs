//! `/v1/analytics`: what requests cost and how they ended, by what they have in common. Over time: `graphs.rs`.

use axum::Json;
use serde_json::{Map, Value, json};

use super::{Asked, Page, filter, time_text, told};
use crate::{
    config::read::suggestion,
    error::{Error, ErrorKind, Result},
    pb::{self, UsageGroup},
};

/// What can be grouped by, under the name in the path. The reference's names come first.
const GROUPS: [(&str, &str); 17] = [
    // Who a request is for, as the reference's clients say it.
    ("users", "metadata._user"),
    ("ai-models", "model"),
    ("workspaces", "tenant"),
    ("workspace", "tenant"),
    ("api_key", "caller"),
    ("status_code", "status"),
    ("caller", "caller"),
    ("config", "config"),
    ("config_version", "config_version"),
    ("virtual_key", "virtual_key"),
    ("provider", "provider"),
    ("model", "model"),
    ("operation", "operation"),
    ("outcome", "outcome"),
    ("cache_status", "cache_status"),
    ("day", "day"),
    ("hour", "hour"),
];

/// `GET /v1/analytics/groups/{group}`
pub async fn group(asked: Asked) -> Result<Json<Value>> {
    let name = asked.path("group");
    let (key_name, group_by) = match name.strip_prefix("metadata/") {
        Some(key) if !key.is_empty() => ("metadata_value", format!("metadata.{key}")),
        _ => {
            let names = GROUPS.map(|(name, _)| name);
            let known = GROUPS.iter().find(|(known, _)| *known == name);
            let (_, group_by) = known.ok_or_else(|| unknown("requests are not grouped by", &name, &names))?;
            let key_name = match name.as_str() {
                "users" => "user",
                "ai-models" => "ai_model",
                _ => "key",
            };
            (key_name, (*group_by).to_owned())
        }
    };
    let (page, search) = asked.query(&filter::REFUSED, |query| (Page::read(query), filter::read(query)))?;
    let groups = usage(&asked, search, &group_by).await?;
    Ok(page.listed(&groups, |group| {
        let mut shown = describe(group);
        let is_time = matches!(group_by.as_str(), "day" | "hour");
        shown[key_name] = if is_time { timestamp(&group.key) } else { group.key.clone() }.into();
        shown["object"] = "analytics-group".into();
        shown
    }))
}

/// `GET /v1/analytics/summary/cache`
pub async fn cache(asked: Asked) -> Result<Json<Value>> {
    let search = asked.query(&filter::REFUSED, filter::read)?;
    let total = usage(&asked, search, "").await?.pop().unwrap_or_default();
    let data = json!({
        "requests": total.requests,
        "hits": total.cache_hits,
        "hit_rate": percent(total.cache_hits, total.requests),
    });
    Ok(Json(json!({"success": true, "object": "analytics-summary", "data": data})))
}

async fn usage(asked: &Asked, filter: pb::RequestFilter, group_by: &str) -> Result<Vec<UsageGroup>> {
    let message =
        pb::GetUsageRequest { filter: Some(filter), group_by: group_by.into(), ..Default::default() };
    Ok(told(asked.admin.get_usage(asked.to(message)).await)?.groups)
}

/// When a day or an hour begins, from milliseconds.
pub(super) fn timestamp(key: &str) -> String {
    key.parse().map_or_else(|_| key.to_owned(), time_text)
}

fn describe(group: &UsageGroup) -> Value {
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| _ = shown.insert(name.into(), value);
    put("requests", group.requests.into());
    put("succeeded", group.succeeded.into());
    put("rescued", group.rescued.into());
    put("refused", group.refused.into());
    put("cache_hits", group.cache_hits.into());
    put("images", group.images.into());
    put("cost", group.cost_usd.into());
    put("cost_unknown", group.cost_unknown.into());
    put("avg_latency", group.duration_ms.into());
    put("input_tokens", group.input_tokens.into());
    put("output_tokens", group.output_tokens.into());
    Value::Object(shown)
}

pub(super) fn failed(of: &UsageGroup) -> u64 {
    of.requests.saturating_sub(of.succeeded)
}

pub(super) fn mean(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

pub(super) fn percent(part: u64, of: u64) -> f64 {
    mean(part as f64 * 100.0, of)
}

pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> Error {
    let near = suggestion(name, known);
    let all =
        if near.starts_with("; allowed") { String::new() } else { format!(" All: {}", known.join(", ")) };
    Error::new(ErrorKind::NotFound, format!("{what} '{name}'{near}{all}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use crate::{
        pb,
        shim::manage::fake::{Fake, json},
    };

    fn usage(key: &str) -> pb::GetUsageResponse {
        let group = pb::UsageGroup {
            key: key.into(),
            requests: 8,
            succeeded: 6,
            rescued: 2,
            cache_hits: 4,
            cost_usd: 2.0,
            ..Default::default()
        };
        pb::GetUsageResponse { groups: vec![group] }
    }

    #[tokio::test]
    async fn groups_have_the_references_names_or_ours() {
        let memory = Arc::new(Fake::default());
        for (path, group_by, key) in [
            ("users", "metadata._user", "user"),
            ("ai-models", "model", "ai_model"),
            ("metadata/team", "metadata.team", "metadata_value"),
            ("virtual_key", "virtual_key", "key"),
            ("hour", "hour", "key"),
        ] {
            let (key_of_group, shown) =
                if path == "hour" { ("3600000", "1970-01-01T01:00:00Z") } else { ("x", "x") };
            memory.answers("get_usage", usage(key_of_group));
            let (status, body) =
                json(&memory, "GET", &format!("/v1/analytics/groups/{path}?provider=openai"), None).await;
            assert_eq!(
                (status, &body["total"], &body["data"][0][key]),
                (200, &json!(1), &json!(shown)),
                "{body}"
            );
            let message: pb::GetUsageRequest = memory.asked();
            assert_eq!(message.group_by, group_by);
            assert_eq!(message.filter.unwrap().provider, "openai");
        }
        let (status, body) = json(&memory, "GET", "/v1/analytics/groups/modle", None).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert!(status == 404 && message.contains("did you mean \"model\"?"), "{message}");
    }

    #[tokio::test]
    async fn the_cache_is_summed_up() {
        let memory = Arc::new(Fake::default());
        memory.answers("get_usage", usage(""));
        let (_, body) = json(&memory, "GET", "/v1/analytics/summary/cache", None).await;
        assert_eq!(body["data"], json!({"requests": 8, "hits": 4, "hit_rate": 50.0}));
        // Nothing was asked for yet.
        memory.answers("get_usage", pb::GetUsageResponse::default());
        let (_, body) = json(&memory, "GET", "/v1/analytics/summary/cache", None).await;
        assert_eq!(body["data"]["hit_rate"], 0.0);
    }
}
