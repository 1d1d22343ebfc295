//! Black Forest Labs' API of the FLUX models: a job is submitted, asked for at the address that its answer names,
//! and the image fetched from a delivery host, where it stays for ten minutes.
//!
//! Field names are those of docs.bfl.ai, of ComfyUI's and of vercel/ai's clients. Sizes, limits and prices are
//! data (`black_forest_labs.yaml`): the router has fitted the request before it comes here. A job cannot be
//! given up.

use std::{sync::LazyLock, time::Duration};

use base64_simd::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderName, Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Answer, Job, Output, Provider, Step, bytes_of, catalog, decimal, is_path_segment, json_request, mask_as,
    no_such_model, poll,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass, ImageFormat, MaskPolarity, Moderation, size::Size},
};

const NAME: &str = "black-forest-labs";

/// Every client asks every half to one and a half seconds; the fastest models need less than one.
const POLL_EVERY: Duration = Duration::from_millis(500);

/// One credit is one cent.
const USD_PER_CREDIT: f64 = 0.01;

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("black_forest_labs")));

/// The provider `black-forest-labs`.
#[derive(Debug)]
pub struct BlackForestLabs;

/// What a model calls its inputs, and how lax its filter can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Flux2,
    Kontext,
    /// FLUX 1.1 and before, ultra included: an image is a prompt beside the text.
    Flux1,
    Fill,
    Expand,
}

/// The answer to a submission, or to asking for it.
#[derive(Deserialize)]
struct Task {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    polling_url: Option<String>,
    #[serde(default)]
    status: Option<String>,
    /// An older spelling of `status`.
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    result: Option<Finished>,
    #[serde(default)]
    progress: Option<f64>,
    #[serde(default)]
    cost: Option<f64>,
    #[serde(default)]
    details: Option<Value>,
}

#[derive(Deserialize)]
struct Finished {
    #[serde(default)]
    sample: Option<String>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    prompt: Option<String>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    detail: Detail,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Detail {
    Text(String),
    Fields(Vec<FieldProblem>),
}

#[derive(Deserialize)]
struct FieldProblem {
    #[serde(default)]
    loc: Vec<Value>,
    #[serde(default)]
    msg: String,
}

impl Provider for BlackForestLabs {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.bfl.ai/v1"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &[]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let model = &job.request.model;
        if !is_path_segment(model) {
            return Err(no_such_model(model, NAME));
        }
        json_request(job.call_as(Method::POST, &format!("/{model}"), credential())?, &fields(job)?)
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        let asked_for = answer.address != format!("{}/{}", job.base_url, job.request.model);
        if !answer.status.is_success() {
            return match poll::ask_again(job, credential(), &answer).filter(|_| asked_for) {
                Some(step) => Ok(step?.at("running", None).into()),
                None => Err(failure(&answer, asked_for)),
            };
        }
        let task: Task = answer.json().map_err(|error| answer.own(NAME, error))?;
        task.advance(job, &answer, asked_for)
    }
}

impl Task {
    fn advance(self, job: &Job, answer: &Answer, asked_for: bool) -> Result<Step> {
        let broken = |text: &str| answer.own(NAME, Error::bad_answer(text));
        let (state, progress) = match self.status.as_deref().or(self.state.as_deref()) {
            None if !asked_for => ("queued", None),
            Some("Pending") => ("running", self.progress),
            Some("Ready") => return self.fetch(job).ok_or_else(|| broken("the finished job has no image")),
            Some(refusal @ ("Request Moderated" | "Content Moderated")) => {
                let stage = if refusal == "Request Moderated" { "prompt" } else { "output" };
                return Err(poll::refused(answer, NAME, stage, &self.reasons(refusal)));
            }
            Some("Error" | "Failed") => {
                return Err(poll::failed(answer, NAME, ErrorKind::Unavailable, 500, "the job failed"));
            }
            Some("Task not found") => return Err(lost(answer)),
            _ => return Err(broken("the answer is about no job")),
        };
        let address = if asked_for { Some(answer.address.clone()) } else { self.address(job) };
        let address = address.ok_or_else(|| broken("the answer does not say where to ask for the job"))?;
        let step = poll::ask(job, &address, credential(), answer, POLL_EVERY)
            .map_err(|error| answer.own(NAME, error))?;
        Ok(step.at(state, progress).into())
    }

    /// Where to ask for the job. Some answers leave the id to be added.
    fn address(&self, job: &Job) -> Option<String> {
        let plain = |id: &&str| !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let id = self.id.as_deref().filter(plain);
        match (self.polling_url.as_deref(), id) {
            (Some(url), Some(id)) if !url.contains("id=") => {
                let separator = if url.contains('?') { '&' } else { '?' };
                Some(format!("{url}{separator}id={id}"))
            }
            (Some(url), _) => Some(url.to_owned()),
            (None, id) => id.map(|id| format!("{}/get_result?id={id}", job.base_url)),
        }
    }

    fn fetch(self, job: &Job) -> Option<Step> {
        let result = self.result?;
        let url = result.sample.filter(|url| !url.is_empty())?;
        let revised_prompt = result.prompt.filter(|prompt| *prompt != job.request.prompt);
        let image = pb::Image {
            seed: result.seed,
            revised_prompt: revised_prompt.unwrap_or_default(),
            ..Default::default()
        };
        let output = Output {
            images: vec![image],
            reported_cost_usd: self.cost.map(|credits| credits * USD_PER_CREDIT),
            upstream_request_id: self.id.unwrap_or_default(),
            ..Default::default()
        };
        Some(Step::Fetch { urls: vec![url], output })
    }

