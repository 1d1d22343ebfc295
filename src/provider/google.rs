//! Google's Gemini API: models that answer `generateContent` with images.
//!
//! Field names and enums are those of google-genai 3.4.0. Imagen's `:predict` is not here: Google has switched
//! those models off. A refusal is a 200 here, and a wrong key is a 400. Sizes, limits and prices are data
//! (`google.yaml`): the router has fitted the request before it comes here.

use std::{sync::LazyLock, time::Duration};

use http::{HeaderName, Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Answer, ImageRef, Job, Output, Provider, Step, bytes_of, catalog, is_path_segment, json_request,
    no_such_model,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::{Pieces, probe},
    pb::{self, BillingClass, FinishReason, Operation, size::Size},
};

const NAME: &str = "google";

const KEY_HEADER: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Extras that belong into `generationConfig`; the others stand beside it.
const GENERATION_EXTRAS: &[&str] = &["thinkingConfig", "temperature", "topP", "topK", "responseModalities"];

/// Every ratio of every model, for sizes that come in pixels.
const RATIOS: &[(f64, &str)] = &[
    (1.0, "1:1"),
    (2.0 / 3.0, "2:3"),
    (3.0 / 2.0, "3:2"),
    (3.0 / 4.0, "3:4"),
    (4.0 / 3.0, "4:3"),
    (4.0 / 5.0, "4:5"),
    (5.0 / 4.0, "5:4"),
    (9.0 / 16.0, "9:16"),
    (16.0 / 9.0, "16:9"),
    (21.0 / 9.0, "21:9"),
    (1.0 / 4.0, "1:4"),
    (4.0, "4:1"),
    (1.0 / 8.0, "1:8"),
    (8.0, "8:1"),
];

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(include_str!("google.yaml")));

