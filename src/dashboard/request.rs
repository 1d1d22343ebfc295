//! One request of the log, with all that is known of it.

use axum::{
    Form,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded;
use uuid::Uuid;

use super::{
    Dashboard,
    failure::Failure,
    layout::{self, Section, facts, text},
    logs::{answered_by, marks, status},
    replay,
    session::Visitor,
    waterfall,
};
use crate::{
    cli::{
        json::cost_source,
        table::usd,
        times::{date, short},
    },
    config::callers::Scope,
    digest::hex,
    error::{Error, ErrorKind},
    params::{background_name, quality_name},
    pb::{
        CostLine, CreateFeedbackRequest, GetRequestImageRequest, GetRequestRequest, ImageRequest,
        RequestRecord, Size, Warning, unix_now_ms,
    },
};

/// How late the log may have a request: routers write in batches.
const LATE_MS: i64 = 15_000;

/// `GET /logs/{id}`
pub async fn show(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Markup, Failure> {
    let record = match found(&dashboard, &visitor, &id).await {
        Ok(record) => record,
        Err(failure) if failure.error().kind == ErrorKind::NotFound && is_fresh(&id) => {
            return Ok(layout::page(Some(&visitor), Some(Section::Logs), "Soon", &soon()));
        }
        Err(failure) => return Err(failure),
    };
    let report = record.report.clone().unwrap_or_default();
    let body = html! {
        div class="head" {
            h1 { (record.operation().name()) " " span class="faint" { (date(record.created_unix_ms)) } }
        }
        p { (status(&record)) " " (marks(&record)) }
        @if !record.error_message.is_empty() { p class="problem" { (record.error_message) } }
        (pictures(&record))
        @if !record.prompt.is_empty() { blockquote class="prompt" { (record.prompt) } }
        (summary(&record))
        h2 { "Where the time went" }
        @if let Some(timings) = &record.timings { (waterfall::phases(timings)) }
        @if report.attempts.is_empty() { p class="faint" { "Nothing was tried." } }
        @else { (waterfall::draw(&record)) }
        h2 { "Parameters" }
        (layout::scroll("Parameters", &parameters(&record, &report.warnings)))
        h2 { "Cost" }
        (layout::scroll("Cost", &cost(&record, &report.cost_lines)))
        @if visitor.may(Scope::Generate) { (replay::form(&record)) (opinions(&record)) }
    };
    Ok(layout::page(Some(&visitor), Some(Section::Logs), "Request", &body))
}

/// `GET /logs/{id}/images/{index}`: a thumbnail; with `?full` the image itself.
pub async fn image(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path((id, index)): Path<(String, u32)>,
    Query(which): Query<Which>,
) -> Result<Response, Failure> {
    let request = GetRequestImageRequest { id, index, full: which.full.is_some() };
    let image = dashboard.admin.get_request_image(visitor.ask(request)).await?.into_inner();
    let mime_type = HeaderValue::from_static(image.format().mime_type());
    // It never changes, and is for this reader only.
    let kept = HeaderValue::from_static("private, max-age=86400, immutable");
    let headers = [(header::CONTENT_TYPE, mime_type), (header::CACHE_CONTROL, kept)];
    Ok((HeaderMap::from_iter(headers), image.data).into_response())
}

/// Which image is wanted.
#[derive(Debug, Deserialize)]
pub struct Which {
    full: Option<String>,
}

/// What somebody thinks of an answer.
#[derive(Debug, Deserialize)]
pub struct Opinion {
    value: i32,
}

/// `POST /logs/{id}/feedback`
pub async fn feedback(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(id): Path<String>,
    Form(Opinion { value }): Form<Opinion>,
) -> Result<Redirect, Failure> {
    let trace_id = found(&dashboard, &visitor, &id).await?.trace_id;
    let feedback = CreateFeedbackRequest { trace_id, value, ..Default::default() };
    dashboard.admin.create_feedback(visitor.ask(feedback)).await?;
    Ok(Redirect::to(&format!("/logs/{id}#feedback")))
}

/// The request of this id.
pub async fn found(dashboard: &Dashboard, visitor: &Visitor, id: &str) -> Result<RequestRecord, Failure> {
    let request = visitor.ask(GetRequestRequest { id: id.to_owned() });
    let found = dashboard.admin.get_request(request).await?.into_inner().request;
    found.ok_or_else(|| Error::missing("request", id).into())
}

/// Whether a request of this id may still be on its way to the log.
fn is_fresh(id: &str) -> bool {
    let began = Uuid::parse_str(id).ok().and_then(|id| id.get_timestamp());
    let began_ms =
        began.and_then(|began| i64::try_from(began.to_unix().0).ok()).map(|seconds| seconds * 1000);
    began_ms.is_some_and(|began| (0..LATE_MS).contains(&(unix_now_ms() - began)))
}

fn soon() -> Markup {
    html! {
        meta http-equiv="refresh" content="1";
        h1 { "Not in the log yet" }
        p role="status" { "Requests are written to the log in batches. This page looks again in a second." }
    }
}

fn pictures(record: &RequestRecord) -> Markup {
    html! {
        @if !record.images_made.is_empty() {
            ul class="pictures" {
                @for (index, image) in record.images_made.iter().enumerate() {
                    @let address = format!("/logs/{}/images/{index}", record.id);
                    @let alt = format!("image {} of {}", index + 1, record.images_made.len());
                    li {
                        @if image.full { a href={ (address) "?full" } { img src=(address) alt=(alt); } }
                        @else if image.thumbnail { img src=(address) alt=(alt); }
                        @else { div class="not-kept" { "not kept" } }
                        p {
                            (image.format().name()) " " (image.width) "×" (image.height) ", " (image.bytes) " bytes"
                            @if !image.sha256.is_empty() {
                                br; code class="faint" title=(hex(&image.sha256)) { "sha256 " (&hex(&image.sha256)[..12]) "…" }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn summary(record: &RequestRecord) -> Markup {
    let link = |name: &str, value: &str| {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
        html! { @if !value.is_empty() { a href={ "/logs?" (query) } { (value) } } }
    };
    let config = html! {
        (link("config", &record.config))
        @if record.config_version > 0 {
            " "
            a href={ "/configs/" (record.config) "?version=" (record.config_version) } { "version " (record.config_version) }
        }
    };
    let metadata = html! {
        @for (name, value) in &record.metadata {
            (link("metadata", &format!("{name}={value}"))) " "
        }
    };
    facts(&[
        ("Answered by", answered_by(record)),
        ("Took", text(&short(record.duration_ms))),
        ("Cost", text(&usd(record.cost_usd, record.cost_unknown))),
        ("Config", config),
        ("Target", html! { @if !record.target.is_empty() { code { (record.target) } } }),
        ("Virtual key", link("virtual_key", &record.virtual_key)),
        ("API key", link("caller", &record.caller)),
        ("Trace", link("trace_id", &record.trace_id)),
        ("Request", html! { code { (record.id) } }),
        ("Metadata", metadata),
        ("Tokens", tokens(record)),
    ])
}

fn tokens(record: &RequestRecord) -> Markup {
    html! {
        @if let Some(usage) = &record.usage && usage.input_tokens() + usage.output_tokens() > 0 {
            (usage.input_tokens()) " in, " (usage.output_tokens()) " out"
        }
    }
}

/// What was asked for, what became of it, and why.
fn parameters(record: &RequestRecord, warnings: &[Warning]) -> Markup {
    let asked = record.asked.as_ref().map(asked).unwrap_or_default();
    let applied = record.applied.as_ref().map(|applied| {
        [
            ("size", applied.size.as_ref().map(Size::text)),
            ("quality", quality_name(applied.quality()).map(str::to_owned)),
            ("background", background_name(applied.background()).map(str::to_owned)),
        ]
    });
    let applied = |name: &str| {
        let values = applied.iter().flatten();
        values.filter(|(known, _)| *known == name).find_map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let mut names: Vec<&str> = asked.iter().map(|(name, _)| *name).collect();
    names.extend(["size", "quality", "background"].iter().filter(|name| !applied(name).is_empty()));
    names.extend(warnings.iter().map(|warning| warning.field.as_str()));
    names.sort_unstable();
    names.dedup();
    let value = |name: &str| asked.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
    html! {
        @if names.is_empty() { p class="faint" { "None besides the prompt." } }
        @else {
            table {
                thead { tr { th scope="col" { "Parameter" } th scope="col" { "Asked" } th scope="col" { "Applied" } th scope="col" { "What became of it" } } }
                tbody {
                    @for name in names {
                        tr {
                            th scope="row" { code { (name) } }
                            td { (value(name)) }
                            td { (applied(name)) }
                            td {
                                @for warning in warnings.iter().filter(|warning| warning.field == name) {
                                    @if let Some(action) = warning.action().name() { span class="badge" { (action) } " " }
                                     (warning.detail) br;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The parameters of a request that it has given, with what they say.
fn asked(request: &ImageRequest) -> Vec<(&'static str, String)> {
    let some = |value: Option<String>| value.unwrap_or_default();
    let number = |value: Option<f32>| value.map(|value| value.to_string()).unwrap_or_default();
    let output = request.output.unwrap_or_default();
    let all = [
        ("model", request.model.clone()),
        ("n", some(request.n.map(|n| n.to_string()))),
        ("size", some(request.size.as_ref().map(Size::text))),
        ("quality", some(quality_name(request.quality()).map(str::to_owned))),
        ("style", request.style.clone()),
        ("seed", some(request.seed.map(|seed| seed.to_string()))),
        ("steps", some(request.steps.map(|steps| steps.to_string()))),
        ("guidance", number(request.guidance)),
        ("sampler", request.sampler.clone()),
        ("scheduler", request.scheduler.clone()),
        ("strength", number(request.strength)),
        ("background", some(background_name(output.background()).map(str::to_owned))),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn cost(record: &RequestRecord, lines: &[CostLine]) -> Markup {
    html! {
        @if lines.is_empty() { p { (usd(record.cost_usd, record.cost_unknown)) } }
        @else {
            table {
                thead {
                    tr {
                        th scope="col" { "Attempt" } th scope="col" { "Item" } th scope="col" { "Provider and model" }
                        th scope="col" class="number" { "Quantity" } th scope="col" class="number" { "Amount" } th scope="col" { "Known by" }
                    }
                }
                tbody {
                    @for line in lines {
                        tr {
                            td { (line.attempt) }
                            td { (line.item) }
                            td { (line.provider) " " span class="faint" { (line.model) } }
                            td class="number" { (line.quantity) }
                            td class="number" { (usd(line.amount_usd, false)) }
                            td { (cost_source(line.source())) }
                        }
                    }
                }
                tfoot {
                    tr { th scope="row" colspan="4" { "Sum" } td class="number" { (usd(record.cost_usd, record.cost_unknown)) } td {} }
                }
            }
        }
    }
}

fn opinions(record: &RequestRecord) -> Markup {
    html! {
        h2 id="feedback" { "Feedback" }
        @if !record.feedback.is_empty() {
            ul {
                @for feedback in &record.feedback {
                    li { (feedback.value) @if (feedback.weight - 1.0).abs() > f64::EPSILON { " (weight " (feedback.weight) ")" } }
                }
            }
        }
        form method="post" action={ "/logs/" (record.id) "/feedback" } class="row-of-buttons" {
            button class="quiet" name="value" value="1" { "Good" }
            button class="quiet" name="value" value="-1" { "Bad" }
        }
    }
}
