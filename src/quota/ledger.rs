//! Counters, and what is held of them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{Exceeded, Kind, Metered, Span, Subject, Window};
use crate::{
    config::quota::{Limit, Rule},
    fleet::{Agreement, Fleet, Part},
    pb::{self, unix_now_ms},
    store::Store,
    telemetry,
};

/// What a call of unknown price is expected to cost, until one like it has had a price: the smallest budget of the
/// reference.
const UNKNOWN: i64 = 1_000_000_000;

/// How often other routers are told what calls have really cost.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// How long a counter is remembered that nobody uses: longer than clocks are set back by mistake, and no longer than
/// memory allows.
const IDLE: Duration = Duration::from_secs(26 * 60 * 60);
const SHORT_IDLE: Duration = Duration::from_secs(120);
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// How long a process that ends takes to write what it has counted.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// What has been used of every limit.
pub struct Ledger {
    counters: Mutex<HashMap<Key, Counter>>,
    /// The dearest image of each provider and model so far, in billionths of a dollar.
    dearest: Mutex<HashMap<(String, String), i64>>,
    /// Counters whose use has changed since other routers were told.
    untold: Mutex<HashSet<Key>>,
    fleet: Option<Arc<Fleet>>,
    clock: Clock,
}

type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

/// Whose counter, and the start of its period.
type Key = (Arc<str>, i64);

/// Requests, or billionths of a dollar.
#[derive(Debug)]
struct Counter {
    span: Span,
    end: i64,
    /// All routers', as the store said last.
    kept: i64,
    /// Ours, not in the store yet.
    unkept: i64,
    /// Ours since this process began.
    spent: i64,
    /// Ours, for calls in flight.
    held: i64,
    /// The other routers', as Redis said last.
    others: i64,
    /// Of `spent` and `held`.
    version: u64,
    has_alerted: bool,
    used_at: Instant,
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
struct Charge {
    subject: Arc<Subject>,
    limit: Limit,
    amount: i64,
}

/// What was taken of a counter.
struct Taken {
    key: Key,
    charge: Charge,
}

/// What is held for a try of a target. Dropped, what its calls have cost stays, and the rest is free again.
pub struct Hold {
    ledger: Arc<Ledger>,
    taken: Vec<Taken>,
    /// By calls that are over, in billionths of a dollar.
    spent: AtomicI64,
}

/// A call that is paid for out of a hold. Dropped before anybody knows what it cost, it has cost what was expected.
#[derive(Debug)]
pub struct Payment<'a> {
    hold: &'a Hold,
    expected: i64,
}

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

    /// What the store knows of earlier.
    pub fn load(&self, kept: Vec<Kept>) {
        let mut counters = self.lock();
        for Kept { counter, start_ms, end_ms, amount } in kept {
            // Which span it is matters to none that is kept.
            let counter = counters.entry((counter.into(), start_ms), Span::Always, end_ms);
            counter.kept = amount;
        }
    }

    /// Tells other routers and the store, as long as it runs.
    pub async fn run(self: Arc<Self>, store: Option<Arc<Store>>, flush_every: Duration) {
        tokio::join!(self.keep_telling(), self.keep_writing(store, flush_every), self.keep_sweeping());
    }

    /// Writes what the store does not know yet, after it has run.
    pub async fn flush(&self, store: &Store) {
        _ = timeout(FLUSH_WITHIN, self.write(store)).await;
    }

    async fn take(self: &Arc<Self>, charges: Vec<Charge>) -> Result<Hold, Exceeded> {
        let now = (self.clock)();
        // From here on dropping gives back what was taken.
        let mut hold = Hold { ledger: Arc::clone(self), taken: Vec::new(), spent: AtomicI64::new(0) };
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
                Agreement::Within(others) => self.note_others(&hold, &others),
                Agreement::Exceeded(at, others) => return Err(self.refused(&hold, at, others, now)),
                // Each router keeps the limits by itself until it is back.
                Agreement::Away => {}
            }
        }
        hold.count_requests();
        Ok(hold)
    }

    fn note_others(&self, hold: &Hold, others: &[i64]) {
        let mut counters = self.lock();
        for (taken, others) in hold.taken.iter().zip(others) {
            if let Some(counter) = counters.0.get_mut(&taken.key) {
                counter.others = *others;
            }
        }
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

    async fn keep_telling(&self) {
        let Some(fleet) = &self.fleet else { return };
        loop {
            sleep(TELL_EVERY).await;
            let untold = std::mem::take(&mut *self.untold.lock().unwrap_or_else(PoisonError::into_inner));
            if untold.is_empty() {
                continue;
            }
            let now = (self.clock)();
            let parts: Vec<Part> = {
                let counters = self.lock();
                let known = untold.iter().filter_map(|key| Some((key, counters.0.get(key)?)));
                known.map(|(key, counter)| counter.part(key, i64::MAX, now)).collect()
            };
            if fleet.agree(&parts).await == Agreement::Away {
                self.untold.lock().unwrap_or_else(PoisonError::into_inner).extend(untold);
            }
        }
    }

    async fn keep_writing(&self, store: Option<Arc<Store>>, flush_every: Duration) {
        let Some(store) = store else { return };
        let mut ticks = interval(flush_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.write(&store).await;
        }
    }

    /// Adds what this router has used to what the store knows, and learns what all have.
    async fn write(&self, store: &Store) {
        let unkept: Vec<Kept> = {
            let counters = self.lock();
            let unkept = counters.0.iter().filter(|(_, counter)| counter.unkept != 0);
            let kept = unkept.map(|((name, start), counter)| Kept {
                counter: name.to_string(),
                start_ms: *start,
                end_ms: counter.end,
                amount: counter.unkept,
            });
            kept.collect()
        };
        if unkept.is_empty() {
            return;
        }
        // What cannot be written now is tried again; that the store is away is said by whoever looks after it.
        let Ok(totals) = store.count(&unkept).await else { return };
        let mut counters = self.lock();
        for (written, total) in unkept.into_iter().zip(totals) {
            if let Some(counter) = counters.0.get_mut(&(written.counter.into(), written.start_ms)) {
                counter.kept = total;
                counter.unkept -= written.amount;
            }
        }
    }

    async fn keep_sweeping(&self) {
        loop {
            sleep(SWEEP_EVERY).await;
            let now = (self.clock)();
            self.lock().0.retain(|_, counter| {
                let idle = counter.used_at.elapsed();
                let is_over =
                    counter.end <= now && idle > IDLE || !counter.span.is_kept() && idle > SHORT_IDLE;
                !is_over || counter.held != 0 || counter.unkept != 0
            });
        }
    }

    fn lock(&self) -> Counters<'_> {
        Counters(self.counters.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Counters<'a>(MutexGuard<'a, HashMap<Key, Counter>>);

impl Counters<'_> {
    /// Whether a limit allows a charge, and by which counter.
    fn allow(&self, charge: &Charge, now: i64) -> Result<(Key, Window), Exceeded> {
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

    fn entry(&mut self, key: Key, span: Span, end: i64) -> &mut Counter {
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
    fn used(&self) -> i64 {
        (self.kept + self.unkept).max(self.others + self.spent) + self.held
    }

    fn part(&self, (name, start): &Key, max: i64, now: i64) -> Part {
        Part {
            counter: format!("{name} {start}"),
            own: self.spent + self.held,
            version: self.version,
            max,
            left: Duration::from_millis(self.end.saturating_sub(now).max(0).unsigned_abs()),
        }
    }

    fn pay(&mut self, held: i64, spent: i64) {
        self.held -= held;
        self.spent += spent;
        self.version += 1;
        if self.span.is_kept() {
            self.unkept += spent;
        }
        self.used_at = Instant::now();
    }
}

impl Hold {
    /// A call begins that is expected to cost this much, in billionths of a dollar.
    pub fn pay(&self, expected: i64) -> Payment<'_> {
        Payment { hold: self, expected }
    }

    /// Requests are not held: they have been made.
    fn count_requests(&mut self) {
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
            self.ledger.untold.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        }
    }
}

