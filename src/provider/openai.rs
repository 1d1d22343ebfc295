//! OpenAI's Images API, and the servers that speak its dialect.
//!
//! Field names and event types are those of the OpenAI Python SDK 3.54.0; the dall-e rules, which that version
//! no longer has, are from OpenAI's OpenAPI document of 2026-08-21. Sizes, limits and prices are data
//! (`openai.yaml`): the router has fitted the request before it comes here.

use std::{sync::LazyLock, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Answer, AnswerBody, Event, ImageRef, Job, Output, Provider, Step, bytes_of, catalog, inlined,
    json_request, mask_as, multipart::Form,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass, Operation, Quality, warning::Action},
};

const NAME: &str = "openai";

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("openai")));

/// The provider `openai`.
#[derive(Debug)]
pub struct OpenAi;

/// Which fields a model takes: one that it does not take is an error of status 400.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    DallE2,
    /// And whatever else is named `dall-e`.
    DallE3,
    GptImage,
}

#[derive(Deserialize)]
struct Images {
    #[serde(default)]
    data: Option<Vec<Item>>,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(default)]
    error: Option<ErrorBody>,
}

/// One image of an answer.
#[derive(Deserialize)]
pub(super) struct Item {
    #[serde(default)]
    b64_json: Option<ImageRef>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    pub(super) revised_prompt: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    input_tokens_details: Option<TokenDetails>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    output_tokens_details: Option<TokenDetails>,
}

#[derive(Deserialize)]
struct TokenDetails {
    #[serde(default)]
    text_tokens: Option<u64>,
    #[serde(default)]
    image_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct StreamEvent {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    b64_json: Option<ImageRef>,
    #[serde(default)]
    partial_image_index: u32,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(default)]
    error: Option<ErrorBody>,
}

/// An error as OpenAI writes it, or as servers of the dialect do.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorAnswer {
    error: Option<ErrorBody>,
    message: Option<String>,
    /// FastAPI's spelling.
    detail: Option<Value>,
    /// Beside an `error` that is a text, as xAI has it.
    code: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorBody {
    Object(ErrorObject),
    Text(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorObject {
    message: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    param: Option<String>,
    /// A number at some servers of the dialect.
    code: Option<Value>,
    moderation_details: Option<ModerationDetails>,
    innererror: Option<InnerError>,
}

#[derive(Deserialize)]
struct ModerationDetails {
    #[serde(default)]
    moderation_stage: String,
}

#[derive(Deserialize)]
struct InnerError {
    #[serde(default)]
    code: String,
}

impl Provider for OpenAi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.openai.com/v1"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["b64_json"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        match job.request.effective_operation() {
            Operation::Generate => generation(job),
            Operation::Edit | Operation::Inpaint => edit(job),
            Operation::Variation => variation(job),
            other => {
                Err(Error::unsupported("operation", format!("openai has no operation {:?}", other.name())))
            }
        }
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        read_answer(NAME, job, answer)
    }

    fn event(&self, job: &Job, event: Answer) -> Result<Event> {
        read_event(NAME, job, event)
    }
}

/// What an answer of the dialect means; `provider` is who is named in its errors.
pub(super) fn read_answer(provider: &str, job: &Job, mut answer: Answer) -> Result<Step> {
    if !answer.status.is_success() {
        return Err(failure(provider, &answer));
    }
    let Images { data, usage, error } = answer.json().map_err(|error| answer.own(provider, error))?;
    if let Some(error) = error {
        return Err(failure_in_success(provider, &answer, error));
    }
    let data = data.unwrap_or_default();
    if data.is_empty() {
        return Err(answer.own(provider, Error::bad_answer("the answer has no image")));
    }
    let mut urls = Vec::new();
    let mut images = Vec::with_capacity(data.len());
    for item in data {
        let bytes = item.bytes(&mut answer, &mut urls).map_err(|error| answer.own(provider, error))?;
        images.push(pb::Image {
            data: bytes,
            revised_prompt: item.revised_prompt.unwrap_or_default(),
            ..Default::default()
        });
    }
    let output = Output {
        images,
        usage: usage.and_then(|usage| Usage::read(usage, job)),
        upstream_request_id: answer.request_id(),
        warnings: dropped(job),
        ..Default::default()
    };
    Ok(if urls.is_empty() { Step::Done(output) } else { Step::Fetch { urls, output } })
}

