//! One target of a plan by itself, to see what it does where the strategies above it would ask another one.

use super::plan::{Conditional, Fallback, Hedge, Plan};

impl Plan {
    /// The target at this place without the strategies above it, but within their times. None: there is no such target.
    pub fn alone(&self, path: &str) -> Option<Self> {
        match self {
            Self::Target(target) => (target.path == path).then(|| Self::Target(target.clone())),
            Self::Fallback(Fallback { children, .. })
            | Self::Conditional(Conditional { children, .. })
            | Self::Hedge(Hedge { order: Fallback { children, .. }, .. }) => {
                children.iter().find_map(|child| child.alone(path))
            }
            Self::Balance(balance) => balance.children.iter().find_map(|child| child.plan.alone(path)),
            Self::Deadline(limit, inner) => {
                inner.alone(path).map(|inner| Self::Deadline(*limit, Box::new(inner)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::{
        config::{plan::Known, providers::Providers},
        egress::Egress,
    };

    #[test]
    fn a_target_alone_keeps_what_stands_above_it_but_the_strategies() {
        let target = |model: &str| json!({"provider": "sandbox", "override_params": {"model": model}});
        let config = json!({
            "strategy": {"mode": "fallback"},
            "total_timeout_ms": 9000,
            "retry": {"attempts": 2},
            "targets": [target("a"), {"strategy": {"mode": "loadbalance"}, "targets": [target("b"), target("c")]}],
        });
        let providers = Providers::default().with_own("sandbox");
        let (virtual_keys, egress) = (BTreeMap::new(), Egress::default());
        let known =
            Known { providers: &providers, virtual_keys: &virtual_keys, egress: &egress, from_caller: true };
        let plan = Plan::try_new(&config, "", known).unwrap();
        let alone = plan.alone("config.targets[1].targets[0]").unwrap();
        let Plan::Deadline(limit, inner) = alone else { panic!("{alone:?}") };
        let Plan::Target(target) = *inner else { panic!("no target") };
        assert_eq!((limit.as_millis(), target.model()), (9000, Some("b")));
        assert_eq!(target.retry.map(|retry| retry.attempts), Some(2));
        assert!(plan.alone("config.targets[1]").is_none(), "a strategy is no target");
        assert!(plan.alone("config.targets[2]").is_none());
    }
}