    fn reasons(&self, refusal: &str) -> String {
        let reasons = self.details.as_ref().and_then(|details| details["Moderation Reasons"].as_array());
        let reasons: Vec<&str> = reasons.into_iter().flatten().filter_map(Value::as_str).collect();
        match reasons.as_slice() {
            [] => refusal.to_lowercase(),
            reasons => format!("{}: {}", refusal.to_lowercase(), reasons.join(", ")),
        }
    }
}

impl Family {
    fn of(model: &str) -> Self {
        match model {
            model if model.starts_with("flux-2") => Self::Flux2,
            model if model.starts_with("flux-kontext") => Self::Kontext,
            model if model.contains("-fill") => Self::Fill,
            model if model.contains("-expand") => Self::Expand,
            _ => Self::Flux1,
        }
    }

    /// How much the filter lets pass, where 2 is the usual.
    fn tolerance(self, request: &pb::ImageRequest) -> Option<u32> {
        match (request.moderation(), self) {
            (Moderation::Unspecified, _) => None,
            (Moderation::Strict, _) => Some(0),
            // With an image it takes no more.
            (Moderation::Low, Self::Kontext) if !request.inputs.is_empty() => Some(2),
            (Moderation::Low, Self::Flux2) => Some(5),
            (Moderation::Low, _) => Some(6),
        }
    }
}

fn credential() -> (HeaderName, &'static str) {
    (HeaderName::from_static("x-key"), "")
}

fn fields(job: &Job) -> Result<Map<String, Value>> {
    let request = &job.request;
    let family = Family::of(&request.model);
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    if !request.prompt.is_empty() {
        put("prompt", request.prompt.as_str().into());
    }
    match request.size.and_then(|size| size.size) {
        Some(Size::Dimensions(size)) => {
            put("width", size.width.into());
            put("height", size.height.into());
        }
        Some(Size::AspectRatio(ratio)) => {
            put("aspect_ratio", format!("{}:{}", ratio.width, ratio.height).into());
        }
        Some(Size::Auto(_)) | None => {}
    }
    if let Some(seed) = request.seed {
        put("seed", seed.into());
    }
    if let Some(steps) = request.steps {
        put("steps", steps.into());
    }
    if let Some(guidance) = request.guidance {
        put("guidance", decimal(guidance).into());
    }
    if request.wanted_format() != ImageFormat::Unspecified {
        put("output_format", request.wanted_format().name().into());
    }
    if let Some(tolerance) = family.tolerance(request) {
        put("safety_tolerance", tolerance.into());
    }
    fields.extend(image_fields(request, family)?);
    fields.extend(job.extras(NAME));
    Ok(fields)
}

/// The inputs, as base64 without any prefix.
fn image_fields(request: &pb::ImageRequest, family: Family) -> Result<Map<String, Value>> {
    let text = |data: Bytes| Value::from(BASE64.encode_to_string(&data));
    let mut fields = Map::new();
    for (i, input) in request.inputs.iter().enumerate() {
        let name = match (family, i) {
            (Family::Flux2 | Family::Kontext, 0) => "input_image".to_owned(),
            (Family::Flux2 | Family::Kontext, i) => format!("input_image_{}", i + 1),
            (Family::Flux1, 0) => "image_prompt".to_owned(),
            (Family::Fill | Family::Expand, 0) => "image".to_owned(),
            _ => return Err(Error::unsupported("image", "this model takes one image")),
        };
        fields.insert(name, text(bytes_of(input)?));
    }
    if matches!(family, Family::Fill | Family::Expand) && fields.is_empty() {
        return Err(Error::invalid("image", "this model needs an image"));
    }
    if let Some(mask) = request.mask.as_ref().filter(|_| family == Family::Fill) {
        fields.insert("mask".into(), text(mask_as(mask, MaskPolarity::WhiteEdits)?));
    }
    if family == Family::Expand {
        let Some(outpaint) = &request.outpaint else {
            return Err(Error::invalid("outpaint", "outpaint needs the pixels to add on each side"));
        };
        for (side, pixels) in [
            ("top", outpaint.up),
            ("bottom", outpaint.down),
            ("left", outpaint.left),
            ("right", outpaint.right),
        ] {
            if pixels > 0 {
                fields.insert(side.into(), pixels.into());
            }
        }
    }
    Ok(fields)
}

/// A job that was accepted, and is not known any more.
fn lost(answer: &Answer) -> Error {
    poll::failed(answer, NAME, ErrorKind::NotFound, 404, "the job is not known any more")
}

/// The error that an answer with an error status is.
fn failure(answer: &Answer, asked_for: bool) -> Error {
    if answer.json::<Task>().is_ok_and(|task| task.status.as_deref() == Some("Task not found")) {
        return lost(answer);
    }
    let mut param = None;
    let text = match answer.json().map(|body: ErrorAnswer| body.detail) {
        Ok(Detail::Text(text)) => text,
        Ok(Detail::Fields(problems)) => {
            let problem = |problem: &FieldProblem| match problem.loc.last().and_then(Value::as_str) {
                Some(field) => format!("{field}: {}", problem.msg),
                None => problem.msg.clone(),
            };
            let field = problems.first().and_then(|problem| problem.loc.last()).and_then(Value::as_str);
            param = field.map(str::to_owned);
            problems.iter().map(problem).collect::<Vec<_>>().join("; ")
        }
        Err(_) => answer.plain_text(),
    };
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    error.param = param;
    if asked_for {
        error.billing = BillingClass::Unknown;
    }
    poll::coded(error)
}
