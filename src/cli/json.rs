//! What a router remembers as JSON: the messages' own names, with words for their enums.

use std::io::{Write as _, stdout};

use serde_json::{Value, json};

use crate::{
    config::quota::{reset_word, unit_word},
    digest::hex,
    params, pb,
};

/// Prints a document for a program.
pub fn print(document: &Value) -> anyhow::Result<()> {
    writeln!(stdout(), "{document:#}")?;
    Ok(())
}

/// Prints a list of documents.
pub fn print_all<T>(things: &[T], shown: impl Fn(&T) -> Value) -> anyhow::Result<()> {
    print(&things.iter().map(shown).collect())
}

/// A saved config, with its content if it is there.
pub fn config(saved: &pb::SavedConfig) -> Value {
    json!({
        "id": saved.id,
        "slug": saved.slug,
        "name": saved.name,
        "config": content(&saved.config_json),
        "version": saved.version,
        "version_id": saved.version_id,
        "is_default": saved.is_default,
        "created_unix_ms": saved.created_unix_ms,
        "updated_unix_ms": saved.updated_unix_ms,
        "created_by": saved.created_by,
        "updated_by": saved.updated_by,
        "problem": saved.problem,
    })
}

/// One version of a config.
pub fn version(version: &pb::ConfigVersion) -> Value {
    json!({
        "version": version.version,
        "version_id": version.version_id,
        "config": content(&version.config_json),
        "created_unix_ms": version.created_unix_ms,
        "created_by": version.created_by,
        "requests": version.requests,
        "first_request_unix_ms": version.first_request_unix_ms,
        "last_request_unix_ms": version.last_request_unix_ms,
    })
}

/// A virtual key, which never has its credential.
pub fn virtual_key(key: &pb::VirtualKey) -> Value {
    json!({
        "id": key.id,
        "slug": key.slug,
        "name": key.name,
        "provider": key.provider,
        "note": key.note,
        "status": status(key.status()),
        "base_url": key.base_url,
        "options": key.options,
        "quota": quota(key.quota.as_ref()),
        "expires_unix_ms": key.expires_unix_ms,
        "created_unix_ms": key.created_unix_ms,
        "updated_unix_ms": key.updated_unix_ms,
        "created_by": key.created_by,
    })
}

/// An API key, without the key itself.
pub fn api_key(key: &pb::ApiKey) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": key.scopes,
        "default_config": key.default_config,
        "allow_config_override": key.allow_config_override,
        "metadata": key.metadata,
        "configs": key.configs.as_ref().map(|names| &names.names),
        "virtual_keys": key.virtual_keys.as_ref().map(|names| &names.names),
        "quota": quota(key.quota.as_ref()),
        "status": status(key.status()),
        "log": key.log.map(|log| json!({"prompts": log.prompts, "images": log.images().name()})),
        "expires_unix_ms": key.expires_unix_ms,
        "created_unix_ms": key.created_unix_ms,
        "updated_unix_ms": key.updated_unix_ms,
        "created_by": key.created_by,
        "hint": key.hint,
    })
}