/// What an event of the dialect means.
pub(super) fn read_event(provider: &str, job: &Job, mut answer: Answer) -> Result<Event> {
    if let AnswerBody::Raw(data) = &answer.body
        && data.trim_ascii() == b"[DONE]"
    {
        return Ok(Event::Ignored);
    }
    let event: StreamEvent = answer.json().map_err(|error| answer.own(provider, error))?;
    if let Some(error) = event.error {
        // Part of the image may have been made by now.
        let error = failure_in_success(provider, &answer, error);
        return Err(if error.kind == ErrorKind::ContentRejected {
            error
        } else {
            error.billed(BillingClass::Unknown)
        });
    }
    let image = |answer: &mut Answer| {
        let place = event.b64_json.as_ref().ok_or_else(|| Error::bad_answer("the event has no image"));
        place.and_then(|place| answer.take_image(place)).map_err(|error| answer.own(provider, error))
    };
    // The types differ by endpoint: image_generation.* and image_edit.*.
    if event.kind.ends_with(".partial_image") {
        return Ok(Event::Partial { index: event.partial_image_index, data: image(&mut answer)? });
    }
    if event.kind.ends_with(".completed") {
        let data = image(&mut answer)?;
        return Ok(Event::Done(Output {
            images: vec![pb::Image { data, ..Default::default() }],
            usage: event.usage.and_then(|usage| Usage::read(usage, job)),
            upstream_request_id: answer.request_id(),
            warnings: dropped(job),
            ..Default::default()
        }));
    }
    Ok(Event::Ignored)
}

fn generation(job: &Job) -> Result<Request<Pieces>> {
    json_request(call(job, "/images/generations")?, &fields(NAME, job))
}

fn edit(job: &Job) -> Result<Request<Pieces>> {
    edit_form(job, &fields(NAME, job))?.into_request(call(job, "/images/edits")?)
}

/// Always a form: the JSON variant is for GPT image models only, and its schema has three sizes.
pub(super) fn edit_form(job: &Job, fields: &Map<String, Value>) -> Result<Form> {
    let (markup, images): (Vec<_>, Vec<_>) =
        job.request.inputs.iter().partition(|input| input.role() == pb::InputRole::Markup);
    if images.is_empty() {
        return Err(Error::invalid("image", "an edit needs an image"));
    }
    let mut form = Form::new().fields(fields);
    let name = if images.len() == 1 { "image" } else { "image[]" };
    for (i, input) in images.into_iter().enumerate() {
        form = form.image(name, &format!("image-{i}"), bytes_of(input)?);
    }
    if let Some(mask) = &job.request.mask {
        form = form.image("mask", "mask", mask_as(mask, pb::MaskPolarity::AlphaEdits)?);
    }
    if let Some(markup) = markup.first() {
        form = form.image("markup", "markup", bytes_of(markup)?);
    }
    Ok(form)
}

fn variation(job: &Job) -> Result<Request<Pieces>> {
    let Some(input) = job.request.inputs.first() else {
        return Err(Error::invalid("image", "a variation needs an image"));
    };
    let mut fields = fields(NAME, job);
    // The endpoint has no prompt.
    fields.remove("prompt");
    Form::new()
        .fields(&fields)
        .image("image", "image-0", bytes_of(input)?)
        .into_request(call(job, "/images/variations")?)
}

fn call(job: &Job, path: &str) -> Result<http::request::Builder> {
    let mut request = job.call(Method::POST, path)?;
    for (option, header) in [
        ("openai_organization", "openai-organization"),
        ("openai_project", "openai-project"),
        ("openai_beta", "openai-beta"),
    ] {
        if let Some(text) = job.options.get(option) {
            let value = HeaderValue::from_str(text)
                .map_err(|_| Error::invalid(option, format!("{option} {text:?} fits no header")))?;
            request = request.header(header, value);
        }
    }
    Ok(request)
}

