//! Stability AI's REST API: `v1` with its engines, and `v2beta`.
//!
//! Facts are from Stability's OpenAPI document unless a comment names another source. The model's id decides
//! the version; in `v2beta` the operation decides the endpoint. Sizes, limits and prices are data
//! (`stability.yaml`): the router has fitted the request before it comes here. What one endpoint cannot take
//! although the model's others can is dropped here, with a warning.

pub(super) mod v1;
pub(super) mod v2beta;

use std::{sync::LazyLock, time::Duration};

use http::{HeaderValue, Method, Request, header::ACCEPT};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Answer, AnswerBody, Job, Output, Provider, Step, catalog, is_path_segment, no_such_model};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass, FinishReason, warning::Action},
};

const NAME: &str = "stability-ai";

/// Whoever exceeds 150 requests in 10 s is shut out for about a minute; no header says so. From client
/// libraries, not from Stability's documents.
const RATE_LIMIT_WAIT: Duration = Duration::from_secs(60);

/// Longest text in a client header.
const MAX_CLIENT_HEADER_CHARS: usize = 256;

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("stability")));

/// The provider `stability-ai`.
#[derive(Debug)]
pub struct StabilityAi;

/// What a request says to an endpoint apart from its files, and what it could not say.
pub(super) struct Fields {
    /// Who serves the models, for messages.
    provider: &'static str,
    pub(super) values: Map<String, Value>,
    pub(super) warnings: Vec<pb::Warning>,
}

/// `v1` has a `message`, `v2beta` a list of `errors`.
#[derive(Deserialize)]
struct ErrorAnswer {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<String>,
}

impl Provider for StabilityAi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.stability.ai"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["base64", "image", "result"]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let model = &job.request.model;
        if !is_path_segment(model) {
            return Err(no_such_model(model, NAME));
        }
        if is_v1(model) { v1::start(job) } else { v2beta::start(job) }
    }

    fn advance(&self, job: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(job, &answer));
        }
        let v1 = is_v1(&job.request.model);
        let images = match &answer.body {
            AnswerBody::Raw(data) if answer.content_type().starts_with("image/") => {
                let reason = answer.header("finish-reason").unwrap_or_default();
                let seed = answer.header("seed").and_then(|seed| seed.parse().ok());
                Ok(vec![image(reason, seed, || Ok(data.clone()))?])
            }
            _ if v1 => v1::images(&mut answer),
            _ => match v2beta::answer(job, &mut answer) {
                Ok(v2beta::Outcome::Image(image)) => Ok(vec![image]),
                Ok(v2beta::Outcome::Pending(step)) => return Ok(*step),
                Err(error) => Err(error),
            },
        };
        let images = images.map_err(|error| answer.own(NAME, error))?;
        let fields = if v1 { v1::fields_of(NAME, job) } else { v2beta::fields(job, &v2beta::endpoint(job)?) };
        Ok(Step::Done(Output {
            images,
            upstream_request_id: answer.request_id(),
            warnings: fields?.warnings,
            ..Default::default()
        }))
    }
}

/// The engines of `v1`; `v2beta` has models with short names.
fn is_v1(model: &str) -> bool {
    model.starts_with("stable-diffusion") || model.starts_with("esrgan")
}

/// A request with the headers that both versions know.
fn call(job: &Job, method: Method, path: &str) -> Result<http::request::Builder> {
    let mut request = job.call(method, path)?.header(ACCEPT, "application/json");
    for (option, header) in [
        ("stability_client_id", "stability-client-id"),
        ("stability_client_user_id", "stability-client-user-id"),
        ("stability_client_version", "stability-client-version"),
    ] {
        // The request's own user says it better.
        if header == "stability-client-user-id" && client_user(job).is_some() {
            continue;
        }
        if let Some(text) = job.options.get(option) {
            let value = HeaderValue::from_str(text)
                .map_err(|_| Error::invalid(option, format!("{option} {text:?} fits no header")))?;
            request = request.header(header, value);
        }
    }
    Ok(request)
}

/// The end user as `v2beta`'s header takes it.
fn client_user(job: &Job) -> Option<HeaderValue> {
    let user = &job.request.end_user;
    if user.is_empty() || user.len() > MAX_CLIENT_HEADER_CHARS || is_v1(&job.request.model) {
        return None;
    }
    // Beyond ASCII a header has no agreed encoding.
    HeaderValue::from_str(user).ok().filter(|_| user.is_ascii())
}

impl Fields {
    fn new(provider: &'static str) -> Self {
        Self { provider, values: Map::new(), warnings: Vec::new() }
    }

    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.to_owned(), value.into());
    }

    pub(super) fn warn(&mut self, field: &str, action: Action, detail: impl Into<String>) {
        self.warnings.push(pb::Warning {
            field: field.to_owned(),
            action: action.into(),
            detail: detail.into(),
            target: String::new(),
        });
    }

    /// The seed as upstream takes it, where 0 asks for a random one.
    fn seed(&mut self, seed: u64) -> u64 {
        if seed == 0 {
            let detail = format!("0 means random at {}: 1 was sent", self.provider);
            self.warn("seed", Action::Adjusted, detail);
        }
        seed.max(1)
    }
}

/// One image of an answer. A filtered one comes blurred: its bytes are dropped, so that nobody takes it for
/// the result.
fn image(reason: &str, seed: Option<u64>, data: impl FnOnce() -> Result<bytes::Bytes>) -> Result<pb::Image> {
    let reason = match reason {
        "CONTENT_FILTERED" => FinishReason::ContentFiltered,
        "ERROR" => FinishReason::Error,
        "SUCCESS" => FinishReason::Stop,
        _ => FinishReason::Unspecified,
    };
    let withheld = matches!(reason, FinishReason::ContentFiltered | FinishReason::Error);
    Ok(pb::Image {
        data: if withheld { bytes::Bytes::new() } else { data()? },
        seed,
        finish_reason: reason.into(),
        ..Default::default()
    })
}

fn failure(job: &Job, answer: &Answer) -> Error {
    let body = answer.json::<ErrorAnswer>().ok().filter(|body| !body.name.is_empty());
    let text = match &body {
        Some(body) if !body.errors.is_empty() => body.errors.join(", "),
        Some(body) if !body.message.is_empty() => body.message.clone(),
        Some(body) => body.name.clone(),
        None => answer.plain_text(),
    };
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    if error.kind == ErrorKind::RateLimited && error.retry_after.is_none() {
        error.retry_after = Some(RATE_LIMIT_WAIT);
    }
    if let Some(body) = body {
        match body.name.as_str() {
            // In v1 these are the blocked words.
            "content_moderation" | "invalid_prompts" => error.kind = ErrorKind::ContentRejected,
            _ => {}
        }
        // Failed generations are not charged, but only Stability's own answer says that it failed.
        error.billing = BillingClass::RejectedUnbilled;
        if error.upstream_request_id.is_empty() {
            error.upstream_request_id = body.id;
        }
        error.error_type = Some(body.name);
    }
    // It may be the poll that failed, with a result paid for and waiting.
    let may_be_a_poll = matches!(error.status, 404 | 429 | 500..);
    if may_be_a_poll && !is_v1(&job.request.model) && v2beta::endpoint(job).is_ok_and(|e| e.asynchronous) {
        error.billing = BillingClass::Unknown;
    }
    error
}
