//! Answers that any router made, for all of them.
//!
//! How old one is is read off what is left of its life in Redis: one clock for all routers.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Fleet, QUEUED_BYTES, millis, stored};
use crate::{cache::key::Key, images::made::Made};
use bytes::Bytes;

/// An answer of another router.
#[derive(Debug)]
pub struct Found {
    /// What it made.
    pub made: Made,
    /// When it was made, counted back from now.
    pub age: Duration,
    /// How long it may be given altogether, as its maker's config has it.
    pub max_age: Duration,
}

impl Fleet {
    /// An answer that any router made, not older than `max_age`.
    pub async fn cached(&self, key: &Key, max_age: Duration) -> Option<Found> {
        let mut both = redis::pipe();
        both.cmd("GET").arg(self.cache_key(key)).cmd("PTTL").arg(self.cache_key(key));
        let asked = self.quick.ask_all::<(Option<Vec<u8>>, i64)>(&both, None).await;
        let (bytes, left) = self.note("cache_read", asked).ok()?;
        let (life, made) = stored::read_made(Bytes::from(bytes?))?;
        let left = Duration::from_millis(u64::try_from(left).ok()?);
        let age = life.saturating_sub(left);
        (age < max_age).then_some(Found { made, age, max_age: life })
    }

    /// Whether there is such an answer, as far as can be told without fetching it.
    pub async fn has_cached(&self, key: &Key) -> bool {
        let mut command = redis::cmd("EXISTS");
        command.arg(self.cache_key(key));
        self.ask("cache_read", &command).await.unwrap_or(false)
    }

    /// Keeps an answer for all routers. `anew`: those that have a copy of an earlier one drop it.
    pub fn keep_cached(&self, key: &Key, made: &Made, max_age: Duration, anew: bool) {
        let bytes: usize = made.images.iter().map(|(_, pieces)| pieces.len()).sum();
        let waiting = self.queued_bytes.load(Ordering::Relaxed);
        if !self.is_up() || bytes > self.max_answer_bytes || waiting + bytes > QUEUED_BYTES {
            return;
        }
        let mut command = redis::cmd("SET");
        command
            .arg(self.cache_key(key))
            .arg(stored::write_made(made, max_age))
            .arg("PX")
            .arg(millis(max_age));
        self.later("cache_write", command, bytes);
        if anew {
            let mut command = redis::cmd("PUBLISH");
            command.arg(self.renewals()).arg(format!("{} {key}", self.own_id));
            self.later("cache_write", command, 0);
        }
    }

    /// The channel on which routers tell of answers that were made anew.
    pub(super) fn renewals(&self) -> String {
        format!("{}:renewed", self.prefix)
    }

    fn cache_key(&self, key: &Key) -> String {
        format!("{}:cache:{key}", self.prefix)
    }
}