/// Everything but the images.
pub(super) fn fields(provider: &str, job: &Job) -> Map<String, Value> {
    let request = &job.request;
    let family = Family::of(&request.model);
    let mut fields = Map::new();
    fields.insert("model".into(), request.model.as_str().into());
    fields.insert("prompt".into(), request.prompt.as_str().into());
    if let Some(n) = request.n {
        fields.insert("n".into(), n.into());
    }
    if let Some(size) = &request.size {
        fields.insert("size".into(), size.text().into());
    }
    if let Some(quality) = family.quality(request.quality()) {
        fields.insert("quality".into(), quality.into());
    }
    if !request.end_user.is_empty() {
        fields.insert("user".into(), request.end_user.as_str().into());
    }
    match family {
        Family::GptImage => gpt_image_fields(request, &mut fields),
        Family::DallE2 | Family::DallE3 => {
            // The alternative is an address that works for an hour.
            fields.insert("response_format".into(), "b64_json".into());
        }
    }
    if family == Family::DallE3 && !request.style.is_empty() {
        fields.insert("style".into(), request.style.as_str().into());
    }
    fields.extend(job.extras(provider));
    fields
}

fn gpt_image_fields(request: &pb::ImageRequest, fields: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    if let Some(output) = &request.output {
        if output.format() != pb::ImageFormat::Unspecified {
            put("output_format", output.format().name().into());
        }
        if let Some(compression) = output.compression {
            put("output_compression", compression.into());
        }
        match output.background() {
            pb::Background::Unspecified => None,
            pb::Background::Opaque => put("background", "opaque".into()),
            pb::Background::Transparent => put("background", "transparent".into()),
        };
    }
    if request.moderation() == pb::Moderation::Low {
        put("moderation", "low".into());
    }
    match request.input_fidelity() {
        pb::InputFidelity::Unspecified => None,
        pb::InputFidelity::Low => put("input_fidelity", "low".into()),
        pb::InputFidelity::High => put("input_fidelity", "high".into()),
    };
    if let Some(animation) = &request.animation {
        if animation.frame_count > 0 {
            put("frame_count", animation.frame_count.into());
        }
        if animation.frame_duration_ms > 0 {
            put("frame_duration_ms", animation.frame_duration_ms.into());
        }
    }
    for (name, _) in refused_together(request) {
        fields.remove(name);
    }
    // Events do not say which image they belong to, so only a single image is streamed.
    let partial_images = request.partial_images.unwrap_or_default();
    if partial_images > 0 && request.wanted() == 1 {
        fields.insert("stream".into(), true.into());
        fields.insert("partial_images".into(), partial_images.into());
    }
}

/// What GPT image models refuse together with the rest of the request, and why.
fn refused_together(request: &pb::ImageRequest) -> Vec<(&'static str, &'static str)> {
    let output = request.output.unwrap_or_default();
    // PNG is also what comes unasked.
    let has_quality = matches!(output.format(), pb::ImageFormat::Jpeg | pb::ImageFormat::Webp);
    let transparent = output.background() == pb::Background::Transparent;
    [
        (output.compression.is_some() && !has_quality, "output_compression", "only jpeg and webp have it"),
        (transparent && output.format() == pb::ImageFormat::Jpeg, "background", "a jpeg is not transparent"),
        (
            request.input_fidelity() != pb::InputFidelity::Unspecified && request.inputs.is_empty(),
            "input_fidelity",
            "there is no input to be faithful to",
        ),
    ]
    .into_iter()
    .filter_map(|(is_refused, field, why)| is_refused.then_some((field, why)))
    .collect()
}

/// What of the request no field says.
fn dropped(job: &Job) -> Vec<pb::Warning> {
    let warning = |(field, why): (&str, &str)| pb::Warning {
        field: field.to_owned(),
        action: Action::Dropped.into(),
        detail: format!("{why}; dropped"),
        target: String::new(),
    };
    refused_together(&job.request).into_iter().map(warning).collect()
}

