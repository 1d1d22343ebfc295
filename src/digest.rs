//! Digests by which things are known again: of lists of parts, and of requests without the bytes of their images.

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use sha2::{Digest as _, Sha256};

use crate::{
    images::Pieces,
    pb::{self, input_image::Source},
};

/// A digest of parts, each with its length, so that no two lists of parts look alike.
#[derive(Debug, Default)]
pub struct Framed(Sha256);

/// Digests in the place of images. Requests that share images, which are large, have each digested once.
#[derive(Debug, Default)]
pub struct Images(Vec<(Bytes, Bytes)>);

/// The SHA-256 of pieces as they are: joining them would copy many megabytes.
pub fn sha256(pieces: &Pieces) -> ring::digest::Digest {
    let mut context = Context::new(&SHA256);
    pieces.iter().for_each(|piece| context.update(piece));
    context.finish()
}

/// Bytes as two digits each.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// The bytes that [`hex`] wrote.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Another number whose every bit depends on every bit of this one (SplitMix64).
pub fn scramble(mut x: u64) -> u64 {
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        x = (x ^ (x >> 30)).wrapping_mul(factor);
        x ^= x >> 27;
    }
    x
}

impl Framed {
    /// Adds one part.
    pub fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// The digest of all parts.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

impl<P: AsRef<[u8]>> FromIterator<P> for Framed {
    fn from_iter<I: IntoIterator<Item = P>>(parts: I) -> Self {
        let mut framed = Self::default();
        parts.into_iter().for_each(|part| framed.add(part));
        framed
    }
}

impl Images {
    /// Puts digests in the place of a request's images.
    pub fn replace_in(&mut self, request: &mut pb::ImageRequest) {
        for input in &mut request.inputs {
            if let Some(Source::Data(data)) = &mut input.source {
                *data = self.digest(data);
            }
        }
        if let Some(mask) = &mut request.mask {
            mask.data = self.digest(&mask.data);
        }
    }

    fn digest(&mut self, data: &Bytes) -> Bytes {
        let same = |known: &Bytes| (known.as_ptr(), known.len()) == (data.as_ptr(), data.len());
        if let Some((_, digest)) = self.0.iter().find(|(known, _)| same(known)) {
            return digest.clone();
        }
        let digest = Bytes::copy_from_slice(&Sha256::digest(data));
        self.0.push((data.clone(), digest.clone()));
        digest
    }
}
