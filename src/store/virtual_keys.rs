//! Virtual keys: credentials of providers, sealed.

use std::collections::BTreeMap;

use prost::Message as _;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{Row as _, any::AnyRow};
use zeroize::Zeroizing;

use super::{Store, flag, slugified, status, suffix, taken, within};
use crate::{
    config::{
        quota::Quota,
        saved::{KeySecrets, SavedKey},
        spec::Secret,
    },
    error::{Error, Result},
    pb,
};

const WHAT: &str = "virtual key";

/// A virtual key to be saved, checked.
#[derive(Debug)]
pub struct NewVirtualKey {
    /// For people.
    pub name: String,
    /// Empty: made from the name.
    pub slug: String,
    /// Provider id.
    pub provider: String,
    /// For people.
    pub note: String,
    /// Empty: the provider's own.
    pub base_url: String,
    /// What is sealed.
    pub secrets: KeySecrets,
    /// When it stops working, in ms since 1970.
    pub expires_ms: Option<i64>,
    /// How much may be asked with it.
    pub quota: Option<pb::Quota>,
}

/// What an update changes.
#[derive(Debug, Default)]
pub struct KeyChange {
    /// Another name.
    pub name: Option<String>,
    /// Another note.
    pub note: Option<String>,
    /// Another credential with all its settings.
    pub secrets: Option<KeySecrets>,
    /// Whether it rests.
    pub disabled: Option<bool>,
    /// Another end; 0: none.
    pub expires_ms: Option<i64>,
    /// Other limits.
    pub quota: Option<pb::Quota>,
}

impl Store {
    /// A tenant's virtual keys by name.
    pub async fn list_virtual_keys(&self, tenant: &str) -> Result<Vec<pb::VirtualKey>> {
        let query = sqlx::query("SELECT * FROM virtual_keys WHERE tenant = $1 ORDER BY name, slug");
        self.all(query.bind(tenant), read).await
    }

    /// A virtual key by slug or id.
    pub async fn get_virtual_key(&self, tenant: &str, slug: &str) -> Result<pb::VirtualKey> {
        self.virtual_key(tenant, slug, read).await
    }

    /// What a virtual key holds, with its provider and address, for checking a change of it.
    pub async fn virtual_key_secrets(
        &self,
        tenant: &str,
        slug: &str,
    ) -> Result<(pb::VirtualKey, Option<KeySecrets>)> {
        self.virtual_key(tenant, slug, |row| Ok((read(row)?, self.secrets_of(row)?))).await
    }

    /// Saves a virtual key.
    pub async fn create_virtual_key(
        &self,
        tenant: &str,
        author: &str,
        new: NewVirtualKey,
    ) -> Result<pb::VirtualKey> {
        let wanted = match new.slug.as_str() {
            "" => match slugified(&new.name) {
                slug if slug.starts_with(|c: char| c.is_ascii_alphabetic()) => slug,
                slug => format!("key-{slug}").trim_end_matches('-').to_owned(),
            },
            slug => slug.to_owned(),
        };
        let slug = match self.insert_virtual_key(tenant, author, &wanted, &new).await {
            Ok(()) => wanted,
            // A name may be given twice; a slug that somebody chose may not.
            Err(error) if new.slug.is_empty() && error.status == taken().status => {
                let slug = format!("{wanted}-{}", suffix());
                self.insert_virtual_key(tenant, author, &slug, &new).await?;
                slug
            }
            Err(error) => return Err(error),
        };
        self.get_virtual_key(tenant, &slug).await
    }

    /// Changes a virtual key.
    pub async fn update_virtual_key(
        &self,
        tenant: &str,
        slug: &str,
        change: KeyChange,
    ) -> Result<pb::VirtualKey> {
        let id = self.get_virtual_key(tenant, slug).await?.id;
        let sealed = change.secrets.as_ref().map(|secrets| self.seal_secrets(&id, secrets));
        let names = change.secrets.as_ref().map(option_names);
        within(async {
            let mut transaction = self.change().await?;
            sqlx::query(
                "UPDATE virtual_keys SET name = COALESCE($2, name), note = COALESCE($3, note), \
                 disabled = COALESCE($4, disabled), updated_ms = $5, \
                 expires_ms = CASE WHEN $6 = 0 THEN NULL WHEN $6 < 0 THEN expires_ms ELSE $6 END WHERE id = $1",
            )
            .bind(&id)
            .bind(change.name)
            .bind(change.note)
            .bind(change.disabled.map(i64::from))
            .bind(pb::unix_now_ms())
            .bind(change.expires_ms.unwrap_or(-1))
            .execute(transaction.connection())
            .await?;
            if let (Some(sealed), Some(names)) = (sealed, names) {
                sqlx::query("UPDATE virtual_keys SET sealed = $2, option_names = $3 WHERE id = $1")
                    .bind(&id)
                    .bind(sealed)
                    .bind(names)
                    .execute(transaction.connection())
                    .await?;
            }
            if let Some(quota) = change.quota {
                sqlx::query("UPDATE virtual_keys SET quota = $2 WHERE id = $1")
                    .bind(&id)
                    .bind(quota.encode_to_vec())
                    .execute(transaction.connection())
                    .await?;
            }
            transaction.commit().await
        })
        .await?;
        self.get_virtual_key(tenant, &id).await
    }

    /// Forgets a virtual key.
    pub async fn delete_virtual_key(&self, tenant: &str, slug: &str) -> Result<()> {
        let statement = "DELETE FROM virtual_keys WHERE tenant = $1 AND (slug = $2 OR id = $2)";
        if self.delete(statement, tenant, slug).await? { Ok(()) } else { Err(Error::missing(WHAT, slug)) }
    }