impl Family {
    fn of(model: &str) -> Self {
        match model {
            "dall-e-2" => Self::DallE2,
            other if other.starts_with("dall-e") => Self::DallE3,
            _ => Self::GptImage,
        }
    }

    fn quality(self, quality: Quality) -> Option<&'static str> {
        match (self, quality) {
            (_, Quality::Unspecified) | (Self::DallE2, _) => None,
            (Self::DallE3, Quality::Low | Quality::Medium) => Some("standard"),
            (Self::DallE3, Quality::High | Quality::Xhigh | Quality::Max) => Some("hd"),
            (Self::GptImage, Quality::Low) => Some("low"),
            (Self::GptImage, Quality::Medium) => Some("medium"),
            (Self::GptImage, Quality::High) => Some("high"),
            (Self::GptImage, Quality::Xhigh) => Some("xhigh"),
            (Self::GptImage, Quality::Max) => Some("max"),
        }
    }
}

impl Item {
    /// The image's bytes; none, and one more address in `urls`, if they lie elsewhere.
    pub(super) fn bytes(&self, answer: &mut Answer, urls: &mut Vec<String>) -> Result<Bytes> {
        if let Some(place) = &self.b64_json {
            let data = answer.take_image(place)?;
            // Some servers send an empty text beside the address.
            if !data.is_empty() {
                return Ok(data);
            }
        }
        match self.url.as_deref() {
            Some(url) if !url.is_empty() => Ok(inlined(url)?.unwrap_or_else(|| {
                urls.push(url.to_owned());
                Bytes::new()
            })),
            _ => Err(Error::bad_answer("an item of the answer has neither b64_json nor url")),
        }
    }
}

impl Usage {
    /// An odd usage is none: it must not cost the image it came with. Servers of the dialect often send one of
    /// zeros, which counts nothing.
    fn read(value: Value, job: &Job) -> Option<pb::Usage> {
        serde_json::from_value::<Self>(value).ok()?.counted(job)
    }

    fn counted(self, job: &Job) -> Option<pb::Usage> {
        let total = self.input_tokens.unwrap_or_default() + self.output_tokens.unwrap_or_default();
        if total == 0 {
            return None;
        }
        let mut usage = pb::Usage::default();
        match self.input_tokens_details {
            Some(details) => {
                usage.input_text_tokens = details.text_tokens;
                usage.input_image_tokens = details.image_tokens;
            }
            None if job.request.inputs.is_empty() => usage.input_text_tokens = self.input_tokens,
            // Of both kinds, in a proportion that nobody told.
            None => {}
        }
        match self.output_tokens_details {
            Some(details) => {
                usage.output_text_tokens = details.text_tokens;
                usage.output_image_tokens = details.image_tokens;
            }
            // The models before gpt-image-1.5 make nothing but images.
            None => usage.output_image_tokens = self.output_tokens,
        }
        Some(usage)
    }
}

/// The error that an answer with an error status is.
pub(super) fn failure(provider: &str, answer: &Answer) -> Error {
    let said = answer.json::<ErrorAnswer>().unwrap_or_default();
    let mut object = match said {
        ErrorAnswer { error: Some(body), .. } => body.into_object(),
        ErrorAnswer { message: Some(text), .. } | ErrorAnswer { detail: Some(Value::String(text)), .. } => {
            ErrorBody::Text(text).into_object()
        }
        _ => ErrorBody::Text(answer.plain_text()).into_object(),
    };
    object.code = object.code.or(said.code);
    object.into_error(provider, answer)
}