/// The provider `google`.
#[derive(Debug)]
pub struct Google;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    #[serde(default)]
    candidates: Vec<Candidate>,
    #[serde(default)]
    prompt_feedback: Option<PromptFeedback>,
    #[serde(default)]
    usage_metadata: Option<Value>,
    #[serde(default)]
    response_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    #[serde(default)]
    content: Option<Parts>,
    #[serde(default)]
    finish_reason: String,
    #[serde(default)]
    finish_message: String,
}

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    parts: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(default)]
    inline_data: Option<InlineData>,
    /// A draft that the model made on its way.
    #[serde(default)]
    thought: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InlineData {
    #[serde(default)]
    mime_type: String,
    #[serde(default)]
    data: Option<ImageRef>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PromptFeedback {
    #[serde(default)]
    block_reason: String,
    #[serde(default)]
    block_reason_message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    #[serde(default)]
    prompt_token_count: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Vec<Tokens>,
    #[serde(default)]
    candidates_token_count: Option<u64>,
    #[serde(default)]
    candidates_tokens_details: Vec<Tokens>,
    /// Charged like text.
    #[serde(default)]
    thoughts_token_count: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tokens {
    #[serde(default)]
    modality: String,
    #[serde(default)]
    token_count: u64,
}

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

impl Provider for Google {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://generativelanguage.googleapis.com/v1beta"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["data"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let request = &job.request;
        let model = &request.model;
        if !is_path_segment(model) {
            return Err(no_such_model(model, NAME));
        }
        match request.effective_operation() {
            Operation::Generate => {}
            Operation::Edit if !request.inputs.is_empty() => {}
            Operation::Edit => return Err(Error::invalid("image", "an edit needs an image")),
            other => {
                let message = format!("{NAME} has no operation {:?}", other.name());
                return Err(Error::unsupported("operation", message));
            }
        }
        let call =
            job.call_as(Method::POST, &format!("/models/{model}:generateContent"), (KEY_HEADER, ""))?;
        json_request(call, &body(job)?)
    }

    fn advance(&self, job: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        let content: Content = answer.json().map_err(|error| own(&answer, error, ""))?;
        let id = content.response_id.as_str();
        if content.candidates.is_empty() {
            return Err(own(&answer, nothing(content.prompt_feedback), id));
        }
        let mut images = Vec::new();
        let mut reason = None;
        for candidate in &content.candidates {
            let before = images.len();
            for data in candidate.images() {
                let data = answer.take_image(data).map_err(|error| own(&answer, error, id))?;
                images.push(pb::Image {
                    data,
                    finish_reason: FinishReason::Stop.into(),
                    ..Default::default()
                });
            }
            if images.len() == before {
                images.push(pb::Image { finish_reason: candidate.outcome().into(), ..Default::default() });
                reason = reason.or(Some(candidate));
            }
        }
        if let (Some(candidate), true) = (reason, images.iter().all(|image| image.data.is_empty())) {
            return Err(own(&answer, candidate.error(), id));
        }
        Ok(Step::Done(Output {
            images,
            usage: content.usage_metadata.and_then(|usage| Usage::read(usage, job)),
            upstream_request_id: content.response_id,
            ..Default::default()
        }))
    }
}

fn body(job: &Job) -> Result<Map<String, Value>> {
    let request = &job.request;
    let mut parts = vec![json!({"text": request.prompt})];
    for input in &request.inputs {
        let data = bytes_of(input)?;
        let format = probe::sniff(&data).unwrap_or(pb::ImageFormat::Png);
        let base64 = base64_simd::STANDARD.encode_to_string(&data);
        parts.push(json!({"inlineData": {"mimeType": format.mime_type(), "data": base64}}));
    }
    let mut generation = Map::new();
    generation.insert("responseModalities".into(), json!(["IMAGE"]));
    if let Some(seed) = request.seed {
        generation.insert("seed".into(), seed.into());
    }
    let mut image = image_config(request);
    let mut body = Map::new();
    body.insert("contents".into(), json!([{"role": "user", "parts": parts}]));
    for (name, value) in job.extras(NAME) {
        match name.as_str() {
            "imageSize" => image.insert(name, value),
            inner if GENERATION_EXTRAS.contains(&inner) => generation.insert(name, value),
            _ => body.insert(name, value),
        };
    }
    if !image.is_empty() {
        generation.insert("imageConfig".into(), image.into());
    }
    body.insert("generationConfig".into(), generation.into());
    Ok(body)
}

/// Pixels stand for a ratio and a tier, where the model has tiers.
fn image_config(request: &pb::ImageRequest) -> Map<String, Value> {
    let mut config = Map::new();
    match request.size.and_then(|size| size.size) {
        Some(Size::AspectRatio(ratio)) => {
            config.insert("aspectRatio".into(), format!("{}:{}", ratio.width, ratio.height).into());
        }
        Some(Size::Dimensions(d)) => {
            let (width, height) = (f64::from(d.width), f64::from(d.height));
            let distance = |ratio: f64| (ratio * height / width).ln().abs();
            if let Some((_, name)) = RATIOS.iter().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0))) {
                config.insert("aspectRatio".into(), (*name).into());
            }
            let tier = match (width * height).sqrt() {
                side if side < 768.0 => "512",
                side if side < 1536.0 => "1K",
                side if side < 3072.0 => "2K",
                _ => "4K",
            };
            config.insert("imageSize".into(), tier.into());
        }
        Some(Size::Auto(_)) | None => {}
    }
    config
}

/// Why an answer has no candidate.
fn nothing(feedback: Option<PromptFeedback>) -> Error {
    let Some(feedback) = feedback.filter(|feedback| !feedback.block_reason.is_empty()) else {
        return Error::bad_answer("the answer has no candidate");
    };
    let said = said(&feedback.block_reason_message);
    Error::refused("prompt", format!("the prompt was blocked: {}{said}", feedback.block_reason))
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(", {message}") }
}

impl Candidate {
    fn images(&self) -> impl Iterator<Item = &ImageRef> {
        let parts = self.content.iter().flat_map(|content| &content.parts);
        parts
            .filter(|part| !part.thought)
            .filter_map(|part| part.inline_data.as_ref())
            .filter(|inline| inline.mime_type.starts_with("image/"))
            .filter_map(|inline| inline.data.as_ref())
    }

