//! The playground: what a request would do, then what comes of it, by one target or by each.
//!
//! The script asks for pieces; without it the same form gives a page with everything on it. No image is kept here.

mod answer;
mod asked;
mod events;
mod form;
mod plan;
mod run;

use std::collections::BTreeMap;

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Multipart, Query, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
    routing::{get, post},
};
use maud::{Markup, html};
use uuid::Uuid;

use self::{answer::Answers, asked::Asked, form::Choices};
use super::{
    Dashboard, assets,
    failure::Failure,
    layout::{self, Section},
    session::Visitor,
};
use crate::{
    config::callers::Scope,
    error::Error,
    shim::encode::{EncodedBody, Segment},
};

/// Largest form that is taken, in bytes: an image to edit, and some text.
const LARGEST_FORM: usize = 32 << 20;

/// Its routes.
pub fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/playground", get(show).post(submit))
        .route("/playground/plan", post(plan))
        .route("/playground/stream", post(stream))
        .layer(DefaultBodyLimit::max(LARGEST_FORM))
}

/// `GET /playground`
async fn show(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Query(fields): Query<BTreeMap<String, String>>,
) -> Markup {
    page(&dashboard, &visitor, &Asked::in_address(fields), &html! {}).await
}

/// `POST /playground`: the page without its script, with the plan or with the finished images.
async fn submit(State(dashboard): State<Dashboard>, visitor: Visitor, form: Multipart) -> Response {
    let asked = match Asked::read(form).await {
        Ok(asked) => asked,
        Err(error) => return refused(&dashboard, &visitor, &Asked::default(), &error).await,
    };
    let done = if asked.wants("explain") || must_confirm(&asked) {
        explained(&dashboard, &visitor, &asked).await
    } else {
        finished(&dashboard, &visitor, &asked).await
    };
    match done {
        Ok(response) => response,
        Err(failure) => refused(&dashboard, &visitor, &asked, failure.error()).await,
    }
}

/// `POST /playground/plan`: the plan, as a piece of the page.
async fn plan(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    form: Multipart,
) -> Result<Markup, Failure> {
    let asked = Asked::read(form).await?;
    let plan = run::explain(&dashboard, &visitor, &asked).await?;
    Ok(plan::show(&plan, &asked))
}

/// `POST /playground/stream`: the answers, as they come.
async fn stream(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    form: Multipart,
) -> Result<Response, Failure> {
    let asked = Asked::read(form).await?;
    if must_confirm(&asked) {
        return Err(Error::invalid("each", "each: what all targets cost has to be confirmed first").into());
    }
    let columns = run::columns(&dashboard, &visitor, &asked).await?;
    let news = run::run(&dashboard, &visitor, (&asked.image()?, &asked.headers()?), &columns)?;
    Ok(events::respond(answers(&visitor), &columns, news))
}

/// What several requests cost is said before they are made.
fn must_confirm(asked: &Asked) -> bool {
    asked.each() && !asked.wants("confirmed")
}

fn answers(visitor: &Visitor) -> Answers {
    Answers { links_to_log: visitor.may_see(Scope::Logs) }
}

async fn page(dashboard: &Dashboard, visitor: &Visitor, asked: &Asked, below: &Markup) -> Markup {
    let choices = Choices::of(dashboard, visitor).await;
    let body = html! {
        div class="head" { h1 { "Playground" } }
        (form::form(asked, &choices))
        div data-plan aria-live="polite" { (below) }
        div data-results {}
        script src=(assets::address("playground.js")) defer {}
    };
    layout::page(Some(visitor), Some(Section::Playground), "Playground", &body)
}

async fn refused(dashboard: &Dashboard, visitor: &Visitor, asked: &Asked, error: &Error) -> Response {
    let page = page(dashboard, visitor, asked, &layout::problem(error)).await;
    let status = error.status_code();
    whole(status, vec![Segment::Text(page.0.into())])
}

async fn explained(dashboard: &Dashboard, visitor: &Visitor, asked: &Asked) -> Result<Response, Failure> {
    let plan = run::explain(dashboard, visitor, asked).await?;
    let page = page(dashboard, visitor, asked, &plan::show(&plan, asked)).await;
    Ok(whole(StatusCode::OK, vec![Segment::Text(page.0.into())]))
}

/// The page with all images inside, whose base64 is made while it is sent.
async fn finished(dashboard: &Dashboard, visitor: &Visitor, asked: &Asked) -> Result<Response, Failure> {
    let mut image = asked.image()?;
    // Previews nobody can be shown would be paid for.
    image.partial_images = None;
    let columns = run::columns(dashboard, visitor, asked).await?;
    let news = run::run(dashboard, visitor, (&image, &asked.headers()?), &columns)?;
    let outcomes = run::collect(news, columns.len()).await;
    // Stands where an image will be; nobody can have written it into a prompt.
    let mark = Uuid::new_v4().to_string();
    let answers = answers(visitor);
    let below = answers.columns(&columns, |column| match &outcomes[column].answer {
        Ok((result, _)) => answers.answered(result, outcomes[column].took, |i| {
            Some(format!("data:{};base64,{mark}", result.images[i].format().mime_type()))
        }),
        Err(error) => answers.failed(error, outcomes[column].took),
    });
    let page = page(dashboard, visitor, asked, &below).await.0;
    let mut images =
        outcomes.into_iter().filter_map(|outcome| outcome.answer.ok()).flat_map(|(_, images)| images);
    let mut segments = Vec::new();
    for text in page.split(&mark) {
        segments.push(Segment::Text(text.to_owned().into()));
        segments.extend(images.next().map(Segment::Image));
    }
    Ok(whole(StatusCode::OK, segments))
}

fn whole(status: StatusCode, segments: Vec<Segment>) -> Response {
    let mut response = Response::new(Body::new(EncodedBody::from(segments)));
    *response.status_mut() = status;
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, html);
    response
}
