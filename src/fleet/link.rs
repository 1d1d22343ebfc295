//! One connection to Redis: kept, asked whether it lives, and replaced when it does not.
//!
//! The library's own manager is not used: it takes a connection that died without a word, or a password that was
//! wrong once, for the state of things.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisResult, aio::MultiplexedConnection,
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// How often a connection is asked whether it lives, and how long making another one may take.
pub const ASK_EVERY: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Redis is not there, or late. What was asked may yet happen.
    Away(String),
    /// Redis does not do it.
    Refused(String),
}

/// A connection.
pub struct Link {
    client: Client,
    connection: ArcSwapOption<MultiplexedConnection>,
    /// A later answer is none.
    limit: Duration,
    is_up: AtomicBool,
    /// Somebody has found it wanting.
    doubt: Notify,
}

impl Link {
    /// A connection that is made as soon as it is kept.
    pub fn new(client: Client, limit: Duration) -> Self {
        Self {
            client,
            connection: ArcSwapOption::empty(),
            limit,
            is_up: AtomicBool::new(false),
            doubt: Notify::new(),
        }
    }

    /// Whether it answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Keeps the connection as long as it runs, and tells `news` whether it is there and, if not, why.
    pub async fn keep(&self, news: impl Fn(Result<(), &str>)) {
        loop {
            let outcome = self.check().await;
            news(outcome.as_ref().copied().map_err(String::as_str));
            tokio::select! {
                () = sleep(ASK_EVERY) => {}
                () = self.doubt.notified(), if outcome.is_ok() => {}
            }
        }
    }

    /// Asks whether the connection lives, and makes another one if not.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn check(&self) -> Result<(), String> {
        let outcome = match self.ping().await {
            Ok(()) => Ok(()),
            // Whatever was wrong, another connection may be better. Meanwhile nobody waits for this one.
            Err(_) => {
                self.connection.store(None);
                self.renew().await
            }
        };
        self.is_up.store(outcome.is_ok(), Ordering::Relaxed);
        outcome
    }

    async fn ping(&self) -> Result<(), String> {
        let Some(connection) = self.connection.load_full() else { return Err("no connection".into()) };
        ping(MultiplexedConnection::clone(&connection), self.limit).await
    }

    async fn renew(&self) -> Result<(), String> {
        // The limits here are those of this module alone.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let connected =
            timeout(ASK_EVERY, connecting).await.map_err(|_| "no connection in time".to_owned())?;
        let connection = connected.map_err(|error| error.to_string())?;
        ping(connection.clone(), self.limit).await?;
        self.connection.store(Some(Arc::new(connection)));
        Ok(())
    }

    /// Asks for one thing.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failed> {
        let mut connection = self.connected()?;
        self.judge(timeout(self.limit, command.query_async(&mut connection)).await)
    }

    /// Asks for several things at once, perhaps with more patience than usual.
    pub async fn ask_all<T: FromRedisValue>(
        &self,
        commands: &Pipeline,
        patience: Option<Duration>,
    ) -> Result<T, Failed> {
        let mut connection = self.connected()?;
        self.judge(timeout(patience.unwrap_or(self.limit), commands.query_async(&mut connection)).await)
    }

    fn connected(&self) -> Result<MultiplexedConnection, Failed> {
        let connection = self.connection.load_full().filter(|_| self.is_up());
        let connection = connection.ok_or_else(|| Failed::Away("no connection".into()))?;
        Ok(MultiplexedConnection::clone(&connection))
    }

    fn judge<T>(&self, outcome: Result<RedisResult<T>, tokio::time::error::Elapsed>) -> Result<T, Failed> {
        let failed = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if error.is_io_error() || error.is_connection_dropped() => {
                self.is_up.store(false, Ordering::Relaxed);
                Failed::Away(error.to_string())
            }
            // An error of its own, such as OOM, comes from a Redis that is there.
            Ok(Err(error)) => return Err(Failed::Refused(error.to_string())),
            Err(_) => Failed::Away("no answer in time".into()),
        };
        self.doubt.notify_one();
        Err(failed)
    }
}

async fn ping(mut connection: MultiplexedConnection, limit: Duration) -> Result<(), String> {
    match timeout(limit, redis::cmd("PING").query_async::<redis::Value>(&mut connection)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".into()),
    }
}
