//! `/v1/analytics/graphs`: what requests cost and how they ended, and what was thought of it, over time.

use std::collections::BTreeMap;

use axum::Json;
use serde_json::{Value, json};

use super::{
    Asked,
    analytics::{failed, mean, percent, timestamp, unknown},
    filter, told,
};
use crate::{
    error::Result,
    pb::{self, FeedbackGroup, UsageGroup},
};

/// Longest time that is shown by the hour where nobody says how, in milliseconds.
const BY_HOUR_AT_MOST: i64 = 48 * 3_600_000;

/// What is asked for a graph, and what it says of a time.
enum Graph {
    /// One group of requests.
    Usage(fn(&UsageGroup) -> Value),
    /// The same with the number of users.
    Users(fn(&UsageGroup) -> Value),
    /// Groups of requests by something else as well; with `true` only of those that failed.
    Parts(&'static str, bool, fn(&[&UsageGroup]) -> Value),
    /// Feedback.
    Feedback(fn(&FeedbackGroup) -> Value),
}

const GRAPHS: [(&str, Graph); 17] = [
    ("requests", Graph::Usage(|of| json!({"total": of.requests}))),
    (
        "cost",
        Graph::Usage(
            |of| json!({"total": of.cost_usd, "avg": mean(of.cost_usd, of.requests), "cost_unknown": of.cost_unknown}),
        ),
    ),
    ("latency", Graph::Usage(|of| json!({"avg": of.duration_ms}))),
    (
        "tokens",
        Graph::Usage(
            |of| json!({"total": of.input_tokens + of.output_tokens, "input": of.input_tokens, "output": of.output_tokens}),
        ),
    ),
    ("users", Graph::Users(|of| json!({"total": of.users}))),
    (
        "users/requests",
        Graph::Users(
            |of| json!({"total": of.requests, "users": of.users, "avg": mean(of.requests as f64, of.users)}),
        ),
    ),
    ("errors", Graph::Usage(|of| json!({"total": failed(of)}))),
    ("errors/rate", Graph::Usage(|of| json!({"rate": percent(failed(of), of.requests)}))),
    ("errors/stacks", Graph::Parts("outcome", true, |of| json!({"total": sum(of), "stacks": parts(of)}))),
    (
        "errors/status-codes",
        Graph::Parts("status", true, |of| json!({"total": sum(of), "status_codes": parts(of)})),
    ),
    ("requests/rescued", Graph::Usage(|of| json!({"total": of.rescued}))),
    ("requests/refused", Graph::Usage(|of| json!({"total": of.refused}))),
    (
        "cache/hit-rate",
        Graph::Usage(|of| json!({"total": of.cache_hits, "rate": percent(of.cache_hits, of.requests)})),
    ),
    ("cache/latency", Graph::Parts("cache_status", false, cache_latency)),
    ("feedbacks", Graph::Feedback(|of| json!({"total": of.feedbacks}))),
    (
        "feedbacks/scores",
        Graph::Feedback(|of| json!({"total": of.feedbacks, "avg": of.mean, "scores": of.scores})),
    ),
    ("feedbacks/weighted", Graph::Feedback(|of| json!({"total": of.feedbacks, "avg": of.weighted_mean}))),
];

/// `GET /v1/analytics/graphs/{graph}`
pub async fn graph(asked: Asked) -> Result<Json<Value>> {
    let name = asked.path("graph");
    let names = GRAPHS.map(|(name, _)| name);
    let known = GRAPHS.into_iter().find(|(known, _)| *known == name);
    let (_, graph) = known.ok_or_else(|| unknown("there is no graph", &name, &names))?;
    let (interval, search) = asked.query(&filter::REFUSED, |query| {
        (query.choice("interval", &[("day", "day"), ("hour", "hour")]), filter::read(query))
    })?;
    let interval = interval.unwrap_or_else(|| interval_of(&search));
    let (summary, points) = graph.draw(&asked, search, interval).await?;
    let point = |(time, mut point): (String, Value)| {
        point["timestamp"] = timestamp(&time).into();
        point
    };
    Ok(Json(json!({
        "success": true,
        "object": "analytics-graph",
        "interval": interval,
        "summary": summary,
        "data_points": points.into_iter().map(point).collect::<Vec<_>>(),
    })))
}

impl Graph {
    /// Of the whole time, and of each hour or day of it.
    async fn draw(
        &self,
        asked: &Asked,
        search: pb::RequestFilter,
        interval: &str,
    ) -> Result<(Value, Vec<(String, Value)>)> {
        if let Self::Feedback(show) = self {
            let total = feedback(asked, search.clone(), "").await?.pop().unwrap_or_default();
            let times = feedback(asked, search, interval).await?;
            return Ok((show(&total), times.iter().map(|time| (time.key.clone(), show(time))).collect()));
        }
        let (then_by, count_users) = match self {
            Self::Parts(then_by, ..) => (*then_by, false),
            Self::Users(_) => ("", true),
            Self::Usage(_) | Self::Feedback(_) => ("", false),
        };
        // A part of all has no failures where somebody asks for successes.
        let is_empty = matches!(self, Self::Parts(_, true, _)) && search.success == Some(true);
        let success = if matches!(self, Self::Parts(_, true, _)) { Some(false) } else { search.success };
        let message = |group_by: &str| pb::GetUsageRequest {
            filter: Some(pb::RequestFilter { success, ..search.clone() }),
            group_by: group_by.to_owned(),
            then_by: then_by.to_owned(),
            count_users,
            durations: false,
        };
        if is_empty {
            return Ok((self.show(&[]), Vec::new()));
        }
        let times = told(asked.admin.get_usage(asked.to(message(interval))).await)?.groups;
        let total = told(asked.admin.get_usage(asked.to(message(""))).await)?.groups;
        let mut by_time: BTreeMap<i64, Vec<&UsageGroup>> = BTreeMap::new();
        for group in &times {
            by_time.entry(group.key.parse().unwrap_or_default()).or_default().push(group);
        }
        let points = by_time.into_values().map(|groups| (groups[0].key.clone(), self.show(&groups)));
        Ok((self.show(&total.iter().collect::<Vec<_>>()), points.collect()))
    }

