//! Where a request's time goes. At every moment it is in one phase, so that the parts add up to the whole: while several
//! things happen at once, the one furthest down the list of [`Phase`] counts.

use std::time::Duration;

use tokio::time::Instant;

use crate::pb;

/// What a request is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Finding out who calls and which way it goes.
    Routing,
    /// Looking for an answer that is kept, or waiting for one that another request makes.
    Cache,
    /// A pause before a retry, or a turn that is somebody else's.
    Waiting,
    /// Checking and converting images that are there.
    Verifying,
    /// At least one provider call is running.
    Upstream,
}

const PHASES: usize = Phase::Upstream as usize + 1;

/// The time so far.
#[derive(Debug)]
pub struct Phases {
    arrived: Instant,
    /// Up to then everything is accounted for.
    counted: Instant,
    /// How often the request is in each phase now.
    running: [u32; PHASES],
    spent: [Duration; PHASES],
    first_preview: Option<Duration>,
}

impl Phases {
    /// A request that has just arrived.
    pub fn new(arrived: Instant) -> Self {
        let mut running = [0; PHASES];
        running[Phase::Routing as usize] = 1;
        Self { arrived, counted: arrived, running, spent: [Duration::ZERO; PHASES], first_preview: None }
    }

    /// When it came.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Something begins.
    pub fn enter(&mut self, phase: Phase) {
        self.count(Instant::now());
        self.running[phase as usize] += 1;
    }

    /// Something that began is over.
    pub fn leave(&mut self, phase: Phase) {
        self.count(Instant::now());
        let running = &mut self.running[phase as usize];
        *running = running.saturating_sub(1);
    }

    /// The caller is shown something of its picture.
    pub fn preview(&mut self) {
        self.first_preview.get_or_insert(self.arrived.elapsed());
    }

    /// Everything up to now.
    pub fn timings(&mut self) -> pb::Timings {
        let now = Instant::now();
        self.count(now);
        let of = |phase: Phase| micros(self.spent[phase as usize]);
        pb::Timings {
            total_us: micros(now.saturating_duration_since(self.arrived)),
            routing_us: of(Phase::Routing),
            cache_us: of(Phase::Cache),
            waiting_us: of(Phase::Waiting),
            upstream_us: of(Phase::Upstream),
            verifying_us: of(Phase::Verifying),
            first_preview_us: self.first_preview.map(micros),
        }
    }

    fn count(&mut self, now: Instant) {
        if let Some(leading) = self.running.iter().rposition(|running| *running > 0) {
            self.spent[leading] += now.saturating_duration_since(self.counted);
        }
        self.counted = now;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_moment_belongs_to_one_phase() {
        let ms = async |ms: u64| advance(Duration::from_millis(ms)).await;
        let mut phases = Phases::new(Instant::now());
        ms(1).await;
        phases.leave(Phase::Routing);
        // Choosing a target belongs to no phase.
        ms(2).await;
        phases.enter(Phase::Cache);
        ms(4).await;
        phases.leave(Phase::Cache);
        // Two calls at once, of which one is over and being checked while the other runs.
        phases.enter(Phase::Upstream);
        ms(8).await;
        phases.enter(Phase::Upstream);
        phases.preview();
        ms(16).await;
        phases.leave(Phase::Upstream);
        phases.enter(Phase::Verifying);
        ms(32).await;
        phases.preview();
        phases.leave(Phase::Upstream);
        ms(64).await;
        phases.leave(Phase::Verifying);
        phases.enter(Phase::Waiting);
        ms(128).await;
        // Still waiting when the caller goes away.
        let timings = phases.timings();
        let expected = pb::Timings {
            total_us: 255_000,
            routing_us: 1000,
            cache_us: 4000,
            waiting_us: 128_000,
            upstream_us: 56_000,
            verifying_us: 64_000,
            first_preview_us: Some(15_000),
        };
        assert_eq!(timings, expected);
    }
}
