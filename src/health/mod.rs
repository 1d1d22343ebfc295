//! What past calls tell about targets and strategies, from request to request.
//!
//! Passive: fed by what requests do, nothing is called for its own sake. It belongs to a router, outlives its
//! configuration, and knows targets by whom they call ([`Identity`]), not by the config they stand in.

mod breaker;
mod bucket;
pub mod ejected;
mod known;
mod latency;
mod node;
mod target;

use std::sync::Arc;

use self::known::Known;
pub use self::{
    ejected::{Ejected, Elsewhere},
    node::NodeHealth,
    target::{Permit, Standing, TargetHealth, Trouble, Verdict},
};
use crate::{config::identity::Identity, telemetry};

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

    /// The same, if anything is known.
    pub fn known_target(&self, id: Identity) -> Option<Arc<TargetHealth>> {
        self.targets.read(|entries| entries.get(&id).cloned())
    }

    /// What a strategy remembers.
    pub fn node(&self, id: Identity) -> Arc<NodeHealth> {
        self.nodes.get(id, NodeHealth::default)
    }

    /// Targets that should be left alone, with their provider, for what this router has found out itself.
    pub fn troubles(&self) -> Vec<(Identity, String, Trouble)> {
        self.targets.read(|entries| {
            let troubles = entries.iter().filter_map(|(id, entry)| {
                let trouble = entry.trouble()?;
                Some((*id, entry.provider().to_owned(), trouble))
            });
            troubles.collect()
        })
    }

    /// Takes over what another router has found out.
    pub fn learn(&self, id: Identity, provider: &str, trouble: Trouble) {
        self.target(id, provider).learn(trouble);
    }

    /// Calls in flight, over all targets.
    pub fn in_flight(&self) -> u64 {
        self.targets.read(|entries| entries.values().map(|entry| u64::from(entry.in_flight())).sum())
    }

    /// Counts how the breakers stand of targets that were called lately.
    pub fn count_breakers(&self) {
        self.targets.read(|entries| {
            let standing =
                entries.values().filter_map(|entry| Some((entry.provider(), entry.breaker_lately()?)));
            telemetry::breakers(standing);
        });
    }

    /// How often breakers have opened and closed, over all targets that are remembered.
    pub fn breaker_changes(&self) -> u64 {
        self.targets.read(|entries| entries.values().map(|entry| entry.breaker_changes()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        known::{KEPT_AT_LEAST, REMEMBERED},
        *,
    };

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
        assert_eq!(health.targets.read(std::collections::HashMap::len), 2);
        assert_eq!(health.in_flight(), 1);
        drop(permit);
        assert_eq!(health.in_flight(), 0);
    }
}
