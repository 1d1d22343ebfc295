//! OpenAI's requests, JSON and multipart, as [`ImageRequest`].
//!
//! An image inside JSON is decoded straight out of the body's text; no JSON tree is built around it.

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    body::Body,
    extract::{
        FromRequest as _, Multipart, Request,
        multipart::{Field, MultipartError},
    },
    http::header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::time::{Duration, timeout};

use crate::{
    error::{Error, Result},
    params,
    pb::{self, ImageRequest, InputImage, InputRole, MaskPolarity, Operation, input_image::Source},
};

/// How long a client may take to send its request: within the time that draining leaves.
const READ_AT_MOST: Duration = Duration::from_secs(300);

/// How long a body that is thrown away may take, and how long it may pause.
const THROW_AWAY_AT_MOST: Duration = Duration::from_secs(30);
const THROW_AWAY_IDLE: Duration = Duration::from_secs(5);

/// What a client asked for.
#[derive(Debug, Default)]
pub struct Parsed {
    /// For the router.
    pub image: ImageRequest,
    /// The answer shall be an event stream.
    pub stream: bool,
}

/// Reads a request's body, JSON or multipart as its content type says, unless that takes too long.
pub async fn read(request: Request, operation: Operation, max_body_bytes: usize) -> Result<Parsed> {
    let parsed = timeout(READ_AT_MOST, parse(request, operation, max_body_bytes)).await;
    parsed.unwrap_or_else(|_| Err(too_slow()))
}

/// Reads a request's body as it is, unless that takes too long.
pub async fn read_bytes(request: Request, max_body_bytes: usize) -> Result<Bytes> {
    let read = async { read_body(refuse_too_large(request, max_body_bytes)?).await };
    timeout(READ_AT_MOST, read).await.unwrap_or_else(|_| Err(too_slow()))
}

async fn parse(request: Request, operation: Operation, max_body_bytes: usize) -> Result<Parsed> {
    let request = refuse_too_large(request, max_body_bytes)?;
    let content_type = request.headers().get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("?"));
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let mut parsed = match media_type.as_str() {
        "multipart/form-data" => Box::pin(read_form(request)).await?,
        "" | "application/json" => read_json(&read_body(request).await?)?,
        _ => {
            let message = "Invalid content type passed; allowed: application/json, multipart/form-data";
            return Err(Error::invalid("content-type", message));
        }
    };
    // A mask makes an edit an inpainting; the router sees that by itself.
    parsed.image.operation = operation.into();
    Ok(parsed)
}

async fn read_body(request: Request) -> Result<Bytes> {
    Bytes::from_request(request, &())
        .await
        .map_err(|rejection| too_large_or_broken(rejection.status().as_u16()))
}

fn refuse_too_large(request: Request, max_body_bytes: usize) -> Result<Request> {
    if announced_length(&request).is_some_and(|length| length > max_body_bytes) {
        throw_away(request.into_body());
        return Err(too_large());
    }
    Ok(request)
}

fn announced_length(request: &Request) -> Option<usize> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Throws away what a client still sends, behind its answer: one that is busy writing reads that only then, and would lose it
/// with a connection that is closed.
#[expect(clippy::disallowed_methods, reason = "no request waits for it: it was answered")]
pub fn throw_away(mut body: Body) {
    let read = async move { while let Ok(Some(Ok(_))) = timeout(THROW_AWAY_IDLE, body.frame()).await {} };
    tokio::spawn(timeout(THROW_AWAY_AT_MOST, read));
}

fn too_slow() -> Error {
    Error::invalid("body", "the request body took too long to arrive").with_status(408)
}

fn too_large() -> Error {
    Error::invalid("body", "the request body is too large").with_status(413).with_code("body_too_large")
}

fn too_large_or_broken(status: u16) -> Error {
    if status == 413 {
        return too_large();
    }
    Error::invalid("body", "the request body could not be read")
}

fn read_json(body: &[u8]) -> Result<Parsed> {
    let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(body).map_err(|error| {
        Error::invalid("body", format!("the request body is not a JSON object: {error}"))
            .with_code("invalid_json")
    })?;
    let mut parsed = Parsed::default();
    for (name, raw) in fields {
        match name.as_ref() {
            "images" | "image" => read_inputs(&mut parsed.image, &name, raw)?,
            "mask" => {
                let image: ImageField<'_> = from_raw("mask", raw)?;
                let Source::Data(data) = image.source("mask")? else {
                    return Err(Error::invalid("mask", "mask: must be a data URL"));
                };
                parsed.image.mask = Some(pb::Mask { data, polarity: MaskPolarity::AlphaEdits.into() });
            }
            "stream" => parsed.stream = from_raw::<Option<bool>>("stream", raw)?.unwrap_or_default(),
            name => params::set(&mut parsed.image, name, &from_raw::<Value>(name, raw)?)?,
        }
    }
    Ok(parsed)
}

