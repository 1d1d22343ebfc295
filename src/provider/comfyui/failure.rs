//! What ComfyUI's errors mean: graphs that it refuses, and jobs that fail.

use serde::Deserialize;
use serde_json::Value;

use super::NAME;
use crate::{
    error::{Error, ErrorKind},
    pb::BillingClass,
    provider::{Answer, poll},
};

/// Of an exception's message, in characters.
const LONGEST_MESSAGE: usize = 200;

/// How a job ended.
#[derive(Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    status_str: String,
    /// Names of events with what belongs to them.
    #[serde(default)]
    messages: Vec<(String, Value)>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: Value,
    #[serde(default)]
    node_errors: Value,
}

impl Status {
    pub(super) fn is_error(&self) -> bool {
        self.status_str == "error"
    }

    /// Why the job failed.
    pub(super) fn failure(&self, answer: &Answer) -> Error {
        let event = |wanted| self.messages.iter().find(|(name, _)| name == wanted).map(|(_, event)| event);
        let Some(event) = event("execution_error") else {
            let interrupted = event("execution_interrupted").is_some();
            let text = if interrupted { "the job was interrupted at the server" } else { "the job failed" };
            return failed(answer, ErrorKind::Unavailable, 500, text);
        };
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        if text("exception_type").contains("OutOfMemory") {
            let text = format!("{}: out of memory", text("node_type"));
            return failed(answer, ErrorKind::Unavailable, 503, &text);
        }
        let message = text("exception_message").lines().next().unwrap_or_default();
        let message: String = message.chars().take(LONGEST_MESSAGE).collect();
        failed(answer, ErrorKind::Unavailable, 500, &format!("{}: {message}", text("node_type")))
    }
}

/// What is wrong with which input of which node.
pub(super) fn problems(node_errors: &Value) -> Option<String> {
    let mut problems = Vec::new();
    for (id, node) in node_errors.as_object().into_iter().flatten() {
        for error in node["errors"].as_array().into_iter().flatten() {
            let text = |name: &str| error[name].as_str().unwrap_or_default();
            let class = node["class_type"].as_str().unwrap_or_default();
            problems.push(format!("{class} (node {id}): {}: {}", text("message"), text("details")));
        }
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// The job ended without an image. Nobody sends a bill for it: the hardware is the operator's own.
pub(super) fn failed(answer: &Answer, kind: ErrorKind, status: u16, text: &str) -> Error {
    poll::failed(answer, NAME, kind, status, text).billed(BillingClass::RejectedUnbilled)
}

/// The error that an answer with an error status is.
pub(super) fn failure(answer: &Answer) -> Error {
    let text = match answer.json::<ErrorAnswer>() {
        Ok(body) => problems(&body.node_errors).unwrap_or_else(|| {
            let text = |name: &str| body.error[name].as_str().unwrap_or_default();
            match &body.error {
                Value::String(text) => text.clone(),
                _ if text("details").is_empty() => text("message").to_owned(),
                _ => format!("{} ({})", text("message"), text("details")),
            }
        }),
        Err(_) => answer.plain_text(),
    };
    poll::coded(answer.default_error(NAME, format!("{NAME} error: {text}")))
}
