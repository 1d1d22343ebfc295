//! Fireworks AI: FLUX by "workflows", FLUX Kontext as jobs that are asked for, and the older Stable Diffusion
//! models.
//!
//! Facts are from Fireworks' pages on its endpoints and error codes and from vercel/ai's adapter. The model's id
//! decides the endpoint. What comes back is the image itself, with its seed and state in headers, unless several
//! are asked for. Sizes, limits and prices are data (`fireworks.yaml`).

use std::{sync::LazyLock, time::Duration};

use http::{Method, Request, header::ACCEPT};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Answer, AnswerBody, ImageRef, Job, Next, Output, Provider, Step, bytes_of, catalog, data_url, decimal,
    is_path_segment, json_request, no_such_model,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass, FinishReason, ImageFormat, Operation, size::Size, warning::Action},
};

const NAME: &str = "fireworks-ai";

/// As often as vercel/ai's adapter asks; no document says how often one may.
const POLL_EVERY: Duration = Duration::from_millis(500);

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("fireworks")));

/// The provider `fireworks-ai`.
#[derive(Debug)]
pub struct FireworksAi;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// One image per call, sizes as ratios.
    Workflow,
    /// As `Workflow`, but answered with an id.
    Kontext,
    /// Several images per call, sizes in pixels, Stability's field names.
    Diffusion,
}

/// Of jobs, of workflows, and of `image_generation` with several images.
#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    List(Vec<Artifact>),
    Object(Object),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Object {
    request_id: Option<String>,
    status: Option<String>,
    result: Option<Sample>,
    #[serde(flatten)]
    artifact: Artifact,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Sample {
    sample: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Artifact {
    base64: Option<Base64>,
    finish_reason: Option<String>,
    seed: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Base64 {
    One(ImageRef),
    List(Vec<ImageRef>),
}

/// The models' own error, the gateway's before them, and FastAPI's.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorAnswer {
    error: Option<ErrorBody>,
    fault: Option<Fault>,
    detail: Option<Value>,
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
    message: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    code: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Fault {
    faultstring: String,
    detail: FaultDetail,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct FaultDetail {
    errorcode: Option<String>,
}

impl Provider for FireworksAi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.fireworks.ai/inference/v1"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["base64"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let request = &job.request;
        let model = &request.model;
        if !model.split('/').all(is_path_segment) {
            return Err(no_such_model(model, NAME));
        }
        let family = Family::of(model);
        match (request.effective_operation(), family) {
            (Operation::Generate, _) => {}
            (Operation::Edit, Family::Kontext) if request.inputs.is_empty() => {
                return Err(Error::invalid("image", "an edit needs an image"));
            }
            (Operation::Edit, Family::Kontext) => {}
            (other, _) => {
                let message = format!("model {model:?} has no operation {:?}", other.name());
                return Err(Error::unsupported("operation", message));
            }
        }
        let path = match family {
            Family::Workflow => format!("/workflows/{model}/text_to_image"),
            Family::Kontext => format!("/workflows/{model}"),
            Family::Diffusion => format!("/image_generation/{model}"),
        };
        let accept = match (family, request.wanted_format()) {
            (Family::Kontext, _) => "application/json",
            (Family::Diffusion, _) if answers_several(job) => "application/json",
            (_, ImageFormat::Jpeg) => "image/jpeg",
            _ => "image/png",
        };
        json_request(job.call(Method::POST, &path)?.header(ACCEPT, accept), &fields(job, family)?)
    }

    fn advance(&self, job: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(job, &answer));
        }
        let body = match &answer.body {
            AnswerBody::Raw(data) if answer.content_type().starts_with("image/") => {
                let reason = answer.header("finish-reason");
                let seed = answer.header("seed").and_then(|seed| seed.parse().ok());
                let images = vec![image(reason, seed, data.clone())];
                return Ok(Step::Done(output(job, &answer, images)));
            }
            _ => answer.json::<Body>().map_err(|error| answer.own(NAME, error))?,
        };
        let artifacts = match body {
            Body::List(artifacts) => artifacts,
            Body::Object(Object { request_id: Some(id), status: None, .. }) => return poll(job, &id),
            Body::Object(Object { status: Some(status), result, .. }) => {
                return state(job, &answer, &status, result).map_err(|error| answer.own(NAME, error));
            }
            Body::Object(Object { artifact, .. }) => vec![artifact],
        };
        let mut images = Vec::new();
        for artifact in artifacts {
            let reason = artifact.finish_reason.as_deref();
            let places = match artifact.base64 {
                Some(Base64::One(place)) => vec![place],
                Some(Base64::List(places)) => places,
                None => Vec::new(),
            };
            for place in places {
                let data = answer.take_image(&place).map_err(|error| answer.own(NAME, error))?;
                images.push(image(reason, artifact.seed, data));
            }
        }
        if images.is_empty() {
            return Err(answer.own(NAME, Error::bad_answer("the answer has no image")));
        }
        Ok(Step::Done(output(job, &answer, images)))
    }
}

