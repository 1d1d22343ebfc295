//! A body of known length whose pieces are made one by one.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::images::Pieces;

/// Pieces as a body. They are all there, or made without waiting.
#[derive(Debug)]
pub struct SizedBody<I> {
    pieces: I,
    remaining: u64,
}

impl<I> SizedBody<I> {
    /// Of pieces that are `length` bytes together.
    pub const fn new(pieces: I, length: u64) -> Self {
        Self { pieces, remaining: length }
    }
}

impl From<Pieces> for SizedBody<vec::IntoIter<Bytes>> {
    fn from(pieces: Pieces) -> Self {
        let length = pieces.len() as u64;
        Self::new(pieces.into_iter(), length)
    }
}

impl<I: Iterator<Item = Bytes> + Unpin> Body for SizedBody<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        self.remaining -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
