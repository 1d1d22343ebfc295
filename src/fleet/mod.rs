//! What the routers of one deployment share, through Redis: answers in the cache, idempotency keys, and hints that a
//! target is to be left alone.
//!
//! Redis is a convenience, never a condition: a router without it, or whose Redis is slow or gone, does what a router
//! alone does, and says so. Whether Redis is there is found out beside the requests, so that an outage costs the first
//! of them a time limit and the others nothing.

mod hints;
mod idempotency;
pub mod stored;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, Cmd, FromRedisValue, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use secrecy::ExposeSecret as _;
use tokio::{
    sync::{Mutex, mpsc},
    time::{MissedTickBehavior, interval, timeout},
};

pub use self::idempotency::{Claim, Claimed};
use crate::{cache::Key, config::redis::RedisSettings, health::Health, images::made::Made, telemetry};

/// How often Redis is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Larger answers stay with the router that made them.
const LARGEST_BYTES: usize = 32 << 20;

/// What waits to be written. Answers beyond that are not shared.
const QUEUED: usize = 1024;
const QUEUED_BYTES: usize = 64 << 20;

/// How long a write may take that nobody waits for.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// The connection to Redis and what is written to it.
pub struct Fleet {
    client: Client,
    redis: ConnectionManager,
    prefix: String,
    timeout: Duration,
    /// Tells this router's messages from those of others.
    own_id: String,
    is_up: AtomicBool,
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
    /// Connects when it is first used.
    ///
    /// # Errors
    /// The address cannot be one of a Redis.
    pub fn try_new(settings: &RedisSettings) -> Result<Arc<Self>, String> {
        // Its own words may hold the password.
        let wrong =
            |_| "redis.url: not allowed; allowed: redis://HOST:PORT/DB or rediss://HOST:PORT/DB".to_owned();
        let client = Client::open(settings.url.0.expose_secret()).map_err(wrong)?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(ASK_EVERY))
            .set_response_timeout(Some(WRITE_WITHIN));
        let redis = ConnectionManager::new_lazy_with_config(client.clone(), config).map_err(wrong)?;
        let (queue, queued) = mpsc::channel(QUEUED);
        Ok(Arc::new(Self {
            client,
            redis,
            prefix: settings.prefix.clone(),
            timeout: settings.timeout,
            own_id: uuid::Uuid::new_v4().simple().to_string(),
            is_up: AtomicBool::new(true),
            queue,
            queued: Mutex::new(queued),
            queued_bytes: AtomicUsize::new(0),
        }))
    }

    /// Keeps the connection, writes what waits, and passes hints between Redis and `health`, as long as it runs.
    pub async fn run(&self, health: &Health) {
        tokio::join!(
            self.keep_asking(),
            self.keep_writing(),
            self.keep_telling(health),
            self.keep_hearing(health)
        );
    }

    /// An answer that any router made, not older than `max_age`, and its age.
    pub async fn cached(&self, key: &Key, max_age: Duration) -> Option<(Made, Duration)> {
        let mut command = redis::cmd("GET");
        command.arg(self.cache_key(key));
        let bytes: Option<Vec<u8>> = self.ask("cache_read", command).await.ok()?;
        let (made, age) = stored::read_made(bytes?.into())?;
        (age < max_age).then_some((made, age))
    }

    /// Whether there is such an answer.
    pub async fn has_cached(&self, key: &Key) -> bool {
        let mut command = redis::cmd("EXISTS");
        command.arg(self.cache_key(key));
        self.ask("cache_read", command).await.unwrap_or(false)
    }

    /// Keeps an answer for all routers.
    pub fn keep_cached(&self, key: &Key, made: &Made, max_age: Duration) {
        let bytes: usize = made.images.iter().map(|(_, pieces)| pieces.len()).sum();
        let is_too_much =
            bytes > LARGEST_BYTES || self.queued_bytes.load(Ordering::Relaxed) + bytes > QUEUED_BYTES;
        if !self.is_up() || is_too_much {
            return;
        }
        let mut command = redis::cmd("SET");
        let life = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
        command.arg(self.cache_key(key)).arg(stored::write_made(made)).arg("PX").arg(life);
        self.later("cache_write", command, bytes);
    }

    fn cache_key(&self, key: &Key) -> String {
        format!("{}:cache:{key}", self.prefix)
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Asks Redis, if it is there. An answer that is late is none.
    async fn ask<T: FromRedisValue>(&self, operation: &'static str, command: Cmd) -> Result<T, Away> {
        if !self.is_up() {
            return Err(Away);
        }
        self.send(operation, self.timeout, command).await
    }

    async fn send<T: FromRedisValue>(
        &self,
        operation: &'static str,
        limit: Duration,
        command: Cmd,
    ) -> Result<T, Away> {
        let mut redis = self.redis.clone();
        self.judge(operation, timeout(limit, command.query_async(&mut redis)).await)
    }

    fn judge<T>(
        &self,
        operation: &'static str,
        outcome: Result<RedisResult<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, Away> {
        let reason = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            // An error of its own, such as OOM, comes from a Redis that is there.
            Ok(Err(error)) if !error.is_io_error() && !error.is_connection_dropped() => {
                telemetry::redis_failed(operation, &error.to_string());
                return Err(Away);
            }
            Ok(Err(error)) => error.category().to_owned(),
            Err(_) => "no answer in time".to_owned(),
        };
        telemetry::redis_failed(operation, &reason);
        if self.is_up.swap(false, Ordering::Relaxed) {
            telemetry::redis_away(&reason);
        }
        Err(Away)
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
        while let Some(Write { operation, command, bytes }) = queued.recv().await {
            if self.is_up() {
                _ = self.send::<redis::Value>(operation, WRITE_WITHIN, command).await;
            }
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// An outage ends when Redis answers again as quickly as requests need it to.
    async fn keep_asking(&self) {
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        telemetry::redis_up(true);
        loop {
            ticks.tick().await;
            let answer: Result<redis::Value, Away> =
                self.send("ping", self.timeout, redis::cmd("PING")).await;
            if answer.is_ok() && !self.is_up.swap(true, Ordering::Relaxed) {
                telemetry::redis_back();
            }
            telemetry::redis_up(self.is_up());
        }
    }

    /// Runs something again and again that ends when Redis does.
    async fn again<F: Future<Output = RedisResult<()>>>(&self, mut run: impl FnMut() -> F) {
        loop {
            _ = run().await;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// Redis did not answer, or not in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away;

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("prefix", &self.prefix)
            .field("is_up", &self.is_up())
            .finish_non_exhaustive()
    }
}
