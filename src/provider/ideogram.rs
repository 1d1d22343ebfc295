//! Ideogram's API: versions 3 and 4.
//!
//! Fields and sizes of version 3 are from Ideogram's OpenAPI document of August 2026; version 4 is known from
//! clients that cite a later one. Requests are forms, results lie at addresses that expire within a day. Sizes,
//! limits and prices are data (`ideogram.yaml`). What one endpoint cannot take although the model's others can is
//! dropped here, with a warning.

use std::sync::LazyLock;

use http::{HeaderName, Method, Request};
use serde::Deserialize;
use serde_json::Value;

use super::{Answer, Job, Output, Provider, Step, bytes_of, catalog, mask_as, multipart::Form};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, FinishReason, MaskPolarity, Operation, Quality, warning::Action},
};

const NAME: &str = "ideogram";

const KEY_HEADER: HeaderName = HeaderName::from_static("api-key");

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("ideogram")));

/// The provider `ideogram`.
#[derive(Debug)]
pub struct Ideogram;

/// Where an operation is done, and what it takes there besides `image` and `rendering_speed`.
struct Endpoint {
    path: String,
    takes: &'static [&'static str],
}

/// A form's fields, and what they could not say.
struct Fields {
    form: Form,
    takes: &'static [&'static str],
    operation: Operation,
    warnings: Vec<pb::Warning>,
}

#[derive(Deserialize)]
struct Images {
    #[serde(default)]
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default = "yes")]
    is_image_safe: bool,
    #[serde(default)]
    seed: Option<u64>,
}

fn yes() -> bool {
    true
}

/// Most errors are an `error` text; those of the form's fields have a `detail`, which is one or a list.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorAnswer {
    error: Option<String>,
    message: Option<String>,
    detail: Option<Value>,
}

impl Provider for Ideogram {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.ideogram.ai"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &[]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let request = &job.request;
        let endpoint = endpoint(request)?;
        let call = job.call_as(Method::POST, &endpoint.path, (KEY_HEADER, ""))?;
        let operation = request.effective_operation();
        let mut form = fields(job, endpoint.takes).form;
        if operation != Operation::Generate {
            let Some(input) = request.inputs.first() else {
                let message = format!("operation {:?} needs an image", operation.name());
                return Err(Error::invalid("image", message));
            };
            form = form.image("image", "image", bytes_of(input)?);
        }
        match (&request.mask, operation) {
            (Some(mask), Operation::Inpaint) => {
                form = form.image("mask", "mask", mask_as(mask, MaskPolarity::BlackEdits)?);
            }
            (None, Operation::Inpaint) => {
                return Err(Error::invalid("mask", "operation \"inpaint\" needs a mask"));
            }
            _ => {}
        }
        if operation == Operation::Outpaint && request.dimensions().is_none() {
            return Err(Error::invalid("size", "operation \"outpaint\" needs the size of the result"));
        }
        form.into_request(call)
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        let Images { data } = answer.json().map_err(|error| answer.own(NAME, error))?;
        if data.is_empty() {
            return Err(answer.own(NAME, Error::bad_answer("the answer has no image")));
        }
        let (safe, withheld): (Vec<_>, Vec<_>) = data.into_iter().partition(|item| item.is_image_safe);
        let mut urls = Vec::with_capacity(safe.len());
        let mut images = Vec::with_capacity(safe.len());
        for item in safe {
            let Some(url) = item.url.filter(|url| !url.is_empty()) else {
                return Err(answer.own(NAME, Error::bad_answer("an item of the answer has no url")));
            };
            urls.push(url);
            images.push(pb::Image {
                seed: item.seed,
                revised_prompt: item.prompt.unwrap_or_default(),
                finish_reason: FinishReason::Stop.into(),
                ..Default::default()
            });
        }
        // Behind the others, as addresses are dealt out to the images without data from the first on.
        images.extend(withheld.into_iter().map(|item| pb::Image {
            seed: item.seed,
            finish_reason: FinishReason::ContentFiltered.into(),
            ..Default::default()
        }));
        let output = Output {
            images,
            upstream_request_id: answer.request_id(),
            warnings: fields(job, endpoint(&job.request)?.takes).warnings,
            ..Default::default()
        };
        Ok(if urls.is_empty() { Step::Done(output) } else { Step::Fetch { urls, output } })
    }
}

