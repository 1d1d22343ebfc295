//! fal's queue: a job is submitted, its state asked for, its result asked for when it is complete, and the images
//! fetched from a delivery host. A job can be given up.
//!
//! Facts are from fal's client 1.0.3, its pages on the queue and on errors, and vercel/ai's client. Every model has
//! an input schema of its own: `fal_names.yaml`. That a state's answer may lack the addresses is from fal's examples.

use std::{sync::LazyLock, time::Duration};

use http::{HeaderName, HeaderValue, Method, Request, header::AUTHORIZATION};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Answer, Job, Output, Provider, Step, catalog, finish, inlined, is_path_segment, json_request,
    names::{self, Names},
    no_such_model, poll,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass, FinishReason, Operation},
};

const NAME: &str = "fal";

/// fal's JavaScript client asks so often.
const POLL_EVERY: Duration = Duration::from_millis(500);

const CREDENTIAL: (HeaderName, &str) = (AUTHORIZATION, "Key ");

/// The queue would try a failed job up to ten times by itself; whether to try again is the router's to say.
const NO_RETRY: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-fal-no-retry"), HeaderValue::from_static("1"));

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("fal")));
static NAMES: LazyLock<Vec<Names>> = LazyLock::new(|| names::embedded(data!("fal_names")));

/// The provider `fal`.
#[derive(Debug)]
pub struct Fal;

/// The answer to a submission, or to asking for its state.
#[derive(Deserialize)]
struct Queued {
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    queue_position: Option<u64>,
    #[serde(default)]
    status_url: Option<String>,
    #[serde(default)]
    response_url: Option<String>,
    #[serde(default)]
    cancel_url: Option<String>,
    /// Of a job that is complete, but failed.
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    error_type: Option<String>,
}

#[derive(Deserialize)]
struct Finished {
    #[serde(default)]
    images: Vec<File>,
    /// What some models send instead.
    #[serde(default)]
    image: Option<File>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    has_nsfw_concepts: Vec<bool>,
    #[serde(default)]
    prompt: Option<String>,
}

#[derive(Deserialize)]
struct File {
    url: String,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    #[serde(default)]
    detail: Option<Detail>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    error_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Detail {
    Text(String),
    Problems(Vec<Problem>),
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    loc: Vec<Value>,
    #[serde(default)]
    msg: String,
    #[serde(default, rename = "type")]
    kind: String,
}

/// What an answer is to, by the address that was asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Submission,
    State,
    Result,
}

impl Provider for Fal {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://queue.fal.run"
    }

    fn image_members(&self) -> &'static [&'static str] {
        &[]
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let (no_retry, one) = NO_RETRY;
        let request = job.call_as(Method::POST, &path(job)?, CREDENTIAL)?.header(no_retry, one);
        let mut fields = names(job).fields(&job.request, "jpeg")?;
        fields.extend(job.extras(NAME));
        json_request(request, &fields)
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        let asked = Asked::of(job, &answer)?;
        if !answer.status.is_success() {
            // What a result's address answers is the job's own end.
            return match poll::ask_again(job, CREDENTIAL, &answer).filter(|_| asked == Asked::State) {
                Some(step) => {
                    Ok(step?.at("running", None).or_cancel(cancel(job, &answer.address, None)?).into())
                }
                None => Err(failure(&answer, asked)),
            };
        }
        let step = if asked == Asked::Result {
            result(job, &answer)
        } else {
            answer.json().and_then(|queued: Queued| queued.advance(job, &answer))
        };
        step.map_err(|error| if error.provider.is_empty() { own(error, &answer) } else { error })
    }
}

impl Asked {
    fn of(job: &Job, answer: &Answer) -> Result<Self> {
        Ok(if answer.address == format!("{}{}", job.base_url, path(job)?) {
            Self::Submission
        } else if answer.address.ends_with("/status") {
            Self::State
        } else {
            Self::Result
        })
    }
}

impl Queued {
    fn advance(self, job: &Job, answer: &Answer) -> Result<Step> {
        let status_url = match &self.status_url {
            Some(url) => url.clone(),
            // The answer to a state need not repeat it.
            None if self.request_id.is_empty() && self.status.is_empty() => {
                return Err(Error::bad_answer("the answer is about no job"));
            }
            None => answer.address.clone(),
        };
        let state = match (self.status.as_str(), self.queue_position) {
            ("IN_PROGRESS", _) => "running".to_owned(),
            ("COMPLETED", _) => return self.completed(job, answer, &status_url),
            ("" | "IN_QUEUE", None | Some(0)) => "queued".to_owned(),
            ("" | "IN_QUEUE", Some(ahead)) => format!("queued behind {ahead}"),
            _ => return Err(Error::bad_answer("the job is in no state that is known")),
        };
        let cancel = cancel(job, &status_url, self.cancel_url.as_deref())?;
        let step = poll::ask(job, &status_url, CREDENTIAL, answer, POLL_EVERY)?;
        Ok(step.at(&state, None).or_cancel(cancel).into())
    }

