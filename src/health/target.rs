//! One target: its breaker, its pause, its latency, its calls in flight, its retry budget.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    breaker::{Breaker, Transition},
    bucket::Bucket,
    ejected::Ejected,
    known::Forgettable,
    latency::Latency,
};
use crate::{config::policies::Breaker as Policy, pb::TargetState, telemetry};

/// A pause is believed no longer than this: then one request finds out.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What the retry budget allows beside its share of the traffic: an outage of a rarely used target is met with
/// what its config says.
const RETRIES_AT_ONCE: f64 = 20.0;
const RETRIES_PER_SECOND: f64 = 0.2;

/// A target that nobody has called for so long is not among those whose breakers are counted: its config may be gone.
const LATELY: Duration = Duration::from_secs(3600);

/// What is known about one target.
#[derive(Debug)]
pub struct TargetHealth {
    provider: String,
    in_flight: AtomicU32,
    breaker_changes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    /// When each call began that runs, by its number.
    running: BTreeMap<u64, Instant>,
    begun: u64,
    paused_until: Option<Instant>,
    /// What another router said last.
    learned: Trouble,
    latency: Latency,
    retries: Bucket,
    used: Instant,
}

/// Until when a target should be left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Its breaker is open.
    pub open_until: Option<Instant>,
    /// It asked for it.
    pub paused_until: Option<Instant>,
}

/// How a target stands now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Why it should be left alone, if it should.
    pub ejected: Option<Ejected>,
    /// The share of its traffic that it should get, 0.1 to 1.
    pub warmth: f64,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// Recent time of a call in seconds, if one has been seen.
    pub seconds: Option<f64>,
    /// The same for choosing: it fades while no call ends, so that what was slow once is tried again.
    pub faded_seconds: Option<f64>,
    /// Calls in flight.
    pub in_flight: u32,
}

impl From<Standing> for TargetState {
    fn from(standing: Standing) -> Self {
        Self {
            breaker: standing.breaker.to_owned(),
            ejected: standing.ejected.map_or("", Ejected::name).to_owned(),
            warmth: standing.warmth,
            latency_s: standing.seconds,
            calls_in_flight: standing.in_flight,
        }
    }
}

/// What a call tells about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works, and this is how long it takes.
    Success,
    /// It does not work.
    Failure,
    /// It answers, and the request was at fault, or a limit was reached.
    Alive,
    /// Nothing: the caller went away or had no time.
    Nothing,
}

/// A call in flight. Dropped unfinished, it tells nothing.
#[derive(Debug)]
pub struct Permit {
    health: Arc<TargetHealth>,
    /// Counts the target's calls, from 1.
    number: u64,
    started: Instant,
    kind: Kind,
    finished: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Whether it works again.
    Probe,
    /// The target should be left alone, but there is no other.
    LastResort,
}

