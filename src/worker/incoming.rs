//! An answer of a provider while its body is read: what is held of it is counted, and none is larger than is allowed.

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, StatusCode, Uri,
    header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION},
    response::Parts,
};
use tower::BoxError;
use url::Url;

use super::{
    relay::Relay,
    scan::Scanner,
    sse::{EventReader, RawEvent},
    upstream,
};
use crate::{
    admission::Held,
    error::{Error, ErrorKind, Result},
    images::{
        convert,
        probe::{self, Defect, Probe},
    },
    pb::{BillingClass, ImageFormat},
    provider::{Answer, AnswerBody},
};

/// Largest answer that is read, in bytes: ten images of 8 MiB in base64, and room.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Of an answer whose images are passed on as they come, what may be here at once.
const RELAYED_AT_ONCE: usize = 512 << 10;

/// Largest answer that is not JSON and not an image: an error page.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// An answer of so many bytes waits for no room.
const ALWAYS_READ: usize = 64 << 10;

/// An answer whose body is being read.
#[derive(Debug)]
pub struct Incoming {
    /// HTTP status.
    pub status: StatusCode,
    /// HTTP headers.
    pub headers: HeaderMap,
    address: Uri,
    body: Body,
    /// What has come of the body, and what is to come as far as there is a place for it.
    held: Held,
    /// Of that, what is to come.
    reserved: usize,
    budget: usize,
}

/// A body on its way.
#[derive(Debug)]
pub(super) enum Body {
    /// On a connection of ours.
    Direct(upstream::AnswerBody),
    /// Through the proxy that the environment names.
    Proxied(reqwest::Response),
}

impl Incoming {
    /// An answer whose head is here. While more than `budget` bytes are in flight in this process, its body waits.
    pub(super) fn new(address: Uri, head: Parts, body: Body, budget: usize) -> Self {
        Self {
            status: head.status,
            headers: head.headers,
            address,
            body,
            held: Held::default(),
            reserved: 0,
            budget,
        }
    }

    /// The address that was asked.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether events follow.
    pub fn is_event_stream(&self) -> bool {
        self.status.is_success() && self.content_type().starts_with("text/event-stream")
    }

