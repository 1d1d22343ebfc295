//! The requests that are made: one, or one for each target, all at once. Dropped, they end at their providers too.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures::{
    StreamExt as _,
    future::ready,
    stream::{self, BoxStream},
};
use tokio::time::Instant;

use super::{asked::Asked, plan};
use crate::{
    dashboard::{Dashboard, failure::Failure, session::Visitor},
    error::{Error, Result},
    images::{Pieces, gather},
    pb::{
        ExplainRouteRequest, ExplainRouteResponse, ImageRequest, ImageResult, StreamImageRequest,
        stream_image_response::Event,
    },
    router::resolve::TARGET,
};

/// One request, whose answer stands in a column of its own.
#[derive(Clone, Debug)]
pub struct Column {
    /// What stands above it: provider and model. Empty: it is the only one.
    pub title: String,
    /// The only target that is asked. Empty: the config decides.
    pub target: String,
}

/// What comes of a request, with the number of its column.
pub type News = BoxStream<'static, (usize, Result<Event>)>;

/// How a request ended.
#[derive(Debug)]
pub struct Outcome {
    /// The answer with its images, or what went wrong.
    pub answer: Result<(ImageResult, Vec<Pieces>)>,
    /// After what time.
    pub took: Duration,
}

/// What would be done now.
pub async fn explain(
    dashboard: &Dashboard,
    visitor: &Visitor,
    asked: &Asked,
) -> Result<ExplainRouteResponse, Failure> {
    let request = visitor.ask_with(ExplainRouteRequest { image: Some(asked.image()?) }, asked.headers()?);
    Ok(dashboard.router.explain_route(request).await?.into_inner())
}

/// The requests to make.
pub async fn columns(
    dashboard: &Dashboard,
    visitor: &Visitor,
    asked: &Asked,
) -> Result<Vec<Column>, Failure> {
    if !asked.each() {
        return Ok(vec![Column { title: String::new(), target: String::new() }]);
    }
    let plan = explain(dashboard, visitor, asked).await?;
    let columns: Vec<Column> = plan::tried(&plan)
        .into_iter()
        .map(|planned| Column {
            title: format!("{} {}", planned.provider, planned.model),
            target: planned.target.clone(),
        })
        .collect();
    if columns.is_empty() {
        return Err(Error::unsupported("each", "no target can serve this request").into());
    }
    Ok(columns)
}

/// Makes the requests, beside each other. Nothing happens before the first look.
///
/// # Errors
/// What is asked for cannot be sent.
pub fn run(
    dashboard: &Dashboard,
    visitor: &Visitor,
    (image, headers): (&ImageRequest, &HeaderMap),
    columns: &[Column],
) -> Result<News> {
    let mut all = Vec::with_capacity(columns.len());
    for (index, column) in columns.iter().enumerate() {
        let mut headers = headers.clone();
        if !column.target.is_empty() {
            let target = HeaderValue::from_str(&column.target)
                .map_err(|_| Error::invalid(TARGET, format!("{TARGET}: not the path of a target")))?;
            headers.insert(HeaderName::from_static(TARGET), target);
        }
        let request = visitor.ask_with(StreamImageRequest { image: Some(image.clone()) }, headers);
        let router = dashboard.router.clone();
        let answer = async move {
            match router.stream_image(request).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => stream::once(async { Err(status) }).boxed(),
            }
        };
        let news = stream::once(answer).flatten().filter_map(move |event| {
            let news = match event {
                Ok(event) => event.event.map(Ok),
                Err(status) => Some(Err(Error::from_status(&status))),
            };
            ready(news.map(|news| (index, news)))
        });
        all.push(news.boxed());
    }
    Ok(stream::select_all(all).boxed())
}

/// Waits for all of them.
pub async fn collect(mut news: News, columns: usize) -> Vec<Outcome> {
    let began = Instant::now();
    let mut images: Vec<Vec<Pieces>> = vec![Vec::new(); columns];
    let mut outcomes: Vec<Option<Outcome>> = std::iter::repeat_with(|| None).take(columns).collect();
    while let Some((column, event)) = news.next().await {
        let answer = match event {
            Ok(Event::ImageChunk(chunk)) => {
                gather(&mut images[column], chunk.image_index, chunk.data);
                continue;
            }
            Ok(Event::Progress(_) | Event::PartialImage(_)) => continue,
            Ok(Event::Result(result)) => Ok((result, std::mem::take(&mut images[column]))),
            Err(error) => Err(error),
        };
        outcomes[column] = Some(Outcome { answer, took: began.elapsed() });
    }
    let ended_early = || Outcome {
        answer: Err(Error::bad_answer("the router's answer ended early")),
        took: began.elapsed(),
    };
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(ended_early)).collect()
}
