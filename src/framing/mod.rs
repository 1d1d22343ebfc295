//! gRPC's messages on HTTP/2, by hand, for the two calls whose answers carry images.
//!
//! tonic copies each message into a frame where it is sent, and out of one where it comes in. That is the same wire
//! format without the copies: an image's bytes leave as they lie behind a head of some bytes, and what was received is
//! read where it lies. Whoever is not imagegate sees no difference. Requests, and calls that are anything but a stream
//! of answers, are tonic's.

mod asked;
mod rope;
mod served;

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

pub use self::{asked::ask, served::Streamed};
use crate::pb::{
    GenerateResponse, ImageChunk, StreamImageResponse, generate_response, stream_image_response,
};

/// In front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC: http::HeaderValue = http::HeaderValue::from_static("application/grpc");

/// Fewer bytes of an image are copied: that costs less than one more frame.
const COPIED: usize = 8 << 10;

/// `ImageChunk.data`, its last field.
const DATA: u32 = 2;

/// A message that may be nothing but a piece of an image.
pub trait MayCarry: Message + Default {
    /// The number of the field that the piece is in.
    const CHUNK: u32;

    /// The piece, if it is one.
    fn chunk(&mut self) -> Option<&mut ImageChunk>;
}

impl MayCarry for GenerateResponse {
    const CHUNK: u32 = 3;

    fn chunk(&mut self) -> Option<&mut ImageChunk> {
        match &mut self.event {
            Some(generate_response::Event::ImageChunk(chunk)) => Some(chunk),
            _ => None,
        }
    }
}

impl MayCarry for StreamImageResponse {
    const CHUNK: u32 = 3;

    fn chunk(&mut self) -> Option<&mut ImageChunk> {
        match &mut self.event {
            Some(stream_image_response::Event::ImageChunk(chunk)) => Some(chunk),
            _ => None,
        }
    }
}

/// Writes a message behind its prefix. What is returned belongs behind that, uncopied.
fn write<M: MayCarry>(mut message: M, into: &mut BytesMut) -> Option<Bytes> {
    let data = message.chunk().filter(|chunk| chunk.data.len() > COPIED);
    let Some((data, chunk)) = data.map(|chunk| (std::mem::take(&mut chunk.data), chunk)) else {
        let length = message.encoded_len();
        into.reserve(PREFIX + length);
        prefix(length, into);
        message.encode_raw(into);
        return None;
    };
    let before = chunk.encoded_len();
    let inner = before + key_len(DATA) + encoded_len_varint(data.len() as u64) + data.len();
    prefix(key_len(M::CHUNK) + encoded_len_varint(inner as u64) + inner, into);
    encode_key(M::CHUNK, WireType::LengthDelimited, into);
    encode_varint(inner as u64, into);
    chunk.encode_raw(into);
    encode_key(DATA, WireType::LengthDelimited, into);
    encode_varint(data.len() as u64, into);
    Some(data)
}

/// What stands in front of a message: whether it is compressed, and its length. None: not all of it is there.
pub fn announced(bytes: impl Iterator<Item = u8>) -> Option<(bool, usize)> {
    let mut prefix = [0; PREFIX];
    let read = prefix.iter_mut().zip(bytes).map(|(into, byte)| *into = byte).count();
    let [compressed, length @ ..] = prefix;
    (read == PREFIX).then_some((compressed != 0, u32::from_be_bytes(length) as usize))
}

/// The length is known to fit: chunks have 256 KiB, and other messages no images.
fn prefix(length: usize, into: &mut BytesMut) {
    into.extend_from_slice(&[0]);
    into.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::Progress;

    fn assert_as_prost_writes<M: MayCarry + Clone + std::fmt::Debug>(message: &M) {
        let mut expected = BytesMut::new();
        prefix(message.encoded_len(), &mut expected);
        message.encode_raw(&mut expected);
        let mut written = BytesMut::new();
        let uncopied = write(message.clone(), &mut written).unwrap_or_default();
        written.extend_from_slice(&uncopied);
        assert!(written == expected, "{message:?}");
        assert_eq!(announced(written.into_iter()), Some((false, message.encoded_len())));
    }

    #[test]
    fn what_is_written_is_what_prost_writes() {
        for image_index in [0, 1, 300] {
            for bytes in [0, 1, 127, 128, COPIED, COPIED + 1, 16_383, 16_384, 256 << 10] {
                let data = (0..bytes).map(|i| (i % 251) as u8).collect();
                let chunk = ImageChunk { image_index, data };
                let event = generate_response::Event::ImageChunk(chunk.clone());
                assert_as_prost_writes(&GenerateResponse { event: Some(event) });
                let event = stream_image_response::Event::ImageChunk(chunk);
                assert_as_prost_writes(&StreamImageResponse { event: Some(event) });
            }
        }
        let progress = Progress { fraction: Some(0.5), state: "running".into() };
        let event = generate_response::Event::Progress(progress);
        assert_as_prost_writes(&GenerateResponse { event: Some(event) });
        assert_as_prost_writes(&GenerateResponse::default());
    }
}
