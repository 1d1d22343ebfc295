//! `rate_limits` and `usage_limits` of virtual keys and API keys.

use crate::{
    config::{quota::Quota, read::Object},
    pb,
};

/// Limits; none where nothing is limited.
pub fn quota(object: &mut Object<'_>) -> Option<pb::Quota> {
    Quota::read(object).message()
}

/// Limits that were changed, each of the two fields by itself: what is not named stays.
pub struct ChangedQuota {
    rates: Option<Vec<pb::RateLimit>>,
    budgets: Option<Vec<pb::Budget>>,
}

impl ChangedQuota {
    /// Reads both fields.
    pub fn read(object: &mut Object<'_>) -> Self {
        let (has_rates, has_budgets) = (object.has("rate_limits"), object.has("usage_limits"));
        let quota = quota(object).unwrap_or_default();
        Self { rates: has_rates.then_some(quota.rates), budgets: has_budgets.then_some(quota.budgets) }
    }

    /// Neither is there.
    pub fn is_empty(&self) -> bool {
        self.rates.is_none() && self.budgets.is_none()
    }

    /// All limits as they will be.
    pub fn over(self, known: Option<pb::Quota>) -> pb::Quota {
        let known = known.unwrap_or_default();
        pb::Quota { rates: self.rates.unwrap_or(known.rates), budgets: self.budgets.unwrap_or(known.budgets) }
    }
}
