//! xAI's image API (Grok Imagine): OpenAI's paths with fields of its own. Edits are JSON too.
//!
//! Facts are from xAI's Python SDK 1.21.0 and its pages "Image Generation" and "Debugging Errors", unless a
//! comment names another source. A refusal mostly comes as a success whose image is missing.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, Job, Output, Provider, Step, address_of, catalog, json_request, openai};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    params,
    pb::{self, BillingClass, FinishReason, Operation, size::Size},
};

const NAME: &str = "x-ai";

/// Ticks of a US dollar. Nowhere stated; it follows from 200,000,000 for an image of $0.02.
const TICKS_PER_USD: f64 = 1e10;

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("xai")));

/// The provider `x-ai`.
#[derive(Debug)]
pub struct Xai;

#[derive(Deserialize)]
struct Images {
    data: Vec<Item>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(flatten)]
    image: openai::Item,
    #[serde(default)]
    respect_moderation: Option<bool>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    cost_in_usd_ticks: Option<f64>,
}

impl Provider for Xai {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.x.ai/v1"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["b64_json"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        match job.request.effective_operation() {
            Operation::Generate => json_request(job.call(Method::POST, "/images/generations")?, &fields(job)),
            Operation::Edit => edit(job),
            other => {
                Err(Error::unsupported("operation", format!("{NAME} has no operation {:?}", other.name())))
            }
        }
    }

    fn advance(&self, _: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        let Images { data, usage } = answer.json().map_err(|error| answer.own(NAME, error))?;
        if data.is_empty() {
            return Err(refusal(&answer));
        }
        let mut urls = Vec::new();
        let mut images = Vec::with_capacity(data.len());
        for item in data {
            let image = item.read(&mut answer, &mut urls);
            images.push(image.map_err(|error| answer.own(NAME, error))?);
        }
        let output = Output {
            images,
            reported_cost_usd: usage.and_then(|usage| usage.cost_in_usd_ticks).map(|t| t / TICKS_PER_USD),
            upstream_request_id: answer.request_id(),
            ..Default::default()
        };
        // What is fetched goes to images without data, a withheld one among them: so nothing is fetched
        // for an answer that the router refuses anyway.
        let withheld =
            output.images.iter().any(|image| image.finish_reason() == FinishReason::ContentFiltered);
        Ok(if urls.is_empty() || withheld { Step::Done(output) } else { Step::Fetch { urls, output } })
    }
}

/// JSON, with the images as addresses.
fn edit(job: &Job) -> Result<Request<Pieces>> {
    let images = job
        .request
        .inputs
        .iter()
        .map(|input| Ok(json!({"type": "image_url", "url": address_of(input)?})))
        .collect::<Result<Vec<Value>>>()?;
    let mut fields = fields(job);
    match <[Value; 1]>::try_from(images) {
        Ok([image]) => fields.insert("image".into(), image),
        Err(images) if images.is_empty() => return Err(Error::invalid("image", "an edit needs an image")),
        Err(images) => fields.insert("images".into(), images.into()),
    };
    json_request(job.call(Method::POST, "/images/edits")?, &fields)
}

/// Everything but the images.
fn fields(job: &Job) -> Map<String, Value> {
    let request = &job.request;
    let mut fields = Map::new();
    fields.insert("model".into(), request.model.as_str().into());
    fields.insert("prompt".into(), request.prompt.as_str().into());
    // The alternative is an address that works for a while.
    fields.insert("response_format".into(), "b64_json".into());
    if let Some(n) = request.n {
        fields.insert("n".into(), n.into());
    }
    if let Some(Size::AspectRatio(_) | Size::Auto(_)) = request.size.and_then(|size| size.size) {
        fields.insert("aspect_ratio".into(), request.size.map(|size| size.text()).into());
    }
    if let Some(quality) = params::quality_name(request.quality()) {
        fields.insert("quality".into(), quality.into());
    }
    if !request.end_user.is_empty() {
        fields.insert("user".into(), request.end_user.as_str().into());
    }
    fields.extend(job.extras(NAME));
    fields
}

impl Item {
    fn read(self, answer: &mut Answer, urls: &mut Vec<String>) -> Result<pb::Image> {
        let withheld = self.respect_moderation == Some(false);
        let data = if withheld { Bytes::new() } else { self.image.bytes(answer, urls)? };
        let reason = if withheld { FinishReason::ContentFiltered } else { FinishReason::Unspecified };
        Ok(pb::Image {
            data,
            revised_prompt: self.image.revised_prompt.unwrap_or_default(),
            finish_reason: reason.into(),
            ..Default::default()
        })
    }
}

/// A success without any image: the whole request was blocked (seen by the reporter of issue 19168 of
/// vercel/ai). Nobody says whether that is charged.
fn refusal(answer: &Answer) -> Error {
    let mut error = answer.default_error(NAME, format!("{NAME} error: moderation left no image"));
    error.kind = ErrorKind::ContentRejected;
    error.billing = BillingClass::Unknown;
    error.with_status(400)
}

/// What xAI means by an error: the status says little, a wrong key has 400 like a bad field.
fn failure(answer: &Answer) -> Error {
    let mut error = openai::failure(NAME, answer);
    let text = error.message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match error.status {
        400 if says(&["api key"]) => error.kind = ErrorKind::PermissionDenied,
        // xAI documents no texts: these words are unconfirmed, like those for credit below.
        400 | 403 | 422 if says(&["moderation", "content policy", "safety"]) => {
            error.kind = ErrorKind::ContentRejected;
            // It was made before it was blocked.
            if says(&["generated image"]) {
                error.billing = BillingClass::Unknown;
            }
        }
        403 | 429 if says(&["credits", "spending limit"]) => error.kind = ErrorKind::QuotaExhausted,
        _ => {}
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::fixtures::json_body;

    #[test]
    fn ticks_are_dollars() {
        let job = Job::new(pb::ImageRequest::default(), "");
        let body = json!({"data": [{"b64_json": "AAAA"}], "usage": {"cost_in_usd_ticks": 200_000_000}});
        let answer = Answer {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            address: String::new(),
            note: String::new(),
            body: json_body(body, Xai.image_members()),
        };
        let Ok(Step::Done(output)) = Xai.advance(&job, answer) else { panic!("an image") };
        assert_eq!(output.reported_cost_usd, Some(0.02));
    }
}
