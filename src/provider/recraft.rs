//! Recraft's API: OpenAI's dialect for generation, forms for everything else, and vectors as SVG.
//!
//! Paths and fields are from Recraft's own pages; what only other clients know is marked "seen". Sizes, limits
//! and prices are data (`recraft.yaml`). What one endpoint cannot take although the model's others can is dropped
//! here, with a warning.

use std::sync::LazyLock;

use http::{Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Answer, ImageRef, Job, Output, Provider, Step, bytes_of, catalog, decimal, json_request, mask_as,
    multipart::Form,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, MaskPolarity, Operation, upscale::Mode, warning::Action},
};

const NAME: &str = "recraft-ai";

/// How far an edit goes when nobody says so; the endpoint wants a value.
const DEFAULT_STRENGTH: f64 = 0.5;

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("recraft")));

/// The provider `recraft-ai`.
#[derive(Debug)]
pub struct RecraftAi;

/// Where an operation is done, and what it takes there besides its image and `response_format`.
struct Endpoint {
    path: &'static str,
    takes: &'static [&'static str],
}

/// What a request says apart from its files, and what it could not say.
struct Fields {
    values: Map<String, Value>,
    takes: &'static [&'static str],
    operation: Operation,
    warnings: Vec<pb::Warning>,
}

#[derive(Deserialize)]
struct Images {
    #[serde(default)]
    data: Vec<Item>,
    /// Instead of `data`, from operations that make one.
    #[serde(default)]
    image: Option<Item>,
    /// Units spent, of which a thousand cost a dollar.
    #[serde(default)]
    credits: Option<f64>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    b64_json: Option<ImageRef>,
    #[serde(default)]
    url: Option<String>,
}

/// Recraft's own error, or OpenAI's.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorAnswer {
    code: Option<String>,
    message: Option<String>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorBody {
    Object {
        #[serde(default)]
        code: Option<String>,
        #[serde(default)]
        message: Option<String>,
    },
    Text(String),
}

impl Provider for RecraftAi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://external.api.recraft.ai/v1"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["b64_json"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let request = &job.request;
        let endpoint = endpoint(request)?;
        let operation = request.effective_operation();
        let call = job.call(Method::POST, &format!("/images/{}", endpoint.path))?;
        let fields = fields(job, &endpoint).values;
        if operation == Operation::Generate {
            return json_request(call, &fields);
        }
        let needs = |what: &str| {
            let message = format!("operation {:?} needs {what}", operation.name());
            Error::invalid(what.rsplit(' ').next().unwrap_or(what), message)
        };
        let input = request.inputs.first().ok_or_else(|| needs("an image"))?;
        let mut form = Form::new();
        for (name, value) in &fields {
            form = match value {
                Value::String(text) => form.text(name, text),
                other => form.text(name, &other.to_string()),
            };
        }
        form = form.image("image", "image", bytes_of(input)?);
        if endpoint.takes.contains(&"mask") {
            let mask = request.mask.as_ref().ok_or_else(|| needs("a mask"))?;
            form = form.image("mask", "mask", mask_as(mask, MaskPolarity::WhiteEdits)?);
        }
        form.into_request(call)
    }

    fn advance(&self, job: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        let Images { data, image, credits } = answer.json().map_err(|error| answer.own(NAME, error))?;
        let mut urls = Vec::new();
        let mut images = Vec::new();
        for item in data.into_iter().chain(image) {
            let data = match (item.b64_json, item.url) {
                (Some(place), _) => answer.take_image(&place).map_err(|error| answer.own(NAME, error))?,
                (None, Some(url)) if !url.is_empty() => {
                    urls.push(url);
                    bytes::Bytes::new()
                }
                (None, _) => {
                    let error = Error::bad_answer("an item of the answer has neither b64_json nor url");
                    return Err(answer.own(NAME, error));
                }
            };
            images.push(pb::Image { data, ..Default::default() });
        }
        if images.is_empty() {
            return Err(answer.own(NAME, Error::bad_answer("the answer has no image")));
        }
        let output = Output {
            images,
            usage: credits.map(|credits| pb::Usage { credits: Some(credits), ..Default::default() }),
            upstream_request_id: answer.request_id(),
            warnings: fields(job, &endpoint(&job.request)?).warnings,
            ..Default::default()
        };
        Ok(if urls.is_empty() { Step::Done(output) } else { Step::Fetch { urls, output } })
    }
}

