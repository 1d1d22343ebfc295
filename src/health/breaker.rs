//! The circuit breaker's states. Time and results go in, whether to call comes out; no locks, no clock.

use std::time::Duration;

use tokio::time::Instant;

use super::ejected::Ejected;
use crate::config::policies::Breaker as Policy;

/// A window is looked at in so many parts.
const PARTS: usize = 10;

/// A target that has come back takes so long to get all of its traffic again.
const SLOW_START: Duration = Duration::from_secs(30);

/// What it gets at first.
const SLOWEST: f64 = 0.1;

/// Closed, open or half-open.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    row: Row,
    results: Window,
}

/// Failures in a row, in the order in which calls began: what ends first says nothing about what is still on its
/// way, and errors are often quicker than pictures.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    failures: u32,
    /// The number of the call whose failure was seen first. The success of one that began before is old news.
    first: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Closed {
        /// When it closed again; none: it was never open.
        since: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        /// When the probe began: one that is lost must not keep it half-open.
        probe: Instant,
    },
}

/// What a result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It will be left alone.
    Opened,
    /// It is back.
    Closed,
}

impl Breaker {
    /// A closed one.
    pub fn new() -> Self {
        Self { state: State::Closed { since: None }, row: Row::default(), results: Window::default() }
    }

    /// When it will be probed, if it is open.
    pub fn open_until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Opens it for what somebody else has seen.
    pub fn open(&mut self, until: Instant) -> Option<Transition> {
        let was_closed = matches!(self.state, State::Closed { .. });
        if was_closed {
            self.state = State::Open { until };
            self.row = Row::default();
        }
        was_closed.then_some(Transition::Opened)
    }

    /// Whether a call would be let through now, and if so, whether it would be a probe.
    pub fn look(&self, policy: &Policy, now: Instant) -> Result<bool, Ejected> {
        match self.state {
            State::Closed { .. } => Ok(false),
            State::Open { until } if now < until => Err(Ejected::Open(until - now)),
            State::Open { .. } => Ok(true),
            // A probe may take as long as an image does.
            State::HalfOpen { probe }
                if now.saturating_duration_since(probe) < policy.cooldown.max(LONGEST_PROBE) =>
            {
                Err(Ejected::Probing)
            }
            State::HalfOpen { .. } => Ok(true),
        }
    }

    /// A probe begins.
    pub fn begin_probe(&mut self, now: Instant) {
        self.state = State::HalfOpen { probe: now };
    }

    /// A probe ended without telling anything: the next request may try.
    pub fn give_up_probe(&mut self, now: Instant) {
        if matches!(self.state, State::HalfOpen { .. }) {
            self.state = State::Open { until: now };
        }
    }

    /// The share of its traffic that the target gets, 0.1 to 1.
    pub fn warmth(&self, now: Instant) -> f64 {
        match self.state {
            State::Closed { since: Some(since) } => {
                let part = now.saturating_duration_since(since).as_secs_f64() / SLOW_START.as_secs_f64();
                part.clamp(SLOWEST, 1.0)
            }
            _ => 1.0,
        }
    }

