//! What is allowed, and what is then taken of every counter that counts it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Exceeded, Hold, Kind, Metered, Span, Subject,
    counters::{Charge, Counter, Counters, Key, charges, key, most, nanos, shown},
    hold::Taken,
    sharing::Standing,
};
use crate::{
    config::quota::{Limit, Rule},
    fleet::{Agreement, Fleet},
    pb::{self, unix_now_ms},
};

/// What a call of unknown price is expected to cost, until one like it has had a price: the smallest budget of the
/// reference.
const UNKNOWN: i64 = 1_000_000_000;

/// What has been used of every limit.
pub struct Ledger {
    counters: Mutex<HashMap<Key, Counter>>,
    /// The dearest image of each provider and model so far, in billionths of a dollar.
    dearest: Mutex<HashMap<(String, String), i64>>,
    /// Counters whose use has changed since other routers were told.
    pub(super) untold: Mutex<HashSet<Key>>,
    pub(super) fleet: Option<Arc<Fleet>>,
    pub(super) standing: Mutex<Standing>,
    pub(super) clock: Clock,
}

type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

impl Ledger {
    /// Nothing is used yet.
    pub fn new(fleet: Option<Arc<Fleet>>) -> Arc<Self> {
        Self::with_clock(fleet, Box::new(unix_now_ms))
    }

