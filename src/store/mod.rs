//! What the gateway remembers, in SQLite or PostgreSQL: saved configs, virtual keys, API keys, the request log.
//!
//! No request waits for it: what requests need of it is held in memory, and what they leave behind is written by somebody
//! else. One file a kind of state; the SQL is the same for both engines.

mod alarm;
mod api_keys;
mod configs;
mod counters;
mod digests;
mod feedback;
pub mod journal;
mod requests;
mod spool;
mod usage;
pub mod vault;
mod virtual_keys;
mod words;

use std::{
    fmt,
    future::Future,
    io,
    path::Path,
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use secrecy::ExposeSecret as _;
use sqlx::{
    Any, AnyConnection, AnyPool, ConnectOptions as _, Connection as _, Executor as _, Row as _, Transaction,
    any::{AnyArguments, AnyConnectOptions, AnyPoolOptions, AnyRow},
    migrate::{Migration, MigrationType, Migrator},
    query::Query,
};
use tokio::time::{Instant, timeout};

use self::{alarm::Alarm, vault::Vault};
pub use self::{
    api_keys::NewApiKey,
    configs::ConfigChange,
    digests::Pictures,
    requests::{Logged, Written},
    virtual_keys::{KeyChange, NewVirtualKey},
};
use crate::{
    config::{
        memory::{MemorySettings, StoreChoice},
        saved::Saved,
    },
    error::{Error, ErrorKind, Result},
    pb::{BillingClass, KeyStatus, unix_now_ms},
    telemetry,
};

/// Whoever manages something waits no longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// An answer that comes later is none. Longer than others wait: a store that is slow is not away, even if each of the
/// half a dozen messages of a new connection takes two seconds.
const LOOK_WITHIN: Duration = Duration::from_secs(15);

/// How often the schema is tried to be made, by routers that start together on one SQLite file.
const MIGRATION_TRIES: u32 = 20;

/// Every schema there was, the oldest first. Never change one that was released: add another.
const SCHEMAS: &[(&str, &str)] = &[
    ("first", include_str!("schema.sql")),
    ("quotas", include_str!("quotas.sql")),
    ("config versions", include_str!("config_versions.sql")),
    ("tokens", include_str!("tokens.sql")),
    ("search", include_str!("search.sql")),
    ("age", include_str!("age.sql")),
];

/// The store.
pub struct Store {
    pool: AnyPool,
    /// Where the request log is written. SQLite has one connection for that: what one has read is of no more use once
    /// another one has written.
    log: AnyPool,
    engine: Engine,
    vault: Vault,
    alarm: Alarm,
    /// When a SQLite file last refused to be written. Connections from before may be such as only read: SQLite opens a
    /// file so that it cannot write, and stays with that.
    refused: Arc<Mutex<Option<Instant>>>,
}

/// A change of what routers hold in memory, which they notice once it is kept.
struct Change(Transaction<'static, Any>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

/// Why a store cannot be opened, without the password that may be in its address.
#[derive(Debug)]
pub struct CannotOpen(pub String);

impl fmt::Display for CannotOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CannotOpen {}

impl Store {
    /// Opens the store, makes its tables or brings them up to date, and seals with the current key what an older one
    /// sealed.
    ///
    /// # Errors
    /// It cannot be reached or written, or the vault's key cannot be had.
    pub async fn open(settings: &MemorySettings, data_dir: &Path) -> Result<Self, CannotOpen> {
        sqlx::any::install_default_drivers();
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: sqlx::Error| CannotOpen(format!("{what}: {}", reason(&error)))
        };
        let (engine, url) = match &settings.store {
            StoreChoice::Off => return Err(CannotOpen("`store: off` is written".to_owned())),
            StoreChoice::File => (Engine::Sqlite, sqlite_url(data_dir)?),
            StoreChoice::Postgres(url) => (Engine::Postgres, url.0.expose_secret().to_owned()),
        };
        let vault = Vault::open(settings.vault.as_ref(), data_dir)?;
        // Statements are not logged: what is slow or fails is said in our words, once.
        let options = AnyConnectOptions::from_str(&url).map_err(failed("the store cannot be reached"))?;
        let options = options.disable_statement_logging();
        let refused = Arc::<Mutex<Option<Instant>>>::default();
        let trusted = Arc::clone(&refused);
        let pool = AnyPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(LOOK_WITHIN)
            // Never: the same.
            .acquire_slow_threshold(LOOK_WITHIN * 2)
            // SQLite ends a transaction itself whose disk fails, and the driver does not notice: such a connection never
            // begins another.
            .before_acquire(move |connection, about| {
                let refused = *trusted.lock().unwrap_or_else(PoisonError::into_inner);
                let is_older = refused.is_some_and(|at| at.elapsed() < about.age);
                let is_whole = !connection.is_in_transaction();
                Box::pin(async move { Ok(is_whole && !is_older) })
            })
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if engine == Engine::Sqlite {
                        // A write that was acknowledged survives a loss of power, too. Who waits for another's write
                        // longer than others wait for it writes the log.
                        for pragma in [
                            "PRAGMA busy_timeout = 15000",
                            "PRAGMA journal_mode = WAL",
                            "PRAGMA synchronous = FULL",
                            // Pages, 16 MB of them: most are written again by the next requests.
                            "PRAGMA wal_autocheckpoint = 4000",
                            // What it needs to take half a statement back, which many rows at once may have to be.
                            "PRAGMA temp_store = MEMORY",
                        ] {
                            connection.execute(pragma).await?;
                        }
                    }
                    Ok(())
                })
            });
        let only = pool.clone().max_connections(1);
        let pool = pool.connect_with(options.clone()).await.map_err(failed("the store cannot be reached"))?;
        let log = match engine {
            Engine::Sqlite => only.connect_lazy_with(options),
            Engine::Postgres => pool.clone(),
        };
        let store = Self { pool, log, engine, vault, alarm: Alarm::default(), refused };
        store.migrate().await?;
        store.reseal().await.map_err(|error| CannotOpen(error.message.clone()))?;
        Ok(store)
    }

    /// Everything that requests need.
    ///
    /// # Errors
    /// The store is away.
    pub async fn load(&self) -> Result<Saved> {
        // Before the rest: what changes meanwhile is loaded again.
        let revision = self.revision().await?;
        Ok(Saved {
            revision,
            virtual_keys: self.saved_keys().await?,
            configs: self.saved_configs().await?,
            callers: self.saved_callers().await?,
        })
    }

    /// Grows with every change of configs and keys, at whatever router.
    ///
    /// # Errors
    /// The store is away.
    pub async fn revision(&self) -> Result<i64> {
        let query = sqlx::query("SELECT value FROM revision WHERE id = 1");
        within(async { query.fetch_one(&self.pool).await?.try_get(0) }).await
    }

    /// Looks whether it answers, and says what is wrong with it.
    ///
    /// # Errors
    /// Why it does not answer.
    pub async fn look(&self) -> Result<i64, String> {
        let began = Instant::now();
        let query = sqlx::query("SELECT value FROM revision WHERE id = 1");
        let looked = timed(LOOK_WITHIN, async { query.fetch_one(&self.pool).await?.try_get(0) }).await;
        let looked = looked.map_err(|error| failed(&error));
        self.alarm.looked(looked.as_ref().map(|_| began.elapsed()).map_err(String::as_str));
        looked
    }

    /// Closes the connections.
    pub async fn close(&self) {
        _ = timeout(ANSWER_WITHIN, async { tokio::join!(self.log.close(), self.pool.close()) }).await;
    }

    async fn migrate(&self) -> Result<(), CannotOpen> {
        let migrator = Migrator::with_migrations(migrations(self.engine));
        let mut tries = 0;
        loop {
            match migrator.run(&self.pool).await {
                Ok(()) => return Ok(()),
                // Another router makes the tables. PostgreSQL has a lock for that, SQLite has not.
                Err(_) if self.engine == Engine::Sqlite && tries < MIGRATION_TRIES => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => {
                    return Err(CannotOpen(format!("the store's tables cannot be made: {error}")));
                }
            }
        }
    }

    /// Begins to change something that routers hold in memory.
    async fn change(&self) -> sqlx::Result<Change> {
        self.begin(&self.pool).await.map(Change)
    }

    /// Deletes what a statement with the tenant and a name finds. False: there is no such thing.
    async fn delete(&self, statement: &'static str, tenant: &str, name: &str) -> Result<bool> {
        within(async {
            let mut change = self.change().await?;
            let query = sqlx::query(statement).bind(tenant).bind(name);
            let done = query.execute(change.connection()).await?;
            change.commit().await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    /// Every row that a query finds.
    async fn all<T>(
        &self,
        query: Query<'_, Any, AnyArguments>,
        read: impl Fn(&AnyRow) -> sqlx::Result<T>,
    ) -> Result<Vec<T>> {
        within(async { query.fetch_all(&self.pool).await?.iter().map(read).collect() }).await
    }

    /// The row that a query finds, if there is one.
    async fn one<T>(
        &self,
        query: Query<'_, Any, AnyArguments>,
        read: impl Fn(&AnyRow) -> sqlx::Result<T>,
    ) -> Result<Option<T>> {
        within(async { query.fetch_optional(&self.pool).await?.as_ref().map(read).transpose() }).await
    }

    /// Begins to write.
    async fn begin(&self, pool: &AnyPool) -> sqlx::Result<Transaction<'static, Any>> {
        match self.engine {
            Engine::Sqlite => match self.begin_immediate(pool).await {
                // A connection that was made while nothing could be written never writes. A new one may.
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(READ_ONLY) => {
                    self.begin_immediate(pool).await
                }
                begun => begun,
            },
            Engine::Postgres => pool.begin().await,
        }
    }

    /// One that begins to write later than to read may find that it cannot.
    async fn begin_immediate(&self, pool: &AnyPool) -> sqlx::Result<Transaction<'static, Any>> {
        pool.begin_with("BEGIN IMMEDIATE").await.inspect_err(|_| {
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        })
    }
}

