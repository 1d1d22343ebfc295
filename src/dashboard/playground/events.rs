//! What comes of requests, as server-sent events. No image is gathered here: each piece leaves in base64 as it comes, and the
//! browser puts them together.

use std::convert::Infallible;

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event as Sent, KeepAlive, Sse},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    answer::Answers,
    run::{Column, News},
};
use crate::{error::Result, images::Pieces, pb::stream_image_response::Event, shim::encode::Encoder};

/// The columns first, then what comes of each, until the reader goes.
pub fn respond(answers: Answers, columns: &[Column], news: News) -> Response {
    let began = Instant::now();
    let frame = event("columns", &json!({ "html": answers.columns(columns, |_| Answers::waiting()).0 }));
    let news = news.map(move |(column, news)| stream::iter(told(answers, began, column, news)));
    let events = stream::iter([frame]).chain(news.flatten()).map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

fn told(answers: Answers, began: Instant, column: usize, news: Result<Event>) -> Vec<Sent> {
    let html =
        |name: &str, html: maud::Markup| vec![event(name, &json!({ "column": column, "html": html.0 }))];
    match news {
        Ok(Event::Progress(now)) => {
            let said = json!({ "column": column, "fraction": now.fraction, "state": now.state });
            vec![event("progress", &said)]
        }
        Ok(Event::PartialImage(preview)) => {
            let mut events = pieces("preview", column, preview.image_index, preview.data.clone());
            let end = json!({
                "column": column,
                "image": preview.image_index,
                "type": preview.format().mime_type(),
                "number": preview.partial_index + 1,
            });
            events.push(event("preview-end", &end));
            events
        }
        Ok(Event::ImageChunk(chunk)) => pieces("image", column, chunk.image_index, chunk.data),
        Ok(Event::Result(result)) => html("answer", answers.answered(&result, began.elapsed(), |_| None)),
        Err(error) => html("failure", answers.failed(&error, began.elapsed())),
    }
}

/// Some bytes of an image. Each event is decoded by itself.
fn pieces(name: &str, column: usize, image: u32, data: Bytes) -> Vec<Sent> {
    let text = |text: Bytes| {
        let text = std::str::from_utf8(&text).unwrap_or_default();
        Sent::default().event(name).data(format!(r#"{{"column":{column},"image":{image},"data":"{text}"}}"#))
    };
    Encoder::new(Pieces::from(data)).map(text).collect()
}

fn event(name: &str, data: &Value) -> Sent {
    Sent::default().event(name).data(data.to_string())
}
