//! What is remembered by identity, and forgotten when it is too much.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time::Instant;

use crate::config::identity::Identity;

/// As many as are remembered of each; the longest unused are forgotten first. Inline configs may bring any
/// number of them.
pub const REMEMBERED: usize = 50_000;

/// What is in use is never forgotten, nor what was used so lately.
pub const KEPT_AT_LEAST: Duration = Duration::from_secs(300);

/// Entries by identity, a bounded number of them.
#[derive(Debug)]
pub struct Known<T>(RwLock<HashMap<Identity, Arc<T>>>);

/// Something that can be forgotten.
pub trait Forgettable {
    /// When it was last of use; none: it is now.
    fn idle_since(&self) -> Option<Instant>;
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T: Forgettable> Known<T> {
    /// Looks at all of them.
    pub fn read<R>(&self, read: impl FnOnce(&HashMap<Identity, Arc<T>>) -> R) -> R {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The entry of this identity, made if there is none.
    pub fn get(&self, id: Identity, new: impl FnOnce() -> T) -> Arc<T> {
        if let Some(entry) = self.read(|entries| entries.get(&id).cloned()) {
            return entry;
        }
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= REMEMBERED {
            forget(&mut entries);
        }
        Arc::clone(entries.entry(id).or_insert_with(|| Arc::new(new())))
    }
}

/// Makes room: everything idle for long, so that the next time is far away.
fn forget<T: Forgettable>(entries: &mut HashMap<Identity, Arc<T>>) {
    let now = Instant::now();
    entries.retain(|_, entry| {
        let used = Arc::strong_count(entry) > 1;
        used || entry.idle_since().is_none_or(|since| now.saturating_duration_since(since) < KEPT_AT_LEAST)
    });
}