    /// For machines.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half_open",
        }
    }

    /// A call showed that the target works. `call` counts calls in the order of their beginnings. `news`: it began
    /// after the breaker had opened.
    pub fn succeed(&mut self, policy: &Policy, now: Instant, call: u64, news: bool) -> Option<Transition> {
        if call >= self.row.first {
            self.row = Row::default();
        }
        self.results.add(false, policy.window, now);
        let is_back = news && !matches!(self.state, State::Closed { .. });
        is_back.then(|| {
            self.state = State::Closed { since: Some(now) };
            self.row = Row::default();
            self.results = Window::default();
            Transition::Closed
        })
    }

    /// A call showed that it does not. `survivors` counts the calls that began with the given number or later
    /// and have been running for longer than this one took to fail: they are no failures so far.
    pub fn fail(
        &mut self,
        policy: &Policy,
        now: Instant,
        call: u64,
        probe: bool,
        survivors: impl Fn(u64) -> u32,
    ) -> Option<Transition> {
        if self.row.failures == 0 {
            self.row.first = call;
        }
        self.row.failures = self.row.failures.saturating_add(1);
        self.results.add(true, policy.window, now);
        let was_closed = matches!(self.state, State::Closed { .. });
        let opens = match self.state {
            State::Closed { .. } => self.is_too_much(policy, now, survivors),
            State::HalfOpen { .. } => probe,
            // Calls of last resort, and those that were under way when it opened.
            State::Open { .. } => false,
        };
        if opens {
            self.state = State::Open { until: now + policy.cooldown };
            self.row = Row::default();
        }
        // After a probe it was open all the time.
        (opens && was_closed).then_some(Transition::Opened)
    }

    fn is_too_much(&self, policy: &Policy, now: Instant, survivors: impl Fn(u64) -> u32) -> bool {
        let Row { failures, first } = self.row;
        // Every call that may still break the row asks for another row, so that one that hangs cannot stop it.
        let in_a_row = policy
            .consecutive_failures
            .is_some_and(|limit| failures >= limit && failures >= limit.saturating_mul(1 + survivors(first)));
        in_a_row
            || policy.failure_ratio.is_some_and(|limit| {
                let (failures, all) = self.results.count(policy.window, now);
                all >= policy.min_requests && f64::from(failures) >= limit * f64::from(all + survivors(0))
            })
    }
}

/// Longer than any provider takes for an image, so that a probe is not doubled while it runs.
const LONGEST_PROBE: Duration = Duration::from_secs(300);

/// Results of the recent past, in parts that are dropped as they grow old.
#[derive(Clone, Debug, Default)]
struct Window {
    parts: [Part; PARTS],
    start: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Which part of time this is, counted from `start`.
    index: u64,
    failures: u32,
    all: u32,
}

impl Window {
    fn index(&self, window: Duration, now: Instant) -> u64 {
        let since = self.start.map_or(Duration::ZERO, |start| now.saturating_duration_since(start));
        // From 1, so that a part never used is old.
        (since.as_secs_f64() * PARTS as f64 / window.as_secs_f64().max(1e-3)) as u64 + PARTS as u64
    }

    fn add(&mut self, failed: bool, window: Duration, now: Instant) {
        self.start.get_or_insert(now);
        let index = self.index(window, now);
        let part = &mut self.parts[(index % PARTS as u64) as usize];
        if part.index != index {
            *part = Part { index, ..Part::default() };
        }
        part.all += 1;
        part.failures += u32::from(failed);
    }

