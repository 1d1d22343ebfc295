//! Replicate: predictions of many vendors' models. A job is submitted, asked for at the address that its answer
//! names, can be given up, and its images are fetched from a delivery host.
//!
//! Facts are from Replicate's Python client 1.0.7, its page on rate limits and vercel/ai's client. Every model has
//! an input schema of its own: `replicate_names.yaml`.

use std::{sync::LazyLock, time::Duration};

use http::{HeaderName, HeaderValue, Method, Request, header::AUTHORIZATION};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Answer, Job, Output, Provider, Step, catalog, finish, inlined, is_path_segment, json_request,
    names::{self, Names},
    poll,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass},
};

const NAME: &str = "replicate";

/// Replicate's own clients ask so often.
const POLL_EVERY: Duration = Duration::from_millis(500);

/// How long the first answer may wait for the result, the least that there is: until it comes, nobody knows the
/// address to give the job up at.
const PREFER: HeaderValue = HeaderValue::from_static("wait=1");

const CREDENTIAL: (HeaderName, &str) = (AUTHORIZATION, "Bearer ");

/// Words in the error of a job whose content was refused; there is no code for it. E005 is that of official models.
const REFUSALS: [&str; 5] = ["nsfw", "sensitive", "safety", "flagged", "e005"];

const MAX_ERROR_CHARS: usize = 300;

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("replicate")));
static NAMES: LazyLock<Vec<Names>> = LazyLock::new(|| names::embedded(data!("replicate_names")));

/// The provider `replicate`.
#[derive(Debug)]
pub struct Replicate;

#[derive(Deserialize)]
struct Prediction {
    id: String,
    status: String,
    #[serde(default)]
    output: Value,
    #[serde(default)]
    error: Value,
    #[serde(default)]
    logs: Option<String>,
    #[serde(default)]
    urls: Option<Urls>,
}

#[derive(Deserialize)]
struct Urls {
    #[serde(default)]
    get: Option<String>,
    #[serde(default)]
    cancel: Option<String>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    invalid_fields: Vec<InvalidField>,
}

#[derive(Deserialize)]
struct InvalidField {
    #[serde(default)]
    field: String,
}

impl Provider for Replicate {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://api.replicate.com/v1"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &[]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let (path, version) = place(&job.request.model)?;
        let mut input = names(job).fields(&job.request, "jpg")?;
        input.extend(job.extras(NAME));
        let mut body = Map::new();
        if let Some(version) = version {
            body.insert("version".into(), version.into());
        }
        body.insert("input".into(), input.into());
        json_request(job.call(Method::POST, &path)?.header("prefer", PREFER), &body)
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        let submitted = place(&job.request.model)?.0;
        let asked_for = answer.address != format!("{}{submitted}", job.base_url);
        if !answer.status.is_success() {
            return match poll::ask_again(job, CREDENTIAL, &answer).filter(|_| asked_for) {
                Some(step) => Ok(step?.at("running", None).or_cancel(cancel(job, &answer.address)?).into()),
                None => Err(failure(&answer, asked_for)),
            };
        }
        let prediction: Prediction = answer.json().map_err(|error| answer.own(NAME, error))?;
        let id = prediction.id.clone();
        prediction.advance(job, &answer).map_err(|mut error| {
            error.upstream_request_id = id;
            error
        })
    }
}

impl Prediction {
    fn advance(self, job: &Job, answer: &Answer) -> Result<Step> {
        let own = |error| answer.own(NAME, error);
        let failed = |kind, status, text: &str| Err(poll::failed(answer, NAME, kind, status, text));
        let state = match self.status.as_str() {
            "starting" => "queued",
            "processing" => "running",
            "succeeded" => return self.images(job).map_err(own),
            "failed" => return Err(self.failure(answer)),
            "canceled" => return failed(ErrorKind::Unavailable, 503, "the job was canceled"),
            "aborted" => return failed(ErrorKind::Timeout, 504, "the job was aborted"),
            _ => return Err(own(Error::bad_answer("the job is in no state that is known"))),
        };
        let urls = self.urls.as_ref();
        let get = match urls.and_then(|urls| urls.get.clone()) {
            Some(url) => url,
            None if is_path_segment(&self.id) => format!("{}/predictions/{}", job.base_url, self.id),
            None => return Err(own(Error::bad_answer("the answer does not say where to ask for the job"))),
        };
        let step = poll::ask(job, &get, CREDENTIAL, answer, POLL_EVERY).map_err(own)?;
        let cancel = match urls.and_then(|urls| urls.cancel.as_deref()) {
            Some(url) => Some(empty_post(job, url).map_err(own)?),
            None => cancel(job, &get).map_err(own)?,
        };
        Ok(step.at(state, None).or_cancel(cancel).into())
    }