impl TargetHealth {
    /// Nothing known.
    pub fn new(provider: &str) -> Self {
        let state = State {
            breaker: Breaker::new(),
            running: BTreeMap::new(),
            begun: 0,
            paused_until: None,
            learned: Trouble::default(),
            latency: Latency::new(),
            retries: Bucket::new(RETRIES_AT_ONCE, RETRIES_PER_SECOND),
            used: Instant::now(),
        };
        Self {
            provider: provider.to_owned(),
            in_flight: AtomicU32::new(0),
            breaker_changes: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is called, for metrics.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Until when it should be left alone, but for what others have said.
    pub fn trouble(&self) -> Option<Trouble> {
        let (now, state) = (Instant::now(), self.lock());
        let own =
            |until: Option<Instant>, learned| until.filter(|until| *until > now && Some(*until) != learned);
        let trouble = Trouble {
            open_until: own(state.breaker.open_until(), state.learned.open_until),
            paused_until: own(state.paused_until, state.learned.paused_until),
        };
        (trouble != Trouble::default()).then_some(trouble)
    }

    /// Believes what another router has found out, for no longer than what this one finds out itself.
    pub fn learn(&self, trouble: Trouble) {
        let longest = Instant::now() + LONGEST_PAUSE;
        let mut state = self.lock();
        if let Some(until) = trouble.paused_until.map(|until| until.min(longest))
            && state.paused_until.is_none_or(|known| known < until)
        {
            state.paused_until = Some(until);
            state.learned.paused_until = Some(until);
        }
        let mut transition = None;
        if let Some(until) = trouble.open_until.map(|until| until.min(longest)) {
            transition = state.breaker.open(until);
            if transition.is_some() {
                state.learned.open_until = Some(until);
            }
        }
        drop(state);
        self.transition(transition);
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How often its breaker has opened and closed.
    pub fn breaker_changes(&self) -> u64 {
        self.breaker_changes.load(Ordering::Relaxed)
    }

    /// The state of its breaker; none if nobody has called it for so long that this tells nothing of now.
    pub fn breaker_lately(&self) -> Option<&'static str> {
        let (now, state) = (Instant::now(), self.lock());
        let is_known = !state.running.is_empty()
            || now.saturating_duration_since(state.used) < LATELY
            || state.breaker.open_until().is_some_and(|until| until > now);
        is_known.then(|| state.breaker.state())
    }

    /// How it stands, changing nothing. Without a policy it has no breaker.
    pub fn standing(&self, policy: Option<&Policy>) -> Standing {
        let now = Instant::now();
        let state = self.lock();
        let pause = state.pause(now).map(Ejected::Paused);
        let ejected = pause.or_else(|| policy.and_then(|policy| state.breaker.look(policy, now).err()));
        Standing {
            ejected,
            warmth: policy.map_or(1.0, |_| state.breaker.warmth(now)),
            breaker: policy.map_or("closed", |_| state.breaker.state()),
            seconds: state.latency.seconds(),
            faded_seconds: state.latency.faded(now),
            in_flight: self.in_flight(),
        }
    }

    /// Whether a call would be let through now, and if so, whether it would be a probe. `dice` (0 to 1) decides
    /// while the target is warming up.
    ///
    /// # Errors
    /// Why it is left alone.
    pub fn would_admit(&self, policy: Option<&Policy>, dice: f64) -> Result<bool, Ejected> {
        self.lock().look(policy, dice, Instant::now())
    }

    /// A call begins, if [`TargetHealth::would_admit`] it.
    ///
    /// # Errors
    /// Why the target is left alone.
    pub fn admit(self: &Arc<Self>, policy: Option<&Policy>, dice: f64) -> Result<Permit, Ejected> {
        let now = Instant::now();
        let mut state = self.lock();
        let probe = state.look(policy, dice, now)?;
        if probe {
            state.breaker.begin_probe(now);
        }
        Ok(self.begin(&mut state, if probe { Kind::Probe } else { Kind::Normal }))
    }

    /// A call begins whatever is known: there is no other target.
    pub fn force(self: &Arc<Self>) -> Permit {
        self.begin(&mut self.lock(), Kind::LastResort)
    }

    fn begin(self: &Arc<Self>, state: &mut State, kind: Kind) -> Permit {
        let started = Instant::now();
        state.begun += 1;
        state.running.insert(state.begun, started);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Permit { health: Arc::clone(self), number: state.begun, started, kind, finished: false }
    }

    /// A request earns its share of a retry.
    pub fn earn_retry(&self, share: f64) {
        self.lock().retries.deposit(share);
    }

    /// Takes a retry out of the budget, if there is one.
    pub fn spend_retry(&self) -> bool {
        self.lock().retries.withdraw()
    }

    fn transition(&self, to: Option<Transition>) {
        if let Some(transition) = to {
            self.breaker_changes.fetch_add(1, Ordering::Relaxed);
            telemetry::breaker(&self.provider, transition == Transition::Opened);
        }
    }
}

impl Forgettable for TargetHealth {
    fn idle_since(&self) -> Option<Instant> {
        (self.in_flight() == 0).then(|| self.lock().used)
    }
}

impl State {
    fn look(&self, policy: Option<&Policy>, dice: f64, now: Instant) -> Result<bool, Ejected> {
        if let Some(left) = self.pause(now) {
            return Err(Ejected::Paused(left));
        }
        let Some(policy) = policy else { return Ok(false) };
        let probe = self.breaker.look(policy, now)?;
        if dice > self.breaker.warmth(now) {
            return Err(Ejected::Warming);
        }
        Ok(probe)
    }

    fn pause(&self, now: Instant) -> Option<Duration> {
        self.paused_until.filter(|until| *until > now).map(|until| until - now)
    }
}

impl Permit {
    /// Time since the call began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The call ended. `pause`: how long the target asked to be left alone.
    pub fn finish(mut self, verdict: Verdict, policy: Option<&Policy>, pause: Option<Duration>) {
        self.finished = true;
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        let mut state = self.health.lock();
        state.used = now;
        state.running.remove(&self.number);
        if let Some(pause) = pause {
            let until = now + pause.min(LONGEST_PAUSE);
            state.paused_until = Some(state.paused_until.map_or(until, |known| known.max(until)));
        }
        match verdict {
            Verdict::Success => state.latency.observe(took),
            Verdict::Failure => state.latency.observe_failure(took),
            Verdict::Alive | Verdict::Nothing => {}
        }
        let (probe, news) = (self.kind == Kind::Probe, self.kind != Kind::Normal);
        let State { breaker, running, .. } = &mut *state;
        let survivors = |first: u64| {
            let survived = running.range(first..).filter(|(_, started)| now - **started > took).count();
            u32::try_from(survived).unwrap_or(u32::MAX)
        };
        let transition = match (policy, verdict) {
            (Some(policy), Verdict::Success) => breaker.succeed(policy, now, self.number, news),
            (Some(policy), Verdict::Failure) => breaker.fail(policy, now, self.number, probe, survivors),
            // It answered: that is all a probe wants to know.
            (Some(policy), Verdict::Alive) if news => breaker.succeed(policy, now, self.number, true),
            _ => {
                if probe {
                    breaker.give_up_probe(now);
                }
                None
            }
        };
        if transition == Some(Transition::Closed) {
            // How long it took before it broke, or to break, says nothing any more.
            state.latency = Latency::new();
            if verdict == Verdict::Success {
                state.latency.observe(took);
            }
        }
        drop(state);
        self.health.transition(transition);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.finished {
            return;
        }
        let mut state = self.health.lock();
        state.running.remove(&self.number);
        if self.kind == Kind::Probe {
            state.breaker.give_up_probe(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy { consecutive_failures: Some(1), ..Policy::default() }
    }

    fn open(health: &Arc<TargetHealth>, policy: &Policy) {
        health.admit(Some(policy), 0.0).unwrap().finish(Verdict::Failure, Some(policy), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_leaves_its_place_to_the_next() {
        let (health, policy) = (Arc::new(TargetHealth::new("p")), policy());
        open(&health, &policy);
        assert!(matches!(health.admit(Some(&policy), 0.0), Err(Ejected::Open(_))));
        tokio::time::advance(policy.cooldown).await;
        let probe = health.admit(Some(&policy), 0.0).unwrap();
        assert_eq!(health.admit(Some(&policy), 0.0).unwrap_err(), Ejected::Probing);
        drop(probe);
        assert!(health.admit(Some(&policy), 0.0).is_ok());
        assert_eq!(health.in_flight(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_refused_for_its_content_closes_the_breaker() {
        let (health, policy) = (Arc::new(TargetHealth::new("p")), policy());
        open(&health, &policy);
        tokio::time::advance(policy.cooldown).await;
        health.admit(Some(&policy), 0.0).unwrap().finish(Verdict::Alive, Some(&policy), None);
        assert_eq!(health.standing(Some(&policy)).breaker, "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_a_failure_and_ends_by_itself() {
        let (health, policy) = (Arc::new(TargetHealth::new("p")), policy());
        let pause = Duration::from_secs(20);
        health.admit(Some(&policy), 0.0).unwrap().finish(Verdict::Alive, Some(&policy), Some(pause));
        let standing = health.standing(Some(&policy));
        assert_eq!((standing.ejected, standing.breaker), (Some(Ejected::Paused(pause)), "closed"));
        tokio::time::advance(pause).await;
        assert_eq!(health.standing(Some(&policy)).ejected, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_comes_back_gets_a_part_of_its_traffic_first() {
        let (health, policy) = (Arc::new(TargetHealth::new("p")), policy());
        open(&health, &policy);
        health.force().finish(Verdict::Success, Some(&policy), None);
        assert_eq!(health.admit(Some(&policy), 0.9).unwrap_err(), Ejected::Warming);
        assert!(health.admit(Some(&policy), 0.05).is_ok());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(health.admit(Some(&policy), 0.9).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_router_says_opens_the_breaker_and_is_not_passed_on() {
        let (health, policy) = (Arc::new(TargetHealth::new("p")), policy());
        let until = Instant::now() + policy.cooldown;
        health.learn(Trouble { open_until: Some(until), paused_until: None });
        assert_eq!(health.standing(Some(&policy)).ejected, Some(Ejected::Open(policy.cooldown)));
        assert_eq!(health.trouble(), None);
        tokio::time::advance(policy.cooldown).await;
        let probe = health.admit(Some(&policy), 0.0).unwrap();
        probe.finish(Verdict::Failure, Some(&policy), None);
        let own = health.trouble().unwrap();
        assert_eq!(own.open_until, Some(Instant::now() + policy.cooldown), "this router has seen for itself");
        health.learn(Trouble { open_until: None, paused_until: Some(Instant::now() + 2 * LONGEST_PAUSE) });
        assert_eq!(health.standing(None).ejected, Some(Ejected::Paused(LONGEST_PAUSE)));
        assert_eq!(health.trouble().unwrap().paused_until, None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_policy_nothing_opens() {
        let health = Arc::new(TargetHealth::new("p"));
        for _ in 0..100 {
            health.admit(None, 1.0).unwrap().finish(Verdict::Failure, None, None);
        }
        assert_eq!(health.standing(None).ejected, None);
    }
}
