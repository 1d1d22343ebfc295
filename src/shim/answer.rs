//! Results and errors in OpenAI's shapes, with the headers of docs/headers.md.

use std::{borrow::Cow, fmt::Write as _};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Map, Value, json};

use super::encode::{EncodedBody, Segment};
use crate::{
    error::{Error, ErrorKind},
    images::Pieces,
    params,
    pb::{self, BillingClass, CacheStatus, ImageResult, RouteReport, attempts_text, warning::Action},
    router,
};

/// Longest text of a header of ours, in bytes: proxies refuse more than 8 KiB of headers altogether.
const MAX_HEADER_BYTES: usize = 2048;

/// Headers of an answer, and room for a few more.
const HEADERS: usize = 16;

const TRACE_ID: HeaderName = HeaderName::from_static(router::TRACE_ID);
const REQUEST_ID: HeaderName = HeaderName::from_static(router::REQUEST_ID);
const PROVIDER: HeaderName = HeaderName::from_static("x-portkey-provider");
const LAST_USED_OPTION_INDEX: HeaderName = HeaderName::from_static("x-portkey-last-used-option-index");
const RETRY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-portkey-retry-attempt-count");
/// Whether the answer is one that was kept.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("x-portkey-cache-status");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-imagegate-attempts");
const WARNINGS: HeaderName = HeaderName::from_static("x-imagegate-warnings");
const REPLAY_OF: HeaderName = HeaderName::from_static("x-imagegate-replay-of");
const REFUSED_BY: HeaderName = HeaderName::from_static("x-imagegate-refused-by");
const COST_USD: HeaderName = HeaderName::from_static("x-imagegate-cost-usd");

/// How each image of an answer is given.
#[derive(Debug)]
pub enum Given {
    /// In base64.
    Bytes(Pieces),
    /// At an address.
    Url(String),
}

/// A finished request as JSON.
pub fn images(result: &ImageResult, given: Vec<Given>, request: &HeaderMap) -> Response {
    respond(write(String::new(), result, given), result, request)
}

/// A job that has succeeded as JSON, with its result as a further member.
pub fn job(job: &Value, result: &ImageResult, given: Vec<Given>, request: &HeaderMap) -> Response {
    let mut head = job.to_string();
    head.pop();
    head.push_str(",\"result\":");
    let mut segments = write(head, result, given);
    segments.push(Segment::Text("}".into()));
    respond(segments, result, request)
}

fn respond(segments: Vec<Segment>, result: &ImageResult, request: &HeaderMap) -> Response {
    let mut response = Response::new(Body::new(EncodedBody::from(segments)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    report_headers(response.headers_mut(), &report_of(result.report.as_ref()), request);
    response
}

/// What routing did, or nothing where nobody says.
pub fn report_of(said: Option<&RouteReport>) -> Cow<'_, RouteReport> {
    said.map_or_else(Cow::default, Cow::Borrowed)
}

/// The JSON object of a result, behind what has been written of the text around it.
fn write(mut text: String, result: &ImageResult, given: Vec<Given>) -> Vec<Segment> {
    let report = report_of(result.report.as_ref());
    let mut segments = Vec::with_capacity(given.len() * 2 + 1);
    _ = write!(text, "{{\"created\":{},\"data\":[", result.created_unix_s);
    for (i, (image, given)) in result.images.iter().zip(given).enumerate() {
        if i > 0 {
            text.push(',');
        }
        match given {
            Given::Url(url) => _ = write!(text, "{{\"url\":{}", Value::from(url)),
            Given::Bytes(pieces) => {
                text.push_str("{\"b64_json\":\"");
                segments.push(Segment::Text(std::mem::take(&mut text).into()));
                segments.push(Segment::Image(pieces));
                text.push('"');
            }
        }
        if !image.revised_prompt.is_empty() {
            _ = write!(text, ",\"revised_prompt\":{}", Value::from(image.revised_prompt.as_str()));
        }
        if let (Some(seed), false) = (image.seed, report.strict_open_ai_compliance) {
            _ = write!(text, ",\"seed\":{seed}");
        }
        text.push('}');
    }
    text.push(']');
    for (name, value) in shared_fields(result) {
        _ = write!(text, ",\"{name}\":{value}");
    }
    // The reference names the provider in every answer it has to translate.
    if report.provider != "openai" {
        _ = write!(text, ",\"provider\":{}", Value::from(report.provider.as_str()));
    }
    text.push('}');
    segments.push(Segment::Text(text.into()));
    segments
}

/// What OpenAI's answers and events say about all images: how they were made and what they took.
pub fn shared_fields(result: &ImageResult) -> Map<String, Value> {
    let mut fields = Map::new();
    if let Some(image) = result.images.first() {
        fields.insert("output_format".into(), image.format().name().into());
        if image.width > 0 {
            fields.insert("size".into(), format!("{}x{}", image.width, image.height).into());
        }
    }
    let applied = result.applied.unwrap_or_default();
    if let Some(quality) = params::quality_name(applied.quality()) {
        fields.insert("quality".into(), quality.into());
    }
    if let Some(background) = params::background_name(applied.background()) {
        fields.insert("background".into(), background.into());
    }
    if let Some(usage) = result.usage.as_ref().and_then(usage) {
        fields.insert("usage".into(), usage);
    }
    fields
}

fn usage(usage: &pb::Usage) -> Option<Value> {
    let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b.unwrap_or(0)).or(b);
    let input = sum(usage.input_text_tokens, usage.input_image_tokens)?;
    let output = sum(usage.output_text_tokens, usage.output_image_tokens)?;
    Some(json!({
        "input_tokens": input,
        "input_tokens_details": {
            "text_tokens": usage.input_text_tokens.unwrap_or(0),
            "image_tokens": usage.input_image_tokens.unwrap_or(0),
        },
        "output_tokens": output,
        "output_tokens_details": {
            "text_tokens": usage.output_text_tokens.unwrap_or(0),
            "image_tokens": usage.output_image_tokens.unwrap_or(0),
        },
        "total_tokens": input + output,
    }))
}

