//! What has been used of each limit in each period.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::{Exceeded, Kind, Metered, Span, Subject, Window};
use crate::{config::quota::Limit, fleet::Part, pb};

/// Whose counter, and the start of its period.
pub(super) type Key = (Arc<str>, i64);

/// Requests, or billionths of a dollar.
#[derive(Debug)]
pub(super) struct Counter {
    pub span: Span,
    pub end: i64,
    /// All routers', as the store said last.
    pub kept: i64,
    /// Ours, not in the store yet.
    pub unkept: i64,
    /// Ours since this process began.
    pub spent: i64,
    /// Ours, for calls in flight.
    pub held: i64,
    /// The other routers', as Redis said last.
    pub others: i64,
    /// Of `spent` and `held`.
    pub version: u64,
    pub has_alerted: bool,
    pub used_at: Instant,
}

/// A counter in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose.
    pub counter: String,
    /// When its period began, in ms since 1970.
    pub start_ms: i64,
    /// When it ends.
    pub end_ms: i64,
    /// What is used, or used more.
    pub amount: i64,
}

/// What a limit is asked for.
pub(super) struct Charge {
    pub subject: Arc<Subject>,
    pub limit: Limit,
    pub amount: i64,
}

pub(super) struct Counters<'a>(pub MutexGuard<'a, HashMap<Key, Counter>>);

impl Counters<'_> {
    /// Whether a limit allows a charge, and by which counter.
    pub fn allow(&self, charge: &Charge, now: i64) -> Result<(Key, Window), Exceeded> {
        let (key, window) = key(&charge.subject, &charge.limit, now);
        let used = self.0.get(&key).map_or(0, Counter::used);
        if used.saturating_add(charge.amount) <= most(&charge.limit) {
            return Ok((key, window));
        }
        Err(Exceeded {
            subject: Arc::clone(&charge.subject),
            limit: charge.limit,
            used,
            wanted: charge.amount,
            window,
            now,
        })
    }

    pub fn entry(&mut self, key: Key, span: Span, end: i64) -> &mut Counter {
        let counter = self.0.entry(key).or_insert_with(|| Counter {
            span,
            end,
            kept: 0,
            unkept: 0,
            spent: 0,
            held: 0,
            others: 0,
            version: 0,
            has_alerted: false,
            used_at: Instant::now(),
        });
        counter.used_at = Instant::now();
        counter
    }
}

impl Counter {
    /// By all routers, as far as this one knows: the store and Redis each may be behind.
    pub fn used(&self) -> i64 {
        (self.kept + self.unkept).max(self.others + self.spent) + self.held
    }

    pub fn part(&self, (name, start): &Key, max: i64, now: i64) -> Part {
        Part {
            counter: format!("{name} {start}"),
            own: self.spent + self.held,
            version: self.version,
            max,
            left: Duration::from_millis(self.end.saturating_sub(now).max(0).unsigned_abs()),
        }
    }

    pub fn pay(&mut self, held: i64, spent: i64) {
        self.held -= held;
        self.spent += spent;
        self.version += 1;
        if self.span.is_kept() {
            self.unkept += spent;
        }
        self.used_at = Instant::now();
    }
}

pub(super) fn shown(
    kind: Kind,
    id: &str,
    limit: &Limit,
    counter: Option<&Counter>,
    window: Window,
) -> pb::QuotaUse {
    let (used, held) = counter.map_or((0, 0), |counter| (counter.used(), counter.held));
    let usd = |nanos: i64| nanos as f64 / 1e9;
    let is_rate = matches!(limit, Limit::Rate { .. });
    pb::QuotaUse {
        subject: kind.name().to_owned(),
        name: id.to_owned(),
        limit: Some(limit.message()),
        requests: if is_rate { used.max(0).unsigned_abs() } else { 0 },
        usd: if is_rate { 0.0 } else { usd(used - held) },
        reserved_usd: if is_rate { 0.0 } else { usd(held) },
        resets_unix_ms: (window.end < i64::MAX).then_some(window.end),
        exhausted: used >= most(limit),
    }
}

pub(super) fn charges(metered: &[Metered], amount: impl Fn(&Limit) -> Option<i64>) -> Vec<Charge> {
    let limits = metered.iter().flat_map(|one| one.quota.0.iter().map(move |limit| (&one.subject, limit)));
    let charges = limits.filter_map(|(subject, limit)| {
        Some(Charge { subject: Arc::clone(subject), limit: *limit, amount: amount(limit)? })
    });
    charges.collect()
}

/// The counter of a limit, and its period.
pub(super) fn key(subject: &Subject, limit: &Limit, now: i64) -> (Key, Window) {
    let (span, kind) = (Span::of(limit), subject.kind.name());
    let what = if matches!(limit, Limit::Rate { .. }) { "requests" } else { "usd" };
    let window = span.window(now);
    // Quoted, so that no name can look like a tenant and another name.
    let name = format!("{kind} {:?} {:?} {what} a {}", subject.tenant, subject.id, span.name());
    ((name.into(), window.start), window)
}

pub(super) fn most(limit: &Limit) -> i64 {
    match limit {
        Limit::Rate { requests, .. } => *requests,
        Limit::Budget { nanos, .. } => *nanos,
    }
}

/// Billionths of a dollar.
pub fn nanos(usd: f64) -> i64 {
    (usd * 1e9).round() as i64
}
