//! The image routes: a request in, the router's answer out.

use axum::{
    extract::{Path, Request, State},
    http::HeaderMap,
    response::Response,
};
use futures::StreamExt as _;

use super::{
    Shim, answer, deliver, events,
    jobs::{self, Preference},
    patience,
    request::{self, Parsed},
    to_router,
};
use crate::{
    error::{Error, Result},
    images::{Pieces, gather},
    pb::{self, ImageResult, Operation, stream_image_response::Event},
    router::EventStream,
    transport,
};

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
    let answered = match request::read(request, operation, shim.max_body_bytes).await {
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
    deliver::respond(shim, &asked_model, &result, images, headers).await
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
