//! A request in the log, as JSON and as a line of CSV.

use serde_json::{Map, Value, json};

use super::{some, time_text};
use crate::{
    digest::hex,
    params,
    pb::{self, RequestRecord},
    shim::answer,
};

/// What an export as CSV has of each request.
const COLUMNS: [&str; 30] = [
    "id",
    "trace_id",
    "created_at",
    "operation",
    "outcome",
    "response_status_code",
    "is_success",
    "error_message",
    "response_time",
    "gateway_processing",
    "upstream_response",
    "api_key_id",
    "config",
    "config_version",
    "ai_org",
    "ai_model",
    "virtual_key",
    "last_used_option_index",
    "fallback",
    "refused",
    "retried",
    "hedged",
    "adjusted",
    "cache_status",
    "calls",
    "cost",
    "cost_currency",
    "cost_unknown",
    "images",
    "metadata",
];

/// What a request can have asked for, beside [`params::NAMES`].
const ASKED: [&str; 6] = ["model", "n", "size", "response_format", "output_format", "partial_images"];

/// What lists show.
pub fn describe(record: &RequestRecord) -> Value {
    let mut shown = json!({
        "object": "log",
        "id": record.id,
        "trace_id": record.trace_id,
        "created_at": time_text(record.created_unix_ms),
        "operation": record.operation().name(),
        "outcome": record.outcome,
        "response_status_code": record.status,
        "is_success": record.outcome == "ok",
        "error_message": some(&record.error_message),
        "response_time": record.duration_ms,
        "api_key_id": some(&record.caller),
        "config": some(&record.config),
        "config_version": (record.config_version > 0).then_some(record.config_version),
        "ai_org": some(&record.provider),
        "ai_model": some(&record.model),
        "virtual_key": some(&record.virtual_key),
        "last_used_option_index": some(&record.target),
        "fallback": record.fallback,
        "refused": record.refused,
        "retried": record.retried,
        "hedged": record.hedged,
        "adjusted": record.adjusted,
        "cache_status": record.cache_status().name(),
        "calls": record.calls,
        "cost": record.cost_usd,
        "cost_currency": "USD",
        "cost_unknown": record.cost_unknown,
        "images": record.images,
        "images_made": record.images_made.iter().map(image).collect::<Vec<_>>(),
        "metadata": record.metadata,
        "feedback": record.feedback.iter().map(feedback).collect::<Vec<_>>(),
    });
    for (name, micros) in timings(record.timings.as_ref()) {
        shown[name] = micros.map(|micros| micros as f64 / 1000.0).into();
    }
    if !record.prompt.is_empty() {
        shown["prompt"] = record.prompt.as_str().into();
    }
    shown
}

