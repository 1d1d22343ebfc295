//! API keys: who may call. Of a key only its digest is kept; what it may do is one record.

use base64_simd::URL_SAFE_NO_PAD;
use prost::Message as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};

use super::{Store, announce, flag, not_found, now_ms, within};
use crate::{
    config::{
        callers::{Caller, Scope, digest},
        saved::{DEFAULT_TENANT, SavedCaller},
        spec::Secret,
    },
    digest::hex,
    error::Result,
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
        let rows = within(query.bind(tenant).bind(DEFAULT_TENANT).fetch_all(&self.pool)).await?;
        within(async { rows.iter().map(read).collect() }).await
    }

    /// An API key by id.
    pub async fn get_api_key(&self, tenant: &str, id: &str) -> Result<ApiKey> {
        let query = sqlx::query("SELECT * FROM api_keys WHERE id = $1 AND (tenant = $2 OR $2 = $3)");
        let query = query.bind(id).bind(tenant).bind(DEFAULT_TENANT);
        let row = within(query.fetch_optional(&self.pool)).await?;
        let row = row.ok_or_else(|| not_found("API key", id, "api_key_not_found"))?;
        within(async { read(&row) }).await
    }

    /// Makes a caller, and a key for it. `record` says what it may do.
    pub async fn create_api_key(&self, author: &str, record: ApiKey) -> Result<NewApiKey> {
        let (key, hint) = random_key();
        let (id, now) = (uuid::Uuid::now_v7().to_string(), now_ms());
        let record = ApiKey { id: id.clone(), ..record };
        within(async {
            let mut transaction = self.begin().await?;
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
            .execute(&mut *transaction)
            .await?;
            announce(&mut transaction).await?;
            transaction.commit().await
        })
        .await?;
        Ok(NewApiKey { record: self.get_api_key(&record.tenant, &id).await?, key })
    }

    /// Keeps a caller as it is now.
    pub async fn update_api_key(&self, record: &ApiKey) -> Result<ApiKey> {
        within(async {
            let mut transaction = self.begin().await?;
            sqlx::query(
                "UPDATE api_keys SET name = $2, record = $3, disabled = $4, expires_ms = $5, updated_ms = $6 \
                 WHERE id = $1",
            )
            .bind(&record.id)
            .bind(&record.name)
            .bind(grants(record))
            .bind(i64::from(record.status() == KeyStatus::Disabled))
            .bind(record.expires_unix_ms)
            .bind(now_ms())
            .execute(&mut *transaction)
            .await?;
            announce(&mut transaction).await?;
            transaction.commit().await
        })
        .await?;
        self.get_api_key(&record.tenant, &record.id).await
    }

    /// Makes another key for a caller; the old one works until `old_expires_ms`, one before it no more.
    pub async fn rotate_api_key(&self, tenant: &str, id: &str, old_expires_ms: i64) -> Result<NewApiKey> {
        let record = self.get_api_key(tenant, id).await?;
        let (key, hint) = random_key();
        within(async {
            let mut transaction = self.begin().await?;
            sqlx::query(
                "UPDATE api_keys SET old_digest = digest, old_expires_ms = $2, digest = $3, hint = $4, \
                 updated_ms = $5 WHERE id = $1",
            )
            .bind(&record.id)
            .bind(old_expires_ms)
            .bind(digest_of(&key))
            .bind(&hint)
            .bind(now_ms())
            .execute(&mut *transaction)
            .await?;
            announce(&mut transaction).await?;
            transaction.commit().await
        })
        .await?;
        Ok(NewApiKey { record: self.get_api_key(tenant, id).await?, key })
    }

    /// Forgets a caller.
    pub async fn delete_api_key(&self, tenant: &str, id: &str) -> Result<()> {
        let id = self.get_api_key(tenant, id).await?.id;
        within(async {
            let mut transaction = self.begin().await?;
            sqlx::query("DELETE FROM api_keys WHERE id = $1").bind(id).execute(&mut *transaction).await?;
            announce(&mut transaction).await?;
            transaction.commit().await
        })
        .await
    }

    /// Every tenant's callers, once for each key that is not disabled.
    pub(super) async fn saved_callers(&self) -> Result<Vec<SavedCaller>> {
        let rows = within(sqlx::query("SELECT * FROM api_keys").fetch_all(&self.pool)).await?;
        within(async {
            let mut callers = Vec::new();
            for row in &rows {
                if flag(row, "disabled")? {
                    continue;
                }
                let record = read(row)?;
                let expires = record.expires_unix_ms;
                let caller = caller(record);
                let mut add = |digest: &str, expires_ms: Option<i64>| {
                    let saved = |digest| SavedCaller { digest, expires_ms, caller: caller.clone() };
                    callers.extend(unhex(digest).map(saved));
                };
                let digest: String = row.try_get("digest")?;
                add(&digest, expires);
                let old_digest: Option<String> = row.try_get("old_digest")?;
                let old_expires: Option<i64> = row.try_get("old_expires_ms")?;
                if let (Some(digest), Some(end)) = (old_digest, old_expires) {
                    // The old key works no longer than the caller itself may.
                    add(&digest, Some(expires.map_or(end, |expires| expires.min(end))));
                }
            }
            Ok(callers)
        })
        .await
    }
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

fn unhex(text: &str) -> Option<[u8; 32]> {
    let bytes: Option<Vec<u8>> =
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect();
    bytes?.try_into().ok()
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
        ..Default::default()
    }
    .encode_to_vec()
}

fn read(row: &AnyRow) -> sqlx::Result<ApiKey> {
    let record: Vec<u8> = row.try_get("record")?;
    let record = ApiKey::decode(record.as_slice()).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let expires: Option<i64> = row.try_get("expires_ms")?;
    let status = if flag(row, "disabled")? {
        KeyStatus::Disabled
    } else if expires.is_some_and(|expires| expires <= now_ms()) {
        KeyStatus::Expired
    } else {
        KeyStatus::Active
    };
    Ok(ApiKey {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        tenant: row.try_get("tenant")?,
        status: status.into(),
        expires_unix_ms: expires,
        created_unix_ms: row.try_get("created_ms")?,
        updated_unix_ms: row.try_get("updated_ms")?,
        created_by: row.try_get("created_by")?,
        hint: row.try_get("hint")?,
        ..record
    })
}
