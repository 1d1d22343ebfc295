//! What past calls tell about targets and strategies, from request to request.
//!
//! Passive: fed by what requests do, nothing is called for its own sake. It belongs to a router, outlives its
//! configuration, and knows targets by whom they call ([`Identity`]), not by the config they stand in.

mod breaker;
mod bucket;
mod latency;
mod node;
mod target;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time::Instant;

pub use self::{
    breaker::Ejected,
    node::NodeHealth,
    target::{Permit, Standing, TargetHealth, Verdict},
};
use crate::config::identity::Identity;

/// As many as are remembered of each; the longest unused are forgotten first. Inline configs may bring any
/// number of them.
const REMEMBERED: usize = 50_000;

/// What is in use is never forgotten, nor what was used so lately.
const KEPT_AT_LEAST: Duration = Duration::from_secs(300);

/// The health of every target and strategy of a router.
#[derive(Debug, Default)]
pub struct Health {
    targets: Known<TargetHealth>,
    nodes: Known<NodeHealth>,
}

impl Health {
    /// What is known about a target. `provider` is for metrics.
    pub fn target(&self, id: Identity, provider: &str) -> Arc<TargetHealth> {
        self.targets.get(id, || TargetHealth::new(provider))
    }

    /// What a strategy remembers.
    pub fn node(&self, id: Identity) -> Arc<NodeHealth> {
        self.nodes.get(id, NodeHealth::default)
    }

    /// Calls in flight, over all targets.
    pub fn in_flight(&self) -> u64 {
        self.targets.read(|entries| entries.values().map(|entry| u64::from(entry.in_flight())).sum())
    }

    /// How often breakers have opened and closed, over all targets that are remembered.
    pub fn breaker_changes(&self) -> u64 {
        self.targets.read(|entries| entries.values().map(|entry| entry.breaker_changes()).sum())
    }
}

/// Entries by identity, a bounded number of them.
#[derive(Debug)]
struct Known<T>(RwLock<HashMap<Identity, Arc<T>>>);

/// Something that can be forgotten.
trait Forgettable {
    /// When it was last of use; none: it is now.
    fn idle_since(&self) -> Option<Instant>;
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T: Forgettable> Known<T> {
    fn read<R>(&self, read: impl FnOnce(&HashMap<Identity, Arc<T>>) -> R) -> R {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, id: Identity, new: impl FnOnce() -> T) -> Arc<T> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_for_long_is_forgotten_when_room_is_needed() {
        let health = Health::default();
        let kept = health.target(Identity::of(["kept"]), "p");
        let permit = kept.force();
        for i in 0..REMEMBERED {
            health.target(Identity::of([i.to_string().as_str()]), "p");
        }
        tokio::time::advance(KEPT_AT_LEAST).await;
        health.target(Identity::of(["new"]), "p");
        assert_eq!(health.targets.read(HashMap::len), 2);
        assert_eq!(health.in_flight(), 1);
        drop(permit);
        assert_eq!(health.in_flight(), 0);
    }
}
