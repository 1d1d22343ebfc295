//! What errors of Google's APIs mean. A refusal or a wrong key can have status 400 here.

use std::time::Duration;

use serde::Deserialize;

use super::super::Answer;
use crate::error::{Error, ErrorKind};

/// What messages of status 400 say when Imagen or Gemini refuse a prompt, in lower case; no field tells it.
const REFUSALS: &[&str] = &["responsible ai practices", "sensitive words", "support code"];

/// Some endpoints put the object into a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorAnswer {
    Object { error: ErrorBody },
    List(Vec<ErrorEntry>),
}

#[derive(Deserialize)]
struct ErrorEntry {
    error: ErrorBody,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorBody {
    message: String,
    /// A gRPC code's name.
    status: String,
    details: Vec<Detail>,
}

/// `ErrorInfo`, `RetryInfo` and `QuotaFailure` in one: their fields differ.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Detail {
    reason: String,
    retry_delay: String,
    violations: Vec<Violation>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Violation {
    quota_id: String,
}

/// The error that an answer with an error status is.
pub(in crate::provider) fn failure(provider: &str, answer: &Answer) -> Error {
    let body = match answer.json() {
        Ok(ErrorAnswer::Object { error }) => Some(error),
        Ok(ErrorAnswer::List(mut entries)) => entries.pop().map(|entry| entry.error),
        Err(_) => None,
    };
    let Some(body) = body else {
        return answer.default_error(provider, format!("{provider} error: {}", answer.plain_text()));
    };
    let text = if body.message.is_empty() { &body.status } else { &body.message };
    let mut error = answer.default_error(provider, format!("{provider} error: {text}"));
    let reason = |wanted: &str| body.details.iter().any(|detail| detail.reason == wanted);
    let daily = body.details.iter().flat_map(|d| &d.violations).any(|v| v.quota_id.contains("PerDay"));
    if reason("API_KEY_INVALID") || body.status == "FAILED_PRECONDITION" {
        // The latter is a place or an account that Google does not serve.
        error.kind = ErrorKind::PermissionDenied;
    } else if error.status == 429 && (daily || body.message.contains("credits are depleted"))
        || reason("BILLING_DISABLED")
    {
        error.kind = ErrorKind::QuotaExhausted;
    } else if error.status == 400 && is_refusal(&body.message) {
        error.kind = ErrorKind::ContentRejected;
    }
    // A spent day comes with a delay as well, of seconds.
    if error.retry_after.is_none() && error.kind != ErrorKind::QuotaExhausted {
        error.retry_after = body.details.iter().find_map(|detail| seconds(&detail.retry_delay));
    }
    let mut texts = body.details.iter().map(|detail| &detail.reason).chain([&body.status]);
    error.code = match error.kind {
        ErrorKind::ContentRejected => error.kind.openai_code().map(str::to_owned),
        _ => texts.find(|text| !text.is_empty()).cloned(),
    };
    error.error_type = Some(&body.status).filter(|status| !status.is_empty()).cloned();
    error
}

fn is_refusal(message: &str) -> bool {
    let message = message.to_lowercase();
    REFUSALS.iter().any(|words| message.contains(words))
}

/// A protobuf duration in JSON: `34s`, `0.5s`.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}
