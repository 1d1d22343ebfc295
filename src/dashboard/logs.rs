//! The request log: what came last, as it comes.

use axum::{
    extract::{Query, State},
    response::Response,
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    Dashboard,
    failure::Failure,
    filter::Filter,
    layout::{self, Section},
    live,
    session::Visitor,
};
use crate::{
    cli::{
        table::usd,
        times::{date, short},
    },
    pb::{ListRequestsRequest, ListRequestsResponse, RequestRecord},
};

/// Requests on a page.
pub const PAGE: u32 = 50;

/// Which page of the log.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Place {
    /// As the page before names it; empty: the newest requests.
    page: String,
}

/// `GET /logs`
pub async fn list(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Query(filter): Query<Filter>,
    Query(place): Query<Place>,
) -> Result<Markup, Failure> {
    let listed = requests(&dashboard, &visitor, &filter, place.page.clone()).await?;
    let query = filter.to_query();
    let live = place.page.is_empty().then(|| format!("/logs/live?{query}"));
    let body = html! {
        div class="head" {
            h1 { "Logs" }
            @if live.is_some() { (live::switch()) }
        }
        (filter.form("/logs"))
        table class="log" {
            thead {
                tr {
                    th scope="col" { "Time" }
                    th scope="col" { span class="hidden" { "Image" } }
                    th scope="col" { "Request" }
                    th scope="col" { "Answered by" }
                    th scope="col" class="number" { "Took" }
                    th scope="col" class="number" { "Cost" }
                    th scope="col" { "Status" }
                }
            }
            tbody data-live=[live] data-at-most=(PAGE) {
                @for record in &listed.requests { (row(record)) }
            }
        }
        p class="empty" { "No request is like that" @if query.is_empty() { " yet" } "." }
        @if !listed.next_page_token.is_empty() {
            nav class="pages" aria-label="Further requests" {
                a href={ "/logs?" (query) (if query.is_empty() { "" } else { "&" }) "page=" (listed.next_page_token) } rel="next" {
                    "Older requests"
                }
            }
        }
    };
    Ok(layout::page(Some(&visitor), Some(Section::Logs), "Logs", &body))
}

/// `GET /logs/live`: the newest requests, and those that come.
pub async fn live(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Query(filter): Query<Filter>,
) -> Result<Response, Failure> {
    // What cannot be asked for at all is told at once.
    requests(&dashboard, &visitor, &filter, String::new()).await?;
    Ok(live::events(live::Shown::default(), move |shown| {
        let (dashboard, visitor, filter) = (dashboard.clone(), visitor.clone(), filter.clone());
        Box::pin(async move {
            let listed = requests(&dashboard, &visitor, &filter, String::new()).await?;
            let fresh = shown.update(&listed.requests);
            Ok((!fresh.is_empty()).then(|| html! { @for record in fresh { (row(record)) } }))
        })
    }))
}

async fn requests(
    dashboard: &Dashboard,
    visitor: &Visitor,
    filter: &Filter,
    page_token: String,
) -> Result<ListRequestsResponse, Failure> {
    let filter = Some(filter.to_message()?);
    let request = ListRequestsRequest { filter, page_size: PAGE, page_token };
    Ok(dashboard.admin.list_requests(visitor.ask(request)).await?.into_inner())
}

fn row(record: &RequestRecord) -> Markup {
    let (created, address) = (record.created_unix_ms, format!("/logs/{}", record.id));
    let thumbnail = record.images_made.iter().position(|image| image.thumbnail);
    html! {
        tr id={ "r-" (record.id) } data-at=(created) {
            td { (layout::time(created, &date(created))) }
            td {
                @if let Some(index) = thumbnail {
                    img src={ (address) "/images/" (index) } alt="" width="40" height="40" loading="lazy";
                }
            }
            td { a class="row" href=(address) { (about(record)) } }
            td { (answered_by(record)) }
            td class="number" { (short(record.duration_ms)) }
            td class="number" { (usd(record.cost_usd, record.cost_unknown)) }
            td { (status(record)) " " (marks(record)) }
        }
    }
}

/// What was asked for, in a few words.
fn about(record: &RequestRecord) -> Markup {
    html! {
        @if record.prompt.is_empty() { span class="faint" { (record.operation().name()) } }
        @else { (record.prompt) }
    }
}

/// Provider and model.
pub fn answered_by(record: &RequestRecord) -> Markup {
    html! {
        @if record.provider.is_empty() { span class="faint" { "nobody" } }
        @else { (record.provider) " " span class="faint" { (record.model) } }
    }
}

/// How it ended.
pub fn status(record: &RequestRecord) -> Markup {
    let kind = match record.status {
        200..300 => "good",
        400..500 => "warning",
        _ => "bad",
    };
    html! { span class={ "status " (kind) } { (record.status) " " (record.outcome) } }
}

/// What is worth a second look.
pub fn marks(record: &RequestRecord) -> Markup {
    html! { @for badge in record.badges() { span class="badge" { (badge) } " " } }
}
