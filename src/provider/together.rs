//! Together AI's image API: one path of OpenAI's, with fields of its own, for generations and edits alike.
//!
//! Facts are from Together's Python SDK 3.1.1, unless a comment names another source. Which model takes a ratio
//! and which one pixels is data (`together.yaml`).

use std::sync::LazyLock;

use http::{Method, Request};
use serde_json::{Map, Value};

use super::{Answer, Job, Provider, Step, address_of, catalog, decimal, json_request, openai};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, ImageFormat, Operation, size::Size},
};

const NAME: &str = "together";

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("together")));

/// The provider `together`.
#[derive(Debug)]
pub struct Together;

impl Provider for Together {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.together.xyz/v1"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["b64_json"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let mut fields = fields(job);
        match job.request.effective_operation() {
            Operation::Generate => {}
            Operation::Edit => inputs(&job.request, &mut fields)?,
            other => {
                return Err(Error::unsupported(
                    "operation",
                    format!("{NAME} has no operation {:?}", other.name()),
                ));
            }
        }
        json_request(job.call(Method::POST, "/images/generations")?, &fields)
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        openai::read_answer(NAME, job, answer)
    }
}

/// Everything but the images.
fn fields(job: &Job) -> Map<String, Value> {
    let request = &job.request;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("model", request.model.as_str().into());
    put("prompt", request.prompt.as_str().into());
    // Not OpenAI's word for it. The alternative is an address that works for a while.
    put("response_format", "base64".into());
    if let Some(n) = request.n {
        put("n", n.into());
    }
    match request.size.and_then(|size| size.size) {
        Some(Size::Dimensions(pixels)) => {
            put("width", pixels.width.into());
            put("height", pixels.height.into());
        }
        Some(Size::AspectRatio(_)) => _ = put("aspect_ratio", request.size.map(|size| size.text()).into()),
        Some(Size::Auto(_)) | None => {}
    }
    if !request.negative_prompt.is_empty() {
        put("negative_prompt", request.negative_prompt.as_str().into());
    }
    if let Some(seed) = request.seed {
        put("seed", seed.into());
    }
    if let Some(steps) = request.steps {
        put("steps", steps.into());
    }
    if let Some(guidance) = request.guidance {
        put("guidance_scale", decimal(guidance).into());
    }
    let format = request.wanted_format();
    if format != ImageFormat::Unspecified {
        put("output_format", format.name().into());
    }
    fields.extend(job.extras(NAME));
    fields
}

/// The first generation of models takes one image, every other a list.
fn inputs(request: &pb::ImageRequest, fields: &mut Map<String, Value>) -> Result<()> {
    let images = request.inputs.iter().map(address_of).collect::<Result<Vec<_>>>()?;
    let Some(first) = images.first() else {
        return Err(Error::invalid("image", "an edit needs an image"));
    };
    if request.model.contains("FLUX.1-") {
        fields.insert("image_url".into(), first.as_str().into());
    } else {
        fields.insert("reference_images".into(), images.into());
    }
    Ok(())
}

/// What Together means by an error: 400 is also a wrong key, 403 also a prompt that is too long (its page "Error
/// codes" of 2025-11-14). How it words a refusal is stated nowhere.
fn failure(answer: &Answer) -> Error {
    let mut error = openai::failure(NAME, answer);
    let code = error.code.as_deref().unwrap_or_default();
    let text = format!("{} {code}", error.message).to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match error.status {
        400 | 403 | 422 if says(&["nsfw", "flagged", "content policy", "safety checker"]) => {
            error.kind = ErrorKind::ContentRejected;
        }
        400 if says(&["api key", "api_key"]) => error.kind = ErrorKind::PermissionDenied,
        403 if says(&["too long", "too large", "exceeds", "maximum length"]) => {
            error.kind = ErrorKind::InvalidRequest;
        }
        _ => {}
    }
    error
}