impl Change {
    fn connection(&mut self) -> &mut AnyConnection {
        &mut self.0
    }

    /// Keeps what was changed, and says so to all routers.
    async fn commit(mut self) -> sqlx::Result<()> {
        sqlx::query("UPDATE revision SET value = value + 1 WHERE id = 1").execute(self.connection()).await?;
        self.0.commit().await
    }
}

/// What makes the tables of every version, the oldest first.
fn migrations(engine: Engine) -> Vec<Migration> {
    let migrations = SCHEMAS.iter().zip(1_i64..).map(|((name, sql), version)| {
        let sql = match engine {
            Engine::Sqlite => (*sql).to_owned(),
            Engine::Postgres => sql.replace(" BLOB ", " BYTEA ").replace(" WITHOUT ROWID", ""),
        };
        let sql = sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(sql));
        Migration::new(version, (*name).into(), MigrationType::Simple, sql, false)
    });
    migrations.collect()
}

/// Whether a key works, as its row says.
fn status(row: &AnyRow) -> sqlx::Result<KeyStatus> {
    let expires: Option<i64> = row.try_get("expires_ms")?;
    Ok(if flag(row, "disabled")? {
        KeyStatus::Disabled
    } else if expires.is_some_and(|expires| expires <= unix_now_ms()) {
        KeyStatus::Expired
    } else {
        KeyStatus::Active
    })
}