    /// Reads the body to its end. JSON loses its images on the way.
    pub async fn answer(self, image_members: &'static [&'static str]) -> Result<Answer> {
        self.read(image_members, None).await
    }

    /// The same; large images of a success are passed on as they come, where the caller can make sense of that.
    pub(super) async fn relayed(
        self,
        image_members: &'static [&'static str],
        relay: &mut Relay,
    ) -> Result<Answer> {
        self.read(image_members, Some(relay)).await
    }

    async fn read(
        mut self,
        image_members: &'static [&'static str],
        relay: Option<&mut Relay>,
    ) -> Result<Answer> {
        let address = self.address();
        let body = if self.content_type().contains("json") {
            let relay = relay.filter(|relay| relay.chunks_first() && self.status.is_success());
            let most = if relay.is_some() { RELAYED_AT_ONCE } else { MAX_ANSWER_BYTES };
            self.reserve(most).await;
            self.document_without_images(image_members, relay).await?
        } else {
            let is_image =
                self.content_type().starts_with("image/") || self.content_type().contains("octet-stream");
            let limit = if is_image { MAX_ANSWER_BYTES } else { MAX_ERROR_BYTES };
            AnswerBody::Raw(self.whole(limit).await?)
        };
        Ok(Answer { status: self.status, headers: self.headers, body, address, note: String::new() })
    }

    async fn document_without_images(
        &mut self,
        image_members: &'static [&'static str],
        mut relay: Option<&mut Relay>,
    ) -> Result<AnswerBody> {
        let mut scanner = Scanner::new(image_members, self.expected(MAX_ANSWER_BYTES));
        if relay.is_some() {
            scanner = scanner.passing_on();
        }
        let mut read = 0;
        while let Some(piece) = self.next().await? {
            read = checked_size(read, piece.len(), MAX_ANSWER_BYTES)?;
            scanner.push(&piece);
            if let Some(relay) = &mut relay {
                drop(piece);
                for passed in scanner.passed() {
                    // It came as a text that is a third longer.
                    self.held.release(passed.data.len() / 3 * 4);
                    relay.pass(passed).await;
                }
            }
        }
        let (skeleton, images) = scanner.finish();
        Ok(AnswerBody::Json { skeleton, images })
    }

    /// Reads the body to its end, as it is.
    ///
    /// # Errors
    /// It is larger than `limit` bytes, or breaks off.
    pub async fn document(mut self, limit: usize) -> Result<Bytes> {
        self.whole(limit).await
    }

    /// Where the image is instead, if the answer says so.
    pub(super) fn redirect(&self, from: &Url) -> Result<Option<Url>> {
        if !matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = self.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| from.join(location).ok());
        match next {
            Some(next) if matches!(next.scheme(), "http" | "https") => Ok(Some(next)),
            _ => Err(Error::bad_answer("the image's address redirects to where no image can be")),
        }
    }

    /// Reads the body to its end if it is an image, and one that we would decode.
    pub(super) async fn image(mut self, limit: usize) -> Result<Bytes> {
        let refused = |what: String| Err(Error::bad_answer(format!("the image's address gives {what}")));
        if !self.status.is_success() {
            return refused(format!("HTTP {}", self.status.as_u16()));
        }
        if self.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
            return refused("a compressed answer, which was not asked for".to_owned());
        }
        let media_type =
            self.content_type().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let may_be_image = media_type.starts_with("image/")
            || matches!(media_type.as_str(), "" | "application/octet-stream" | "binary/octet-stream");
        if !may_be_image {
            return refused("a content type that is not an image's".to_owned());
        }
        let image = self.whole(limit).await?;
        match probe::probe(&image.clone().into()) {
            Ok(Probe { format, width, height })
                if format != ImageFormat::Svg && convert::is_too_large(width, height) =>
            {
                let most = convert::MAX_PIXELS / 1_000_000;
                refused(format!("an image of {width}x{height}, more than {most} megapixels"))
            }
            // Cameras append what a strict reader takes for a missing end; the router looks at results again.
            Ok(_) | Err(Defect::Truncated(_)) => Ok(image),
            Err(defect) => refused(defect.to_string()),
        }
    }

    /// Reads events one by one.
    pub async fn next_event(&mut self, reader: &mut EventReader) -> Result<Option<RawEvent>> {
        loop {
            if let Some(event) = reader.take() {
                return Ok(Some(event));
            }
            match self.next().await? {
                Some(piece) => reader.push(&piece),
                None => return Ok(reader.finish()),
            }
        }
    }

    /// Waits until there is room for the body, or for `most` bytes of it: the provider's side of the connection holds it
    /// meanwhile.
    async fn reserve(&mut self, most: usize) {
        if self.body.length().is_none_or(|bytes| bytes > ALWAYS_READ) {
            self.reserved = self.expected(most);
            self.held.add_in_turn(self.reserved, self.budget).await;
        }
    }

    /// Reads the body to its end once there is room for it, into memory that is made once where its length is known: pieces that
    /// are joined at the end are there twice for a moment.
    async fn whole(&mut self, limit: usize) -> Result<Bytes> {
        self.reserve(MAX_ANSWER_BYTES).await;
        let mut whole = BytesMut::with_capacity(self.expected(limit));
        while let Some(piece) = self.next().await? {
            checked_size(whole.len(), piece.len(), limit)?;
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// The length of the body as far as it is known.
    fn expected(&self, limit: usize) -> usize {
        self.body.length().unwrap_or(0).min(limit)
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = self.body.next().await.map_err(|_| {
            // The provider had begun to answer: a success that broke off may well be billed.
            let billing =
                if self.status.is_success() { BillingClass::Unknown } else { BillingClass::RejectedUnbilled };
            Error::transport(ErrorKind::BadAnswer, billing, "the provider's answer broke off")
        })?;
        let come = piece.as_ref().map_or(0, Bytes::len);
        let foreseen = come.min(self.reserved);
        self.reserved -= foreseen;
        self.held.add(come - foreseen);
        Ok(piece)
    }

    fn content_type(&self) -> &str {
        self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Body {
    fn length(&self) -> Option<usize> {
        let bytes = match self {
            Self::Direct(body) => body.length(),
            Self::Proxied(response) => response.content_length(),
        };
        bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    async fn next(&mut self) -> std::result::Result<Option<Bytes>, BoxError> {
        Ok(match self {
            Self::Direct(body) => body.next().await?,
            Self::Proxied(response) => response.chunk().await?,
        })
    }
}

fn checked_size(read: usize, more: usize, limit: usize) -> Result<usize> {
    let size = read + more;
    if size > limit {
        return Err(Error::bad_answer(format!("the answer is larger than {} MiB", limit >> 20)));
    }
    Ok(size)
}
