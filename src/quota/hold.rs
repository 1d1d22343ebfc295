//! What is held for a try, and paid out of it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use super::{
    Ledger, Span,
    counters::{Charge, Key},
};
use crate::{config::quota::Limit, telemetry};

/// What was taken of a counter.
pub(super) struct Taken {
    pub key: Key,
    pub charge: Charge,
}

/// What is held for a try of a target. Dropped, what its calls have cost stays, and the rest is free again.
pub struct Hold {
    ledger: Arc<Ledger>,
    pub(super) taken: Vec<Taken>,
    /// By calls that are over, in billionths of a dollar.
    spent: AtomicI64,
}

/// A call that is paid for out of a hold. Dropped before anybody knows what it cost, it has cost what was expected.
#[derive(Debug)]
pub struct Payment<'a> {
    hold: &'a Hold,
    expected: i64,
}

impl Hold {
    /// Nothing is held yet.
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, taken: Vec::new(), spent: AtomicI64::new(0) }
    }

    /// A call begins that is expected to cost this much, in billionths of a dollar.
    pub fn pay(&self, expected: i64) -> Payment<'_> {
        Payment { hold: self, expected }
    }

    /// Requests are not held: they have been made.
    pub(super) fn count_requests(&mut self) {
        if self.taken.iter().all(|taken| matches!(taken.charge.limit, Limit::Budget { .. })) {
            return;
        }
        let mut counters = self.ledger.lock();
        self.taken.retain(|Taken { key, charge }| {
            let is_rate = matches!(charge.limit, Limit::Rate { .. });
            if let Some(counter) = counters.0.get_mut(key).filter(|_| is_rate) {
                counter.pay(charge.amount, charge.amount);
            }
            !is_rate
        });
    }
}

impl Payment<'_> {
    /// It has cost this much, in billionths of a dollar.
    pub fn is(mut self, nanos: i64) {
        self.expected = nanos;
    }
}

impl Drop for Payment<'_> {
    fn drop(&mut self) {
        self.hold.spent.fetch_add(self.expected, Ordering::Relaxed);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let spent = self.spent.load(Ordering::Relaxed);
        let mut counters = self.ledger.lock();
        for Taken { key, charge } in &self.taken {
            let Some(counter) = counters.0.get_mut(key) else { continue };
            counter.pay(charge.amount, spent);
            if let Limit::Budget { nanos, alert, .. } = charge.limit {
                let used = counter.used();
                telemetry::budget_used(&charge.subject, used, nanos);
                if alert.is_some_and(|alert| used >= alert) && !counter.has_alerted {
                    counter.has_alerted = true;
                    telemetry::budget_alert(&charge.subject, Span::of(&charge.limit).name(), used, nanos);
                }
            }
        }
        drop(counters);
        if self.ledger.fleet.is_some() {
            let keys = self.taken.iter().map(|taken| taken.key.clone());
            self.ledger.untold().extend(keys);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("limits", &self.taken.len()).finish_non_exhaustive()
    }
}
