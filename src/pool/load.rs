//! What is known of an endpoint's load and health, and what it costs to send it one more call. No clock of its own,
//! no connections.

use std::time::Duration;

use tokio::time::Instant;

/// Differences below this say nothing of an endpoint: images take seconds, and how soon a call is accepted varies
/// with every breath of the machine.
const LEAST_LATENCY: f64 = 0.25;

/// How long a slow answer is remembered, in seconds.
const LATENCY_DECAY: f64 = 10.0;

/// An endpoint that is new, or back, gets a tenth of its share at first and all of it after this, in so many steps:
/// where nothing is in flight, those of nearly the same age must cost the same, or one of them gets every call.
const WARM_UP: Duration = Duration::from_secs(10);
const LEAST_WARMTH: f64 = 0.1;
const STEPS: f64 = 10.0;

/// Broken or silent calls in a row that eject an endpoint.
const FAILURES: u32 = 3;

/// How long an endpoint is ejected: twice as long each time in a row, up to a limit.
const EJECTED_AT_FIRST: Duration = Duration::from_secs(1);
const EJECTED_AT_MOST: Duration = Duration::from_secs(60);

/// A call that has not been accepted within this, or this many times the usual time, was met with silence. Where
/// nothing is usual yet it takes longer: a server may accept a call only when its image is there.
const LEAST_SILENCE: Duration = Duration::from_millis(500);
const SILENCE_FACTOR: f64 = 4.0;
const UNUSUAL_SILENCE: Duration = Duration::from_secs(10);

/// Load and health of one endpoint.
#[derive(Debug)]
pub struct Load {
    /// When it last came into use.
    since: Instant,
    /// Peak-sensitive moving average of the time until a call is accepted, in seconds.
    latency: f64,
    observed: Instant,
    /// Whether any call was accepted since it came into use.
    has_accepted: bool,
    /// Broken or silent calls in a row.
    failures: u32,
    /// Ejections in a row.
    ejections: u32,
    ejected_until: Option<Instant>,
    /// It was ejected and has not accepted a call since.
    is_on_probation: bool,
}

impl Load {
    /// Of an endpoint that has just come into use.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            latency: 0.0,
            observed: now,
            has_accepted: false,
            failures: 0,
            ejections: 0,
            ejected_until: None,
            is_on_probation: false,
        }
    }

    /// What one more call costs beside `in_flight` others: the lower, the better.
    pub fn cost(&self, in_flight: usize, now: Instant) -> f64 {
        self.latency(now).max(LEAST_LATENCY) * (in_flight as f64 + 1.0) / self.warmth(now)
    }

    /// The share of its load that it should get, 0.1 to 1.
    pub fn warmth(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.since).as_secs_f64();
        let step = (age / WARM_UP.as_secs_f64() * STEPS).floor() / STEPS;
        step.clamp(LEAST_WARMTH, 1.0)
    }

    /// Whether it should be left alone.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| until > now)
    }

    /// Whether one call has to find out first whether it works again.
    pub fn is_on_probation(&self) -> bool {
        self.is_on_probation
    }

    /// It is in use again after it was not.
    pub fn begin(&mut self, now: Instant) {
        self.since = now;
        self.failures = 0;
        (self.latency, self.observed, self.has_accepted) = (0.0, now, false);
    }

    /// A call was accepted after this time.
    pub fn accepted(&mut self, took: Duration, now: Instant) {
        let took = took.as_secs_f64();
        let known = self.latency(now);
        let kept = 1.0 - share_of_new(now.saturating_duration_since(self.observed));
        // A rise counts at once, a fall as time goes by.
        self.latency = if took > known { took } else { took + (known - took) * kept };
        self.observed = now;
        self.has_accepted = true;
        self.failures = 0;
        self.is_on_probation = false;
        let calm = now.saturating_duration_since(self.since) > EJECTED_AT_MOST;
        if calm {
            self.ejections = 0;
        }
    }

    /// A call was given up after this time without having been accepted. True if that ejects the endpoint.
    pub fn unheard(&mut self, waited: Duration, now: Instant) -> bool {
        // As it was last seen: that nothing was asked meanwhile makes nobody quicker.
        let usual = Duration::from_secs_f64(self.latency * SILENCE_FACTOR);
        let least = if self.has_accepted { LEAST_SILENCE } else { UNUSUAL_SILENCE };
        waited >= usual.max(least) && self.broken(now)
    }

    /// A call broke. True if that ejects the endpoint; on probation the first one does.
    pub fn broken(&mut self, now: Instant) -> bool {
        self.failures += 1;
        if self.failures < FAILURES && !self.is_on_probation || self.is_ejected(now) {
            return false;
        }
        let pause = EJECTED_AT_FIRST * 2_u32.saturating_pow(self.ejections.min(16));
        let until = now + pause.min(EJECTED_AT_MOST);
        self.ejections += 1;
        self.begin(until);
        self.ejected_until = Some(until);
        self.is_on_probation = true;
        true
    }

    fn latency(&self, now: Instant) -> f64 {
        // While nothing is heard the past fades: what was slow once is tried again.
        self.latency * (1.0 - share_of_new(now.saturating_duration_since(self.observed)))
    }
}

