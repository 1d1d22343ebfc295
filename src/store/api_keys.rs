//! API keys: who may call. Of a key only its digest is kept; what it may do is one record.

use base64_simd::URL_SAFE_NO_PAD;
use prost::Message as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};

use super::{Store, status, within};
use crate::{
    config::{
        callers::{Caller, Scope, digest},
        quota::Quota,
        saved::{DEFAULT_TENANT, SavedCaller},
        spec::Secret,
    },
    digest::{hex, unhex},
    error::{Error, Result},
    pb::{self, ApiKey, KeyStatus},
};

/// In front of every key, by which people and scanners of secrets know them.
const PREFIX: &str = "ig_";

/// Random bytes of a key: as many as its digest has.
const KEY_BYTES: usize = 32;

/// Characters of a key that stay visible: enough to tell a few apart, of no use for guessing.
const HINT_CHARS: usize = 8;

/// An API key that was made, with the key itself, which is never shown again.
#[derive(Debug)]
pub struct NewApiKey {
    /// The caller.
    pub record: ApiKey,
    /// What it sends.
    pub key: Secret,
}

impl Store {
    /// The API keys that an administrator sees: those of its tenant, or all.
    pub async fn list_api_keys(&self, tenant: &str) -> Result<Vec<ApiKey>> {
        let query =
            sqlx::query("SELECT * FROM api_keys WHERE tenant = $1 OR $1 = $2 ORDER BY tenant, name, id");
        self.all(query.bind(tenant).bind(DEFAULT_TENANT), read).await
    }

    /// An API key by id.
    pub async fn get_api_key(&self, tenant: &str, id: &str) -> Result<ApiKey> {
        let query = sqlx::query("SELECT * FROM api_keys WHERE id = $1 AND (tenant = $2 OR $2 = $3)");
        let found = self.one(query.bind(id).bind(tenant).bind(DEFAULT_TENANT), read).await?;
        found.ok_or_else(|| Error::missing("API key", id))
    }

    /// Makes a caller, and a key for it. `record` says what it may do.
    pub async fn create_api_key(&self, author: &str, record: ApiKey) -> Result<NewApiKey> {
        let (key, hint) = random_key();
        let (id, now) = (uuid::Uuid::now_v7().to_string(), pb::unix_now_ms());
        let record = ApiKey { id: id.clone(), ..record };
        within(async {
            let mut change = self.change().await?;
            sqlx::query(
                "INSERT INTO api_keys VALUES ($1, $2, $3, $4, $5, NULL, NULL, $6, 0, $7, $8, $8, $9)",
            )
            .bind(&id)
            .bind(&record.tenant)
            .bind(&record.name)
            .bind(digest_of(&key))
            .bind(&hint)
            .bind(grants(&record))
            .bind(record.expires_unix_ms)
            .bind(now)
            .bind(author)
            .execute(change.connection())
            .await?;
            change.commit().await
        })
        .await?;
        Ok(NewApiKey { record: self.get_api_key(&record.tenant, &id).await?, key })
    }

    /// Keeps a caller as it is now.
    pub async fn update_api_key(&self, record: &ApiKey) -> Result<ApiKey> {
        within(async {
            let mut change = self.change().await?;
            sqlx::query(
                "UPDATE api_keys SET name = $2, record = $3, disabled = $4, expires_ms = $5, updated_ms = $6 \
                 WHERE id = $1",
            )
            .bind(&record.id)
            .bind(&record.name)
            .bind(grants(record))
            .bind(i64::from(record.status() == KeyStatus::Disabled))
            .bind(record.expires_unix_ms)
            .bind(pb::unix_now_ms())
            .execute(change.connection())
            .await?;
            change.commit().await
        })
        .await?;
        self.get_api_key(&record.tenant, &record.id).await
    }

    /// Makes another key for a caller; the old one works until `old_expires_ms`, one before it no more.
    pub async fn rotate_api_key(&self, tenant: &str, id: &str, old_expires_ms: i64) -> Result<NewApiKey> {
        let record = self.get_api_key(tenant, id).await?;
        let (key, hint) = random_key();
        within(async {
            let mut change = self.change().await?;
            sqlx::query(
                "UPDATE api_keys SET old_digest = digest, old_expires_ms = $2, digest = $3, hint = $4, \
                 updated_ms = $5 WHERE id = $1",
            )
            .bind(&record.id)
            .bind(old_expires_ms)
            .bind(digest_of(&key))
            .bind(&hint)
            .bind(pb::unix_now_ms())
            .execute(change.connection())
            .await?;
            change.commit().await
        })
        .await?;
        Ok(NewApiKey { record: self.get_api_key(tenant, id).await?, key })
    }

