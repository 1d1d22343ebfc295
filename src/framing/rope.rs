//! What was received, in the pieces in which it came.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces, none of them empty, as one buffer. What lies within one of them is taken out of it uncopied.
#[derive(Debug, Default)]
pub struct Rope {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Rope {
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// All of them, one by one.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.pieces.iter().flatten().copied()
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.length, "more than there is");
        self.length -= count;
        while count > 0 {
            let Some(first) = self.pieces.front_mut() else { break };
            if count < first.len() {
                first.advance(count);
                break;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        match self.pieces.front_mut() {
            Some(first) if count < first.len() => {
                self.length -= count;
                first.split_to(count)
            }
            Some(first) if count == first.len() => {
                self.length -= count;
                self.pieces.pop_front().unwrap_or_default()
            }
            _ => {
                assert!(count <= self.length, "more than there is");
                let mut copy = BytesMut::with_capacity(count);
                while copy.len() < count {
                    let part = self.chunk().len().min(count - copy.len());
                    copy.extend_from_slice(&self.chunk()[..part]);
                    self.advance(part);
                }
                copy.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_rope_is_what_its_pieces_are_together(
            pieces in vec(vec(any::<u8>(), 0..20), 0..8),
            takes in vec((any::<bool>(), 0..30_usize), 0..12),
        ) {
            let mut whole = Bytes::from(pieces.concat());
            let mut rope = Rope::default();
            pieces.into_iter().for_each(|piece| rope.push(piece.into()));
            for (copies, count) in takes {
                prop_assert_eq!(rope.remaining(), whole.len());
                prop_assert!(rope.bytes().eq(whole.iter().copied()));
                let count = count.min(whole.len());
                if copies {
                    prop_assert_eq!(rope.copy_to_bytes(count), whole.split_to(count));
                } else {
                    rope.advance(count);
                    whole.advance(count);
                }
            }
            prop_assert_eq!(rope.copy_to_bytes(rope.remaining()), whole);
        }
    }

    #[test]
    fn what_lies_in_one_piece_is_not_copied() {
        let piece = Bytes::from(vec![7; 100]);
        let mut rope = Rope::default();
        rope.push(Bytes::from_static(b"head"));
        rope.push(piece.clone());
        rope.advance(4);
        assert_eq!(rope.copy_to_bytes(40).as_ptr(), piece.as_ptr());
        assert_eq!(rope.copy_to_bytes(60).as_ptr(), piece[40..].as_ptr());
    }
}