/// An error object where a success was announced: the status is the one that OpenAI pairs with the code.
fn failure_in_success(provider: &str, answer: &Answer, body: ErrorBody) -> Error {
    let object = body.into_object();
    let status = match (object.code().as_deref(), object.kind.as_deref()) {
        (Some("rate_limit_exceeded" | "insufficient_quota"), _) => 429,
        (_, Some("invalid_request_error" | "image_generation_user_error")) => 400,
        _ if object.is_refusal(400) => 400,
        _ => 500,
    };
    let answer = Answer {
        status: http::StatusCode::from_u16(status).unwrap_or_default(),
        headers: answer.headers.clone(),
        body: AnswerBody::Raw(Bytes::new()),
        address: answer.address.clone(),
        note: String::new(),
    };
    object.into_error(provider, &answer)
}

impl ErrorBody {
    fn into_object(self) -> ErrorObject {
        match self {
            Self::Object(object) => object,
            Self::Text(text) => ErrorObject { message: Some(text), ..Default::default() },
        }
    }
}

impl ErrorObject {
    fn into_error(self, provider: &str, answer: &Answer) -> Error {
        let code = self.code();
        let text = match self.message.as_deref() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => format!("status {}", answer.status.as_u16()),
        };
        let mut error = answer.default_error(provider, format!("{provider} error: {text}"));
        if self.is_refusal(error.status) {
            error.kind = ErrorKind::ContentRejected;
            let stage = self.moderation_details.as_ref().map(|details| details.moderation_stage.as_str());
            error.billing = match stage {
                // The image was made before it was blocked.
                Some("output") => BillingClass::Unknown,
                _ => BillingClass::RejectedUnbilled,
            };
        } else if matches!(code.as_deref(), Some("billing_hard_limit_reached" | "insufficient_quota")) {
            error.kind = ErrorKind::QuotaExhausted;
        }
        if error.kind == ErrorKind::RateLimited && error.retry_after.is_none() {
            error.retry_after = wait_in(&text);
        }
        // LocalAI sends an empty one.
        error.error_type = self.kind.filter(|kind| !kind.is_empty());
        error.param = self.param;
        error.code = code;
        error
    }

    fn code(&self) -> Option<String> {
        match self.code.as_ref()? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// By `code`, not `type`: `image_generation_user_error` is also the type of a bad size.
    fn is_refusal(&self, status: u16) -> bool {
        let by_code = matches!(
            self.code().as_deref(),
            Some("content_policy_violation" | "moderation_blocked" | "content_filter" | "contentFilter")
        );
        let by_inner_error =
            self.innererror.as_ref().is_some_and(|inner| inner.code == "ResponsibleAIPolicyViolation");
        // Older answers have no code.
        let by_message = status == 400
            && self.code.is_none()
            && self.message.as_deref().is_some_and(|text| text.contains("our safety system"));
        by_code || by_inner_error || by_message
    }
}

