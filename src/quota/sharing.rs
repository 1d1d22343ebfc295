//! What a router tells others of its use, through Redis and the store, and what it hears of theirs.

use std::{
    collections::HashSet,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{Kept, Ledger, Span, counters::Key};
use crate::{
    fleet::{Agreement, Fleet, Part},
    store::Store,
};

/// How often other routers are told what calls have really cost.
const TELL_EVERY: Duration = Duration::from_millis(50);
const TOLD_AT_ONCE: usize = 200;

/// How often they are asked what they have used of counters that are in use, and how long one is after its last use.
const LISTEN_EVERY: Duration = Duration::from_secs(1);
const IN_USE: Duration = Duration::from_secs(10);

/// How long after an outage every router has told Redis again what it has used.
const COMPLETE_AFTER: Duration = Duration::from_secs(5);

/// How long a counter is remembered that nobody uses: longer than clocks are set back by mistake, and no longer than
/// memory allows.
const IDLE: Duration = Duration::from_secs(26 * 60 * 60);
const SHORT_IDLE: Duration = Duration::from_secs(120);
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// How long a process that ends takes to write what it has counted.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Whether Redis knows of all routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does.
    Together,
    /// It cannot be asked.
    Alone,
    /// It can be asked again since then.
    Since(Instant),
}

impl Ledger {
    /// What the store knows of earlier.
    pub fn load(&self, kept: Vec<Kept>) {
        let mut counters = self.lock();
        for Kept { counter, start_ms, end_ms, amount } in kept {
            // Which span it is matters to none that is kept.
            let counter = counters.entry((counter.into(), start_ms), Span::Always, end_ms);
            counter.kept = amount;
        }
    }

    /// Tells other routers what this one has used, as long as it runs.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(self.keep_telling(), self.keep_sweeping());
    }

    /// Writes what the store does not know yet, after it has run.
    pub async fn flush(&self, store: &Store) {
        _ = timeout(FLUSH_WITHIN, self.write(store)).await;
    }

    /// Notes what Redis says of the others.
    pub(super) fn hear<'a>(&self, keys: impl IntoIterator<Item = &'a Key>, others: &[i64]) {
        let is_complete = {
            let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            if *standing == Standing::Alone {
                *standing = Standing::Since(Instant::now());
                // It may have forgotten everything.
                self.untold().extend(self.ours());
            }
            !matches!(*standing, Standing::Since(back) if back.elapsed() < COMPLETE_AFTER)
        };
        let mut counters = self.lock();
        for (key, others) in keys.into_iter().zip(others) {
            if let Some(counter) = counters.0.get_mut(key) {
                counter.others = if is_complete { *others } else { counter.others.max(*others) };
            }
        }
    }

    /// Redis cannot be asked.
    pub(super) fn is_alone(&self) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Standing::Alone;
    }

    /// Counters of which this router has used something.
    fn ours(&self) -> Vec<Key> {
        let counters = self.lock();
        let used = counters
            .0
            .iter()
            .filter(|(_, counter)| counter.span.is_kept() && counter.spent + counter.held != 0);
        used.map(|(key, _)| key.clone()).collect()
    }

    async fn keep_telling(&self) {
        let Some(fleet) = &self.fleet else { return };
        let mut listened = Instant::now();
        loop {
            sleep(TELL_EVERY).await;
            let mut untold = std::mem::take(&mut *self.untold());
            if listened.elapsed() >= LISTEN_EVERY {
                listened = Instant::now();
                untold.extend(self.in_use());
            }
            let untold: Vec<Key> = untold.into_iter().collect();
            for keys in untold.chunks(TOLD_AT_ONCE) {
                self.tell(fleet, keys).await;
            }
        }
    }

    async fn tell(&self, fleet: &Fleet, keys: &[Key]) {
        let now = (self.clock)();
        let (keys, parts): (Vec<&Key>, Vec<Part>) = {
            let counters = self.lock();
            let known = keys.iter().filter_map(|key| Some((key, counters.0.get(key)?)));
            known.map(|(key, counter)| (key, counter.part(key, i64::MAX, now))).unzip()
        };
        match fleet.agree(&parts).await {
            Agreement::Within(others) => self.hear(keys, &others),
            Agreement::Exceeded(..) | Agreement::Away => {
                self.is_alone();
                self.untold().extend(keys.into_iter().cloned());
            }
        }
    }

    /// Counters that others may use as well now: should Redis go away, their use is known until then.
    fn in_use(&self) -> Vec<Key> {
        let counters = self.lock();
        let used = counters
            .0
            .iter()
            .filter(|(_, counter)| counter.span.is_kept() && counter.used_at.elapsed() < IN_USE);
        used.map(|(key, _)| key.clone()).collect()
    }

    /// Keeps what has been used in the store, as long as it runs.
    pub async fn keep_writing(&self, store: &Store, flush_every: Duration) {
        let mut ticks = interval(flush_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.write(store).await;
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

    pub(super) fn untold(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
