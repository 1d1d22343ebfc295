//! `POST /v1/images/explain`: what the same request to the image routes would do, as JSON.

use axum::{
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::{Shim, answer, request, to_router};
use crate::{
    error::{Error, Result},
    pb::{self, ExplainRouteResponse, Operation, PlannedTarget},
};

/// Takes the body of a generation or an edit.
pub async fn explain(State(shim): State<Shim>, request: Request) -> Response {
    let headers = request.headers().clone();
    match plan(&shim, request).await {
        Ok(plan) => axum::Json(json(&plan)).into_response(),
        Err(error) => answer::error(&error, &headers),
    }
}

async fn plan(shim: &Shim, request: Request) -> Result<ExplainRouteResponse> {
    let headers = request.headers().clone();
    let parsed = request::read(request, Operation::Unspecified, shim.max_body_bytes).await?;
    let message = to_router(pb::ExplainRouteRequest { image: Some(parsed.image) }, &headers);
    let plan = shim.router.explain_route(message).await.map_err(|status| Error::from_status(&status))?;
    Ok(plan.into_inner())
}

fn json(plan: &ExplainRouteResponse) -> Value {
    json!({
        "object": "route.explanation",
        "route": plan.route,
        "targets": plan.targets.iter().map(target).collect::<Vec<_>>(),
        "min_cost_usd": plan.min_cost_usd,
        "max_cost_usd": plan.max_cost_usd,
    })
}

/// A target with what becomes of it.
pub(super) fn target(target: &PlannedTarget) -> Value {
    let warning = |warning: &pb::Warning| {
        json!({
            "field": warning.field,
            "action": answer::action(warning.action()),
            "detail": warning.detail,
        })
    };
    let state = target.state.clone().unwrap_or_default();
    json!({
        "target": target.target,
        "provider": target.provider,
        "model": target.model,
        "decision": target.decision().name(),
        "reason": some(&target.reason),
        "message": some(&target.message),
        "warnings": target.warnings.iter().map(warning).collect::<Vec<_>>(),
        "calls": target.calls,
        "max_tries": target.max_tries,
        "price_usd": target.price_usd,
        "hedged_after_ms": target.hedged_after_ms,
        "cached": target.cached,
        "state": {
            "breaker": state.breaker,
            "ejected": some(&state.ejected),
            "warmth": state.warmth,
            "latency_s": state.latency_s,
            "calls_in_flight": state.calls_in_flight,
        },
    })
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