/// The wait that a rate limit's message tells: `try again in 12s`, `467ms` or `1m30s`. Image limits often
/// stand nowhere else.
fn wait_in(message: &str) -> Option<Duration> {
    let (_, mut rest) = message.split_once("try again in ")?;
    let mut wait = None;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let Ok(number) = rest[..digits].parse::<f64>() else { return wait };
        let unit_and_rest = &rest[digits..];
        let letters = unit_and_rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(unit_and_rest.len());
        let seconds = match &unit_and_rest[..letters] {
            "ms" => number / 1e3,
            "s" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            _ => return wait,
        };
        let part = Duration::try_from_secs_f64(seconds).ok()?;
        wait = Some(wait.unwrap_or_default() + part);
        rest = &unit_and_rest[letters..];
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provider::fixtures::json_body;

    fn event(body: AnswerBody) -> Result<Event> {
        let job = Job::new(pb::ImageRequest { model: "gpt-image-2".into(), ..Default::default() }, "");
        let headers = [("x-request-id".parse().unwrap(), "req_1".parse().unwrap())].into_iter().collect();
        let (status, address, note) = (http::StatusCode::OK, String::new(), String::new());
        OpenAi.event(&job, Answer { status, headers, body, address, note })
    }

    fn json_event(json: Value) -> Result<Event> {
        event(json_body(json, OpenAi.image_members()))
    }

    #[test]
    fn a_stream_shows_previews_and_ends_with_the_image() {
        for endpoint in ["image_generation", "image_edit"] {
            let partial = json!({
                "type": format!("{endpoint}.partial_image"), "partial_image_index": 1, "b64_json": "AAAA",
                "created_at": 1, "size": "1024x1024", "quality": "low", "background": "opaque",
            });
            let Ok(Event::Partial { index: 1, data }) = json_event(partial) else { panic!("{endpoint}") };
            assert_eq!(data, [0; 3].as_slice());
            let completed = json!({
                "type": format!("{endpoint}.completed"), "b64_json": "AQID",
                "usage": {"input_tokens": 5, "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
                          "output_tokens": 272, "total_tokens": 277},
            });
            let Ok(Event::Done(output)) = json_event(completed) else { panic!("{endpoint}") };
            assert_eq!(output.images[0].data, [1, 2, 3].as_slice());
            let usage = output.usage.unwrap();
            assert_eq!((usage.input_text_tokens, usage.output_image_tokens), (Some(5), Some(272)));
            assert_eq!(output.upstream_request_id, "req_1");
        }
    }

    #[test]
    fn what_a_stream_says_besides_is_ignored() {
        assert!(matches!(event(AnswerBody::Raw("[DONE]\n".into())), Ok(Event::Ignored)));
        assert!(matches!(json_event(json!({"type": "image_generation.in_progress"})), Ok(Event::Ignored)));
    }

    #[test]
    fn a_stream_can_fail_in_the_middle() {
        for (error, kind, status, billing) in [
            (
                json!({"type": "server_error", "message": "x"}),
                ErrorKind::Unavailable,
                500,
                BillingClass::Unknown,
            ),
            (json!({"code": "rate_limit_exceeded"}), ErrorKind::RateLimited, 429, BillingClass::Unknown),
            (
                json!({"code": "moderation_blocked", "type": "image_generation_user_error"}),
                ErrorKind::ContentRejected,
                400,
                BillingClass::RejectedUnbilled,
            ),
            (
                json!({"code": "moderation_blocked", "moderation_details": {"moderation_stage": "output"}}),
                ErrorKind::ContentRejected,
                400,
                BillingClass::Unknown,
            ),
        ] {
            let made = json_event(json!({"type": "error", "error": error})).unwrap_err();
            assert_eq!((made.kind, made.status, made.billing), (kind, status, billing), "{error}");
            assert!(made.message.starts_with("openai error: "), "{made}");
        }
    }

    #[test]
    fn a_broken_event_is_a_bad_answer() {
        for body in [
            AnswerBody::Raw("half a lin".into()),
            json_body(json!({"type": "image_edit.completed"}), &["b64_json"]),
            json_body(json!({"type": "image_edit.completed", "b64_json": "%%"}), &["b64_json"]),
        ] {
            let error = event(body).unwrap_err();
            assert_eq!((error.kind, error.provider.as_str()), (ErrorKind::BadAnswer, "openai"));
        }
    }

    #[test]
    fn the_default_models_are_live_and_exact() {
        for (operation, expected) in
            [(Operation::Generate, "gpt-image-2"), (Operation::Inpaint, "gpt-image-2")]
        {
            let found = OpenAi.record().models.iter().find(|model| {
                !model.model.ends_with('*')
                    && model.operations.contains(&operation.into())
                    && model.lifecycle.as_ref().is_some_and(|life| life.retired_on.is_empty())
            });
            assert_eq!(found.unwrap().model, expected);
        }
    }

    #[test]
    fn a_wait_is_read_from_the_message() {
        for (text, expected) in [
            ("Limit 5, Used 5. Please try again in 12s. Visit", Some(12_000)),
            ("Please try again in 467ms.", Some(467)),
            ("Please try again in 1m30.5s", Some(90_500)),
            ("Please try again in a while", None),
            ("Please try again later", None),
            ("Please try again in 99999999999999999999999h", None),
        ] {
            assert_eq!(wait_in(text), expected.map(Duration::from_millis), "{text}");
        }
    }
}
