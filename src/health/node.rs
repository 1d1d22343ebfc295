//! What one strategy remembers between requests: whose turn it is, which session went where, how often the
//! first target is late.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{bucket::Bucket, known::Forgettable};

/// Sessions remembered by one balance. Beyond it those that ended are forgotten, then all: a new choice by the
/// same hash usually falls on the same target.
const SESSIONS: usize = 100_000;

/// So many extra calls may come at once, and none without traffic: what is late now and then stays affordable.
const EXTRA_CALLS_AT_ONCE: f64 = 10.0;

/// The share of late calls is an average over about so many.
const LATE_MEMORY: f64 = 50.0;

/// If more calls than this are late, being late tells nothing about the target: all are slow, and a second
/// call would only add to it.
const TOO_MANY_LATE: f64 = 0.25;

/// The memory of one strategy.
#[derive(Debug)]
pub struct NodeHealth {
    turn: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sessions: HashMap<u64, (usize, Instant)>,
    extra_calls: Bucket,
    late: f64,
    used: Instant,
}

impl Default for NodeHealth {
    fn default() -> Self {
        let state = State {
            sessions: HashMap::new(),
            extra_calls: Bucket::new(EXTRA_CALLS_AT_ONCE, 0.0),
            late: 0.0,
            used: Instant::now(),
        };
        Self { turn: AtomicUsize::new(0), state: Mutex::new(state) }
    }
}

impl NodeHealth {
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.used = Instant::now();
        state
    }

    /// Whose turn it would be.
    pub fn turn(&self) -> usize {
        self.turn.load(Ordering::Relaxed)
    }

    /// Takes a turn.
    pub fn take_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The target that a session has.
    pub fn session(&self, session: u64) -> Option<usize> {
        let now = Instant::now();
        self.lock().sessions.get(&session).filter(|(_, until)| *until > now).map(|(target, _)| *target)
    }

    /// A session gets a target. One that has it already keeps its end.
    pub fn begin_session(&self, session: u64, target: usize, ttl: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.sessions.len() >= SESSIONS {
            state.sessions.retain(|_, (_, until)| *until > now);
            if state.sessions.len() >= SESSIONS {
                state.sessions.clear();
            }
        }
        let entry = state.sessions.entry(session).or_insert((target, now + ttl));
        if entry.1 <= now || entry.0 != target {
            *entry = (target, now + ttl);
        }
    }

    /// A request earns its share of an extra call.
    pub fn earn_extra_call(&self, share: f64) {
        self.lock().extra_calls.deposit(share);
    }

    /// Notes whether a first call was late.
    pub fn note_late(&self, late: bool) {
        let mut state = self.lock();
        state.late += (f64::from(u8::from(late)) - state.late) / LATE_MEMORY;
    }

    /// Takes an extra call, if there is one and it promises anything.
    pub fn take_extra_call(&self) -> bool {
        let mut state = self.lock();
        state.late <= TOO_MANY_LATE && state.extra_calls.withdraw()
    }
}

impl Forgettable for NodeHealth {
    fn idle_since(&self) -> Option<Instant> {
        Some(self.state.lock().unwrap_or_else(PoisonError::into_inner).used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_its_time_and_is_not_prolonged_by_requests() {
        let node = NodeHealth::default();
        node.begin_session(1, 2, Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(6)).await;
        node.begin_session(1, 2, Duration::from_secs(10));
        assert_eq!(node.session(1), Some(2));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(node.session(1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_bounded() {
        let node = NodeHealth::default();
        for session in 0..=SESSIONS as u64 {
            node.begin_session(session, 0, Duration::from_secs(10));
        }
        assert!(node.lock().sessions.len() <= SESSIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_late_there_are_no_extra_calls() {
        let node = NodeHealth::default();
        let extra = (0..1000).filter(|_| {
            node.earn_extra_call(0.05);
            node.note_late(true);
            node.take_extra_call()
        });
        assert!(extra.count() <= 15);
        for _ in 0..200 {
            node.note_late(false);
        }
        assert!(node.take_extra_call());
    }
}