fn share_of_new(elapsed: Duration) -> f64 {
    1.0 - (-elapsed.as_secs_f64() / LATENCY_DECAY).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn warm() -> (Load, Instant) {
        let start = Instant::now();
        (Load::new(start), start + WARM_UP)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_costs_more_the_more_there_are() {
        let (load, now) = warm();
        assert!(load.cost(0, now) < load.cost(1, now));
        assert_eq!(load.cost(3, now), 4.0 * load.cost(0, now));
    }

    #[tokio::test(start_paused = true)]
    async fn small_differences_say_nothing_and_large_ones_count_at_once_and_fade() {
        let (mut quick, now) = warm();
        let mut slow = Load::new(now - WARM_UP);
        quick.accepted(Duration::from_millis(1), now);
        slow.accepted(Duration::from_millis(200), now);
        assert_eq!(quick.cost(2, now), slow.cost(2, now));
        slow.accepted(2 * SECOND, now);
        assert!(slow.cost(0, now) > 7.0 * quick.cost(0, now));
        slow.accepted(Duration::from_millis(1), now);
        assert!(slow.cost(0, now) > 7.0 * quick.cost(0, now), "one quick answer makes nobody quick");
        assert_eq!(slow.cost(0, now + 60 * SECOND), quick.cost(0, now + 60 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_endpoint_takes_its_share_bit_by_bit() {
        let now = Instant::now();
        let load = Load::new(now);
        assert_eq!(load.warmth(now), LEAST_WARMTH);
        assert_eq!(load.warmth(now + WARM_UP / 2), 0.5);
        assert_eq!(
            load.cost(0, now + WARM_UP / 2),
            Load::new(now + SECOND / 10).cost(0, now + WARM_UP / 2 + SECOND / 2)
        );
        assert_eq!(load.warmth(now + WARM_UP), 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_eject_for_longer_each_time_and_an_accepted_call_ends_the_row() {
        let (mut load, mut now) = warm();
        assert!(!load.broken(now) && !load.broken(now));
        load.accepted(SECOND, now);
        assert!(!load.broken(now) && !load.broken(now));
        assert!(load.broken(now));
        assert!(load.is_ejected(now + SECOND / 2) && !load.is_ejected(now + SECOND));
        for doubled in [2, 4, 8, 16, 32, 60, 60] {
            now += 100 * SECOND;
            let ejected = (0..FAILURES).any(|_| load.broken(now));
            assert!(ejected && load.is_ejected(now + doubled * SECOND - SECOND / 2), "{doubled}");
            assert!(!load.is_ejected(now + doubled * SECOND));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_minute_without_trouble_ejections_are_forgotten() {
        let (mut load, mut now) = warm();
        assert!((0..FAILURES).any(|_| load.broken(now)));
        now += 100 * SECOND;
        load.accepted(SECOND, now);
        assert!((0..FAILURES).any(|_| load.broken(now)));
        assert!(!load.is_ejected(now + SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_ejection_the_first_call_decides() {
        let (mut load, mut now) = warm();
        assert!((0..FAILURES).any(|_| load.broken(now)) && load.is_on_probation());
        now += 2 * SECOND;
        assert!(load.broken(now), "one is enough");
        now += 3 * SECOND;
        load.accepted(SECOND, now);
        assert!(!load.is_on_probation() && !load.broken(now));
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_unusual_silence_counts() {
        let (mut load, now) = warm();
        load.accepted(2 * SECOND, now);
        assert!((0..10).all(|_| !load.unheard(7 * SECOND, now)), "it usually takes as long");
        assert!((0..10).all(|_| !load.unheard(7 * SECOND, now + 300 * SECOND)), "also after a pause");
        assert!((0..FAILURES).any(|_| load.unheard(9 * SECOND, now)));
        let (mut unknown, now) = warm();
        assert!((0..10).all(|_| !unknown.unheard(9 * SECOND, now)), "nobody knows what is usual");
        assert!((0..FAILURES).any(|_| unknown.unheard(10 * SECOND, now)));
    }
}