    fn show(&self, groups: &[&UsageGroup]) -> Value {
        let none = UsageGroup::default();
        match self {
            Self::Usage(show) | Self::Users(show) => show(groups.first().copied().unwrap_or(&none)),
            Self::Parts(_, _, show) => show(groups),
            Self::Feedback(show) => show(&FeedbackGroup::default()),
        }
    }
}

async fn feedback(asked: &Asked, filter: pb::RequestFilter, group_by: &str) -> Result<Vec<FeedbackGroup>> {
    let message = pb::GetFeedbackUsageRequest { filter: Some(filter), group_by: group_by.into() };
    Ok(told(asked.admin.get_feedback_usage(asked.to(message)).await)?.groups)
}

fn interval_of(search: &pb::RequestFilter) -> &'static str {
    let until = search.until_unix_ms.unwrap_or_else(pb::unix_now_ms);
    match search.from_unix_ms {
        Some(from) if until.saturating_sub(from) <= BY_HOUR_AT_MOST => "hour",
        _ => "day",
    }
}

/// How many requests each part has.
fn parts(of: &[&UsageGroup]) -> BTreeMap<String, u64> {
    of.iter().map(|group| (group.then_key.clone(), group.requests)).collect()
}

fn sum(of: &[&UsageGroup]) -> u64 {
    of.iter().map(|group| group.requests).sum()
}

