//! Images that were asked for as `url`: kept for a stated time, under names nobody can guess.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use uuid::Uuid;

use super::{Shim, answer};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    objects::{Found, Objects},
    pb::ImageFormat,
};

/// Begins the names of these images.
const BELOW: &str = "files";

/// The images of this process, and of all that share its place of images.
#[derive(Debug)]
pub struct Files {
    objects: Arc<Objects>,
    lifetime: Duration,
}

impl Files {
    /// Images among these objects, each for so long.
    pub fn new(objects: Arc<Objects>, lifetime: Duration) -> Self {
        Self { objects, lifetime }
    }

    /// Keeps an image and returns its name.
    pub async fn keep(&self, image: &Pieces, format: ImageFormat) -> Result<String> {
        // Random, not ordered by time: the name is all that protects the image.
        let name = format!("{}.{}", Uuid::new_v4().simple(), format.name());
        let kept = self.objects.put(&[BELOW, &name], format.mime_type(), image.iter().cloned()).await;
        kept.map_err(|_| {
            Error::new(ErrorKind::Internal, "the image was made but cannot be kept for its URL")
        })?;
        Ok(name)
    }

    /// Removes what is older than its lifetime, again and again.
    pub async fn keep_swept(&self) {
        self.objects.keep_swept(BELOW, self.lifetime).await;
    }

    async fn open(&self, name: &str) -> Result<Option<(Found, ImageFormat, Duration)>> {
        let Some(format) = format_of(name) else { return Ok(None) };
        let found = self.objects.get(&[BELOW, name]).await.map_err(|_| {
            let mut error =
                Error::new(ErrorKind::Unavailable, "images cannot be fetched now; try again later");
            error.retry_after = Some(Duration::from_secs(5));
            error
        })?;
        Ok(found.and_then(|found| {
            let left = self.lifetime.checked_sub(found.age)?;
            Some((found, format, left))
        }))
    }
}

/// Of a name that is one of ours: nothing in it can lead elsewhere.
fn format_of(name: &str) -> Option<ImageFormat> {
    let (id, extension) = name.split_once('.')?;
    Uuid::try_parse(id).ok()?;
    ImageFormat::from_name(extension)
}

/// `GET /v1/images/files/{id}`
pub async fn get(State(shim): State<Shim>, UrlPath(name): UrlPath<String>, headers: HeaderMap) -> Response {
    let (found, format, left) = match shim.files.open(&name).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let lifetime = shim.files.lifetime.as_secs();
            let message = format!(
                "there is no such image; images can be fetched for {lifetime} s after they were made"
            );
            return answer::error(&Error::new(ErrorKind::NotFound, message), &headers);
        }
        Err(error) => return answer::error(&error, &headers),
    };
    let mut response = Body::from_stream(found.pieces).into_response();
    describe(response.headers_mut(), format);
    response.headers_mut().insert(header::CONTENT_LENGTH, found.bytes.into());
    if let Ok(value) = format!("private, max-age={}", left.as_secs()).try_into() {
        response.headers_mut().insert(header::CACHE_CONTROL, value);
    }
    response
}

/// What an image is, and what a browser may do with it.
pub fn describe(headers: &mut HeaderMap, format: ImageFormat) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.mime_type()));
    // An SVG is a document; whatever scripts it may carry must not run under our name.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}
