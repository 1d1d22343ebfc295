//! What is wrong with the store, said once when it begins, once when it is worse, and once when it is over.
//!
//! Two see it: whoever looks for changes each second, and whoever writes the request log. What one of them has said the
//! other does not say again.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::telemetry::{self, StoreState};

/// What takes longer is slow: a healthy store takes milliseconds.
const SLOW: Duration = Duration::from_secs(1);

/// How long nothing must have been slow for the store to be well: one that is slow now and then is said once.
const CALM: Duration = Duration::from_secs(5);

/// What is known of the store.
#[derive(Debug, Default)]
pub struct Alarm(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// It did not answer.
    is_away: bool,
    /// It answered, and did not take what was written.
    is_unwritten: bool,
    was_slow: Option<Instant>,
    /// Since when something is being written.
    writes: Option<Instant>,
    /// The worst that was said since it was well.
    said: StoreState,
}

impl Alarm {
    /// It answered after this time, or why it did not.
    pub fn looked(&self, outcome: Result<Duration, &str>) {
        self.note(outcome, |known| &mut known.is_away);
    }

    /// Something is being written to it.
    pub fn writes(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).writes = Some(Instant::now());
    }

    /// It took what was written after this time, or why it did not although it answers.
    pub fn wrote(&self, outcome: Result<Duration, &str>) {
        self.note(outcome, |known| {
            known.writes = None;
            &mut known.is_unwritten
        });
    }

    fn note(&self, outcome: Result<Duration, &str>, is_failing: impl Fn(&mut Known) -> &mut bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *is_failing(&mut known) = outcome.is_err();
        if outcome.is_ok_and(|took| took > SLOW) {
            known.was_slow = Some(Instant::now());
        }
        let now = known.state();
        telemetry::store_up(now < StoreState::Unwritten);
        if now > known.said || (now == StoreState::Well && known.said != now) {
            known.said = now;
            telemetry::store_changed(now, outcome.err().unwrap_or_default());
        }
    }
}

impl Known {
    fn state(&self) -> StoreState {
        if self.is_away {
            StoreState::Away
        } else if self.is_unwritten {
            StoreState::Unwritten
        } else if self.was_slow.is_some_and(|at| at.elapsed() < CALM) || self.is_still_slow() {
            StoreState::Slow
        } else {
            StoreState::Well
        }
    }

    /// It was slow, or worse, and something is being written for long: how that ends is not known.
    fn is_still_slow(&self) -> bool {
        self.said != StoreState::Well && self.writes.is_some_and(|at| at.elapsed() > SLOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(alarm: &Alarm) -> StoreState {
        alarm.0.lock().unwrap().said
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_said_once_and_forgotten_when_it_is_over() {
        let (alarm, quick, slow) = (Alarm::default(), Duration::from_millis(2), Duration::from_secs(2));
        alarm.looked(Ok(slow));
        assert_eq!(said(&alarm), StoreState::Slow);
        alarm.looked(Err("no answer"));
        assert_eq!(said(&alarm), StoreState::Away);
        // Better, but it has not been well in between: nothing to say.
        for better in [Ok(quick), Ok(slow), Err("no answer"), Ok(quick)] {
            alarm.looked(better);
            assert_eq!(said(&alarm), StoreState::Away);
        }
        tokio::time::advance(CALM).await;
        alarm.looked(Ok(quick));
        assert_eq!(said(&alarm), StoreState::Well);
        alarm.looked(Ok(slow));
        alarm.writes();
        tokio::time::advance(CALM * 2).await;
        alarm.looked(Ok(quick));
        assert_eq!(said(&alarm), StoreState::Slow);
        alarm.wrote(Ok(quick));
        assert_eq!(said(&alarm), StoreState::Well);
        alarm.wrote(Err("read-only"));
        alarm.looked(Ok(quick));
        assert_eq!(said(&alarm), StoreState::Unwritten);
        alarm.wrote(Ok(quick));
        assert_eq!(said(&alarm), StoreState::Well);
    }
}
