//! Results the way their clients get them: bytes, or links to files that are kept.

use axum::{http::HeaderMap, response::Response};

use super::{
    Shim,
    answer::{self, Given},
};
use crate::{
    error::Result,
    images::Pieces,
    pb::{Delivery, ImageResult},
};

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
