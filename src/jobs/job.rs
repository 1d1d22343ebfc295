//! What a job is: its id, its states, how it ends, how it is shown.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    error::{Error, ErrorKind},
    pb::{BillingClass, Job, job::State, unix_now},
};

/// How long one that is over is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

const ID_PREFIX: &str = "job_";

/// A job as HTTP and webhooks show it.
pub fn to_json(job: &Job) -> Value {
    json!({
        "id": job.id,
        "object": "image.job",
        "status": state_name(job.state()),
        "model": Some(&job.model).filter(|model| !model.is_empty()),
        "created_at": job.created_unix_s,
        "finished_at": job.finished_unix_s,
        "expires_at": job.expires_unix_s,
        "progress": job.progress.as_ref().map(|progress| json!({
            "state": progress.state,
            "fraction": progress.fraction,
        })),
        "error": error(job).map(|error| error.to_openai()),
        "request_id": job.request_id,
    })
}

/// Why a job has failed.
pub fn error(job: &Job) -> Option<Error> {
    Some(Error::from_detail(&job.error_message, job.error.clone()?))
}

/// Whether nothing will change any more.
pub fn is_over(job: &Job) -> bool {
    !matches!(job.state(), State::Unspecified | State::Running)
}

/// OpenAI's words for the states of what runs in the background.
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified | State::Running => "in_progress",
        State::Succeeded => "completed",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

pub fn new_id() -> String {
    format!("{ID_PREFIX}{}", uuid::Uuid::new_v4().simple())
}

/// Only ids that we give: nothing in them can leave the store's folder.
pub fn is_id(id: &str) -> bool {
    id.strip_prefix(ID_PREFIX).is_some_and(|id| id.len() == 32 && id.bytes().all(|c| c.is_ascii_hexdigit()))
}

pub fn end(job: &mut Job, state: State) {
    let now = unix_now();
    job.state = state.into();
    job.progress = None;
    job.finished_unix_s = Some(now);
    job.expires_unix_s = Some(now + KEPT.as_secs().cast_signed());
}

pub fn fail(job: &mut Job, error: &Error) {
    end(job, State::Failed);
    job.error = Some(error.to_detail());
    job.error_message = error.message.clone();
}

/// A job whose process ended before it did.
pub fn interrupt(job: &mut Job) {
    let message = "the gateway stopped while the job ran; its provider may have charged for it";
    fail(
        job,
        &Error::new(ErrorKind::Internal, message).with_code("job_interrupted").billed(BillingClass::Unknown),
    );
}
