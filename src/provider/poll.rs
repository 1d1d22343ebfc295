//! What providers have in common whose jobs are submitted, then asked for until they are done.

use std::time::Duration;

use http::{HeaderName, Method};

use super::{Answer, Job, Next, finish};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::BillingClass,
    worker::retry_after,
};

/// Pause after a poll that failed for a reason that passes.
const AFTER_HICCUP: Duration = Duration::from_secs(5);

/// Asks for a job at an address that the provider gave, after the pause it wants or else the usual one. What has
/// been noted stays noted.
pub(super) fn ask(
    job: &Job,
    address: &str,
    credential: (HeaderName, &str),
    answer: &Answer,
    usually: Duration,
) -> Result<Next> {
    let request = finish(job.follow(Method::GET, address, credential)?, Pieces::default())?;
    let after = retry_after::read(&answer.headers).unwrap_or(usually);
    Ok(Next { note: answer.note.clone(), ..Next::new(after, request) })
}

/// Asks again where the answer says only that this was not the moment to ask: the job goes on and is paid for.
pub(super) fn ask_again(job: &Job, credential: (HeaderName, &str), answer: &Answer) -> Option<Result<Next>> {
    let passes = matches!(answer.status.as_u16(), 429 | 502 | 503 | 504);
    passes.then(|| ask(job, &answer.address, credential, answer, AFTER_HICCUP))
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
