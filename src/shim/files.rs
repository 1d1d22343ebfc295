//! Images that were asked for as `url`: kept as files for a stated time, under names nobody can guess.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use tokio::fs;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::{Shim, answer};
use crate::{
    disk,
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::ImageFormat,
};

/// The image files of this process.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    lifetime: Duration,
}

impl Files {
    /// Images below `data_dir`. The folder is made when the first one is kept.
    pub fn new(data_dir: &Path, lifetime: Duration) -> Self {
        Self { folder: data_dir.join("images"), lifetime }
    }

    /// Keeps an image and returns its name.
    pub async fn keep(&self, image: &Pieces, format: ImageFormat) -> Result<String> {
        // Random, not ordered by time: the name is all that protects the image.
        let name = format!("{}.{}", Uuid::new_v4().simple(), format.name());
        disk::write(&self.folder, &name, image.iter()).await.map_err(|error| {
            tracing::error!(%error, folder = %self.folder.display(), "an image cannot be kept");
            Error::new(ErrorKind::Internal, "the image was made but cannot be kept for its URL")
        })?;
        Ok(name)
    }

    /// Removes what is older than its lifetime, again and again.
    pub async fn keep_swept(&self) {
        loop {
            disk::sweep(&self.folder, self.lifetime).await;
            tokio::time::sleep(self.lifetime.clamp(Duration::from_secs(1), Duration::from_secs(60))).await;
        }
    }

    async fn open(&self, name: &str) -> Option<(fs::File, ImageFormat, u64, Duration)> {
        // Only names we give: nothing in them can leave the folder.
        let (id, extension) = name.split_once('.')?;
        Uuid::try_parse(id).ok()?;
        let format = ImageFormat::from_name(extension)?;
        let file = fs::File::open(self.folder.join(name)).await.ok()?;
        let metadata = file.metadata().await.ok()?;
        let age = metadata.modified().ok()?.elapsed().unwrap_or_default();
        let left = self.lifetime.checked_sub(age)?;
        Some((file, format, metadata.len(), left))
    }
}

/// `GET /v1/images/files/{id}`
pub async fn get(State(shim): State<Shim>, UrlPath(name): UrlPath<String>, headers: HeaderMap) -> Response {
    let Some((file, format, length, left)) = shim.files.open(&name).await else {
        let lifetime = shim.files.lifetime.as_secs();
        let message =
            format!("there is no such image; images can be fetched for {lifetime} s after they were made");
        return answer::error(&Error::new(ErrorKind::NotFound, message), &headers);
    };
    let mut response = Body::from_stream(ReaderStream::with_capacity(file, 256 << 10)).into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.mime_type()));
    answer.insert(header::CONTENT_LENGTH, length.into());
    if let Ok(value) = format!("private, max-age={}", left.as_secs()).try_into() {
        answer.insert(header::CACHE_CONTROL, value);
    }
    // An SVG is a document; whatever scripts it may carry must not run under our name.
    answer.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    answer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