    fn images(self, job: &Job) -> Result<Step> {
        let mut addresses = Vec::new();
        collect(&self.output, &mut addresses);
        if addresses.is_empty() {
            return Err(Error::bad_answer("the finished job has no image"));
        }
        // Those of several images are not said.
        let seed = if addresses.len() == 1 { self.logs.as_deref().and_then(seed_in) } else { None };
        let (mut images, mut urls) = (Vec::new(), Vec::new());
        for address in addresses {
            let data = inlined(address)?.unwrap_or_default();
            if data.is_empty() {
                urls.push(address.to_owned());
            }
            images.push(pb::Image { data, seed, ..Default::default() });
        }
        let warnings = names(job).dropped(&job.request);
        let output = Output { images, upstream_request_id: self.id, warnings, ..Default::default() };
        Ok(if urls.is_empty() { Step::Done(output) } else { Step::Fetch { urls, output } })
    }

    fn failure(&self, answer: &Answer) -> Error {
        let text = self.error.as_str().unwrap_or("the job failed");
        let text: String = text.lines().next().unwrap_or_default().chars().take(MAX_ERROR_CHARS).collect();
        let lower = text.to_lowercase();
        if REFUSALS.iter().any(|word| lower.contains(word)) {
            // Whether it was the prompt or the result is not said either.
            return poll::refused(answer, NAME, "output", &text);
        }
        poll::failed(answer, NAME, ErrorKind::Unavailable, 500, &text)
    }
}

fn names(job: &Job) -> &'static Names {
    names::find(&NAMES, &job.request.model).expect("the last entry is for every model")
}

/// Where a model's jobs are submitted, and the version to name there.
fn place(model: &str) -> Result<(String, Option<&str>)> {
    let unknown = || Error::invalid("model", format!("model {model:?} is no model of {NAME}"));
    let (name, version) = match model.split_once(':') {
        Some((name, version)) => (name, Some(version)),
        None if model.len() == 64 && is_path_segment(model) => {
            return Ok(("/predictions".into(), Some(model)));
        }
        None => (model, None),
    };
    // They become part of the path.
    let parts: Vec<&str> = name.split('/').collect();
    if !parts.iter().all(|part| is_path_segment(part))
        || version.is_some_and(|version| !is_path_segment(version))
    {
        return Err(unknown());
    }
    match (parts.as_slice(), version) {
        ([_, _], Some(version)) => Ok(("/predictions".into(), Some(version))),
        ([_, _], None) => Ok((format!("/models/{name}/predictions"), None)),
        (["deployments", _, _], None) => Ok((format!("/{name}/predictions"), None)),
        _ => Err(unknown()),
    }
}

/// What gives up the job that is asked for at this address.
fn cancel(job: &Job, get: &str) -> Result<Option<Request<Pieces>>> {
    empty_post(job, &format!("{get}/cancel")).map(Some)
}

fn empty_post(job: &Job, address: &str) -> Result<Request<Pieces>> {
    finish(job.follow(Method::POST, address, CREDENTIAL)?.header("content-length", 0), Pieces::default())
}

/// Addresses in an output: one, a list, or, at a few models, somewhere in objects.
fn collect<'a>(output: &'a Value, into: &mut Vec<&'a str>) {
    match output {
        Value::String(text) if text.starts_with("http") || text.starts_with("data:") => into.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        Value::Object(members) => members.values().for_each(|item| collect(item, into)),
        _ => {}
    }
}

/// `Using seed: 42`, which the flux models log.
fn seed_in(logs: &str) -> Option<u64> {
    let (_, rest) = logs.split_once("Using seed: ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The error that an answer with an error status is.
fn failure(answer: &Answer, asked_for: bool) -> Error {
    let body: Option<ErrorAnswer> = answer.json().ok();
    let text = body.as_ref().and_then(|body| body.detail.as_ref().or(body.title.as_ref()));
    let text = text.map_or_else(|| answer.plain_text(), Clone::clone);
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    if error.kind == ErrorKind::RateLimited && error.retry_after.is_none() {
        error.retry_after = wait_in(&text);
    }
    let field = body.and_then(|body| body.invalid_fields.into_iter().next()).map(|field| field.field);
    error.param = field.filter(|field| !field.is_empty());
    if asked_for {
        error.billing = BillingClass::Unknown;
    }
    poll::coded(error)
}

/// `Your rate limit resets in ~30s.`
fn wait_in(text: &str) -> Option<Duration> {
    let (_, rest) = text.split_once('~')?;
    let (seconds, _) = rest.split_once('s')?;
    seconds.parse().ok().map(Duration::from_secs)
}