/// Waits for the store no longer than anybody would.
async fn within<T>(work: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    timed(ANSWER_WITHIN, work).await.map_err(|error| match &error {
        sqlx::Error::Database(database) if database.is_unique_violation() => taken(),
        // PostgreSQL has no text with this character, so there is nothing of that name either.
        sqlx::Error::Database(database) if database.code().as_deref() == Some(NUL_IN_TEXT) => {
            Error::new(ErrorKind::InvalidRequest, "a text has the control character U+0000; allowed: text")
        }
        error => {
            failed(error);
            away()
        }
    })
}

async fn timed<T>(limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()));
    timeout(limit, work).await.unwrap_or_else(|_| Err(late().into()))
}

/// Counts what was asked in vain, and says why in words.
fn failed(error: &sqlx::Error) -> String {
    let reason = reason(error);
    telemetry::store_failed(&reason);
    reason
}

/// SQLite's `SQLITE_READONLY`.
const READ_ONLY: &str = "8";

/// PostgreSQL's `character_not_in_repertoire`.
const NUL_IN_TEXT: &str = "22021";

/// A name that exists already.
fn taken() -> Error {
    Error::invalid("slug", "this slug is taken; choose another").with_status(409).with_code("slug_taken")
}

fn away() -> Error {
    // Why may tell of the operator's network: it is in the log.
    let mut error =
        Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, "the store is not available");
    error.retry_after = Some(Duration::from_secs(5));
    error
}

/// In words, without values of rows or the address.
fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => database.message().to_owned(),
        sqlx::Error::PoolTimedOut => format!("no connection within {} s", LOOK_WITHIN.as_secs()),
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Configuration(_) => "the address is not understood".to_owned(),
        other => other.to_string(),
    }
}

fn sqlite_url(data_dir: &Path) -> Result<String, CannotOpen> {
    let cannot = |error: std::io::Error| {
        CannotOpen(format!("data_dir {} cannot be used: {error}", data_dir.display()))
    };
    std::fs::create_dir_all(data_dir).map_err(cannot)?;
    let file = data_dir.canonicalize().map_err(cannot)?.join("imagegate.db");
    let url =
        url::Url::from_file_path(&file).map_err(|()| CannotOpen(format!("{} is no path", file.display())))?;
    Ok(format!("sqlite://{}?mode=rwc", url.path()))
}

/// A part of a slug that nobody foresees.
fn suffix() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..6].to_owned()
}

/// A name as part of a slug: `My config!` is `my-config`.
fn slugified(name: &str) -> String {
    let dashed: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let parts: Vec<&str> = dashed.split('-').filter(|part| !part.is_empty()).collect();
    let mut slug = parts.join("-");
    slug.truncate(64);
    slug
}

/// PostgreSQL has no text with this character.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn flag(row: &AnyRow, column: &str) -> sqlx::Result<bool> {
    Ok(row.try_get::<i64, _>(column)? != 0)
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("engine", &self.engine).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
