//! Labels whose values others choose: only what is known becomes one, and of that a bounded number.
//!
//! Known is what the configuration and the workers' records name, never what a request does, so that callers can
//! neither add series nor take the places of others. A name stays known until the process ends, as its series do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

use arc_swap::ArcSwap;
use metrics::SharedString;

use crate::quota::{Kind, Subject};

/// Stands for all others.
const OTHER: &str = "other";

/// Providers that are shown by name.
const PROVIDERS: usize = 100;

/// Models that are shown by name, of each provider: twice as many as the longest record has.
const MODELS: usize = 200;

/// Budgets that are shown.
const BUDGETS: usize = 1000;

/// How many of them may be of subjects that only requests tell of, such as the tenants of tokens.
const BUDGETS_MET: usize = BUDGETS / 2;

static KNOWN: LazyLock<ArcSwap<Known>> = LazyLock::new(ArcSwap::default);

/// What may be a label.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Models by provider.
    models: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    budgets: BTreeSet<Budget>,
}

/// Kind, tenant and id of whose it is.
type Budget = (&'static str, String, String);

/// Makes a provider and some of its models known. A model may be a family: `sandbox-slow-*`.
pub fn know_provider<'a>(name: &str, models: impl IntoIterator<Item = &'a str>) {
    let models: Vec<&str> = models.into_iter().collect();
    if !KNOWN.load().has_all(name, &models) {
        KNOWN.rcu(|known| known.with_provider(name, &models));
    }
}

/// Makes those known who have a budget.
pub fn know_budgets(subjects: &[Arc<Subject>]) {
    KNOWN.rcu(|known| known.with_budgets(subjects, BUDGETS));
}

/// A provider's label.
pub(super) fn provider(name: &str) -> SharedString {
    KNOWN.load().provider(name)
}

/// A model's label. The model is the entry of the provider's record.
pub(super) fn model(provider: &str, entry: &str) -> SharedString {
    KNOWN.load().model(provider, entry)
}

/// Whether the budget of a subject is shown.
pub(super) fn shows_budget(subject: &Subject) -> bool {
    // Values of metadata are without number.
    if subject.kind == Kind::Metadata {
        return false;
    }
    let budget = budget(subject);
    let known = KNOWN.load();
    if known.budgets.contains(&budget) {
        return true;
    }
    let has_room = known.budgets.len() < BUDGETS_MET;
    if has_room {
        KNOWN.rcu(|known| known.with_budgets(&[Arc::new(subject.clone())], BUDGETS_MET));
    }
    has_room
}

fn budget(subject: &Subject) -> Budget {
    (subject.kind.name(), subject.tenant.clone(), subject.id.clone())
}

impl Known {
    fn has_all(&self, provider: &str, models: &[&str]) -> bool {
        match self.models.get(provider) {
            Some(known) => known.len() >= MODELS || models.iter().all(|model| known.contains(*model)),
            None => self.models.len() >= PROVIDERS,
        }
    }

    fn with_provider(&self, name: &str, models: &[&str]) -> Self {
        let mut all = self.clone();
        if !all.models.contains_key(name) && all.models.len() >= PROVIDERS {
            return all;
        }
        let known = all.models.entry(name.into()).or_default();
        for model in models {
            if known.len() < MODELS && !known.contains(*model) {
                known.insert((*model).into());
            }
        }
        all
    }

    fn with_budgets(&self, subjects: &[Arc<Subject>], room: usize) -> Self {
        let mut all = self.clone();
        for subject in subjects {
            if all.budgets.len() < room && subject.kind != Kind::Metadata {
                all.budgets.insert(budget(subject));
            }
        }
        all
    }

    fn provider(&self, name: &str) -> SharedString {
        label(self.models.get_key_value(name).map(|(name, _)| name))
    }

    fn model(&self, provider: &str, entry: &str) -> SharedString {
        // The rules for whatever has none of its own say nothing of which it is.
        let known = self.models.get(provider).filter(|_| entry != "*");
        label(known.and_then(|models| models.get(entry)))
    }
}

fn label(known: Option<&Arc<str>>) -> SharedString {
    known.map_or(SharedString::const_str(OTHER), |name| Arc::clone(name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(kind: Kind, id: usize) -> Arc<Subject> {
        let (tenant, id) = (String::new(), id.to_string());
        Arc::new(Subject { kind, tenant, name: id.clone(), id })
    }

    #[test]
    fn what_nobody_configured_is_another() {
        let known = Known::default().with_provider("mine", &["one", "two-*", "*"]);
        assert_eq!((&*known.provider("mine"), &*known.provider("yours")), ("mine", OTHER));
        let model = |provider, entry| known.model(provider, entry).to_string();
        assert_eq!(model("mine", "one"), "one");
        assert_eq!(model("mine", "two-*"), "two-*");
        assert_eq!(model("mine", "*"), OTHER);
        assert_eq!(model("mine", "three"), OTHER);
        assert_eq!(model("yours", "one"), OTHER);
    }

    #[test]
    fn there_are_no_more_labels_than_there_is_room_for() {
        let names: Vec<String> = (0..1000).map(|i| format!("{i:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let known = names.iter().fold(Known::default(), |known, name| known.with_provider(name, &[]));
        assert_eq!(known.models.len(), PROVIDERS);
        let known = known.with_provider("0000", &names);
        assert_eq!(known.models["0000"].len(), MODELS);
        assert!(known.has_all("0000", &["another"]) && known.has_all("another", &[]));
        assert!(known.models["0001"].is_empty(), "no provider takes another's room");
    }

    #[test]
    fn budgets_that_only_requests_tell_of_leave_room_for_those_of_the_configuration() {
        let many = |kind| (0..2 * BUDGETS).map(|i| subject(kind, i)).collect::<Vec<_>>();
        let met = Known::default().with_budgets(&many(Kind::Tenant), BUDGETS_MET);
        assert_eq!(met.budgets.len(), BUDGETS_MET);
        assert_eq!(met.with_budgets(&many(Kind::ApiKey), BUDGETS).budgets.len(), BUDGETS);
        assert!(Known::default().with_budgets(&many(Kind::Metadata), BUDGETS).budgets.is_empty());
    }
}