fn shown(kind: Kind, id: &str, limit: &Limit, counter: Option<&Counter>, window: Window) -> pb::QuotaUse {
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

fn charges(metered: &[Metered], amount: impl Fn(&Limit) -> Option<i64>) -> Vec<Charge> {
    let limits = metered.iter().flat_map(|one| one.quota.0.iter().map(move |limit| (&one.subject, limit)));
    let charges = limits.filter_map(|(subject, limit)| {
        Some(Charge { subject: Arc::clone(subject), limit: *limit, amount: amount(limit)? })
    });
    charges.collect()
}

/// The counter of a limit, and its period.
fn key(subject: &Subject, limit: &Limit, now: i64) -> (Key, Window) {
    let (span, kind) = (Span::of(limit), subject.kind.name());
    let what = if matches!(limit, Limit::Rate { .. }) { "requests" } else { "usd" };
    let window = span.window(now);
    // Quoted, so that no name can look like a tenant and another name.
    let name = format!("{kind} {:?} {:?} {what} a {}", subject.tenant, subject.id, span.name());
    ((name.into(), window.start), window)
}

fn most(limit: &Limit) -> i64 {
    match limit {
        Limit::Rate { requests, .. } => *requests,
        Limit::Budget { nanos, .. } => *nanos,
    }
}

/// Billionths of a dollar.
pub fn nanos(usd: f64) -> i64 {
    (usd * 1e9).round() as i64
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("counters", &self.lock().0.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("limits", &self.taken.len()).finish_non_exhaustive()
    }
}
