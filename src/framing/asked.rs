//! The caller's side: sends one message, and reads the stream of those that come back.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::Stream;
use http::{HeaderValue, Method, StatusCode, header, uri::PathAndQuery};
use http_body::Body;
use prost::Message;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use super::{GRPC, MayCarry, PREFIX, announced, prefix, rope::Rope};
use crate::{
    pool::{Answer, Pool},
    transport::MESSAGE_BYTES,
};

/// Asks an endpoint of a pool. `grpc-timeout` among the metadata limits the time until the stream begins.
///
/// # Errors
/// As tonic's clients: what the other side says, or what became of the connection.
pub async fn ask<Q: Message, M: MayCarry>(
    pool: &Pool,
    path: &'static str,
    request: Request<Q>,
) -> Result<Response<Incoming<Answer, M>>, Status> {
    let (metadata, extensions, message) = request.into_parts();
    let length = message.encoded_len();
    if length > MESSAGE_BYTES {
        let allowed = format!("the request has {length} bytes; allowed between processes: {MESSAGE_BYTES}");
        return Err(Status::resource_exhausted(allowed));
    }
    let mut body = BytesMut::with_capacity(PREFIX + length);
    prefix(length, &mut body);
    message.encode_raw(&mut body);
    drop(message);
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::POST;
    parts.uri = PathAndQuery::from_static(path).into();
    parts.headers = metadata.into_headers();
    parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    parts.headers.insert(header::CONTENT_TYPE, GRPC);
    parts.extensions = extensions;
    let (parts, body) = pool.send(parts, vec![body.freeze()]).await?.into_parts();
    let metadata = MetadataMap::from_headers(parts.headers);
    let ended = match Status::from_header_map(metadata.as_ref()) {
        Some(status) if status.code() != Code::Ok => return Err(status),
        ended => ended.is_some(),
    };
    if !ended && parts.status != StatusCode::OK {
        return Err(not_grpc(parts.status));
    }
    let incoming = Incoming { body, received: Rope::default(), ended, message: PhantomData };
    Ok(Response::from_parts(metadata, incoming, parts.extensions))
}

/// Messages on their way, and whatever ends them.
#[derive(Debug)]
pub struct Incoming<B, M> {
    body: B,
    received: Rope,
    ended: bool,
    message: PhantomData<fn() -> M>,
}

impl<B, M: MayCarry> Incoming<B, M> {
    /// The next message, if all of it is there.
    fn read(&mut self) -> Option<Result<M, Status>> {
        let (is_compressed, length) = announced(self.received.bytes())?;
        if is_compressed {
            return Some(Err(Status::internal("the other side has compressed a message, unasked")));
        }
        if length > MESSAGE_BYTES {
            let message = format!("the other side announces {length} bytes; allowed: {MESSAGE_BYTES}");
            return Some(Err(Status::out_of_range(message)));
        }
        if self.received.remaining() < PREFIX + length {
            return None;
        }
        self.received.advance(PREFIX);
        let decoded = M::decode((&mut self.received).take(length));
        Some(decoded.map_err(|error| Status::internal(error.to_string())))
    }

    /// How it ended: `None` is well.
    fn end(&self, trailers: &http::HeaderMap) -> Option<Status> {
        match Status::from_header_map(trailers) {
            Some(status) if status.code() == Code::Ok && self.received.has_remaining() => {
                Some(Status::internal("the stream ended in the middle of a message"))
            }
            Some(status) if status.code() == Code::Ok => None,
            Some(status) => Some(status),
            None => Some(not_grpc(StatusCode::OK)),
        }
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin, M: MayCarry> Stream for Incoming<B, M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.ended {
            if let Some(message) = this.read() {
                this.ended = message.is_err();
                return Poll::Ready(Some(message));
            }
            let end = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.received.push(data);
                        continue;
                    }
                    Err(frame) => this.end(&frame.into_trailers().unwrap_or_default()),
                },
                Some(Err(status)) => Some(status),
                None => Some(not_grpc(StatusCode::OK)),
            };
            this.ended = true;
            return Poll::Ready(end.map(Err));
        }
        Poll::Ready(None)
    }
}

/// An answer without a status of gRPC's, of a server that is none or of what stands in front of it:
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
fn not_grpc(status: StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("the stream ended without a status of gRPC's, after HTTP's {status}"))
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use http::HeaderMap;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use proptest::{collection::vec, prelude::*};

    use super::{super::write, *};
    use crate::pb::{GenerateDone, GenerateResponse, ImageChunk, generate_response::Event};

    type Frames = Vec<Result<Frame<Bytes>, Status>>;

    async fn read(frames: Frames) -> Vec<Result<GenerateResponse, Status>> {
        let body = StreamBody::new(stream::iter(frames));
        let (received, message) = (Rope::default(), PhantomData);
        Incoming { body, received, ended: false, message }.collect().await
    }

    fn trailers(code: &'static str) -> Result<Frame<Bytes>, Status> {
        Ok(Frame::trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())])))
    }

    fn data(bytes: &[u8]) -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(Bytes::copy_from_slice(bytes)))
    }

    fn messages(sizes: &[usize]) -> Vec<GenerateResponse> {
        let chunk =
            |bytes: &usize| Event::ImageChunk(ImageChunk { image_index: 1, data: vec![7; *bytes].into() });
        let done = GenerateDone { upstream_request_id: "r".into(), ..Default::default() };
        let events = sizes.iter().map(chunk).chain([Event::Done(done)]);
        events.map(|event| GenerateResponse { event: Some(event) }).collect()
    }

    fn written(messages: &[GenerateResponse]) -> Vec<u8> {
        let mut all = BytesMut::new();
        for message in messages {
            let uncopied = write(message.clone(), &mut all).unwrap_or_default();
            all.extend_from_slice(&uncopied);
        }
        all.to_vec()
    }

    proptest! {
        #[test]
        fn messages_are_read_however_their_frames_are_cut(
            sizes in vec(0..30_000_usize, 0..4),
            cuts in vec(1..40_000_usize, 1..9),
        ) {
            let messages = messages(&sizes);
            let all = written(&messages);
            let (mut rest, mut frames) = (all.as_slice(), Frames::new());
            for cut in cuts.iter().cycle() {
                let (frame, others) = rest.split_at((*cut).min(rest.len()));
                frames.push(data(frame));
                rest = others;
                if rest.is_empty() {
                    break;
                }
            }
            frames.push(trailers("0"));
            let found = futures::executor::block_on(read(frames));
            let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
            prop_assert!(found == messages);
        }
    }

    #[tokio::test]
    async fn a_stream_that_does_not_end_as_grpc_says_fails() {
        let whole = written(&messages(&[]));
        let head = &whole[..whole.len() - 1];
        let compressed = [&[1], &whole[1..]].concat();
        let huge = [&[0], &[0xff; 4][..]].concat();
        for (frames, code) in [
            (vec![data(head), trailers("0")], Code::Internal),
            (vec![data(&whole)], Code::Unknown),
            (vec![data(head)], Code::Unknown),
            (vec![data(&whole), trailers("8")], Code::ResourceExhausted),
            (vec![data(&whole), Err(Status::unavailable("it broke"))], Code::Unavailable),
            (vec![data(&compressed), trailers("0")], Code::Internal),
            (vec![data(&huge), trailers("0")], Code::OutOfRange),
            (vec![data(&[0, 0, 0, 0, 1, 0xff]), trailers("0")], Code::Internal),
        ] {
            let mut found = read(frames).await;
            assert_eq!(found.pop().unwrap().unwrap_err().code(), code);
            assert!(found.iter().all(Result::is_ok));
        }
    }
}