    /// What the absence of an image means.
    fn outcome(&self) -> FinishReason {
        match self.finish_reason.as_str() {
            "SAFETY"
            | "RECITATION"
            | "BLOCKLIST"
            | "PROHIBITED_CONTENT"
            | "SPII"
            | "IMAGE_SAFETY"
            | "IMAGE_PROHIBITED_CONTENT"
            | "IMAGE_RECITATION"
            | "MODEL_ARMOR"
            | "ESCALATION" => FinishReason::ContentFiltered,
            _ => FinishReason::Error,
        }
    }

    fn error(&self) -> Error {
        let (reason, said) = (&self.finish_reason, said(&self.finish_message));
        match self.outcome() {
            FinishReason::ContentFiltered => {
                Error::refused("output", format!("the image was withheld: {reason}{said}"))
            }
            _ if reason == "PUP_LIMITED_DISABLED" => {
                Error::new(ErrorKind::PermissionDenied, format!("{reason}{said}"))
                    .billed(BillingClass::RejectedUnbilled)
            }
            // The model may have answered in words, which are not repeated here: they quote the prompt.
            _ => Error::bad_answer(format!("the answer has no image: {reason}{said}")),
        }
    }
}

impl Usage {
    /// An odd usage is none: it must not cost the image it came with.
    fn read(value: Value, job: &Job) -> Option<pb::Usage> {
        let usage: Self = serde_json::from_value(value).ok()?;
        let of = |details: &[Tokens], modality: &str| {
            let counts = details.iter().filter(|tokens| tokens.modality == modality);
            counts.map(|tokens| tokens.token_count).reduce(|sum, more| sum + more)
        };
        let mut counted = pb::Usage {
            input_text_tokens: of(&usage.prompt_tokens_details, "TEXT"),
            input_image_tokens: of(&usage.prompt_tokens_details, "IMAGE"),
            output_text_tokens: of(&usage.candidates_tokens_details, "TEXT"),
            output_image_tokens: of(&usage.candidates_tokens_details, "IMAGE"),
            ..Default::default()
        };
        if usage.prompt_tokens_details.is_empty() && job.request.inputs.is_empty() {
            counted.input_text_tokens = usage.prompt_token_count;
        }
        if usage.candidates_tokens_details.is_empty() {
            counted.output_image_tokens = usage.candidates_token_count;
        }
        if let Some(thoughts) = usage.thoughts_token_count {
            counted.output_text_tokens = Some(counted.output_text_tokens.unwrap_or_default() + thoughts);
        }
        Some(counted).filter(|counted| *counted != pb::Usage::default())
    }
}

/// The error that an answer with an error status is.
fn failure(answer: &Answer) -> Error {
    let body = match answer.json() {
        Ok(ErrorAnswer::Object { error }) => Some(error),
        Ok(ErrorAnswer::List(mut entries)) => entries.pop().map(|entry| entry.error),
        Err(_) => None,
    };
    let Some(body) = body else {
        return answer.default_error(NAME, format!("{NAME} error: {}", answer.plain_text()));
    };
    let text = if body.message.is_empty() { &body.status } else { &body.message };
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    let reason = |wanted: &str| body.details.iter().any(|detail| detail.reason == wanted);
    let daily = body.details.iter().flat_map(|d| &d.violations).any(|v| v.quota_id.contains("PerDay"));
    if reason("API_KEY_INVALID") || body.status == "FAILED_PRECONDITION" {
        // The latter is a place or an account that Google does not serve.
        error.kind = ErrorKind::PermissionDenied;
    } else if error.status == 429 && (daily || body.message.contains("credits are depleted"))
        || reason("BILLING_DISABLED")
    {
        error.kind = ErrorKind::QuotaExhausted;
    } else if error.status == 400 && body.message.contains("Responsible AI practices") {
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

/// A protobuf duration in JSON: `34s`, `0.5s`.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// An error of ours about an answer, with who sent it.
fn own(answer: &Answer, error: Error, id: &str) -> Error {
    let mut error = answer.own(NAME, error);
    error.upstream_request_id = id.to_owned();
    error
}
