//! What providers have in common whose jobs are submitted, then asked for until they are done.

use std::time::Duration;

use http::{HeaderName, Method};

use super::{Answer, Job, Step, finish};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass},
    worker::retry_after,
};

/// Pause after a poll that failed for a reason that passes.
const AFTER_HICCUP: Duration = Duration::from_secs(5);

/// Asks for a job at an address that the provider gave, after the pause it wants or else the usual one.
pub(super) fn ask(
    job: &Job,
    address: &str,
    credential: (HeaderName, &str),
    answer: &Answer,
    usually: Duration,
) -> Result<Step> {
    Ok(Step::Next {
        after: retry_after::read(&answer.headers).unwrap_or(usually),
        request: finish(job.follow(Method::GET, address, credential)?, Pieces::default())?,
        progress: None,
        cancel: None,
    })
}

/// Asks again where the answer says only that this was not the moment to ask: the job goes on and is paid for.
pub(super) fn ask_again(job: &Job, credential: (HeaderName, &str), answer: &Answer) -> Option<Result<Step>> {
    let passes = matches!(answer.status.as_u16(), 429 | 502 | 503 | 504);
    passes.then(|| ask(job, &answer.address, credential, answer, AFTER_HICCUP))
}

/// The same step, with how far the provider is and what gives the job up.
pub(super) fn with(
    step: Step,
    state: &str,
    fraction: Option<f64>,
    cancel: Option<http::Request<Pieces>>,
) -> Step {
    match step {
        Step::Next { after, request, .. } => Step::Next {
            after,
            request,
            progress: Some(pb::Progress { fraction, state: state.to_owned() }),
            cancel: cancel.map(Box::new),
        },
        other => other,
    }
}

/// The error that a job ended with which had been accepted. What it cost is seldom said.
pub(super) fn failed(answer: &Answer, provider: &str, kind: ErrorKind, status: u16, text: &str) -> Error {
    let mut error = answer.default_error(provider, format!("{provider} error: {text}"));
    error.kind = kind;
    error.billing = BillingClass::Unknown;
    coded(error.with_status(status))
}

/// The error with OpenAI's code for its kind: these providers say none, and clients decide by it.
pub(super) fn coded(mut error: Error) -> Error {
    error.code = error.kind.openai_code().map(str::to_owned);
    error
}

/// The job's content was refused, at the stage `prompt` or `output`.
pub(super) fn refused(answer: &Answer, provider: &str, stage: &str, text: &str) -> Error {
    let billing = Error::refused(stage, "").billing;
    failed(answer, provider, ErrorKind::ContentRejected, 400, text).billed(billing)
}