impl Family {
    fn of(model: &str) -> Self {
        if model.contains("kontext") {
            Self::Kontext
        } else if model.contains("flux") {
            Self::Workflow
        } else {
            Self::Diffusion
        }
    }
}

fn fields(job: &Job, family: Family) -> Result<Map<String, Value>> {
    let request = &job.request;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("prompt", request.prompt.as_str().into());
    match request.size.and_then(|size| size.size) {
        Some(Size::AspectRatio(ratio)) => {
            put("aspect_ratio", format!("{}:{}", ratio.width, ratio.height).into());
        }
        Some(Size::Dimensions(size)) => {
            put("width", size.width.into());
            put("height", size.height.into());
        }
        Some(Size::Auto(_)) | None => {}
    }
    if let Some(seed) = request.seed {
        // 0 asks for a random one.
        put("seed", seed.max(1).into());
    }
    let diffusion = family == Family::Diffusion;
    if let Some(steps) = request.steps {
        put(if diffusion { "steps" } else { "num_inference_steps" }, steps.into());
    }
    if let Some(guidance) = request.guidance {
        put(if diffusion { "cfg_scale" } else { "guidance_scale" }, decimal(guidance).into());
    }
    for (name, text) in [("negative_prompt", &request.negative_prompt), ("sampler", &request.sampler)] {
        if !text.is_empty() {
            put(name, text.as_str().into());
        }
    }
    match family {
        Family::Diffusion => _ = put("samples", request.wanted().into()),
        Family::Kontext => {
            if let Some(input) = request.inputs.first() {
                put("input_image", data_url(&bytes_of(input)?).into());
            }
            if request.wanted_format() != ImageFormat::Unspecified {
                put("output_format", request.wanted_format().name().into());
            }
        }
        Family::Workflow => {}
    }
    fields.extend(job.extras(NAME));
    Ok(fields)
}

/// Only JSON holds more than one image, and these models make it of PNGs.
fn answers_several(job: &Job) -> bool {
    Family::of(&job.request.model) == Family::Diffusion && job.request.wanted() > 1
}

fn output(job: &Job, answer: &Answer, images: Vec<pb::Image>) -> Output {
    let mut warnings = Vec::new();
    let mut warn = |field: &str, action: Action, detail: String| {
        let target = String::new();
        warnings.push(pb::Warning { field: field.into(), action: action.into(), detail, target });
    };
    if job.request.seed == Some(0) {
        warn("seed", Action::Adjusted, format!("0 means random at {NAME}: 1 was sent"));
    }
    if answers_several(job) && job.request.wanted_format() == ImageFormat::Jpeg {
        warn("output_format", Action::Emulated, format!("several images are png at {NAME}; converted"));
    }
    Output { images, upstream_request_id: answer.request_id(), warnings, ..Default::default() }
}