/// An image in JSON: OpenAI's reference object, or what other clients write for short.
#[derive(Deserialize)]
#[serde(untagged)]
enum ImageField<'a> {
    Reference {
        #[serde(borrow, default)]
        image_url: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        file_id: Option<Cow<'a, str>>,
    },
    Text(#[serde(borrow)] Cow<'a, str>),
}

impl ImageField<'_> {
    fn source(self, field: &str) -> Result<Source> {
        let url = match self {
            Self::Reference { image_url: Some(url), file_id: None } => url,
            Self::Reference { image_url: None, file_id: Some(id) } => {
                return Ok(Source::FileId(id.into_owned()));
            }
            Self::Reference { .. } => {
                return Err(Error::invalid(
                    field,
                    format!("{field}: either image_url or file_id is required"),
                ));
            }
            Self::Text(text) => text,
        };
        if url.starts_with("http://") || url.starts_with("https://") {
            return Ok(Source::Url(url.into_owned()));
        }
        let text = match url.strip_prefix("data:") {
            Some(rest) => rest
                .split_once(";base64,")
                .map(|(_, text)| text)
                .ok_or_else(|| Error::invalid(field, format!("{field}: the data URL is not in base64")))?,
            None => &url,
        };
        let data = base64_simd::STANDARD.decode_to_vec(text.as_bytes()).map_err(|_| {
            Error::invalid(field, format!("{field}: neither a URL nor base64"))
                .with_code("invalid_image_file")
        })?;
        Ok(Source::Data(data.into()))
    }
}

fn read_inputs(image: &mut ImageRequest, name: &str, raw: &RawValue) -> Result<()> {
    let fields: Vec<ImageField<'_>> =
        if raw.get().starts_with('[') { from_raw(name, raw)? } else { vec![from_raw(name, raw)?] };
    for field in fields {
        image.inputs.push(input(field.source(name)?, InputRole::Source));
    }
    Ok(())
}

fn input(source: Source, role: InputRole) -> InputImage {
    InputImage { source: Some(source), role: role.into(), weight: None }
}

fn from_raw<'a, T: Deserialize<'a>>(name: &str, raw: &'a RawValue) -> Result<T> {
    serde_json::from_str(raw.get()).map_err(|_| {
        // The text itself may be a prompt or half an image.
        let kind = match raw.get().as_bytes().first() {
            Some(b'"') => "a text",
            Some(b'[') => "a list",
            Some(b'{') => "an object",
            Some(b't' | b'f') => "true or false",
            Some(b'n') => "null",
            _ => "a number",
        };
        Error::invalid(name, format!("{name}: {kind} is not what is expected here")).with_code("invalid_type")
    })
}

async fn read_form(request: Request) -> Result<Parsed> {
    let announced = announced_length(&request).unwrap_or(0);
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|_| Error::invalid("content-type", "the multipart form has no boundary"))?;
    let broken = |error: MultipartError| too_large_or_broken(error.status().as_u16());
    let mut parsed = Parsed::default();
    while let Some(part) = form.next_field().await.map_err(broken)? {
        let name = part.name().unwrap_or_default().to_owned();
        match name.as_str() {
            // One image, several under one name, or several under a list's name, as SDKs differ.
            "image" | "image[]" | "images" | "images[]" => {
                let data = read_image(part, announced).await.map_err(broken)?;
                parsed.image.inputs.push(input(Source::Data(data), InputRole::Source));
            }
            "markup" => {
                let data = read_image(part, announced).await.map_err(broken)?;
                parsed.image.inputs.push(input(Source::Data(data), InputRole::Markup));
            }
            "mask" => {
                let data = read_image(part, announced).await.map_err(broken)?;
                parsed.image.mask = Some(pb::Mask { data, polarity: MaskPolarity::AlphaEdits.into() });
            }
            "stream" => parsed.stream = part.text().await.map_err(broken)?.trim() == "true",
            name => {
                let text = part.text().await.map_err(broken)?;
                params::set_text(&mut parsed.image, name, &text)?;
            }
        }
    }
    Ok(parsed)
}

/// An image of a form, in memory once: there is room for all that may come, so nothing moves while it comes, and what is
/// not used of it is not there.
async fn read_image(mut part: Field<'_>, at_most: usize) -> std::result::Result<Bytes, MultipartError> {
    let mut data = Vec::with_capacity(at_most);
    while let Some(piece) = part.chunk().await? {
        data.extend_from_slice(&piece);
    }
    data.shrink_to_fit();
    Ok(data.into())
}