/// Where the time went, in microseconds, under the reference's names as far as it has any.
fn timings(timings: Option<&pb::Timings>) -> [(&'static str, Option<u64>); 8] {
    [
        ("request_parsing", timings.map(|timings| timings.routing_us)),
        ("pre_processing", timings.map(pb::Timings::rest_us)),
        ("cache_processing", timings.map(|timings| timings.cache_us)),
        ("waiting", timings.map(|timings| timings.waiting_us)),
        ("upstream_response", timings.map(|timings| timings.upstream_us)),
        ("response_parsing", timings.map(|timings| timings.verifying_us)),
        ("gateway_processing", timings.map(pb::Timings::gateway_us)),
        ("first_preview", timings.and_then(|timings| timings.first_preview_us)),
    ]
}

/// All that is known.
pub fn describe_all(record: &RequestRecord) -> Value {
    let mut shown = describe(record);
    shown["asked"] = record.asked.as_ref().map(asked).into();
    shown["applied"] = record.applied.as_ref().map(applied).into();
    shown["usage"] = record.usage.as_ref().map(pb::Usage::to_json).into();
    shown["report"] = record.report.as_ref().map(report).into();
    shown
}

/// The names of the columns.
pub fn csv_head() -> String {
    row(COLUMNS)
}

/// A line of CSV.
pub fn csv_line(record: &RequestRecord) -> String {
    let shown = describe(record);
    let cell = |name: &&str| match &shown[*name] {
        Value::Null => String::new(),
        Value::String(text) => harmless(text),
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => other.to_string(),
    };
    row(COLUMNS.iter().map(cell))
}

fn row<T: AsRef<[u8]>>(cells: impl IntoIterator<Item = T>) -> String {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(cells).expect("memory takes a record of any length");
    let bytes = writer.into_inner().expect("memory takes everything");
    String::from_utf8(bytes).expect("cells are texts")
}

/// Spreadsheets compute a text that begins like a formula, and callers choose some of these texts.
fn harmless(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

fn image(image: &pb::LoggedImage) -> Value {
    json!({
        "format": image.format().name(),
        "width": (image.width > 0).then_some(image.width),
        "height": (image.height > 0).then_some(image.height),
        "bytes": image.bytes,
        "sha256": some(&hex(&image.sha256)),
        "thumbnail": image.thumbnail,
        "full": image.full,
    })
}

fn feedback(feedback: &pb::Feedback) -> Value {
    let metadata: Value = serde_json::from_str(&feedback.metadata_json).unwrap_or_default();
    json!({
        "id": feedback.id,
        "value": feedback.value,
        "weight": feedback.weight,
        "metadata": metadata,
        "created_at": time_text(feedback.created_unix_ms),
    })
}

fn asked(request: &pb::ImageRequest) -> Value {
    let mut shown = Map::new();
    for name in ASKED.iter().chain(params::NAMES) {
        if let Some(value) = params::get(request, name) {
            shown.insert((*name).into(), value);
        }
    }
    for (provider, extras) in &request.provider_extras {
        let values = extras.fields.iter().map(|(name, value)| (name.clone(), params::to_json(value)));
        shown.insert(format!("extras.{provider}"), Value::Object(values.collect()));
    }
    Value::Object(shown)
}

fn applied(applied: &pb::Applied) -> Value {
    let delivery = match applied.delivery() {
        pb::Delivery::Unspecified => None,
        pb::Delivery::Bytes => Some("b64_json"),
        pb::Delivery::Url => Some("url"),
    };
    json!({
        "size": applied.size.map(|size| size.text()),
        "quality": params::quality_name(applied.quality()),
        "background": params::background_name(applied.background()),
        "response_format": delivery,
    })
}

fn report(report: &pb::RouteReport) -> Value {
    json!({
        "retry_count": report.retry_count,
        "attempts": report.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "warnings": report.warnings.iter().map(warning).collect::<Vec<_>>(),
        "refused_by": report.refused_by,
        "cost_lines": report.cost_lines.iter().map(cost_line).collect::<Vec<_>>(),
        "replay_of": some(&report.replay_of),
    })
}

fn attempt(attempt: &pb::Attempt) -> Value {
    json!({
        "number": attempt.number,
        "target": attempt.target,
        "provider": attempt.provider,
        "model": some(&attempt.model),
        "outcome": attempt.outcome,
        "reason": some(&attempt.reason),
        "status": (attempt.status > 0).then_some(attempt.status),
        "message": some(&attempt.message),
        "billing": attempt.billing().name(),
        "started_ms": attempt.started_ms,
        "duration_ms": attempt.duration_ms,
        "upstream_request_id": some(&attempt.upstream_request_id),
    })
}

fn warning(warning: &pb::Warning) -> Value {
    json!({
        "field": warning.field,
        "action": answer::action(warning.action()),
        "detail": warning.detail,
        "target": some(&warning.target),
    })
}

fn cost_line(line: &pb::CostLine) -> Value {
    json!({
        "item": line.item,
        "provider": line.provider,
        "model": some(&line.model),
        "quantity": line.quantity,
        "amount_usd": line.amount_usd,
        "source": line.source().name(),
        "attempt": line.attempt,
    })
}