/// The endpoint for the request's operation.
fn endpoint(request: &pb::ImageRequest) -> Result<Endpoint> {
    const GENERATE: &[&str] =
        &["prompt", "negative_prompt", "seed", "num_images", "resolution", "style_type", "rendering_speed"];
    const REMIX: &[&str] = &[
        "prompt",
        "negative_prompt",
        "seed",
        "num_images",
        "resolution",
        "style_type",
        "image_weight",
        "rendering_speed",
    ];
    let operation = request.effective_operation();
    let (step, takes): (&str, &[&str]) = match (request.model.as_str(), operation) {
        ("ideogram-v4", Operation::Generate) => {
            ("ideogram-v4/generate", &["text_prompt", "resolution", "rendering_speed"])
        }
        ("ideogram-v4", Operation::Edit) => {
            ("ideogram-v4/remix", &["text_prompt", "resolution", "image_weight", "rendering_speed"])
        }
        ("ideogram-v3", Operation::Generate) => ("ideogram-v3/generate", GENERATE),
        ("ideogram-v3", Operation::Edit) => ("ideogram-v3/remix", REMIX),
        ("ideogram-v3", Operation::Inpaint) => {
            ("ideogram-v3/edit", &["prompt", "seed", "num_images", "style_type", "rendering_speed"])
        }
        ("ideogram-v3", Operation::Outpaint) => {
            ("ideogram-v3/reframe", &["seed", "num_images", "resolution", "rendering_speed"])
        }
        ("ideogram-v3", Operation::ReplaceBackground) => {
            ("ideogram-v3/replace-background", &["prompt", "seed", "num_images", "rendering_speed"])
        }
        (_, Operation::RemoveBackground) => ("remove-background", &[]),
        (model, other) => {
            let message = format!("model {model:?} has no operation {:?} at {NAME}", other.name());
            return Err(Error::unsupported("operation", message));
        }
    };
    Ok(Endpoint { path: format!("/v1/{step}"), takes })
}

/// Everything but the images.
fn fields(job: &Job, takes: &'static [&'static str]) -> Fields {
    let request = &job.request;
    let operation = request.effective_operation();
    let mut fields = Fields { form: Form::new(), takes, operation, warnings: Vec::new() };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let prompt = if takes.contains(&"text_prompt") { "text_prompt" } else { "prompt" };
    fields.put("prompt", prompt, text(&request.prompt));
    fields.put("negative_prompt", "negative_prompt", text(&request.negative_prompt));
    // One image is what every endpoint makes unasked.
    fields.put("n", "num_images", request.n.filter(|n| *n > 1).map(|n| n.to_string()));
    fields.put("size", "resolution", request.dimensions().map(|d| format!("{}x{}", d.width, d.height)));
    fields.put("seed", "seed", request.seed.map(|seed| seed.to_string()));
    fields.put("style", "style_type", text(&request.style));
    // Upstream it is how much of the input is kept, from 1.
    let weight = |strength: f32| ((1.0 - strength) * 100.0).round().clamp(1.0, 100.0).to_string();
    fields.put("strength", "image_weight", request.strength.map(weight));
    // It wants the size of the result instead.
    fields.put("outpaint", "outpaint", request.outpaint.map(|_| String::new()));
    let speed = match request.quality() {
        Quality::Unspecified => None,
        Quality::Low => Some("TURBO"),
        Quality::Medium => Some("DEFAULT"),
        Quality::High | Quality::Xhigh | Quality::Max => Some("QUALITY"),
    };
    fields.put("quality", "rendering_speed", speed.map(str::to_owned));
    for (name, value) in job.extras(NAME) {
        if operation == Operation::RemoveBackground {
            // It takes the image and nothing else.
            fields.put(&name, &name, Some(String::new()));
        } else {
            fields.extra(&name, &value);
        }
    }
    fields
}

impl Fields {
    /// A field where the endpoint has it, else a warning.
    fn put(&mut self, field: &str, name: &str, value: Option<String>) {
        let Some(value) = value else { return };
        if self.takes.contains(&name) {
            self.form = std::mem::take(&mut self.form).text(name, &value);
            return;
        }
        self.warnings.push(pb::Warning {
            field: field.to_owned(),
            action: Action::Dropped.into(),
            detail: format!("operation {} does not take it at {NAME}", self.operation.name()),
            target: String::new(),
        });
    }

    /// Lists are fields that come again, objects are their JSON.
    fn extra(&mut self, name: &str, value: &Value) {
        let mut form = std::mem::take(&mut self.form);
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            form = match value {
                Value::String(text) => form.text(name, text),
                other => form.text(name, &other.to_string()),
            };
        }
        self.form = form;
    }
}

/// The error that an answer with an error status is.
fn failure(answer: &Answer) -> Error {
    let ErrorAnswer { error, message, detail } = answer.json().unwrap_or_default();
    let of_a_field = detail.is_some();
    let text = error.or(message).or_else(|| detail.as_ref().and_then(problems));
    let text = text.unwrap_or_else(|| answer.plain_text());
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    // Ideogram documents this status for its safety check alone; the check of the form's fields has it as well.
    if error.status == 422 && !of_a_field {
        error.kind = ErrorKind::ContentRejected;
    }
    error.code = error.kind.openai_code().map(str::to_owned);
    error
}

fn problems(detail: &Value) -> Option<String> {
    match detail {
        Value::String(text) => Some(text.clone()),
        Value::Array(problems) => {
            let texts: Vec<_> = problems.iter().filter_map(|problem| problem.get("msg")?.as_str()).collect();
            (!texts.is_empty()).then(|| texts.join(", "))
        }
        _ => None,
    }
}
