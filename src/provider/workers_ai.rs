//! Cloudflare Workers AI: one address per model, and per model whether it wants JSON or a form, and whether it sends
//! the image itself or JSON around it.
//!
//! What models take is from their schemas and code examples in Cloudflare's documentation (repository
//! cloudflare/cloudflare-docs, September 2026), error codes from its page "Errors". An input image goes as
//! `image_b64`, which the schemas of all models with an `image` have; a mask has only the form of a list of numbers.
//! Sizes, limits and prices are data (`workers_ai.yaml`).

use std::sync::LazyLock;

use bytes::Bytes;
use http::{
    Method, Request,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Answer, AnswerBody, ImageRef, Job, Output, Provider, Step, bytes_of, catalog, decimal, finish,
    is_path_segment, mask_as, multipart::Form, no_such_model,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::{Pieces, probe},
    pb::{self, BillingClass, MaskPolarity, Operation},
};

const NAME: &str = "workers-ai";

/// What no config can mean: every account has an address of its own.
const NO_ACCOUNT: &str = "https://api.cloudflare.com/client/v4/accounts/{workers_ai_account_id}/ai/run";

const ACCOUNT: &str = "workers_ai_account_id";

/// Longest side of an input of the FLUX.2 models, of which Cloudflare says that larger ones may not be sent.
const MAX_INPUT_SIDE: u32 = 512;

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("workers_ai")));

/// The provider `workers-ai`.
#[derive(Debug)]
pub struct WorkersAi;

/// What Cloudflare puts around every answer that is JSON.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Envelope {
    result: Option<Made>,
    success: Option<bool>,
    errors: Vec<Problem>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Made {
    image: Option<ImageRef>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    code: Option<u32>,
    message: String,
}

/// A body of JSON. The mask is written out as numbers straight from its bytes.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<&'a [u8]>,
}

impl Provider for WorkersAi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        NO_ACCOUNT
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["image"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let request = &job.request;
        let operation = request.effective_operation();
        if !matches!(operation, Operation::Generate | Operation::Edit | Operation::Inpaint) {
            let message = format!("{NAME} has no operation {:?}", operation.name());
            return Err(Error::unsupported("operation", message));
        }
        if operation != Operation::Generate && request.inputs.is_empty() {
            return Err(Error::invalid("image", format!("operation {:?} needs an image", operation.name())));
        }
        let address = format!("{}/{}", base(job)?, model(job)?);
        let call = job.request(Method::POST, &address, (AUTHORIZATION, "Bearer "))?;
        let mut fields = fields(job);
        if is_flux_2(request) {
            return form(request, &fields)?.into_request(call);
        }
        if let Some(input) = request.inputs.first() {
            let base64 = base64_simd::STANDARD.encode_to_string(bytes_of(input)?);
            fields.insert("image_b64".into(), base64.into());
        }
        let mask = match (operation, &request.mask) {
            (Operation::Inpaint, Some(mask)) => Some(mask_as(mask, MaskPolarity::WhiteEdits)?),
            (Operation::Inpaint, None) => return Err(Error::invalid("mask", "inpainting needs a mask")),
            _ => None,
        };
        let body = serde_json::to_vec(&Body { fields: &fields, mask: mask.as_deref() })
            .map_err(|error| Error::new(ErrorKind::Internal, format!("the request is no json: {error}")))?;
        finish(call.header(CONTENT_TYPE, "application/json"), body.into())
    }

    fn advance(&self, _job: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        let data = match &answer.body {
            AnswerBody::Raw(data) if is_image(&answer) => data.clone(),
            _ => from_json(&mut answer)?,
        };
        // Undocumented, and seen with every model: what the call was charged, in neurons.
        let neurons = answer.header("cf-ai-neurons").and_then(|text| text.parse().ok());
        let neurons = neurons.filter(|count: &f64| count.is_finite() && *count >= 0.0);
        Ok(Step::Done(Output {
            images: vec![pb::Image { data, ..Default::default() }],
            usage: neurons.map(|count| pb::Usage { credits: Some(count), ..Default::default() }),
            // A count of zero is a price, whatever the list says.
            reported_cost_usd: neurons.filter(|count| *count == 0.0),
            upstream_request_id: ray(&answer),
            ..Default::default()
        }))
    }
}

fn base(job: &Job) -> Result<String> {
    if job.base_url != NO_ACCOUNT {
        return Ok(job.base_url.clone());
    }
    let account = job.options.get(ACCOUNT).map_or("", String::as_str);
    if account.is_empty() {
        return Err(Error::invalid(ACCOUNT, format!("{NAME} needs a {ACCOUNT}, or a base_url")));
    }
    // It becomes part of the path: anything but a name would send the token elsewhere.
    if !account.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(Error::invalid(ACCOUNT, format!("{ACCOUNT} {account:?} is no account id")));
    }
    Ok(NO_ACCOUNT.replace("{workers_ai_account_id}", account))
}

/// The model, if it can be one: `@cf/vendor/name`.
fn model(job: &Job) -> Result<&str> {
    let model = job.request.model.as_str();
    let is_one = model.strip_prefix('@').is_some_and(|path| {
        let segments: Vec<&str> = path.split('/').collect();
        segments.len() == 3 && segments.into_iter().all(is_path_segment)
    });
    if is_one { Ok(model) } else { Err(no_such_model(model, NAME)) }
}

/// Whether the model wants a form, even without inputs.
fn is_flux_2(request: &pb::ImageRequest) -> bool {
    request.model.starts_with("@cf/black-forest-labs/flux-2")
}

fn is_image(answer: &Answer) -> bool {
    answer.content_type().starts_with("image/") || answer.content_type() == "application/octet-stream"
}