/// A failed request.
pub fn error(error: &Error, request: &HeaderMap) -> Response {
    error_with(error, error_body(error), request)
}

/// A failed request whose body says more.
pub fn error_with(error: &Error, body: Value, request: &HeaderMap) -> Response {
    let status = error.status_code();
    let mut response = (status, axum::Json(body)).into_response();
    let report = report_of(error.report.as_deref());
    let headers = response.headers_mut();
    report_headers(headers, &report, request);
    if let Some(wait) = error.retry_after {
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        headers.insert("retry-after-ms", millis.into());
        headers.insert(header::RETRY_AFTER, millis.div_ceil(1000).into());
    }
    // OpenAI's SDKs repeat 408, 409, 429 and every 5xx by themselves. Where an attempt may have been billed
    // that would pay twice for one picture.
    let may_be_billed =
        |attempt: &pb::Attempt| matches!(attempt.billing(), BillingClass::Unknown | BillingClass::Billed);
    if report.attempts.iter().any(may_be_billed) || error.kind == ErrorKind::ContentRejected {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    response
}

/// OpenAI's error object; a config's problems also in the reference's shape.
pub fn error_body(error: &Error) -> Value {
    let mut body = json!({"error": error.to_openai()});
    if !error.provider.is_empty() {
        body["provider"] = error.provider.as_str().into();
    }
    if error.code.as_deref() == Some("invalid_config") {
        body["status"] = "failure".into();
        let summary = if error.violations.is_empty() { &error.message } else { "Invalid config passed" };
        body["message"] = summary.into();
        let line = |v: &pb::Violation| format!("path: {}, message: {}", v.path.replace('.', ","), v.message);
        if !error.violations.is_empty() {
            body["errors"] = error.violations.iter().map(line).collect();
        }
    }
    body
}

/// What routing did, as headers.
pub fn report_headers(headers: &mut HeaderMap, report: &RouteReport, request: &HeaderMap) {
    let request_id = match report.request_id.as_str() {
        "" => Cow::Owned(uuid::Uuid::now_v7().to_string()),
        said => Cow::Borrowed(said),
    };
    let asked = request.get(&TRACE_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Never empty: without it the reference's SDKs repeat every 5xx.
    let trace_id = [&report.trace_id, asked, &request_id].into_iter().find(|id| !id.is_empty());
    headers.reserve(HEADERS);
    headers.insert(RETRY_ATTEMPT_COUNT, report.retry_count.into());
    headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_text(report.cache_status())));
    let mut put = |name: HeaderName, value: &str| {
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(&visible(value))) {
            headers.insert(name, value);
        }
    };
    put(TRACE_ID, trace_id.unwrap_or_default());
    put(REQUEST_ID, &request_id);
    put(PROVIDER, &report.provider);
    put(LAST_USED_OPTION_INDEX, &report.target);
    put(ATTEMPTS, &attempts_text(&report.attempts));
    put(WARNINGS, &warnings_text(&report.warnings));
    put(REPLAY_OF, &report.replay_of);
    put(REFUSED_BY, &report.refused_by.join(", "));
    put(COST_USD, &cost_text(&report.cost_lines));
    if let Some(parent) = request.get("traceparent") {
        headers.insert("traceparent", parent.clone());
    }
}

fn cache_text(status: CacheStatus) -> &'static str {
    match status {
        CacheStatus::Unspecified => "DISABLED",
        CacheStatus::Hit => "HIT",
        CacheStatus::Miss => "MISS",
        CacheStatus::Refresh => "REFRESH",
        CacheStatus::SemanticHit => "SEMANTIC HIT",
        CacheStatus::SemanticMiss => "SEMANTIC MISS",
    }
}

fn warnings_text(warnings: &[pb::Warning]) -> String {
    let one =
        |warning: &pb::Warning| format!("{} {}: {}", warning.field, action(warning.action()), warning.detail);
    warnings.iter().map(one).collect::<Vec<_>>().join(" | ")
}

/// What happened to a parameter, in a word.
pub fn action(action: Action) -> &'static str {
    action.name().unwrap_or("notice")
}

/// The sum, or `unknown` as soon as one line is.
fn cost_text(lines: &[pb::CostLine]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    match lines.iter().map(|line| line.amount_usd).sum::<Option<f64>>() {
        // Enough digits for one token.
        Some(sum) => format!("{sum:.6}"),
        None => "unknown".into(),
    }
}

/// A header's value may only be visible ASCII, and not endless.
fn visible(text: &str) -> Cow<'_, str> {
    let is_visible = |c: char| c == ' ' || c.is_ascii_graphic();
    if text.len() <= MAX_HEADER_BYTES && text.bytes().all(|byte| is_visible(byte.into())) {
        return text.into();
    }
    text.chars().take(MAX_HEADER_BYTES).map(|c| if is_visible(c) { c } else { '?' }).collect()
}