    fn completed(self, job: &Job, answer: &Answer, status_url: &str) -> Result<Step> {
        if let Some(error) = self.error.filter(|error| !error.is_null()) {
            let text = error.as_str().unwrap_or("the job failed");
            let kind = self.error_type.as_deref().unwrap_or_default();
            return Err(match kind {
                "content_policy_violation" => poll::refused(answer, NAME, "output", text),
                "generation_timeout" | "request_timeout" => {
                    poll::failed(answer, NAME, ErrorKind::Timeout, 504, text)
                }
                _ => poll::failed(answer, NAME, ErrorKind::Unavailable, 500, text),
            });
        }
        let url = self.response_url.as_deref().unwrap_or_else(|| job_url(status_url));
        let step = poll::ask(job, url, CREDENTIAL, answer, Duration::ZERO)?;
        Ok(step.at("fetching", None).into())
    }
}

/// Where a request is submitted. Some models have a place of their own for edits.
fn path(job: &Job) -> Result<String> {
    let model = &job.request.model;
    if !model.split('/').all(is_path_segment) || !model.contains('/') {
        return Err(no_such_model(model, NAME));
    }
    let edits_at = names(job).edits_at.as_str();
    if job.request.effective_operation() == Operation::Edit && !edits_at.is_empty() {
        return Ok(format!("/{model}/{edits_at}"));
    }
    Ok(format!("/{model}"))
}

fn names(job: &Job) -> &'static Names {
    names::find(&NAMES, &job.request.model).expect("the last entry is for every model")
}

/// The address of the job whose state is asked for at this one.
fn job_url(status_url: &str) -> &str {
    status_url.strip_suffix("/status").unwrap_or(status_url)
}

fn cancel(job: &Job, status_url: &str, said: Option<&str>) -> Result<Option<Request<Pieces>>> {
    let url = said.map_or_else(|| format!("{}/cancel", job_url(status_url)), str::to_owned);
    finish(job.follow(Method::PUT, &url, CREDENTIAL)?, Pieces::default()).map(Some)
}

fn result(job: &Job, answer: &Answer) -> Result<Step> {
    let result: Finished = answer.json()?;
    let files: Vec<File> = result.images.into_iter().chain(result.image).collect();
    if files.is_empty() {
        return Err(Error::bad_answer("the finished job has no image"));
    }
    let revised_prompt = result.prompt.filter(|prompt| *prompt != job.request.prompt).unwrap_or_default();
    let (mut images, mut urls) = (Vec::new(), Vec::new());
    for (i, file) in files.into_iter().enumerate() {
        let mut image =
            pb::Image { seed: result.seed, revised_prompt: revised_prompt.clone(), ..Default::default() };
        if result.has_nsfw_concepts.get(i) == Some(&true) {
            // What lies at the address is black.
            image.finish_reason = FinishReason::ContentFiltered.into();
        } else if let Some(data) = inlined(&file.url)? {
            image.data = data;
        } else {
            urls.push(file.url);
        }
        images.push(image);
    }
    let output = Output {
        images,
        upstream_request_id: request_id(answer),
        warnings: names(job).dropped(&job.request),
        ..Default::default()
    };
    Ok(if urls.is_empty() { Step::Done(output) } else { Step::Fetch { urls, output } })
}

/// The error that an answer with an error status is.
fn failure(answer: &Answer, asked: Asked) -> Error {
    let body: Option<ErrorAnswer> = answer.json().ok();
    let mut kind = answer.header("x-fal-error-type").map(str::to_owned);
    let (mut param, mut text) = (None, None);
    if let Some(body) = body {
        kind = body.error_type.or(kind);
        match body.detail {
            Some(Detail::Text(detail)) => text = Some(detail),
            Some(Detail::Problems(problems)) => {
                let refused = problems.iter().find(|problem| problem.kind == "content_policy_violation");
                if let Some(first) = refused.or(problems.first()) {
                    param = first.loc.last().and_then(Value::as_str).map(str::to_owned);
                    kind = Some(first.kind.clone());
                }
                text =
                    Some(problems.iter().map(|problem| problem.msg.as_str()).collect::<Vec<_>>().join("; "));
            }
            None => text = body.message,
        }
    }
    let text = text.unwrap_or_else(|| answer.plain_text());
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    error.upstream_request_id = request_id(answer);
    // By type, never by message; only for an account without money there is no type.
    match (error.status, kind.as_deref()) {
        (_, Some("content_policy_violation")) => error.kind = ErrorKind::ContentRejected,
        (_, Some("no_media_generated")) => error.kind = ErrorKind::Unavailable,
        (_, Some("generation_timeout" | "request_timeout")) => error.kind = ErrorKind::Timeout,
        (403, _) if text.to_lowercase().contains("balance") => error.kind = ErrorKind::QuotaExhausted,
        _ => {}
    }
    error.billing = match (asked, error.kind) {
        // The image was made before it was refused, or nobody knows.
        (Asked::Result, ErrorKind::ContentRejected) if param.as_deref() != Some("prompt") => {
            BillingClass::Unknown
        }
        (Asked::State, _) | (_, ErrorKind::Timeout) => BillingClass::Unknown,
        // Errors of the server are not charged either.
        _ => BillingClass::RejectedUnbilled,
    };
    error.error_type = kind;
    error.param = param;
    poll::coded(error)
}

/// A broken answer's error, with who sent it.
fn own(error: Error, answer: &Answer) -> Error {
    let mut error = answer.own(NAME, error);
    error.upstream_request_id = request_id(answer);
    error
}

fn request_id(answer: &Answer) -> String {
    answer.header("x-fal-request-id").map_or_else(|| answer.request_id(), str::to_owned)
}
