//! `stream: true`: server-sent events with OpenAI's names.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use serde_json::{Map, Value};
use tonic::{Status, metadata::MetadataMap};

use super::{
    answer,
    encode::{Encoded, Segment},
};
use crate::{
    error::Error,
    images::{Pieces, gather},
    pb::{self, Operation, stream_image_response::Event},
    router::{EventStream, REQUEST_ID, TRACE_ID},
};

/// What the events of an operation are called.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    prefix: &'static str,
}

impl Names {
    /// The names for an operation.
    pub fn of(operation: Operation) -> Self {
        Self { prefix: if operation == Operation::Generate { "image_generation" } else { "image_edit" } }
    }
}

/// Answers with events. The first one is waited for, so that a failure before any answer has its own status.
pub async fn respond(answer: tonic::Response<EventStream>, names: Names, request: &HeaderMap) -> Response {
    let ids = ids(answer.metadata());
    let mut events = answer.into_inner();
    let first = match next_event(&mut events).await {
        Some(Ok(event)) => event,
        Some(Err(status)) => return answer::error(&Error::from_status(&status), request),
        None => return answer::error(&Error::bad_answer("the router's answer ended early"), request),
    };
    let mut writer = Writer { names, created_at: pb::unix_now(), images: Vec::new() };
    let mut headers = HeaderMap::new();
    let report = match &first {
        Event::Result(result) => answer::report_of(result.report.as_ref()),
        // Who will answer is not known before the first preview; which request it is, is.
        _ => Cow::Owned(ids),
    };
    answer::report_headers(&mut headers, &report, request);
    if !matches!(first, Event::Result(_)) {
        // Nor is whether the answer is one that was kept.
        headers.remove(answer::CACHE_STATUS);
    }
    let start = writer.write(Ok(first));
    let rest = events.map(move |event| {
        writer.write(event.and_then(|event| event.event.ok_or_else(|| Status::internal("an empty event"))))
    });
    let texts = stream::iter([start]).chain(rest).flat_map(stream::iter);
    let mut response = Response::new(Body::from_stream(texts.map(Ok::<Bytes, std::convert::Infallible>)));
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn ids(metadata: &MetadataMap) -> pb::RouteReport {
    let id = |name| metadata.get(name).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    pb::RouteReport { request_id: id(REQUEST_ID), trace_id: id(TRACE_ID), ..Default::default() }
}

/// The next event that clients of this API can see.
async fn next_event(events: &mut EventStream) -> Option<Result<Event, Status>> {
    loop {
        match events.next().await? {
            Ok(pb::StreamImageResponse { event: None | Some(Event::Progress(_)) }) => {}
            Ok(pb::StreamImageResponse { event: Some(event) }) => return Some(Ok(event)),
            Err(status) => return Some(Err(status)),
        }
    }
}

struct Writer {
    names: Names,
    created_at: i64,
    images: Vec<Pieces>,
}

impl Writer {
    fn write(&mut self, event: Result<Event, Status>) -> Encoded {
        let segments = match event {
            Ok(Event::Progress(_)) => Vec::new(),
            Ok(Event::ImageChunk(chunk)) => {
                gather(&mut self.images, chunk.image_index, chunk.data);
                Vec::new()
            }
            Ok(Event::PartialImage(preview)) => {
                let mut fields = Map::new();
                fields.insert("partial_image_index".into(), preview.partial_index.into());
                fields.insert("output_format".into(), preview.format().name().into());
                self.image_event("partial_image", preview.data.into(), &fields).into()
            }
            Ok(Event::Result(result)) => {
                let fields = answer::shared_fields(&result);
                let images = std::mem::take(&mut self.images);
                images.into_iter().flat_map(|image| self.image_event("completed", image, &fields)).collect()
            }
            Err(status) => {
                let mut body = answer::error_body(&Error::from_status(&status));
                body["type"] = "error".into();
                vec![Segment::Text(format!("event: error\ndata: {body}\n\n").into())]
            }
        };
        segments.into()
    }

    fn image_event(&self, kind: &str, image: Pieces, fields: &Map<String, Value>) -> [Segment; 3] {
        let name = format!("{}.{kind}", self.names.prefix);
        let before = format!("event: {name}\ndata: {{\"type\":\"{name}\",\"b64_json\":\"");
        let fields: String = fields.iter().map(|(name, value)| format!(",\"{name}\":{value}")).collect();
        let after = format!("\",\"created_at\":{}{fields}}}\n\n", self.created_at);
        [Segment::Text(before.into()), Segment::Image(image), Segment::Text(after.into())]
    }
}