/// The image in an answer that is JSON. A failure may have the status of a success.
fn from_json(answer: &mut Answer) -> Result<Bytes> {
    let envelope: Envelope = answer.json().map_err(|error| answer.own(NAME, error))?;
    if envelope.success == Some(false) {
        return Err(failure(answer));
    }
    let place = envelope.result.and_then(|made| made.image);
    let data = place.map(|place| answer.take_image(&place)).transpose();
    match data.map_err(|error| answer.own(NAME, error))? {
        Some(data) if !data.is_empty() => Ok(data),
        _ => Err(answer.own(NAME, Error::bad_answer("the answer has no image"))),
    }
}

/// Everything but images. The caller's own extras win.
fn fields(job: &Job) -> Map<String, Value> {
    let request = &job.request;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| _ = fields.insert(name.to_owned(), value);
    put("prompt", request.prompt.as_str().into());
    if !request.negative_prompt.is_empty() {
        put("negative_prompt", request.negative_prompt.as_str().into());
    }
    // FLUX.1 has one size, and refuses fields that its schema does not have.
    if let Some(size) = request.dimensions().filter(|_| !request.model.contains("/flux-1-")) {
        put("width", size.width.into());
        put("height", size.height.into());
    }
    if let Some(steps) = request.steps {
        put(if request.model.contains("/flux-") { "steps" } else { "num_steps" }, steps.into());
    }
    if let Some(guidance) = request.guidance {
        put("guidance", decimal(guidance).into());
    }
    if let Some(strength) = request.strength {
        put("strength", decimal(strength).into());
    }
    if let Some(seed) = request.seed {
        put("seed", seed.into());
    }
    fields.extend(job.extras(NAME));
    fields
}

fn form(request: &pb::ImageRequest, fields: &Map<String, Value>) -> Result<Form> {
    let mut form = Form::new().fields(fields);
    for (i, input) in request.inputs.iter().enumerate() {
        let data = bytes_of(input)?;
        // What is no image we know is left to the server to judge.
        if let Ok(image) = probe::probe(&data.clone().into())
            && image.width.max(image.height) > MAX_INPUT_SIDE
        {
            let (width, height, model) = (image.width, image.height, &request.model);
            let message = format!(
                "image: {model} takes at most {MAX_INPUT_SIDE}x{MAX_INPUT_SIDE}, image {i} is {width}x{height}"
            );
            return Err(Error::unsupported("image", message));
        }
        form = form.image(&format!("input_image_{i}"), &format!("image-{i}"), data);
    }
    Ok(form)
}

/// The error that an answer is. Its status tells less than Cloudflare's own code in it.
fn failure(answer: &Answer) -> Error {
    let problems = answer.json::<Envelope>().unwrap_or_default().errors;
    let texts = problems.iter().map(|problem| match problem.code {
        Some(code) => format!("Error {code}:{}", problem.message),
        None => problem.message.clone(),
    });
    let text = if problems.is_empty() { answer.plain_text() } else { texts.collect::<Vec<_>>().join(", ") };
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    let code = problems.iter().find_map(|problem| problem.code);
    let kind = match code {
        Some(3030) => Some(ErrorKind::ContentRejected),
        // The day's free neurons are used up.
        Some(3036) => Some(ErrorKind::QuotaExhausted),
        // No capacity anywhere, with the status of a rate limit.
        Some(3040) => Some(ErrorKind::Unavailable),
        Some(5007 | 3042) => Some(ErrorKind::NotFound),
        Some(3007 | 3008) => Some(ErrorKind::Timeout),
        Some(10000) => Some(ErrorKind::PermissionDenied),
        _ => None,
    };
    if let Some(kind) = kind {
        error.kind = kind;
        if answer.status.is_success() {
            error.status = kind.http_status();
            error.billing = BillingClass::Unknown;
        }
    }
    // Made, then looked at: nobody says whether that was charged.
    if error.kind == ErrorKind::ContentRejected && text.to_lowercase().contains("output") {
        error.billing = BillingClass::Unknown;
    }
    error.code = code.map(|code| code.to_string()).or_else(|| error.kind.openai_code().map(str::to_owned));
    error.upstream_request_id = ray(answer);
    error
}

/// Cloudflare's id of a call.
fn ray(answer: &Answer) -> String {
    answer.header("cf-ray").unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(account: &str, model: &str) -> Result<Request<Pieces>> {
        WorkersAi.start(&Job {
            api_key: Some("key".into()),
            options: [(ACCOUNT.to_owned(), account.to_owned())].into(),
            ..Job::new(
                pb::ImageRequest { model: model.into(), ..Default::default() },
                WorkersAi.default_base_url(),
            )
        })
    }

    #[test]
    fn an_account_has_its_own_path() {
        let request = started("0123abcd", "@cf/leonardo/phoenix-1.0").unwrap();
        assert_eq!(
            request.uri(),
            "https://api.cloudflare.com/client/v4/accounts/0123abcd/ai/run/@cf/leonardo/phoenix-1.0"
        );
        assert!(request.headers()["authorization"].is_sensitive());
    }

    #[test]
    fn neither_account_nor_model_can_lead_to_another_path() {
        for account in ["", "..", "a/b", "a?b", "a#b", "a b", "{workers_ai_account_id}"] {
            let error = started(account, "@cf/leonardo/phoenix-1.0").unwrap_err();
            assert_eq!(error.param.as_deref(), Some(ACCOUNT), "{account}");
        }
        for model in
            ["", "cf/a/b", "@cf/a", "@cf/a/b/c", "@cf/../b", "@cf//b", "@cf/a/b?c", "@cf/a/b#c", "@/a/b"]
        {
            let error = started("0123abcd", model).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("model"), "{model}");
        }
    }
}
