//! The targets of configs as this router sees them, without a request.

use std::{collections::BTreeSet, sync::Arc};

use super::Router;
use crate::{
    config::{
        identity::Identity,
        plan::{Credential, Source, Target},
    },
    error::{Error, Result},
    pb::{ListedTarget, TargetState},
};

impl Router {
    /// Every target of the configs that a tenant can name; of one, if it is named.
    ///
    /// # Errors
    /// There is no such config, or it cannot be run.
    pub async fn targets(&self, tenant: &str, config: &str) -> Result<Vec<ListedTarget>> {
        let state = self.state.load_full();
        let settings = &state.settings;
        let own = settings.tenants.get(tenant).into_iter().flat_map(|realm| realm.configs.keys());
        let mut ids: BTreeSet<&str> = settings.configs.keys().chain(own).map(String::as_str).collect();
        if !config.is_empty() {
            if !ids.contains(config) {
                return Err(Error::missing("config", config));
            }
            ids = BTreeSet::from([config]);
        }
        let records = state.workers.records().await;
        let models_of = |provider: &str| {
            let record = records.iter().find(|record| record.name == provider);
            record.into_iter().flat_map(|record| &record.models).map(|model| model.model.as_str())
        };
        let mut listed = Vec::new();
        for id in ids {
            let plan = match settings.config_of(tenant, id).map(|version| version.plan) {
                Some(Ok(plan)) => plan,
                Some(Err(problem)) if !config.is_empty() => return Err(Error::invalid("config", problem)),
                // Where all are asked for, the list of configs tells what is wrong with this one.
                _ => continue,
            };
            plan.visit(&mut |target| {
                let entry = entry(id, target);
                let state = |identity| self.standing(target, identity);
                if target.names_model {
                    listed.push(ListedTarget { state: state(target.identity), ..entry });
                    return;
                }
                // What is known of it is known by model.
                let known: BTreeSet<&str> = models_of(&entry.provider).collect();
                let seen = known.into_iter().filter_map(|model| {
                    let state = Some(state(target.identity.with(model))?);
                    Some(ListedTarget { model: model.to_owned(), state, ..entry.clone() })
                });
                listed.extend(seen.collect::<Vec<_>>());
                listed.push(entry);
            });
        }
        Ok(listed)
    }

    fn standing(&self, target: &Target, identity: Identity) -> Option<TargetState> {
        let health = self.shared.health.known_target(identity)?;
        Some(health.standing(target.breaker.as_ref()).into())
    }
}

fn entry(config: &str, target: &Target) -> ListedTarget {
    let upstream = match &target.source {
        Source::Fixed(upstream) => Some(Arc::clone(upstream)),
        Source::Request => None,
    };
    let problem = match upstream.as_ref().map(|upstream| &upstream.credential) {
        Some(Credential::Withdrawn(why)) => why.clone(),
        _ => String::new(),
    };
    ListedTarget {
        config: config.to_owned(),
        target: target.path.clone(),
        provider: upstream.as_ref().map(|upstream| upstream.provider.clone()).unwrap_or_default(),
        virtual_key: upstream.and_then(|upstream| upstream.virtual_key.clone()).unwrap_or_default(),
        model: target.model().unwrap_or_default().to_owned(),
        problem,
        state: None,
    }
}
