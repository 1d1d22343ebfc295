//! Images of the request log, for those who read it.

use std::time::Duration;

use tonic::Request;

use super::Admin;
use crate::{
    config::callers::Scope,
    error::{Error, ErrorKind, Result},
    pb::{self, RequestRecord},
};

/// When to ask again while the place of images is away.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Admin {
    pub(super) async fn get_request_image(
        &self,
        request: Request<pb::GetRequestImageRequest>,
    ) -> Result<pb::GetRequestImageResponse> {
        let caller = self.reader(&request, Scope::Logs)?;
        let pb::GetRequestImageRequest { id, index, full } = request.into_inner();
        let record = self.store()?.get_request(&caller.tenant, &id).await?;
        let found = self.gallery.get(&caller.tenant, &record, index as usize, full).await;
        let found = found.map_err(|_| {
            let mut error =
                Error::new(ErrorKind::Unavailable, "images cannot be fetched now; try again later");
            error.retry_after = Some(ASK_AGAIN);
            error
        })?;
        let (data, format) = found.ok_or_else(|| missing(&record, index, full))?;
        Ok(pb::GetRequestImageResponse { data, format: format.into() })
    }
}

/// Why there is no such image.
fn missing(record: &RequestRecord, index: u32, full: bool) -> Error {
    let why = match record.images_made.get(index as usize) {
        None => &format!("the request has {} images, the first is 0", record.images_made.len()),
        Some(made) if full && !made.full => "the log does not keep whole images of it (log.images: full)",
        Some(made) if !full && !made.thumbnail => {
            "the log has no thumbnail of it (log.images: thumbnails; of SVG, GIF and AVIF there are none)"
        }
        Some(_) => "it is not there yet, could not be kept, or its day is over",
    };
    Error::new(ErrorKind::NotFound, format!("there is no such image: {why}")).with_code("image_not_found")
}