/// Mean times of answers from the cache and of all others, null where there were none.
fn cache_latency(of: &[&UsageGroup]) -> Value {
    let mean_of = |hits: bool| {
        let is_wanted = |group: &&&UsageGroup| group.then_key.ends_with("hit") == hits;
        let groups: Vec<&UsageGroup> = of.iter().filter(is_wanted).copied().collect();
        let (requests, millis) = groups.iter().fold((0, 0.0), |(requests, millis), group| {
            (requests + group.requests, millis + group.duration_ms * group.requests as f64)
        });
        (requests > 0).then(|| mean(millis, requests))
    };
    json!({"avg": mean_of(true), "avg_of_others": mean_of(false)})
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use crate::{
        pb,
        shim::manage::fake::{Fake, json},
    };

    fn group(key: &str, then_key: &str, requests: u64) -> pb::UsageGroup {
        pb::UsageGroup {
            key: key.into(),
            then_key: then_key.into(),
            requests,
            succeeded: 6,
            rescued: 2,
            cache_hits: 4,
            cost_usd: 2.0,
            input_tokens: 10,
            output_tokens: 90,
            users: 4,
            duration_ms: if then_key.ends_with("hit") { 1.0 } else { 1000.0 },
            ..Default::default()
        }
    }

    fn usage(key: &str) -> pb::GetUsageResponse {
        pb::GetUsageResponse { groups: vec![group(key, "", 8)] }
    }

    #[tokio::test]
    async fn graphs_have_a_point_for_each_time_and_a_sum() {
        let memory = Arc::new(Fake::default());
        for (graph, shown) in [
            ("requests", json!({"total": 8})),
            ("cost", json!({"total": 2.0, "avg": 0.25, "cost_unknown": 0})),
            ("tokens", json!({"total": 100, "input": 10, "output": 90})),
            ("users", json!({"total": 4})),
            ("users/requests", json!({"total": 8, "users": 4, "avg": 2.0})),
            ("errors", json!({"total": 2})),
            ("errors/rate", json!({"rate": 25.0})),
            ("requests/rescued", json!({"total": 2})),
            ("cache/hit-rate", json!({"total": 4, "rate": 50.0})),
        ] {
            memory.answers("get_usage", usage("86400000"));
            memory.answers("get_usage", usage(""));
            let (status, body) = json(&memory, "GET", &format!("/v1/analytics/graphs/{graph}"), None).await;
            assert_eq!((status, &body["summary"]), (200, &shown), "{graph}");
            assert_eq!(body["data_points"][0]["timestamp"], "1970-01-02T00:00:00Z");
            let message: pb::GetUsageRequest = memory.asked();
            assert_eq!((message.group_by.as_str(), message.count_users), ("day", graph.starts_with("users")));
            assert_eq!(memory.asked::<pb::GetUsageRequest>().group_by, "");
        }
        let (status, body) = json(&memory, "GET", "/v1/analytics/graphs/nonsense", None).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert!(status == 404 && message.contains("requests/rescued"), "{message}");
    }

    #[tokio::test]
    async fn errors_are_told_apart() {
        let memory = Arc::new(Fake::default());
        for (graph, then_by, name, keys) in [
            ("errors/stacks", "outcome", "stacks", ["timeout", "rate_limited"]),
            ("errors/status-codes", "status", "status_codes", ["504", "429"]),
        ] {
            let at = |key: &str| vec![group(key, keys[0], 3), group(key, keys[1], 1)];
            let mut times = at("0");
            times.push(group("86400000", keys[1], 5));
            memory.answers("get_usage", pb::GetUsageResponse { groups: times });
            memory.answers("get_usage", pb::GetUsageResponse { groups: at("") });
            let (_, body) = json(&memory, "GET", &format!("/v1/analytics/graphs/{graph}"), None).await;
            assert_eq!(body["summary"], json!({"total": 4, name: {keys[0]: 3, keys[1]: 1}}), "{body}");
            let points = &body["data_points"];
            assert_eq!((&points[0]["total"], &points[1][name]), (&json!(4), &json!({keys[1]: 5})));
            let message: pb::GetUsageRequest = memory.asked();
            assert_eq!((message.then_by.as_str(), message.filter.unwrap().success), (then_by, Some(false)));
            memory.asked::<pb::GetUsageRequest>();
        }
        // There are no failures among successes, and nobody has to be asked.
        let path = "/v1/analytics/graphs/errors/stacks?success=true";
        let (_, body) = json(&memory, "GET", path, None).await;
        assert_eq!((&body["summary"]["total"], memory.was_not_asked()), (&json!(0), true));
    }

    #[tokio::test]
    async fn answers_from_the_cache_have_their_own_latency() {
        let memory = Arc::new(Fake::default());
        let groups = ["hit", "semantic_hit", "miss"].map(|status| group("0", status, 2)).to_vec();
        memory.answers("get_usage", pb::GetUsageResponse { groups });
        memory.answers("get_usage", pb::GetUsageResponse::default());
        let (_, body) = json(&memory, "GET", "/v1/analytics/graphs/cache/latency", None).await;
        assert_eq!(body["summary"], json!({"avg": null, "avg_of_others": null}));
        let point = &body["data_points"][0];
        assert_eq!((&point["avg"], &point["avg_of_others"]), (&json!(1.0), &json!(1000.0)));
        assert_eq!(body["data_points"].as_array().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn feedback_is_drawn_too() {
        let memory = Arc::new(Fake::default());
        let group = |key: &str| pb::FeedbackGroup {
            key: key.into(),
            feedbacks: 3,
            mean: 2.0,
            weighted_mean: Some(-1.5),
            scores: [(-4, 1), (5, 2)].into(),
        };
        for (graph, shown) in [
            ("feedbacks", json!({"total": 3})),
            ("feedbacks/scores", json!({"total": 3, "avg": 2.0, "scores": {"-4": 1, "5": 2}})),
            ("feedbacks/weighted", json!({"total": 3, "avg": -1.5})),
        ] {
            for key in ["", "3600000"] {
                let answer = pb::GetFeedbackUsageResponse { groups: vec![group(key)] };
                memory.answers("get_feedback_usage", answer);
            }
            let path = format!("/v1/analytics/graphs/{graph}?interval=hour&model=m");
            let (_, body) = json(&memory, "GET", &path, None).await;
            assert_eq!(body["summary"], shown, "{graph}");
            assert_eq!(body["data_points"][0]["timestamp"], "1970-01-01T01:00:00Z");
            for by in ["", "hour"] {
                let message: pb::GetFeedbackUsageRequest = memory.asked();
                assert_eq!((message.group_by.as_str(), message.filter.unwrap().model.as_str()), (by, "m"));
            }
        }
    }

    #[tokio::test]
    async fn a_short_time_is_shown_by_the_hour() {
        let memory = Arc::new(Fake::default());
        for (search, interval) in [
            ("time_of_generation_min=2026-11-01&time_of_generation_max=2026-11-03", "hour"),
            ("time_of_generation_min=2026-11-01&time_of_generation_max=2026-11-04", "day"),
            ("time_of_generation_min=2026-11-01&time_of_generation_max=2026-11-04&interval=hour", "hour"),
            ("interval=day", "day"),
        ] {
            memory.answers("get_usage", usage(""));
            memory.answers("get_usage", usage(""));
            let (_, body) =
                json(&memory, "GET", &format!("/v1/analytics/graphs/requests?{search}"), None).await;
            assert_eq!(body["interval"], interval, "{search}");
        }
    }
}
