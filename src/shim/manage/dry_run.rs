//! `POST /v1/configs/dry-run` and `POST /v1/configs/{slug}/dry-run`: a config tried on requests of the log.

use axum::Json;
use serde_json::{Value, json};

use super::{Asked, WORKSPACE, configs::config, filter, some, time_text, told, whole};
use crate::{
    error::{Error, ErrorKind, Result},
    pb::{self, DryRunRequest, DryRunSummary},
    shim::explain,
};

/// `POST /v1/configs/dry-run`: of the config in the body.
pub async fn of_body(asked: Asked) -> Result<Json<Value>> {
    // The path has the place of a slug, so that a config of this name stays reachable.
    if asked.path("slug") != "dry-run" {
        let message = "POST is for /v1/configs, /v1/configs/dry-run and /v1/configs/{slug}/dry-run";
        return Err(Error::new(ErrorKind::InvalidRequest, message).with_status(405));
    }
    let message = asked.body(&[WORKSPACE], |body| {
        body.required("config");
        pb::DryRunConfigRequest {
            config_json: config(body).unwrap_or_default(),
            limit: number(whole(body, "limit", 1, super::PAGE_AT_MOST)),
            ..Default::default()
        }
    })?;
    answer(&asked, message).await
}

/// `POST /v1/configs/{slug}/dry-run`: of a saved one, in the version in force or another.
pub async fn of_saved(asked: Asked) -> Result<Json<Value>> {
    let slug = asked.path("slug");
    let message = asked.body(&[WORKSPACE], |body| pb::DryRunConfigRequest {
        slug,
        version: number(whole(body, "version", 1, u64::from(u32::MAX))),
        limit: number(whole(body, "limit", 1, super::PAGE_AT_MOST)),
        ..Default::default()
    })?;
    answer(&asked, message).await
}

fn number(given: Option<u64>) -> u32 {
    given.and_then(|number| number.try_into().ok()).unwrap_or_default()
}

async fn answer(asked: &Asked, message: pb::DryRunConfigRequest) -> Result<Json<Value>> {
    let filter = Some(asked.query(&filter::REFUSED, filter::read)?);
    let message = pb::DryRunConfigRequest { filter, ..message };
    let tried = told(asked.admin.dry_run_config(asked.to(message)).await)?;
    Ok(Json(json!({
        "success": true,
        "object": "config-dry-run",
        "summary": summary(&tried.summary.unwrap_or_default()),
        "data": tried.requests.iter().map(request).collect::<Vec<_>>(),
    })))
}

/// What comes of it in sum.
pub fn summary(summary: &DryRunSummary) -> Value {
    let reasons = |reasons: &[pb::DryRunReason]| {
        let one = |reason: &pb::DryRunReason| json!({"reason": reason.reason, "message": some(&reason.message), "requests": reason.requests});
        reasons.iter().map(one).collect::<Vec<_>>()
    };
    let share = |share: &pb::DryRunShare| {
        json!({
            "ai_org": share.provider,
            "ai_model": share.model,
            "requests": share.requests,
            "recorded_requests": share.recorded_requests,
            "expected_cost": share.expected_cost_usd,
        })
    };
    json!({
        "requests": summary.requests,
        "routed": summary.routed,
        "refused": summary.refused,
        "undecided": summary.undecided,
        "changed": summary.changed,
        "adjusted": summary.adjusted,
        "shares": summary.shares.iter().map(share).collect::<Vec<_>>(),
        "refusals": reasons(&summary.refusals),
        "open_questions": reasons(&summary.open_questions),
        "expected_cost": summary.expected_cost_usd,
        "expected_cost_unknown": summary.expected_cost_unknown,
        "recorded_cost": summary.recorded_cost_usd,
        "recorded_cost_unknown": summary.recorded_cost_unknown,
        "notes": summary.notes,
    })
}

