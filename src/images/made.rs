//! What a target made.

use std::fmt;

use super::Pieces;
use crate::pb;

/// What a target made: verified, complete, in the caller's format. Nothing of it belongs to one request or one
/// place in a plan. Cheap to clone.
#[derive(Clone)]
pub struct Made {
    /// In the caller's order; `data` is empty, the bytes are beside it.
    pub images: Vec<(pb::Image, Pieces)>,
    /// What the provider counted.
    pub usage: Option<pb::Usage>,
    /// The worker's own.
    pub warnings: Vec<pb::Warning>,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("images", &self.images.len()).finish_non_exhaustive()
    }
}
