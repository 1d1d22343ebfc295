//! What has been used of limits.

use std::collections::BTreeMap;

use tonic::Request;

use super::Admin;
use crate::{
    config::{Settings, callers::Scope},
    error::Result,
    pb::{self, ApiKey, KeyStatus, VirtualKey},
    quota::Metered,
};

impl Admin {
    pub(super) async fn list_quotas(
        &self,
        request: Request<pb::ListQuotasRequest>,
    ) -> Result<pb::ListQuotasResponse> {
        let caller = self.reader(&request, Scope::Logs)?;
        let (settings, _) = self.router.known();
        let (tenant, ledger) = (caller.tenant.as_str(), self.router.ledger());
        let mut quotas = ledger.usage(&metered(&settings, tenant));
        for rule in settings.quotas.iter().filter(|rule| rule.is_for(tenant)) {
            match Metered::of_rule(rule, tenant) {
                Some(metered) => quotas.extend(ledger.usage(&[metered])),
                None => quotas.extend(ledger.usage_by_value(rule, tenant)),
            }
        }
        Ok(pb::ListQuotasResponse { quotas })
    }

    /// A virtual key with whether a budget of its is spent.
    pub(super) fn standing_of_key(&self, tenant: &str, mut key: VirtualKey) -> VirtualKey {
        let (settings, _) = self.router.known();
        let known = settings.virtual_keys_of(tenant).get(&key.slug);
        let metered = known.and_then(|upstream| upstream.metered.as_ref());
        if key.status() == KeyStatus::Active && metered.is_some_and(|metered| self.is_spent(metered)) {
            key.status = KeyStatus::Exhausted.into();
        }
        key
    }

    /// A caller with whether a budget of its is spent.
    pub(super) fn standing_of_caller(&self, mut key: ApiKey) -> ApiKey {
        let (settings, _) = self.router.known();
        let known = settings.callers.iter().find(|caller| caller.id == key.id && caller.tenant == key.tenant);
        let metered = known.and_then(|caller| Metered::of_caller(caller));
        if key.status() == KeyStatus::Active && metered.is_some_and(|metered| self.is_spent(&metered)) {
            key.status = KeyStatus::Exhausted.into();
        }
        key
    }

    fn is_spent(&self, metered: &Metered) -> bool {
        self.router.ledger().check(std::slice::from_ref(metered)).is_err()
    }
}

/// A tenant's callers and virtual keys with limits.
fn metered(settings: &Settings, tenant: &str) -> Vec<Metered> {
    let callers = settings.callers.iter().filter(|caller| caller.tenant == tenant);
    // A caller may have two keys.
    let callers: BTreeMap<&str, Metered> =
        callers.filter_map(|caller| Some((caller.id.as_str(), Metered::of_caller(caller)?))).collect();
    let keys = settings.virtual_keys_of(tenant).values().filter_map(|upstream| upstream.metered.clone());
    callers.into_values().chain(keys).collect()
}
