//! What a request says before its route is known: whether it can be served at all, its time, its trace.

use std::time::Duration;

use http::HeaderMap;
use serde_json::Value;

use super::TRACE_ID;
use crate::{
    error::{Error, Result},
    images::probe,
    params,
    pb::{self, Operation, input_image::Source},
    transport::grpc_timeout,
};

/// What no target could serve, refused before anything is tried.
pub fn check(image: &pb::ImageRequest) -> Result<()> {
    if let Some(n) = image.n.filter(|n| *n == 0 || *n > params::MAX_IMAGES) {
        let message = format!("n: {n} is not allowed; allowed: 1 to {}", params::MAX_IMAGES);
        return Err(Error::invalid("n", message).with_code("invalid_value"));
    }
    let operation = image.effective_operation();
    let needs_prompt = matches!(operation, Operation::Generate | Operation::Edit | Operation::Inpaint);
    if needs_prompt && image.prompt.trim().is_empty() && image.weighted_prompts.is_empty() {
        return Err(Error::invalid("prompt", "prompt: required, and must not be empty")
            .with_code("missing_required_parameter"));
    }
    if operation != Operation::Generate && image.inputs.is_empty() {
        let message = format!("image: required for operation {}", operation.name());
        return Err(Error::invalid("image", message).with_code("missing_required_parameter"));
    }
    for (i, input) in image.inputs.iter().enumerate() {
        if matches!(&input.source, Some(Source::Data(data)) if probe::sniff(data).is_none()) {
            let message = format!("image: input {i} is not an image; allowed: png, jpeg, webp");
            return Err(Error::invalid("image", message).with_code("invalid_image_file"));
        }
    }
    if image.mask.as_ref().is_some_and(|mask| probe::sniff(&mask.data).is_none()) {
        return Err(
            Error::invalid("mask", "mask: not an image; allowed: png").with_code("invalid_image_file")
        );
    }
    Ok(())
}

/// The trace that the caller names in the reference's header.
pub fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACE_ID)?.to_str().ok()?.trim();
    (!text.is_empty()).then_some(text)
}

/// What the caller says about the request. As in the reference, what is no JSON object says nothing.
pub fn metadata(headers: &HeaderMap) -> Value {
    let text = headers.get("x-portkey-metadata").and_then(|value| value.to_str().ok());
    text.and_then(|text| serde_json::from_str(text).ok()).filter(Value::is_object).unwrap_or(Value::Null)
}

/// How long the whole request may take: the least of what the operator, the caller's header and its deadline say.
pub fn time_limit(headers: &HeaderMap, total: Duration) -> Result<Duration> {
    let total = total_timeout(headers)?.map_or(total, |limit| limit.min(total));
    Ok(grpc_timeout(headers).map_or(total, |limit| answer_within(limit).min(total)))
}

/// The caller's own limit of the whole request.
fn total_timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    const NAME: &str = "x-imagegate-total-timeout-ms";
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    let millis =
        value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()).filter(|millis| *millis > 0);
    match millis {
        Some(millis) => Ok(Some(Duration::from_millis(millis))),
        None => Err(Error::invalid(
            NAME,
            format!("{NAME}: {value:?} is not allowed; allowed: milliseconds above 0"),
        )),
    }
}

/// How long a request may take whose caller waits for `limit`. A little less: at the limit itself tonic ends
/// the call on both sides, and the caller never learns what was tried.
fn answer_within(limit: Duration) -> Duration {
    limit - (limit / 20).min(Duration::from_millis(100))
}