/// A filtered image comes black or blurred: its bytes are dropped, so that nobody takes it for the result.
fn image(reason: Option<&str>, seed: Option<u64>, data: bytes::Bytes) -> pb::Image {
    let reason = match reason {
        Some("CONTENT_FILTERED") => FinishReason::ContentFiltered,
        Some("ERROR") => FinishReason::Error,
        Some("SUCCESS") => FinishReason::Stop,
        _ => FinishReason::Unspecified,
    };
    let withheld = matches!(reason, FinishReason::ContentFiltered | FinishReason::Error);
    pb::Image {
        data: if withheld { bytes::Bytes::new() } else { data },
        seed,
        finish_reason: reason.into(),
        ..Default::default()
    }
}

/// Asks for the result of a job.
fn poll(job: &Job, id: &str) -> Result<Step> {
    let path = format!("/workflows/{}/get_result", job.request.model);
    let fields = Map::from_iter([("id".to_owned(), json!(id))]);
    let request = json_request(job.call(Method::POST, &path)?.header(ACCEPT, "application/json"), &fields)?;
    Ok(Next::new(POLL_EVERY, request).into())
}

/// What the state of a job means.
fn state(job: &Job, answer: &Answer, status: &str, result: Option<Sample>) -> Result<Step> {
    match status {
        "Ready" => {
            let url = result.and_then(|result| result.sample).filter(|url| !url.is_empty());
            let url = url.ok_or_else(|| Error::bad_answer("the finished job has no image"))?;
            Ok(Step::Fetch { urls: vec![url], output: output(job, answer, vec![pb::Image::default()]) })
        }
        "Request Moderated" => Err(Error::refused("prompt", "the request was moderated")),
        "Content Moderated" => Err(Error::refused("output", "the image was moderated")),
        "Error" | "Failed" | "Task not found" => {
            let message = format!("the job's state is {status:?}");
            Err(Error::new(ErrorKind::Unavailable, message).billed(BillingClass::Unknown))
        }
        _ => match answer.json::<JobId>()?.id {
            Some(id) => poll(job, &id),
            None => Err(Error::bad_answer("the waiting job has no id")),
        },
    }
}

#[derive(Deserialize)]
struct JobId {
    #[serde(default)]
    id: Option<String>,
}

/// The error that an answer with an error status is.
fn failure(job: &Job, answer: &Answer) -> Error {
    let body: ErrorAnswer = answer.json().unwrap_or_default();
    let object = match (body.error, body.fault, body.detail) {
        (Some(ErrorBody::Object(object)), ..) => object,
        (Some(ErrorBody::Text(message)), ..) | (None, None, Some(Value::String(message))) => {
            ErrorObject { message, ..Default::default() }
        }
        (None, Some(fault), _) => {
            ErrorObject { message: fault.faultstring, code: fault.detail.errorcode, kind: None }
        }
        (None, None, Some(Value::Array(problems))) => {
            let texts = problems.iter().filter_map(|problem| problem.get("msg")?.as_str());
            ErrorObject { message: texts.collect::<Vec<_>>().join(", "), ..Default::default() }
        }
        (None, None, _) => ErrorObject::default(),
    };
    let text = if object.message.is_empty() { answer.plain_text() } else { object.message };
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    match error.status {
        402 => error.kind = ErrorKind::QuotaExhausted,
        // The account is suspended.
        412 => error.kind = ErrorKind::PermissionDenied,
        _ => {}
    }
    // It may be the poll that failed, with a result paid for and waiting.
    if Family::of(&job.request.model) == Family::Kontext && matches!(error.status, 404 | 429 | 500..) {
        error.billing = BillingClass::Unknown;
    }
    error.code = object.code.or_else(|| error.kind.openai_code().map(str::to_owned));
    error.error_type = object.kind;
    error
}
