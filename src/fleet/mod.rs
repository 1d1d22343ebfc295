//! What the routers of one deployment share, through Redis: answers in the cache, idempotency keys, and hints that a
//! target is to be left alone.
//!
//! Redis is a convenience, never a condition: a router without it, or whose Redis is slow or gone, does what a router
//! alone does, and says so. Whether Redis is there is found out beside the requests, so that an outage costs the first
//! of them a time limit and the others nothing.

mod answers;
mod hints;
mod idempotency;
mod link;
mod quota;
pub mod stored;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{Client, Cmd, FromRedisValue};
use secrecy::ExposeSecret as _;
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};

use self::link::{Failed, Link};
pub use self::{
    answers::Found,
    idempotency::{Claim, Claimed},
    quota::{Agreement, Part},
};
use crate::{cache::key::Key, config::redis::RedisSettings, health::Health, telemetry};

/// What waits to be written. Answers beyond that are not shared.
const QUEUED: usize = 1024;
const QUEUED_BYTES: usize = 64 << 20;

/// How long a write may take that nobody waits for.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// How long a router that ends takes to write what waits.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// The connections to Redis and what is written to it.
pub struct Fleet {
    client: Client,
    /// For what requests wait for.
    quick: Link,
    /// For writes that nobody waits for, so that a large one is in nobody's way.
    bulk: Link,
    prefix: String,
    max_answer_bytes: usize,
    /// Tells this router's messages from those of others.
    own_id: String,
    was_up: AtomicBool,
    is_refusing: AtomicBool,
    queue: mpsc::Sender<Write>,
    queued: Mutex<mpsc::Receiver<Write>>,
    queued_bytes: AtomicUsize,
}

/// Something to be written when there is time.
struct Write {
    operation: &'static str,
    command: Cmd,
    bytes: usize,
}

impl Fleet {
    /// Connects when it runs.
    ///
    /// # Errors
    /// The address cannot be one of a Redis.
    pub fn try_new(settings: &RedisSettings) -> Result<Arc<Self>, String> {
        let client = Client::open(settings.url.0.expose_secret()).map_err(|_| RedisSettings::WRONG_URL)?;
        let (queue, queued) = mpsc::channel(QUEUED);
        Ok(Arc::new(Self {
            quick: Link::new(client.clone(), settings.timeout),
            bulk: Link::new(client.clone(), WRITE_WITHIN),
            client,
            prefix: settings.prefix.clone(),
            max_answer_bytes: settings.max_answer_bytes,
            own_id: uuid::Uuid::new_v4().simple().to_string(),
            was_up: AtomicBool::new(true),
            is_refusing: AtomicBool::new(false),
            queue,
            queued: Mutex::new(queued),
            queued_bytes: AtomicUsize::new(0),
        }))
    }

    /// Connects, if Redis is there: so that the first requests find it.
    pub async fn begin(&self) {
        _ = tokio::join!(self.quick.check(), self.bulk.check());
    }

    /// Keeps the connections, writes what waits, and passes on what the routers tell each other, as long as it runs.
    /// `forget` drops a copy of an answer that was made anew.
    pub async fn run(&self, health: &Health, forget: &(dyn Fn(&Key) + Sync)) {
        tokio::join!(
            self.quick.keep(|news| self.tell_of_outages(news)),
            self.bulk.keep(|_| ()),
            self.keep_writing(),
            self.keep_telling(health),
            self.keep_hearing(health, forget),
        );
    }

    /// Writes what still waits, after it has run.
    pub async fn flush(&self) {
        let write = async {
            let mut queued = self.queued.lock().await;
            while let Ok(write) = queued.try_recv() {
                self.write(write).await;
            }
        };
        _ = timeout(FLUSH_WITHIN, write).await;
    }

    /// Larger answers are not shared.
    pub fn max_answer_bytes(&self) -> usize {
        self.max_answer_bytes
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.quick.is_up()
    }

    /// Asks Redis, if it is there. An answer that is late is none.
    async fn ask<T: FromRedisValue>(&self, operation: &'static str, command: &Cmd) -> Result<T, Failed> {
        self.note(operation, self.quick.ask(command).await)
    }

    /// Counts what was asked in vain.
    fn note<T>(&self, operation: &'static str, outcome: Result<T, Failed>) -> Result<T, Failed> {
        if let Err(Failed::Away(reason) | Failed::Refused(reason)) = &outcome {
            telemetry::redis_failed(operation, reason);
        }
        outcome
    }

    /// The same of a write, which Redis may refuse while it answers: that is said once.
    fn note_write<T>(&self, operation: &'static str, outcome: Result<T, Failed>) -> Result<T, Failed> {
        match &outcome {
            Err(Failed::Refused(reason)) => {
                if !self.is_refusing.swap(true, Ordering::Relaxed) {
                    telemetry::redis_refuses(reason);
                }
            }
            Ok(_) => {
                if self.is_refusing.swap(false, Ordering::Relaxed) {
                    telemetry::redis_writes_again();
                }
            }
            Err(Failed::Away(_)) => {}
        }
        self.note(operation, outcome)
    }

    fn later(&self, operation: &'static str, command: Cmd, bytes: usize) {
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.queue.try_send(Write { operation, command, bytes }).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            telemetry::redis_failed(operation, "too much waits to be written");
        }
    }

    async fn keep_writing(&self) {
        let mut queued = self.queued.lock().await;
        while let Some(write) = queued.recv().await {
            self.write(write).await;
        }
    }

    async fn write(&self, Write { operation, command, bytes }: Write) {
        _ = self.note_write(operation, self.bulk.ask::<redis::Value>(&command).await);
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn tell_of_outages(&self, news: Result<(), &str>) {
        telemetry::redis_up(news.is_ok());
        match (news, self.was_up.swap(news.is_ok(), Ordering::Relaxed)) {
            (Err(reason), true) => telemetry::redis_away(reason),
            (Ok(()), false) => telemetry::redis_back(),
            _ => {}
        }
        if let Err(reason) = news {
            telemetry::redis_failed("ping", reason);
        }
    }
}

/// As Redis counts time.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("prefix", &self.prefix)
            .field("is_up", &self.is_up())
            .finish_non_exhaustive()
    }
}