    /// Forgets a caller.
    pub async fn delete_api_key(&self, tenant: &str, id: &str) -> Result<()> {
        let record = self.get_api_key(tenant, id).await?;
        let statement = "DELETE FROM api_keys WHERE tenant = $1 AND id = $2";
        self.delete(statement, &record.tenant, &record.id).await.map(drop)
    }

    /// Every tenant's callers, once for each key that is not disabled.
    pub(super) async fn saved_callers(&self) -> Result<Vec<SavedCaller>> {
        let query = sqlx::query("SELECT * FROM api_keys WHERE disabled = 0");
        Ok(self.all(query, callers).await?.into_iter().flatten().collect())
    }
}

/// A caller, once for each of its keys.
fn callers(row: &AnyRow) -> sqlx::Result<Vec<SavedCaller>> {
    let record = read(row)?;
    let expires = record.expires_unix_ms;
    let old_expires: Option<i64> = row.try_get("old_expires_ms")?;
    // The old key works no longer than the caller itself may.
    let old_expires = old_expires.map(|end| expires.map_or(end, |expires| expires.min(end)));
    let digest: String = row.try_get("digest")?;
    let old_digest: Option<String> = row.try_get("old_digest")?;
    let caller = caller(record);
    let keys = [(Some(digest), expires), (old_digest, old_expires)];
    let saved = keys.into_iter().filter_map(|(digest, expires_ms)| {
        Some(SavedCaller { digest: unhex(&digest?)?, expires_ms, caller: caller.clone() })
    });
    Ok(saved.collect())
}

fn caller(record: ApiKey) -> Caller {
    let names = |names: Option<pb::Names>| names.map(|names| names.names.into_iter().collect());
    Caller {
        id: record.id,
        name: record.name,
        tenant: record.tenant,
        scopes: record.scopes.iter().filter_map(|name| Scope::from_name(name)).collect(),
        default_config: Some(record.default_config).filter(|slug| !slug.is_empty()),
        allow_config_override: record.allow_config_override,
        metadata: record.metadata.into_iter().map(|(name, value)| (name, Value::String(value))).collect(),
        configs: names(record.configs),
        virtual_keys: names(record.virtual_keys),
        // What was saved was checked.
        quota: record.quota.as_ref().and_then(|quota| Quota::try_from(quota).ok()).unwrap_or_default(),
        log: record.log.unwrap_or_default(),
    }
}

fn random_key() -> (Secret, String) {
    let mut bytes = zeroize::Zeroizing::new([0; KEY_BYTES]);
    SystemRandom::new().fill(&mut *bytes).expect("the system has random numbers");
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode_to_string(*bytes));
    let hint = key[..HINT_CHARS].to_owned();
    (Secret::new(&key), hint)
}

fn digest_of(key: &Secret) -> String {
    use secrecy::ExposeSecret as _;
    hex(&digest(key.0.expose_secret()))
}

/// What it may do, apart from what has a column of its own.
fn grants(record: &ApiKey) -> Vec<u8> {
    ApiKey {
        scopes: record.scopes.clone(),
        default_config: record.default_config.clone(),
        allow_config_override: record.allow_config_override,
        metadata: record.metadata.clone(),
        configs: record.configs.clone(),
        virtual_keys: record.virtual_keys.clone(),
        quota: record.quota.clone(),
        log: record.log,
        ..Default::default()
    }
    .encode_to_vec()
}

fn read(row: &AnyRow) -> sqlx::Result<ApiKey> {
    let record: Vec<u8> = row.try_get("record")?;
    let record = ApiKey::decode(record.as_slice()).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(ApiKey {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        tenant: row.try_get("tenant")?,
        status: status(row)?.into(),
        expires_unix_ms: row.try_get("expires_ms")?,
        created_unix_ms: row.try_get("created_ms")?,
        updated_unix_ms: row.try_get("updated_ms")?,
        created_by: row.try_get("created_by")?,
        hint: row.try_get("hint")?,
        ..record
    })
}
