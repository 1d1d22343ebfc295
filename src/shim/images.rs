//! The image routes: a request in, the router's answer out.

use axum::{
    extract::{Path, Request, State},
    http::HeaderMap,
    response::Response,
};
use futures::StreamExt as _;
use tokio::time::{Duration, timeout};

use super::{
    Shim,
    answer::{self, Given},
    events,
    jobs::{self, Preference},
    patience,
    request::{self, Parsed},
    to_router,
};
use crate::{
    error::{Error, Result},
    images::{Pieces, gather},
    pb::{self, Delivery, ImageResult, Operation, stream_image_response::Event},
    router::EventStream,
    transport,
};

/// How long a client may take to send its request: within the time that draining leaves.
const READ_AT_MOST: Duration = Duration::from_secs(300);

/// `POST /v1/images/generations`
pub async fn generations(State(shim): State<Shim>, request: Request) -> Response {
    handle(shim, request, Operation::Generate, None).await
}

/// `POST /v1/images/edits`
pub async fn edits(State(shim): State<Shim>, request: Request) -> Response {
    handle(shim, request, Operation::Edit, None).await
}

/// `POST /v1/images/variations`
pub async fn variations(State(shim): State<Shim>, request: Request) -> Response {
    handle(shim, request, Operation::Variation, None).await
}

/// `POST /openai/deployments/{deployment}/images/generations`
pub async fn deployment_generations(
    State(shim): State<Shim>,
    Path(deployment): Path<String>,
    request: Request,
) -> Response {
    handle(shim, request, Operation::Generate, Some(deployment)).await
}

/// `POST /openai/deployments/{deployment}/images/edits`
pub async fn deployment_edits(
    State(shim): State<Shim>,
    Path(deployment): Path<String>,
    request: Request,
) -> Response {
    handle(shim, request, Operation::Edit, Some(deployment)).await
}

async fn handle(shim: Shim, request: Request, operation: Operation, deployment: Option<String>) -> Response {
    let headers = request.headers().clone();
    let answered = match read(&shim, request, operation).await {
        Ok(mut parsed) => {
            if let Some(deployment) = deployment {
                parsed.image.model = deployment;
            }
            answer(&shim, parsed, operation, &headers).await
        }
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| answer::error(&error, &headers))
}

/// Reads a request's body, unless that takes too long.
pub async fn read(shim: &Shim, request: Request, operation: Operation) -> Result<Parsed> {
    let read = timeout(READ_AT_MOST, request::read(request, operation, shim.max_body_bytes)).await;
    read.unwrap_or_else(|_| {
        Err(Error::invalid("body", "the request body took too long to arrive").with_status(408))
    })
}

async fn answer(shim: &Shim, parsed: Parsed, operation: Operation, headers: &HeaderMap) -> Result<Response> {
    let Parsed { mut image, stream } = parsed;
    if !stream {
        // Previews nobody can be shown would be paid for.
        image.partial_images = None;
        if let Some(wait) = Preference::read(headers).hand_off_after(patience(headers)) {
            return jobs::answer_within(shim, image, headers, wait).await;
        }
    }
    let asked_model = image.model.clone();
    let message = to_router(pb::StreamImageRequest { image: Some(image) }, headers);
    let events = shim.router.stream_image(message).await.map_err(|status| Error::from_status(&status))?;
    if stream {
        return Ok(events::respond(events, events::Names::of(operation), headers).await);
    }
    let (result, images) = collect(events.into_inner()).await?;
    respond(shim, &asked_model, &result, images, headers).await
}

/// A result as the answer to a request.
pub async fn respond(
    shim: &Shim,
    asked_model: &str,
    result: &ImageResult,
    images: Vec<Pieces>,
    headers: &HeaderMap,
) -> Result<Response> {
    let given = give(shim, asked_model, result, images, headers).await?;
    Ok(answer::images(result, given, headers))
}

/// The images of a result the way their client gets them.
pub async fn give(
    shim: &Shim,
    asked_model: &str,
    result: &ImageResult,
    images: Vec<Pieces>,
    headers: &HeaderMap,
) -> Result<Vec<Given>> {
    let delivery = delivery(asked_model, result);
    let mut given = Vec::with_capacity(images.len());
    for (image, pieces) in result.images.iter().zip(images) {
        given.push(match delivery {
            Delivery::Url => {
                Given::Url(shim.image_url(headers, &shim.files.keep(&pieces, image.format()).await?))
            }
            Delivery::Bytes | Delivery::Unspecified => Given::Bytes(pieces),
        });
    }
    Ok(given)
}

async fn collect(mut events: EventStream) -> Result<(ImageResult, Vec<Pieces>)> {
    let mut images: Vec<Pieces> = Vec::new();
    while let Some(event) = events.next().await {
        match event.map_err(|status| Error::from_status(&status))?.event {
            Some(Event::ImageChunk(chunk)) => {
                gather(&mut images, chunk.image_index, chunk.data);
            }
            Some(Event::Result(result)) => {
                transport::end(events).await;
                return Ok((result, images));
            }
            Some(Event::Progress(_) | Event::PartialImage(_)) | None => {}
        }
    }
    Err(Error::bad_answer("the router's answer ended early"))
}

/// What a client gets that did not say: what the model it asked for gives at OpenAI. Only dall-e answers with
/// addresses, and clients of it read nothing else.
fn delivery(asked_model: &str, result: &ImageResult) -> Delivery {
    let asked = result.applied.unwrap_or_default().delivery();
    if asked != Delivery::Unspecified {
        return asked;
    }
    let answered = result.report.as_ref().map_or("", |report| report.model.as_str());
    let model = if asked_model.is_empty() { answered } else { asked_model };
    let model = model.rsplit('/').next().unwrap_or(model);
    if model.starts_with("dall-e") { Delivery::Url } else { Delivery::Bytes }
}