/// Targets and workers elsewhere.
pub fn targets(listed: &pb::ListTargetsResponse) -> Value {
    let target = |target: &pb::ListedTarget| {
        json!({
            "config": target.config,
            "target": target.target,
            "provider": target.provider,
            "virtual_key": target.virtual_key,
            "model": target.model,
            "problem": target.problem,
            "state": target.state.as_ref().map(standing),
        })
    };
    let endpoint = |endpoint: &pb::WorkerEndpoint| {
        json!({
            "provider": endpoint.provider,
            "address": endpoint.address,
            "state": endpoint.state().name(),
            "calls_in_flight": endpoint.calls_in_flight,
        })
    };
    json!({
        "targets": listed.targets.iter().map(target).collect::<Vec<_>>(),
        "endpoints": listed.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// A limit with what has been used of it.
pub fn quota_use(quota: &pb::QuotaUse) -> Value {
    use pb::quota_use::Limit;
    let (rate, budget) = match &quota.limit {
        Some(Limit::Rate(limit)) => (rate(limit), Value::Null),
        Some(Limit::Budget(limit)) => (Value::Null, budget(limit)),
        None => (Value::Null, Value::Null),
    };
    json!({
        "subject": quota.subject,
        "name": quota.name,
        "rate": rate,
        "budget": budget,
        "requests": quota.requests,
        "usd": quota.usd,
        "reserved_usd": quota.reserved_usd,
        "resets_unix_ms": quota.resets_unix_ms,
        "exhausted": quota.exhausted,
    })
}

fn quota(quota: Option<&pb::Quota>) -> Value {
    let Some(quota) = quota else { return Value::Null };
    json!({
        "rates": quota.rates.iter().map(rate).collect::<Vec<_>>(),
        "budgets": quota.budgets.iter().map(budget).collect::<Vec<_>>(),
    })
}

fn rate(rate: &pb::RateLimit) -> Value {
    json!({"unit": unit_word(rate.unit()), "requests": rate.requests})
}

fn budget(budget: &pb::Budget) -> Value {
    json!({
        "usd": budget.usd,
        "reset": reset_word(budget.reset()).unwrap_or("total"),
        "alert_usd": budget.alert_usd,
    })
}

/// Some requests together.
pub fn usage_group(group: &pb::UsageGroup) -> Value {
    json!({
        "key": group.key,
        "requests": group.requests,
        "succeeded": group.succeeded,
        "rescued": group.rescued,
        "refused": group.refused,
        "cache_hits": group.cache_hits,
        "images": group.images,
        "cost_usd": group.cost_usd,
        "cost_unknown": group.cost_unknown,
        "duration_ms": group.duration_ms,
        "input_tokens": group.input_tokens,
        "output_tokens": group.output_tokens,
    })
}

/// One request of the log.
pub fn request(record: &pb::RequestRecord) -> Value {
    let mut value = json!({
        "id": record.id,
        "trace_id": record.trace_id,
        "created_unix_ms": record.created_unix_ms,
        "duration_ms": record.duration_ms,
        "caller": record.caller,
        "config": record.config,
        "config_version": record.config_version,
        "operation": record.operation().name(),
        "outcome": record.outcome,
        "status": record.status,
        "error_message": record.error_message,
        "provider": record.provider,
        "model": record.model,
        "virtual_key": record.virtual_key,
        "target": record.target,
        "fallback": record.fallback,
        "refused": record.refused,
        "retried": record.retried,
        "hedged": record.hedged,
        "adjusted": record.adjusted,
        "cache_status": record.cache_status().name(),
        "calls": record.calls,
        "cost_usd": record.cost_usd,
        "cost_unknown": record.cost_unknown,
        "metadata": record.metadata,
        "images": record.images,
        "images_made": record.images_made.iter().map(image).collect::<Vec<_>>(),
    });
    if let Some(asked) = &record.asked {
        value["asked"] = json!({
            "model": asked.model,
            "n": asked.n,
            "size": asked.size.as_ref().map(pb::Size::text),
            "quality": params::quality_name(asked.quality()),
            "style": asked.style,
            "seed": asked.seed,
        });
    }
    if let Some(applied) = &record.applied {
        value["applied"] = json!({
            "size": applied.size.as_ref().map(pb::Size::text),
            "quality": params::quality_name(applied.quality()),
            "background": params::background_name(applied.background()),
        });
    }
    if let Some(usage) = &record.usage {
        value["usage"] = usage.to_json();
    }
    if let Some(timings) = &record.timings {
        value["timings"] = json!({
            "total_us": timings.total_us,
            "routing_us": timings.routing_us,
            "cache_us": timings.cache_us,
            "waiting_us": timings.waiting_us,
            "upstream_us": timings.upstream_us,
            "verifying_us": timings.verifying_us,
            "first_preview_us": timings.first_preview_us,
        });
    }
    if !record.prompt.is_empty() {
        value["prompt"] = record.prompt.as_str().into();
    }
    if let Some(report) = &record.report {
        value["attempts"] = report.attempts.iter().map(attempt).collect();
        value["warnings"] = report.warnings.iter().map(warning).collect();
        value["refused_by"] = report.refused_by.as_slice().into();
        value["cost_lines"] = report.cost_lines.iter().map(cost_line).collect();
    }
    if !record.feedback.is_empty() {
        value["feedback"] = record.feedback.iter().map(feedback).collect();
    }
    value
}

/// How an answer came to be.
pub fn report(report: &pb::RouteReport) -> Value {
    json!({
        "provider": report.provider,
        "model": report.model,
        "target": report.target,
        "attempts": report.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "warnings": report.warnings.iter().map(warning).collect::<Vec<_>>(),
        "refused_by": report.refused_by,
        "cost_lines": report.cost_lines.iter().map(cost_line).collect::<Vec<_>>(),
    })
}

/// A config tried on requests of the log.
pub fn dry_run(tried: &pb::DryRunConfigResponse) -> Value {
    let summary = tried.summary.clone().unwrap_or_default();
    let reason = |reason: &pb::DryRunReason| json!({"reason": reason.reason, "message": reason.message, "requests": reason.requests});
    let share = |share: &pb::DryRunShare| {
        json!({
            "provider": share.provider,
            "model": share.model,
            "requests": share.requests,
            "recorded_requests": share.recorded_requests,
            "expected_cost_usd": share.expected_cost_usd,
        })
    };
    json!({
        "summary": {
            "requests": summary.requests,
            "routed": summary.routed,
            "refused": summary.refused,
            "undecided": summary.undecided,
            "changed": summary.changed,
            "adjusted": summary.adjusted,
            "shares": summary.shares.iter().map(share).collect::<Vec<_>>(),
            "refusals": summary.refusals.iter().map(reason).collect::<Vec<_>>(),
            "open_questions": summary.open_questions.iter().map(reason).collect::<Vec<_>>(),
            "expected_cost_usd": summary.expected_cost_usd,
            "expected_cost_unknown": summary.expected_cost_unknown,
            "recorded_cost_usd": summary.recorded_cost_usd,
            "recorded_cost_unknown": summary.recorded_cost_unknown,
            "notes": summary.notes,
        },
        "requests": tried.requests.iter().map(tried_on).collect::<Vec<_>>(),
    })
}

fn tried_on(request: &pb::DryRunRequest) -> Value {
    let then = request.recorded.clone().unwrap_or_default();
    json!({
        "id": request.id,
        "created_unix_ms": request.created_unix_ms,
        "operation": request.operation().name(),
        "verdict": request.verdict().name(),
        "reason": request.reason,
        "message": request.message,
        "changed": request.changed,
        "first": request.first.as_ref().map(planned),
        "targets": request.targets.iter().map(planned).collect::<Vec<_>>(),
        "recorded": {
            "config": then.config,
            "config_version": then.config_version,
            "first_provider": then.first_provider,
            "first_model": then.first_model,
            "provider": then.provider,
            "model": then.model,
            "target": then.target,
            "outcome": then.outcome,
            "status": then.status,
            "cost_usd": then.cost_usd,
            "cost_unknown": then.cost_unknown,
        },
    })
}

fn planned(target: &pb::PlannedTarget) -> Value {
    json!({
        "target": target.target,
        "provider": target.provider,
        "model": target.model,
        "decision": target.decision().name(),
        "reason": target.reason,
        "message": target.message,
        "warnings": target.warnings.iter().map(warning).collect::<Vec<_>>(),
        "calls": target.calls,
        "max_tries": target.max_tries,
        "price_usd": target.price_usd,
        "hedged_after_ms": target.hedged_after_ms,
    })
}

fn standing(state: &pb::TargetState) -> Value {
    json!({
        "breaker": state.breaker,
        "ejected": state.ejected,
        "warmth": state.warmth,
        "latency_s": state.latency_s,
        "calls_in_flight": state.calls_in_flight,
    })
}

/// What a request would do.
pub fn explanation(plan: &pb::ExplainRouteResponse) -> Value {
    let target = |target: &pb::PlannedTarget| {
        let mut shown = planned(target);
        shown["cached"] = target.cached.into();
        shown["state"] = target.state.as_ref().map(standing).into();
        shown
    };
    json!({
        "route": plan.route,
        "targets": plan.targets.iter().map(target).collect::<Vec<_>>(),
        "min_cost_usd": plan.min_cost_usd,
        "max_cost_usd": plan.max_cost_usd,
    })
}

/// A key's status as a word.
pub fn status(status: pb::KeyStatus) -> &'static str {
    status.name().unwrap_or_default()
}

/// How the price of a cost line is known, as a word.
pub fn cost_source(source: pb::CostSource) -> &'static str {
    source.name().unwrap_or("unknown")
}

/// One try, or why there was none.
pub fn attempt(attempt: &pb::Attempt) -> Value {
    json!({
        "number": attempt.number,
        "target": attempt.target,
        "provider": attempt.provider,
        "model": attempt.model,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "message": attempt.message,
        "reason": attempt.reason,
        "billing": attempt.billing().name(),
        "started_ms": attempt.started_ms,
        "duration_ms": attempt.duration_ms,
        "upstream_request_id": attempt.upstream_request_id,
    })
}

fn warning(warning: &pb::Warning) -> Value {
    json!({
        "field": warning.field,
        "action": warning.action().name(),
        "detail": warning.detail,
        "target": warning.target,
    })
}

fn cost_line(line: &pb::CostLine) -> Value {
    json!({
        "item": line.item,
        "provider": line.provider,
        "model": line.model,
        "operation": line.operation().name(),
        "quantity": line.quantity,
        "amount_usd": line.amount_usd,
        "source": cost_source(line.source()),
        "attempt": line.attempt,
        "size": line.size,
        "quality": params::quality_name(line.quality()),
    })
}

fn image(image: &pb::LoggedImage) -> Value {
    json!({
        "sha256": hex(&image.sha256),
        "format": image.format().name(),
        "width": image.width,
        "height": image.height,
        "bytes": image.bytes,
        "thumbnail": image.thumbnail,
        "full": image.full,
    })
}

fn feedback(feedback: &pb::Feedback) -> Value {
    json!({
        "id": feedback.id,
        "trace_id": feedback.trace_id,
        "value": feedback.value,
        "weight": feedback.weight,
        "metadata": content(&feedback.metadata_json),
        "created_unix_ms": feedback.created_unix_ms,
    })
}

fn content(text: &str) -> Value {
    // A list has no contents; what is no JSON after all is better shown than lost.
    if text.is_empty() { Value::Null } else { serde_json::from_str(text).unwrap_or_else(|_| text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_null_and_not_zero() {
        let shown = request(&pb::RequestRecord { cost_usd: None, ..Default::default() });
        assert_eq!(shown["cost_usd"], Value::Null);
        assert_eq!(shown["cache_status"], Value::Null);
        assert!(shown.get("prompt").is_none() && shown.get("attempts").is_none());
        let shown = request(&pb::RequestRecord { cost_usd: Some(0.0), ..Default::default() });
        assert_eq!(shown["cost_usd"], 0.0);
    }

    #[test]
    fn enums_are_words() {
        assert_eq!(status(pb::KeyStatus::Active), "active");
        assert_eq!(cost_source(pb::CostSource::Unspecified), "unknown");
        let line = cost_line(&pb::CostLine { quality: pb::Quality::High.into(), ..Default::default() });
        assert_eq!((&line["quality"], &line["amount_usd"]), (&json!("high"), &Value::Null));
    }

    #[test]
    fn everything_is_allowed_only_where_nothing_is_listed() {
        let all = api_key(&pb::ApiKey::default());
        assert_eq!(all["configs"], Value::Null);
        let none = api_key(&pb::ApiKey { configs: Some(pb::Names::default()), ..Default::default() });
        assert_eq!(none["configs"], json!([]));
    }
}