    fn count(&self, window: Duration, now: Instant) -> (u32, u32) {
        let now = self.index(window, now);
        let recent = self.parts.iter().filter(|part| part.index + PARTS as u64 > now);
        recent.fold((0, 0), |(failures, all), part| (failures + part.failures, all + part.all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            consecutive_failures: Some(3),
            failure_ratio: Some(0.5),
            min_requests: 10,
            window: Duration::from_secs(60),
            cooldown: Duration::from_secs(15),
            failure_statuses: None,
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// One call after the other: none survives another.
    fn fail(breaker: &mut Breaker, policy: &Policy, now: Instant, probe: bool) -> Option<Transition> {
        breaker.fail(policy, now, 1, probe, |_| 0)
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_probe_closes_it() {
        let (policy, start) = (policy(), Instant::now());
        let mut breaker = Breaker::new();
        assert_eq!(fail(&mut breaker, &policy, start, false), None);
        assert_eq!(fail(&mut breaker, &policy, start, false), None);
        assert_eq!(fail(&mut breaker, &policy, start, false), Some(Transition::Opened));
        assert_eq!(breaker.look(&policy, start + SECOND), Err(Ejected::Open(14 * SECOND)));
        let later = start + 15 * SECOND;
        assert_eq!(breaker.look(&policy, later), Ok(true));
        breaker.begin_probe(later);
        assert_eq!(breaker.look(&policy, later), Err(Ejected::Probing));
        assert_eq!(fail(&mut breaker, &policy, later, true), None);
        assert_eq!(breaker.look(&policy, later), Err(Ejected::Open(15 * SECOND)));
        let again = later + 15 * SECOND;
        breaker.begin_probe(again);
        assert_eq!(breaker.succeed(&policy, again, 1, true), Some(Transition::Closed));
        assert_eq!(breaker.look(&policy, again), Ok(false));
        assert!((breaker.warmth(again) - 0.1).abs() < 1e-9);
        assert!((breaker.warmth(again + 15 * SECOND) - 0.5).abs() < 1e-9);
        assert!((breaker.warmth(again + 60 * SECOND) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_success_breaks_the_row() {
        let (policy, now) = (policy(), Instant::now());
        let mut breaker = Breaker::new();
        for _ in 0..2 {
            fail(&mut breaker, &policy, now, false);
        }
        breaker.succeed(&policy, now, 1, false);
        assert_eq!(fail(&mut breaker, &policy, now, false), None);
    }

    #[test]
    fn what_began_before_the_row_does_not_break_it() {
        let (policy, now) = (policy(), Instant::now());
        let mut breaker = Breaker::new();
        breaker.fail(&policy, now, 7, false, |_| 0);
        breaker.fail(&policy, now, 8, false, |_| 0);
        breaker.succeed(&policy, now, 6, false);
        assert_eq!(breaker.fail(&policy, now, 9, false, |_| 0), Some(Transition::Opened));
    }

    #[test]
    fn quick_failures_beside_as_many_slow_calls_are_no_row() {
        let (policy, now) = (policy(), Instant::now());
        let mut breaker = Breaker::new();
        for call in 1..10 {
            assert_eq!(breaker.fail(&policy, now, call, false, |_| 20), None);
        }
        assert_eq!(breaker.fail(&policy, now, 10, false, |_| 2), Some(Transition::Opened));
    }

    #[test]
    fn a_ratio_counts_only_with_enough_recent_results() {
        let policy = Policy { consecutive_failures: None, ..policy() };
        let start = Instant::now();
        let mut breaker = Breaker::new();
        for i in 0..9 {
            assert_eq!(fail(&mut breaker, &policy, start + i * SECOND, false), None);
        }
        // Two minutes later they are forgotten.
        let later = start + 120 * SECOND;
        for _ in 0..5 {
            breaker.succeed(&policy, later, 1, false);
        }
        for _ in 0..4 {
            assert_eq!(fail(&mut breaker, &policy, later, false), None);
        }
        assert_eq!(fail(&mut breaker, &policy, later, false), Some(Transition::Opened));
    }

    #[test]
    fn a_lost_probe_does_not_keep_it_half_open() {
        let (policy, start) = (policy(), Instant::now());
        let mut breaker = Breaker::new();
        for _ in 0..3 {
            fail(&mut breaker, &policy, start, false);
        }
        breaker.begin_probe(start);
        breaker.give_up_probe(start + SECOND);
        assert_eq!(breaker.look(&policy, start + SECOND), Ok(true));
        breaker.begin_probe(start + SECOND);
        assert_eq!(breaker.look(&policy, start + SECOND + LONGEST_PROBE), Ok(true));
    }

    #[test]
    fn calls_from_before_it_opened_change_nothing() {
        let (policy, start) = (policy(), Instant::now());
        let mut breaker = Breaker::new();
        for _ in 0..3 {
            fail(&mut breaker, &policy, start, false);
        }
        assert_eq!(fail(&mut breaker, &policy, start + SECOND, false), None);
        assert_eq!(breaker.succeed(&policy, start + SECOND, 1, false), None);
        assert_eq!(breaker.look(&policy, start + 2 * SECOND), Err(Ejected::Open(13 * SECOND)));
        assert_eq!(breaker.succeed(&policy, start + 2 * SECOND, 1, true), Some(Transition::Closed));
    }
}