/// The endpoint for the request's operation.
fn endpoint(request: &pb::ImageRequest) -> Result<Endpoint> {
    const EDIT: &[&str] = &["prompt", "model", "n", "style", "negative_prompt", "random_seed"];
    let (path, takes): (&str, &[&str]) = match request.effective_operation() {
        Operation::Generate => {
            ("generations", &["prompt", "model", "n", "size", "style", "negative_prompt", "random_seed"])
        }
        Operation::Edit => {
            ("imageToImage", &["prompt", "model", "n", "style", "negative_prompt", "random_seed", "strength"])
        }
        Operation::Inpaint => {
            ("inpaint", &["prompt", "model", "n", "style", "negative_prompt", "random_seed", "mask"])
        }
        Operation::Outpaint => ("outpaint", &["prompt", "model", "n", "style", "size", "outpaint"]),
        Operation::ReplaceBackground => ("replaceBackground", EDIT),
        Operation::RemoveBackground => ("removeBackground", &[]),
        Operation::Vectorize => ("vectorize", &[]),
        Operation::Erase => ("eraseRegion", &["mask"]),
        Operation::Upscale => match request.upscale.unwrap_or_default().mode() {
            Mode::Creative => ("creativeUpscale", &[]),
            // A sixtieth of the price, where the caller has no wish.
            Mode::Unspecified | Mode::Fast | Mode::Conservative => ("crispUpscale", &[]),
        },
        other => {
            let message = format!("{NAME} has no operation {:?}", other.name());
            return Err(Error::unsupported("operation", message));
        }
    };
    Ok(Endpoint { path, takes })
}

/// Everything but the images.
fn fields(job: &Job, endpoint: &Endpoint) -> Fields {
    let request = &job.request;
    let operation = request.effective_operation();
    let mut fields = Fields { values: Map::new(), takes: endpoint.takes, operation, warnings: Vec::new() };
    let text = |text: &str| (!text.is_empty()).then(|| Value::from(text));
    // The alternative is an address that works for a day.
    fields.values.insert("response_format".into(), "b64_json".into());
    if endpoint.takes.contains(&"model") {
        fields.values.insert("model".into(), request.model.as_str().into());
    }
    fields.put("prompt", "prompt", text(&request.prompt));
    fields.put("negative_prompt", "negative_prompt", text(&request.negative_prompt));
    fields.put("n", "n", request.n.filter(|n| *n > 1).map(Value::from));
    fields.put("size", "size", request.dimensions().map(|d| format!("{}x{}", d.width, d.height).into()));
    fields.put("style", "style", text(&request.style));
    // Seen, not documented.
    fields.put("seed", "random_seed", request.seed.map(Value::from));
    let default = endpoint.takes.contains(&"strength").then_some(DEFAULT_STRENGTH);
    fields.put("strength", "strength", request.strength.map(decimal).or(default).map(Value::from));
    if let Some(upscale) = &request.upscale {
        // No endpoint has them.
        fields.put("upscale.factor", "factor", upscale.factor.map(|_| Value::Null));
        fields.put("upscale.target", "target", upscale.target.map(|_| Value::Null));
        fields.put("upscale.creativity", "creativity", upscale.creativity.map(|_| Value::Null));
    }
    if let Some(outpaint) = &request.outpaint {
        fields.put("outpaint.creativity", "creativity", outpaint.creativity.map(|_| Value::Null));
        for (name, pixels) in [
            ("expand_left", outpaint.left),
            ("expand_right", outpaint.right),
            ("expand_top", outpaint.up),
            ("expand_bottom", outpaint.down),
        ] {
            if pixels > 0 && endpoint.takes.contains(&"outpaint") {
                fields.values.insert(name.into(), pixels.into());
            }
        }
    }
    for (name, value) in job.extras(NAME) {
        // Only endpoints with a prompt have fields beyond those here.
        if endpoint.takes.contains(&"prompt") {
            fields.values.insert(name, value);
        } else {
            fields.put(&name, &name, Some(value));
        }
    }
    fields
}

impl Fields {
    /// A field where the endpoint has it, else a warning.
    fn put(&mut self, field: &str, name: &str, value: Option<Value>) {
        let Some(value) = value else { return };
        if self.takes.contains(&name) {
            self.values.insert(name.to_owned(), value);
            return;
        }
        self.warnings.push(pb::Warning {
            field: field.to_owned(),
            action: Action::Dropped.into(),
            detail: format!("operation {} does not take it at {NAME}", self.operation.name()),
            target: String::new(),
        });
    }
}

/// The error that an answer with an error status is. Many are a line of plain text.
fn failure(answer: &Answer) -> Error {
    let ErrorAnswer { code, message, error } = answer.json().unwrap_or_default();
    let (code, message) = match error {
        Some(ErrorBody::Object { code, message }) => (code, message),
        Some(ErrorBody::Text(text)) => (code, Some(text)),
        None => (code, message),
    };
    let text = message.filter(|text| !text.is_empty()).unwrap_or_else(|| answer.plain_text());
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    let said = format!("{} {text}", code.as_deref().unwrap_or_default()).to_lowercase();
    // Recraft documents neither of the two: both are told by their words.
    if matches!(error.status, 400 | 402 | 403) && said.contains("credits") {
        error.kind = ErrorKind::QuotaExhausted;
    } else if matches!(error.status, 400 | 403 | 422)
        && ["moderation", "content policy", "content_policy", "nsfw", "inappropriate"]
            .iter()
            .any(|word| said.contains(word))
    {
        error.kind = ErrorKind::ContentRejected;
    }
    error.code = code.or_else(|| error.kind.openai_code().map(str::to_owned));
    error
}
