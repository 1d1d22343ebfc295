//! A request of the log made once more: with its parameters, by the config of today.

use axum::{
    Form,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue},
    response::Redirect,
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{Dashboard, failure::Failure, request::found, session::Visitor};
use crate::{
    error::Error,
    pb::{GenerateImageRequest, ImageRequest, RequestRecord},
};

/// What is not in the log, or may be another.
#[derive(Debug, Deserialize)]
pub struct Again {
    prompt: String,
    #[serde(default)]
    config: String,
}

/// What the log calls routes that requests have brought themselves.
const OF_REQUESTS: [&str; 2] = ["inline", "request"];

/// `POST /logs/{id}/replay`: makes the request again, and shows what came of it, good or bad.
pub async fn replay(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(id): Path<String>,
    Form(again): Form<Again>,
) -> Result<Redirect, Failure> {
    let record = found(&dashboard, &visitor, &id).await?;
    if let Some(reason) = obstacle(&record) {
        return Err(Error::invalid("id", reason).into());
    }
    let mut headers = HeaderMap::new();
    if !again.config.trim().is_empty() {
        let config = HeaderValue::from_str(again.config.trim()).map_err(|_| {
            Error::invalid("config", "config: the slug of a config has letters, digits and signs only")
        })?;
        headers.insert("x-portkey-config", config);
    }
    let image = ImageRequest { prompt: again.prompt, ..record.asked.unwrap_or_default() };
    let request = visitor.ask_with(GenerateImageRequest { image: Some(image) }, headers);
    let made = dashboard.router.generate_image(request).await;
    let report = match made {
        Ok(made) => made.into_inner().result.and_then(|result| result.report),
        Err(status) => {
            let failure = Failure::from(status);
            match failure.error().report.clone() {
                Some(report) if !report.attempts.is_empty() => Some(*report),
                // Nothing was tried: that is no request to look at.
                _ => return Err(failure),
            }
        }
    };
    let id = report.map(|report| report.request_id).unwrap_or_default();
    Ok(Redirect::to(&format!("/logs/{id}")))
}

/// The form that does it, or why it cannot be done.
pub fn form(record: &RequestRecord) -> Markup {
    html! {
        h2 { "Replay" }
        @if let Some(reason) = obstacle(record) { p class="faint" { (reason) } }
        @else {
            form method="post" action={ "/logs/" (record.id) "/replay" } class="replay" data-slow {
                label {
                    span { "Prompt" @if record.prompt.is_empty() { " (the log has not kept it)" } }
                    textarea name="prompt" required rows="3" { (record.prompt) }
                }
                label {
                    span { "Config" }
                    input name="config" value=(config(record)) placeholder="your default config" autocomplete="off";
                }
                p class="hint" { "The same parameters, by this config as it is now. It is a request like any other, and costs what it costs." }
                button { "Replay" }
            }
        }
    }
}

fn config(record: &RequestRecord) -> &str {
    if OF_REQUESTS.contains(&record.config.as_str()) { "" } else { &record.config }
}

fn obstacle(record: &RequestRecord) -> Option<&'static str> {
    let subject = record.subject.clone().unwrap_or_default();
    if record.asked.is_none() {
        Some("Nothing of this request was kept, so it cannot be made again.")
    } else if !subject.inputs.is_empty() || subject.mask {
        Some("This request had images of its own, which the log does not keep, so it cannot be made again.")
    } else {
        None
    }
}