    /// The same by another clock, in ms since 1970.
    pub fn with_clock(fleet: Option<Arc<Fleet>>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            counters: Mutex::default(),
            dearest: Mutex::default(),
            untold: Mutex::default(),
            standing: Mutex::new(Standing::Together),
            fleet,
            clock,
        })
    }

    /// Counts a request that comes in.
    ///
    /// # Errors
    /// The rate limit that has been reached. Then it is not counted anywhere.
    pub async fn admit(self: &Arc<Self>, metered: &[Metered]) -> Result<(), Exceeded> {
        let charges = charges(metered, |limit| matches!(limit, Limit::Rate { .. }).then_some(1));
        self.take(charges).await.map(drop)
    }

    /// Whether there is anything left of every budget.
    ///
    /// # Errors
    /// The one that is spent.
    pub fn check(&self, metered: &[Metered]) -> Result<(), Exceeded> {
        let charges = charges(metered, |limit| matches!(limit, Limit::Budget { .. }).then_some(1));
        let (now, counters) = ((self.clock)(), self.lock());
        charges.iter().try_for_each(|charge| counters.allow(charge, now).map(drop))
    }

    /// Holds what a try is expected to cost, and counts its calls at the virtual key.
    ///
    /// # Errors
    /// The limit that does not allow it. Then nothing is held or counted.
    pub async fn hold(
        self: &Arc<Self>,
        of_request: &[Metered],
        of_key: Option<&Metered>,
        calls: usize,
        nanos: i64,
    ) -> Result<Hold, Exceeded> {
        let calls = i64::try_from(calls).unwrap_or(i64::MAX);
        let money = |limit: &Limit| match limit {
            Limit::Rate { .. } => None,
            // What costs more than the whole budget by a guess may have a try.
            Limit::Budget { nanos: most, .. } => Some(nanos.min(*most)),
        };
        let mut all = charges(of_request, money);
        all.extend(charges(of_key.map(std::slice::from_ref).unwrap_or_default(), |limit| match limit {
            Limit::Rate { .. } => Some(calls),
            Limit::Budget { .. } => money(limit),
        }));
        self.take(all).await
    }

    /// What images are expected to cost, in billionths of a dollar. `price` is in USD, if it is known.
    pub fn expected(&self, provider: &str, model: &str, images: usize, price: Option<f64>) -> i64 {
        if let Some(usd) = price {
            return nanos(usd);
        }
        let dearest = self.dearest.lock().unwrap_or_else(PoisonError::into_inner);
        let one = dearest.get(&(provider.to_owned(), model.to_owned())).copied().unwrap_or(UNKNOWN);
        one.saturating_mul(i64::try_from(images.max(1)).unwrap_or(i64::MAX))
    }

    /// Remembers what images without a price have cost.
    pub fn learn(&self, provider: &str, model: &str, images: usize, usd: f64) {
        let one = nanos(usd) / i64::try_from(images.max(1)).unwrap_or(i64::MAX);
        let mut dearest = self.dearest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = dearest.entry((provider.to_owned(), model.to_owned())).or_default();
        *known = one.max(*known);
    }

    /// What has been used of these limits in the periods that run.
    pub fn usage(&self, metered: &[Metered]) -> Vec<pb::QuotaUse> {
        let (now, counters) = ((self.clock)(), self.lock());
        let limits = metered.iter().flat_map(|one| one.quota.0.iter().map(move |limit| (one, *limit)));
        let usage = limits.map(|(one, limit)| {
            let (key, window) = key(&one.subject, &limit, now);
            let counter = counters.0.get(&key);
            shown(one.subject.kind, &one.subject.id, &limit, counter, window)
        });
        usage.collect()
    }

    /// The same of a rule that counts each value of metadata by itself, for every value that has been seen.
    pub fn usage_by_value(&self, rule: &Rule, tenant: &str) -> Vec<pb::QuotaUse> {
        let (now, counters) = ((self.clock)(), self.lock());
        let mut usage = Vec::new();
        for limit in &rule.quota.0 {
            let id = format!("{}=", rule.metadata.as_deref().unwrap_or_default());
            let nobody = Subject { kind: Kind::Metadata, tenant: tenant.to_owned(), name: id.clone(), id };
            let ((pattern, start), window) = key(&nobody, limit, now);
            // The value stands before the quote that ends the name.
            let Some((before, after)) = pattern.rsplit_once('"') else { continue };
            for ((name, _), counter) in counters.0.iter().filter(|((_, from), _)| *from == start) {
                let rest = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                let Some(value) = rest.and_then(|rest| rest.strip_suffix('"')) else { continue };
                let id = format!("{}{value}", nobody.id);
                usage.push(shown(Kind::Metadata, &id, limit, Some(counter), window));
            }
        }
        usage.sort_by(|a, b| a.name.cmp(&b.name));
        usage
    }

    async fn take(self: &Arc<Self>, charges: Vec<Charge>) -> Result<Hold, Exceeded> {
        let now = (self.clock)();
        // From here on dropping gives back what was taken.
        let mut hold = Hold::new(Arc::clone(self));
        if charges.is_empty() {
            return Ok(hold);
        }
        let parts = {
            let mut counters = self.lock();
            let mut windows = Vec::with_capacity(charges.len());
            for charge in &charges {
                windows.push(counters.allow(charge, now)?);
            }
            let mut parts = Vec::with_capacity(charges.len());
            for (charge, (key, window)) in charges.into_iter().zip(windows) {
                let counter = counters.entry(key.clone(), Span::of(&charge.limit), window.end);
                counter.held += charge.amount;
                counter.version += 1;
                parts.push(counter.part(&key, most(&charge.limit), now));
                hold.taken.push(Taken { key, charge });
            }
            parts
        };
        if let Some(fleet) = &self.fleet {
            match fleet.agree(&parts).await {
                Agreement::Within(others) => self.hear(hold.taken.iter().map(|taken| &taken.key), &others),
                Agreement::Exceeded(at, others) => return Err(self.refused(&hold, at, others, now)),
                // Each router keeps the limits by itself until it is back.
                Agreement::Away => self.is_alone(),
            }
        }
        hold.count_requests();
        Ok(hold)
    }

    fn refused(&self, hold: &Hold, at: usize, others: i64, now: i64) -> Exceeded {
        let Taken { key: known, charge } = &hold.taken[at.min(hold.taken.len() - 1)];
        let mut counters = self.lock();
        let used = counters.0.get_mut(known).map_or(others, |counter| {
            counter.others = others;
            counter.used() - charge.amount
        });
        let (_, window) = key(&charge.subject, &charge.limit, now);
        Exceeded {
            subject: Arc::clone(&charge.subject),
            limit: charge.limit,
            used,
            wanted: charge.amount,
            window,
            now,
        }
    }

    pub(super) fn lock(&self) -> Counters<'_> {
        Counters(self.counters.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("counters", &self.lock().0.len()).finish_non_exhaustive()
    }
}
