//! How long a target takes: a peak-sensitive moving average.

use std::time::Duration;

use tokio::time::Instant;

/// The average forgets over so many of its own service times: a model that takes 30 s is judged by the last
/// minutes, one that takes 2 s by the last seconds.
const MEMORY: f64 = 10.0;
const SHORTEST_MEMORY: f64 = 5.0;
const LONGEST_MEMORY: f64 = 900.0;

/// Without calls it is forgotten over no more than so many seconds: a target that is avoided for its slowness has
/// to be called now and then to show that it is no longer slow.
const LONGEST_IDLE_MEMORY: f64 = 60.0;

/// A call that failed counts as at least so long: failing fast is not being fast.
const FAILURE: Duration = Duration::from_secs(10);

/// Seconds, jumping up at once and coming down slowly.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    seconds: Option<f64>,
    at: Instant,
}

impl Latency {
    /// Nothing known.
    pub fn new() -> Self {
        Self { seconds: None, at: Instant::now() }
    }

    /// A call succeeded.
    pub fn observe(&mut self, took: Duration) {
        let now = Instant::now();
        let took = took.as_secs_f64();
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.seconds = Some(match self.seconds {
            Some(average) if took < average => {
                let memory = (average * MEMORY).clamp(SHORTEST_MEMORY, LONGEST_MEMORY);
                took + (average - took) * (-elapsed / memory).exp()
            }
            _ => took,
        });
    }

    /// A call failed.
    pub fn observe_failure(&mut self, took: Duration) {
        let twice = self.seconds.map_or(FAILURE, |seconds| Duration::from_secs_f64(seconds * 2.0));
        self.observe(took.max(FAILURE).max(twice.min(FAILURE * 60)));
    }

    /// The average, if any call has been seen.
    pub fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// The average for choosing among targets: it fades while no call ends.
    pub fn faded(&self, now: Instant) -> Option<f64> {
        let average = self.seconds?;
        let memory = (average * MEMORY).clamp(SHORTEST_MEMORY, LONGEST_IDLE_MEMORY);
        Some(average * (-now.saturating_duration_since(self.at).as_secs_f64() / memory).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_jumps_up_and_comes_down_over_several_service_times() {
        let mut latency = Latency::new();
        latency.observe(Duration::from_secs(4));
        latency.observe(Duration::from_secs(40));
        assert_eq!(latency.seconds(), Some(40.0));
        tokio::time::advance(Duration::from_secs(40)).await;
        latency.observe(Duration::from_secs(4));
        let soon = latency.seconds().unwrap();
        assert!((30.0..40.0).contains(&soon), "{soon}");
        for _ in 0..50 {
            tokio::time::advance(Duration::from_secs(20)).await;
            latency.observe(Duration::from_secs(4));
        }
        let later = latency.seconds().unwrap();
        assert!(later < 4.1, "{later}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_fades_while_nobody_calls() {
        let mut latency = Latency::new();
        latency.observe(Duration::from_secs(10));
        assert_eq!(latency.faded(Instant::now()), Some(10.0));
        tokio::time::advance(Duration::from_secs(180)).await;
        assert!(latency.faded(Instant::now()).unwrap() < 1.0);
        assert_eq!(latency.seconds(), Some(10.0));
    }

    #[tokio::test(start_paused = true)]
    async fn failing_fast_is_not_being_fast() {
        let mut latency = Latency::new();
        latency.observe_failure(Duration::from_millis(5));
        assert!(latency.seconds().unwrap() >= 10.0);
    }
}
