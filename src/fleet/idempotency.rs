//! Idempotency keys that all routers know: whoever claims one runs the request, the others wait for its answer.
//!
//! A claim ends with its request's deadline, so that the keys of a router that died are free again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{Fleet, link::Failed, millis};
use crate::digest::hex;

/// How much longer than its request a claim lives.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a claim lives that its router has not seen yet.
const UNCONFIRMED: Duration = Duration::from_secs(5);

/// How long a key is known, and how long its answer is kept: repetitions come within minutes, and images are large.
const KEY_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
const ANSWER_KEPT: Duration = Duration::from_secs(60 * 60);

/// How often a router asks whether another one's request has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long writing an answer may take. The caller waits for it: what is not written might be paid for again.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Makes a claim last, unless it is over already.
const CONFIRM: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0";

/// Gives up a claim unless it is another's by now.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Begins the value of a key whose request runs, and of one that was answered. The request's digest follows.
const RUNNING: &str = "running ";
const ANSWERED: &str = "answered ";

/// What became of a wish to run a request.
#[derive(Debug)]
pub enum Claimed {
    /// Nobody else runs it.
    Mine(Claim),
    /// It was answered so. None: the answer is no longer kept.
    Answered(Option<Bytes>),
    /// The key belongs to another request.
    Another,
    /// Another router runs it, and has not ended within the time.
    Running,
    /// Redis cannot be asked. True: another router runs the request, as far as was seen.
    Away(bool),
}

/// The right to run a request. Dropped, it is given up, and whoever waits may run it.
#[derive(Debug)]
pub struct Claim {
    fleet: Arc<Fleet>,
    key: String,
    value: String,
    answered: String,
    is_held: bool,
}

impl Fleet {
    /// Claims a key, or waits until whoever has it is done.
    pub async fn claim(self: &Arc<Self>, key: &[u8; 32], digest: &[u8; 32], deadline: Instant) -> Claimed {
        let (key, digest) = (format!("{}:idempotency:{}", self.prefix, hex(key)), hex(digest));
        let mut is_running = false;
        loop {
            match self.try_claim(&key, &digest, deadline).await {
                Ok(Some(claim)) => return Claimed::Mine(claim),
                Ok(None) => {}
                Err(Failed::Away(_)) => return Claimed::Away(is_running),
                // It does not write, but may know.
                Err(Failed::Refused(_)) => {
                    return self.look_up(&key, &digest).await.unwrap_or(Claimed::Away(false));
                }
            }
            match self.look_up(&key, &digest).await {
                Some(Claimed::Running) => is_running = true,
                Some(claimed) => return claimed,
                // Given up in this moment.
                None => {}
            }
            if Instant::now() + LOOK_EVERY >= deadline {
                return Claimed::Running;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Claims a key if nobody has it. In two steps: a claim whose answer came too late is nobody's, and soon over.
    async fn try_claim(
        self: &Arc<Self>,
        key: &str,
        digest: &str,
        deadline: Instant,
    ) -> Result<Option<Claim>, Failed> {
        let value = format!("{RUNNING}{digest} {}", uuid::Uuid::new_v4().simple());
        let mut command = redis::cmd("SET");
        command.arg(key).arg(&value).arg("NX").arg("PX").arg(millis(UNCONFIRMED));
        let outcome = self.note_write("idempotency", self.quick.ask::<Option<String>>(&command).await)?;
        if outcome.is_none() {
            return Ok(None);
        }
        let lease = deadline.saturating_duration_since(Instant::now()) + MARGIN;
        let mut command = redis::cmd("EVAL");
        command.arg(CONFIRM).arg(1).arg(key).arg(&value).arg(millis(lease));
        // Also a Redis that takes no scripts: what it holds now is our own claim, and soon over.
        let unheld = |(Failed::Away(reason) | Failed::Refused(reason))| Failed::Away(reason);
        let confirmed: bool = self.ask("idempotency", &command).await.map_err(unheld)?;
        let claim = || Claim {
            fleet: Arc::clone(self),
            key: key.to_owned(),
            value: value.clone(),
            answered: format!("{ANSWERED}{digest}"),
            is_held: true,
        };
        Ok(confirmed.then(claim))
    }

    /// What is known of a key. None: nothing.
    async fn look_up(&self, key: &str, digest: &str) -> Option<Claimed> {
        let mut command = redis::cmd("GET");
        command.arg(key);
        let known = match self.ask::<Option<String>>("idempotency", &command).await {
            Ok(known) => known?,
            Err(_) => return Some(Claimed::Away(true)),
        };
        let (state, rest) = known.split_once(' ').unwrap_or((&known, ""));
        if !rest.starts_with(digest) {
            return Some(Claimed::Another);
        }
        if state != ANSWERED.trim_end() {
            return Some(Claimed::Running);
        }
        let mut command = redis::cmd("GET");
        command.arg(answer_key(key));
        Some(match self.ask::<Option<Vec<u8>>>("idempotency", &command).await {
            Ok(answer) => Claimed::Answered(answer.map(Bytes::from)),
            Err(_) => Claimed::Away(true),
        })
    }
}

impl Claim {
    /// The request was answered. None: the answer is too large to be kept. False: the others may not learn of it.
    pub async fn answered(mut self, answer: Option<Vec<u8>>) -> bool {
        self.is_held = false;
        // In this order, so that nobody sees a key whose answer is not there yet.
        let mut both = redis::pipe();
        if let Some(answer) = answer {
            both.cmd("SET")
                .arg(answer_key(&self.key))
                .arg(answer)
                .arg("PX")
                .arg(millis(ANSWER_KEPT))
                .ignore();
        }
        both.cmd("SET").arg(&self.key).arg(&self.answered).arg("PX").arg(millis(KEY_KEPT)).ignore();
        let fleet = &self.fleet;
        fleet.note_write("idempotency", fleet.quick.ask_all::<()>(&both, Some(FINISH_WITHIN)).await).is_ok()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_held {
            let mut command = redis::cmd("EVAL");
            command.arg(RELEASE).arg(1).arg(&self.key).arg(&self.value);
            self.fleet.later("idempotency", command, 0);
        }
    }
}

fn answer_key(key: &str) -> String {
    format!("{key}:answer")
}