/// What becomes of one request.
pub fn request(request: &DryRunRequest) -> Value {
    let then = request.recorded.clone().unwrap_or_default();
    json!({
        "id": request.id,
        "created_at": time_text(request.created_unix_ms),
        "operation": request.operation().name(),
        "verdict": request.verdict().name(),
        "reason": some(&request.reason),
        "message": some(&request.message),
        "changed": request.changed,
        "first": request.first.as_ref().map(target),
        "targets": request.targets.iter().map(target).collect::<Vec<_>>(),
        "recorded": {
            "config": some(&then.config),
            "config_version": (then.config_version > 0).then_some(then.config_version),
            "first_ai_org": some(&then.first_provider),
            "first_ai_model": some(&then.first_model),
            "ai_org": some(&then.provider),
            "ai_model": some(&then.model),
            "last_used_option_index": some(&then.target),
            "outcome": then.outcome,
            "response_status_code": then.status,
            "cost": then.cost_usd,
            "cost_unknown": then.cost_unknown,
        },
    })
}

/// Without what only today tells.
fn target(target: &pb::PlannedTarget) -> Value {
    let mut shown = explain::target(target);
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("state");
        fields.remove("cached");
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use crate::{
        pb,
        shim::manage::fake::{Fake, json},
    };

    fn tried() -> pb::DryRunConfigResponse {
        let first =
            pb::PlannedTarget { provider: "openai".into(), price_usd: Some(0.04), ..Default::default() };
        let mut request = pb::DryRunRequest {
            id: "r-1".into(),
            targets: vec![first.clone()],
            first: Some(first),
            changed: true,
            ..Default::default()
        };
        request.set_verdict(pb::dry_run_request::Verdict::Routed);
        let summary =
            pb::DryRunSummary { requests: 1, routed: 1, expected_cost_usd: 0.04, ..Default::default() };
        pb::DryRunConfigResponse { summary: Some(summary), requests: vec![request] }
    }

    #[tokio::test]
    async fn a_config_is_tried_on_what_a_search_finds() {
        let memory = Arc::new(Fake::default());
        memory.answers("dry_run_config", tried());
        let body = json!({"config": {"provider": "openai"}, "limit": 7});
        let path = "/v1/configs/dry-run?ai_org_model=openai__dall-e-3&success=true";
        let (status, body) = json(&memory, "POST", path, Some(body)).await;
        assert_eq!((status, &body["summary"]["expected_cost"]), (200, &json!(0.04)), "{body}");
        let shown = &body["data"][0];
        assert_eq!((&shown["verdict"], &shown["first"]["price_usd"]), (&json!("routed"), &json!(0.04)));
        assert_eq!(shown["first"].get("state"), None);
        let message: pb::DryRunConfigRequest = memory.asked();
        assert_eq!((message.config_json.as_str(), message.limit), (r#"{"provider":"openai"}"#, 7));
        let filter = message.filter.unwrap();
        assert_eq!((filter.model.as_str(), filter.success), ("dall-e-3", Some(true)));
    }

    #[tokio::test]
    async fn a_saved_config_is_tried_in_any_version() {
        let memory = Arc::new(Fake::default());
        memory.answers("dry_run_config", tried());
        memory.answers("dry_run_config", tried());
        let body = json!({"version": 2});
        assert_eq!(json(&memory, "POST", "/v1/configs/pc-a/dry-run", Some(body)).await.0, 200);
        let message: pb::DryRunConfigRequest = memory.asked();
        assert_eq!((message.slug.as_str(), message.version, message.limit), ("pc-a", 2, 0));
        assert_eq!(json(&memory, "POST", "/v1/configs/dry-run/dry-run", None).await.0, 200);
        assert_eq!(memory.asked::<pb::DryRunConfigRequest>().slug, "dry-run");
    }

    #[tokio::test]
    async fn what_cannot_be_tried_is_refused() {
        let memory = Arc::new(Fake::default());
        for (path, body, expected) in [
            ("/v1/configs/dry-run", json!({}), 400),
            ("/v1/configs/dry-run", json!({"config": {}, "limit": 1001}), 400),
            ("/v1/configs/dry-run", json!({"config": {}, "version": 1}), 400),
            ("/v1/configs/pc-a/dry-run", json!({"config": {}}), 400),
            ("/v1/configs/pc-a/dry-run?succes=true", json!({}), 400),
            ("/v1/configs/pc-a", json!({"config": {}}), 405),
        ] {
            assert_eq!(json(&memory, "POST", path, Some(body)).await.0, expected, "{path}");
        }
        assert!(memory.was_not_asked());
    }
}
