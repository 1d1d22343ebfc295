//! Base64 while it is sent: an image leaves as pieces of text, and is never in memory as a whole text.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{admission::Held, images::Pieces, sized_body::SizedBody};

/// Bytes encoded at a time: a multiple of 3, so that only an image's end needs padding.
const STEP: usize = 192 << 10;

/// Something to send.
#[derive(Debug)]
pub enum Segment {
    /// As it is.
    Text(Bytes),
    /// In base64.
    Image(Pieces),
}

/// Segments, piece by piece.
#[derive(Debug)]
pub struct Encoded {
    segments: VecDeque<Segment>,
    image: Option<Encoder>,
    /// The images, until they have been written.
    _held: Held,
}

/// An image's base64, piece by piece.
#[derive(Debug)]
pub struct Encoder {
    pieces: VecDeque<Bytes>,
    /// Bytes that do not make a group of three yet.
    carry: Vec<u8>,
}

/// Segments as a body of known length.
pub type EncodedBody = SizedBody<Encoded>;

impl From<Vec<Segment>> for Encoded {
    fn from(segments: Vec<Segment>) -> Self {
        let images = segments.iter().map(|segment| match segment {
            Segment::Text(_) => 0,
            Segment::Image(image) => image.len(),
        });
        let held = Held::new(images.sum());
        Self { segments: segments.into(), image: None, _held: held }
    }
}

impl From<Vec<Segment>> for EncodedBody {
    fn from(segments: Vec<Segment>) -> Self {
        let length = |segment: &Segment| match segment {
            Segment::Text(text) => text.len(),
            Segment::Image(image) => image.len().div_ceil(3) * 4,
        };
        let total = segments.iter().map(length).sum::<usize>() as u64;
        Self::new(segments.into(), total)
    }
}

impl Iterator for Encoded {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(image) = &mut self.image {
                match image.next() {
                    Some(text) => return Some(text),
                    None => self.image = None,
                }
            }
            match self.segments.pop_front()? {
                Segment::Text(text) => return Some(text),
                Segment::Image(image) => self.image = Some(Encoder::new(image)),
            }
        }
    }
}

impl Encoder {
    /// The base64 of an image.
    pub fn new(image: Pieces) -> Self {
        Self { pieces: image.into_iter().collect(), carry: Vec::with_capacity(3) }
    }
}

impl Iterator for Encoder {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while let Some(piece) = self.pieces.front_mut() {
            if !self.carry.is_empty() || piece.len() < 3 {
                let missing = (3 - self.carry.len()).min(piece.len());
                self.carry.extend_from_slice(&piece.split_to(missing));
                if piece.is_empty() {
                    self.pieces.pop_front();
                }
                if self.carry.len() == 3 {
                    let text = encode(&self.carry);
                    self.carry.clear();
                    return Some(text);
                }
                continue;
            }
            let whole = piece.len().min(STEP) / 3 * 3;
            let text = encode(&piece.split_to(whole));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            return Some(text);
        }
        let rest = std::mem::take(&mut self.carry);
        (!rest.is_empty()).then(|| encode(&rest))
    }
}

fn encode(data: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(data.len().div_ceil(3) * 4);
    base64_simd::STANDARD.encode_append(data, &mut text);
    text.into()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http_body::Body as _;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_any_size_encode_like_the_whole(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..12)) {
            let whole: Vec<u8> = pieces.concat();
            let image: Pieces = pieces.into_iter().map(Bytes::from).collect();
            let body = EncodedBody::from(vec![Segment::Text("<".into()), Segment::Image(image), Segment::Text(">".into())]);
            let announced = body.size_hint().exact().unwrap();
            let text = body.collect().now_or_never().unwrap().unwrap().to_bytes();
            prop_assert_eq!(announced, text.len() as u64);
            prop_assert_eq!(String::from_utf8(text.into()).unwrap(), format!("<{}>", base64_simd::STANDARD.encode_to_string(whole)));
        }
    }

    #[test]
    fn a_large_image_leaves_in_bounded_pieces() {
        let image = Pieces::from(vec![7; 1_000_001]);
        let texts: Vec<Bytes> = Encoder::new(image).collect();
        assert!(texts.iter().all(|text| text.len() <= STEP / 3 * 4));
        assert_eq!(texts.iter().map(Bytes::len).sum::<usize>(), 1_000_001_usize.div_ceil(3) * 4);
    }
}
