//! What we know about images themselves: pieces, format and completeness, conversion, masks.
//!
//! Nothing here knows providers or requests.

pub mod convert;
pub mod made;
pub mod mask;
pub mod probe;
pub mod thumbnail;

use bytes::{Buf as _, Bytes, BytesMut};

/// The bytes of one image (or one body) in the buffers they arrived in. Moving it copies nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pieces(Vec<Bytes>);

impl Pieces {
    /// Length in bytes of all pieces.
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.0.push(piece);
        }
    }

    /// The pieces in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Bytes> {
        self.0.iter()
    }

    /// One buffer with everything. Copies only if there are several pieces.
    pub fn into_bytes(mut self) -> Bytes {
        match self.0.len() {
            0 => Bytes::new(),
            1 => self.0.swap_remove(0),
            _ => {
                let mut joined = BytesMut::with_capacity(self.len());
                self.0.iter().for_each(|piece| joined.extend_from_slice(piece));
                joined.freeze()
            }
        }
    }

    /// Fills `target` from `offset` on; false if there are not enough bytes.
    pub fn read_at(&self, mut offset: usize, mut target: &mut [u8]) -> bool {
        for piece in &self.0 {
            if offset >= piece.len() {
                offset -= piece.len();
                continue;
            }
            let mut rest = &piece[offset..];
            let taken = rest.len().min(target.len());
            let (now, later) = target.split_at_mut(taken);
            rest.copy_to_slice(now);
            target = later;
            offset = 0;
            if target.is_empty() {
                return true;
            }
        }
        target.is_empty()
    }
}

/// Adds bytes to one of several images whose pieces arrive in turn.
pub fn gather(images: &mut Vec<Pieces>, index: u32, data: Bytes) {
    let index = index as usize;
    if images.len() <= index {
        images.resize_with(index + 1, Pieces::default);
    }
    images[index].push(data);
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(bytes);
        pieces
    }
}

impl From<Vec<u8>> for Pieces {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl FromIterator<Bytes> for Pieces {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        Self(pieces.into_iter().filter(|piece| !piece.is_empty()).collect())
    }
}

impl IntoIterator for Pieces {
    type Item = Bytes;
    type IntoIter = std::vec::IntoIter<Bytes>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pieces({} bytes)", self.len())
    }
}