    /// Every tenant's keys with what they hold.
    pub(super) async fn saved_keys(&self) -> Result<Vec<SavedKey>> {
        let saved = |row: &AnyRow| {
            Ok(SavedKey {
                tenant: row.try_get("tenant")?,
                slug: row.try_get("slug")?,
                provider: row.try_get("provider")?,
                base_url: row.try_get("base_url")?,
                secrets: self.secrets_of(row)?,
                is_disabled: flag(row, "disabled")?,
                expires_ms: row.try_get("expires_ms")?,
                // What was saved was checked.
                quota: quota(row)?.and_then(|quota| Quota::try_from(&quota).ok()).unwrap_or_default(),
            })
        };
        self.all(sqlx::query("SELECT * FROM virtual_keys"), saved).await
    }

    /// Seals with the current key whatever an older one has sealed.
    pub(super) async fn reseal(&self) -> Result<()> {
        let query = sqlx::query("SELECT id, sealed FROM virtual_keys");
        let rows: Vec<(String, Vec<u8>)> =
            self.all(query, |row| Ok((row.try_get(0)?, row.try_get(1)?))).await?;
        for (id, sealed) in rows {
            if let Some((secrets, true)) = self.open_secrets(&id, &sealed) {
                // Not if somebody has changed it meanwhile.
                let query = sqlx::query("UPDATE virtual_keys SET sealed = $2 WHERE id = $1 AND sealed = $3")
                    .bind(&id)
                    .bind(self.seal_secrets(&id, &secrets))
                    .bind(sealed);
                within(query.execute(&self.pool)).await?;
            }
        }
        Ok(())
    }

    async fn virtual_key<T>(
        &self,
        tenant: &str,
        slug: &str,
        read: impl Fn(&AnyRow) -> sqlx::Result<T>,
    ) -> Result<T> {
        let query = sqlx::query("SELECT * FROM virtual_keys WHERE tenant = $1 AND (slug = $2 OR id = $2)");
        let found = self.one(query.bind(tenant).bind(slug), read).await?;
        found.ok_or_else(|| Error::missing(WHAT, slug))
    }

    /// What a row holds; none if it cannot be opened.
    fn secrets_of(&self, row: &AnyRow) -> sqlx::Result<Option<KeySecrets>> {
        let (id, sealed): (String, Vec<u8>) = (row.try_get("id")?, row.try_get("sealed")?);
        Ok(self.open_secrets(&id, &sealed).map(|(secrets, _)| secrets))
    }

    async fn insert_virtual_key(
        &self,
        tenant: &str,
        author: &str,
        slug: &str,
        new: &NewVirtualKey,
    ) -> Result<()> {
        let (id, now) = (uuid::Uuid::now_v7().to_string(), pb::unix_now_ms());
        within(async {
            let mut change = self.change().await?;
            sqlx::query(
                "INSERT INTO virtual_keys VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, $11, $11, $12, $13)",
            )
            .bind(&id)
            .bind(tenant)
            .bind(slug)
            .bind(&new.name)
            .bind(&new.provider)
            .bind(&new.note)
            .bind(&new.base_url)
            .bind(option_names(&new.secrets))
            .bind(self.seal_secrets(&id, &new.secrets))
            .bind(new.expires_ms)
            .bind(now)
            .bind(author)
            .bind(new.quota.as_ref().map(pb::Quota::encode_to_vec))
            .execute(change.connection())
            .await?;
            change.commit().await
        })
        .await
    }

    fn seal_secrets(&self, id: &str, secrets: &KeySecrets) -> Vec<u8> {
        let options: BTreeMap<&str, &str> =
            secrets.options.iter().map(|(name, value)| (name.as_str(), value.0.expose_secret())).collect();
        let key = secrets.key.as_ref().map(|key| key.0.expose_secret());
        let text = Zeroizing::new(json!({"key": key, "options": options}).to_string());
        self.vault.seal(text.as_bytes(), id)
    }

    fn open_secrets(&self, id: &str, sealed: &[u8]) -> Option<(KeySecrets, bool)> {
        let opened = self.vault.unseal(sealed, id)?;
        let value: Value = serde_json::from_slice(&opened.text).ok()?;
        let text = |value: &Value| value.as_str().map(Secret::new);
        let options = value["options"].as_object()?.iter();
        let options = options.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect();
        Some((KeySecrets { key: text(&value["key"]), options }, opened.is_old))
    }
}

fn option_names(secrets: &KeySecrets) -> String {
    secrets.options.keys().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn read(row: &AnyRow) -> sqlx::Result<pb::VirtualKey> {
    let options: String = row.try_get("option_names")?;
    Ok(pb::VirtualKey {
        id: row.try_get("id")?,
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        provider: row.try_get("provider")?,
        note: row.try_get("note")?,
        status: status(row)?.into(),
        base_url: row.try_get("base_url")?,
        options: options.split_whitespace().map(str::to_owned).collect(),
        expires_unix_ms: row.try_get("expires_ms")?,
        created_unix_ms: row.try_get("created_ms")?,
        updated_unix_ms: row.try_get("updated_ms")?,
        created_by: row.try_get("created_by")?,
        quota: quota(row)?,
    })
}

fn quota(row: &AnyRow) -> sqlx::Result<Option<pb::Quota>> {
    let encoded: Option<Vec<u8>> = row.try_get("quota")?;
    let decode = |bytes: Vec<u8>| pb::Quota::decode(bytes.as_slice());
    encoded.map(decode).transpose().map_err(|error| sqlx::Error::Decode(error.into()))
}
