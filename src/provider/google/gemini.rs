//! Gemini's `generateContent`, as the Gemini API and Vertex AI both speak it: images from models that also write.
//!
//! Field names and enums are those of google-genai 3.4.0. A refusal is a 200 here.

use http::{Request, request::Builder};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    super::{Answer, ImageRef, Job, Output, Step, bytes_of, json_request},
    shape::Shape,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::{Pieces, probe},
    pb::{self, BillingClass, FinishReason, Operation},
};

/// Members of answers that are images.
pub(in crate::provider) const IMAGE_MEMBERS: &[&str] = &["data"];

/// Extras that belong into `imageConfig`. The last are Vertex AI's.
const IMAGE_EXTRAS: &[&str] = &["imageSize", "personGeneration", "prominentPeople"];

/// Extras that belong into `generationConfig`; the others stand beside it.
const GENERATION_EXTRAS: &[&str] = &["thinkingConfig", "temperature", "topP", "topK", "responseModalities"];

/// Every ratio of every model, for sizes that come in pixels.
const RATIOS: &[(u32, u32)] = &[
    (1, 1),
    (2, 3),
    (3, 2),
    (3, 4),
    (4, 3),
    (4, 5),
    (5, 4),
    (9, 16),
    (16, 9),
    (21, 9),
    (1, 4),
    (4, 1),
    (1, 8),
    (8, 1),
];

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

/// The request of a job, for a call of `generateContent`. `image` is what `imageConfig` has besides the size.
///
/// # Errors
/// The operation is none of Gemini's.
pub(in crate::provider) fn start(
    provider: &str,
    job: &Job,
    call: Builder,
    image: Map<String, Value>,
) -> Result<Request<Pieces>> {
    let request = &job.request;
    match request.effective_operation() {
        Operation::Generate => {}
        Operation::Edit if !request.inputs.is_empty() => {}
        Operation::Edit => return Err(Error::invalid("image", "an edit needs an image")),
        other => {
            let message = format!("{provider} has no operation {:?}", other.name());
            return Err(Error::unsupported("operation", message));
        }
    }
    json_request(call, &body(provider, job, image)?)
}

/// What a success means.
pub(in crate::provider) fn advance(provider: &str, job: &Job, mut answer: Answer) -> Result<Step> {
    let content: Content = answer.json().map_err(|error| own(provider, &answer, error, ""))?;
    let id = content.response_id.as_str();
    if content.candidates.is_empty() {
        return Err(own(provider, &answer, nothing(content.prompt_feedback), id));
    }
    let mut images = Vec::new();
    let mut reason = None;
    for candidate in &content.candidates {
        let before = images.len();
        for data in candidate.images() {
            let data = answer.take_image(data).map_err(|error| own(provider, &answer, error, id))?;
            images.push(pb::Image { data, finish_reason: FinishReason::Stop.into(), ..Default::default() });
        }
        if images.len() == before {
            images.push(pb::Image { finish_reason: candidate.outcome().into(), ..Default::default() });
            reason = reason.or(Some(candidate));
        }
    }
    if let (Some(candidate), true) = (reason, images.iter().all(|image| image.data.is_empty())) {
        return Err(own(provider, &answer, candidate.error(), id));
    }
    Ok(Step::Done(Output {
        images,
        usage: content.usage_metadata.and_then(|usage| Usage::read(usage, job)),
        upstream_request_id: content.response_id,
        ..Default::default()
    }))
}

fn body(provider: &str, job: &Job, mut image: Map<String, Value>) -> Result<Map<String, Value>> {
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
    if let Some(shape) = Shape::of(request, RATIOS) {
        image.insert("aspectRatio".into(), shape.ratio.into());
        image.extend(shape.tier.map(|tier| ("imageSize".to_owned(), tier.into())));
    }
    let mut body = Map::new();
    body.insert("contents".into(), json!([{"role": "user", "parts": parts}]));
    for (name, value) in job.extras(provider) {
        match name.as_str() {
            inner if IMAGE_EXTRAS.contains(&inner) => image.insert(name, value),
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

/// An error of ours about an answer, with who sent it.
fn own(provider: &str, answer: &Answer, error: Error, id: &str) -> Error {
    let mut error = answer.own(provider, error);
    error.upstream_request_id = id.to_owned();
    error
}
