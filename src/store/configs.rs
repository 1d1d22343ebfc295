//! Saved routing configs and their versions.

use std::{collections::BTreeMap, fmt};

use sqlx::{Row as _, any::AnyRow};

use super::{Change, Store, flag, slugified, suffix, within};
use crate::{
    config::saved::SavedConfig,
    error::{Error, ErrorKind, Result},
    pb,
};

const COLUMNS: &str = "c.id, c.slug, c.name, c.is_default, c.version, c.created_ms, c.updated_ms, c.created_by, \
                       c.updated_by, v.version_id, v.content";

/// All that it asks for is in the index.
pub(super) const USES_OF_VERSIONS: &str = "SELECT config_version, COUNT(*), MIN(created_ms), MAX(created_ms) \
    FROM requests WHERE tenant = $1 AND config = $2 AND config_version > 0 AND created_ms >= $3 \
    GROUP BY config_version";

/// What an update changes.
#[derive(Default)]
pub struct ConfigChange {
    /// Another name.
    pub name: Option<String>,
    /// Another version.
    pub content: Option<String>,
    /// Whether it is the tenant's default.
    pub is_default: Option<bool>,
}

// Without the content, as it came: a credential may be in it.
impl fmt::Debug for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigChange").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Store {
    /// A tenant's configs by name, without their content.
    pub async fn list_configs(&self, tenant: &str) -> Result<Vec<pb::SavedConfig>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM configs c JOIN config_versions v ON v.config_id = c.id AND v.version = c.version \
             WHERE c.tenant = $1 ORDER BY c.name, c.slug"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant);
        let read =
            |row: &AnyRow| read(row).map(|config| pb::SavedConfig { config_json: String::new(), ..config });
        self.all(query, read).await
    }

    /// A config by slug or id; version 0 is the one in force.
    pub async fn get_config(&self, tenant: &str, slug: &str, version: u32) -> Result<pb::SavedConfig> {
        let sql = format!(
            "SELECT {COLUMNS} FROM configs c JOIN config_versions v ON v.config_id = c.id \
             WHERE c.tenant = $1 AND (c.slug = $2 OR c.id = $2) \
             AND (v.version = $3 OR ($3 = 0 AND v.version = c.version))"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(tenant).bind(slug).bind(i64::from(version));
        let Some(config) = self.one(query, read).await? else {
            if version == 0 {
                return Err(Error::missing("config", slug));
            }
            let newest = Box::pin(self.get_config(tenant, slug, 0)).await?.version;
            let message = format!("config \"{slug}\" has no version {version}; its newest is {newest}");
            return Err(Error::new(ErrorKind::NotFound, message).with_code("config_version_not_found"));
        };
        // That of an older version is the number asked for.
        Ok(if version == 0 { config } else { pb::SavedConfig { version, ..config } })
    }

    /// All versions of a config, the newest first.
    pub async fn config_versions(&self, tenant: &str, slug: &str) -> Result<Vec<pb::ConfigVersion>> {
        let query = sqlx::query(
            "SELECT v.version, v.version_id, v.content, v.created_ms, v.created_by, c.slug, c.created_ms \
             FROM config_versions v JOIN configs c ON c.id = v.config_id \
             WHERE c.tenant = $1 AND (c.slug = $2 OR c.id = $2) ORDER BY v.version DESC",
        );
        let read = |row: &AnyRow| {
            let version = pb::ConfigVersion {
                version: row.try_get::<i64, _>(0)? as u32,
                version_id: row.try_get(1)?,
                config_json: row.try_get(2)?,
                created_unix_ms: row.try_get(3)?,
                created_by: row.try_get(4)?,
                ..Default::default()
            };
            Ok((version, row.try_get::<String, _>(5)?, row.try_get::<i64, _>(6)?))
        };
        let found = self.all(query.bind(tenant).bind(slug), read).await?;
        let Some((_, slug, since)) = found.first() else { return Err(Error::missing("config", slug)) };
        let uses = self.uses_of_versions(tenant, slug, *since).await?;
        let with_uses = |mut version: pb::ConfigVersion| {
            if let Some((requests, first, last)) = uses.get(&version.version).copied() {
                version.requests = requests;
                (version.first_request_unix_ms, version.last_request_unix_ms) = (Some(first), Some(last));
            }
            version
        };
        Ok(found.iter().map(|(version, ..)| with_uses(version.clone())).collect())
    }

    /// How many requests used each version of a config, and when the first and the last of them came. Those of a
    /// config that had the slug before, and was deleted, came before `since`.
    async fn uses_of_versions(
        &self,
        tenant: &str,
        slug: &str,
        since: i64,
    ) -> Result<BTreeMap<u32, (u64, i64, i64)>> {
        let query = sqlx::query(USES_OF_VERSIONS);
        let read = |row: &AnyRow| {
            let requests = row.try_get::<i64, _>(1)?.unsigned_abs();
            Ok((row.try_get::<i64, _>(0)? as u32, (requests, row.try_get(2)?, row.try_get(3)?)))
        };
        Ok(self.all(query.bind(tenant).bind(slug).bind(since), read).await?.into_iter().collect())
    }

    /// Saves a config that was checked. Without a slug it gets one from its name.
    pub async fn create_config(
        &self,
        tenant: &str,
        author: &str,
        new: &pb::CreateConfigRequest,
    ) -> Result<pb::SavedConfig> {
        let slug = match new.slug.as_str() {
            "" => {
                let parts = ["pc", &slugified(&new.name), &suffix()].map(str::to_owned);
                parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
            }
            slug => slug.to_owned(),
        };
        let (id, now) = (uuid::Uuid::now_v7().to_string(), pb::unix_now_ms());
        within(async {
            let mut change = self.change().await?;
            if new.is_default {
                no_default(&mut change, tenant).await?;
            }
            sqlx::query("INSERT INTO configs VALUES ($1, $2, $3, $4, $5, 1, $6, $6, $7, $7)")
                .bind(&id)
                .bind(tenant)
                .bind(&slug)
                .bind(&new.name)
                .bind(i64::from(new.is_default))
                .bind(now)
                .bind(author)
                .execute(change.connection())
                .await?;
            add_version(&mut change, &id, 1, &new.config_json, now, author).await?;
            change.commit().await
        })
        .await?;
        self.get_config(tenant, &slug, 0).await
    }

    /// Changes a config; other content, which was checked, makes another version.
    pub async fn update_config(
        &self,
        tenant: &str,
        author: &str,
        slug: &str,
        change: ConfigChange,
    ) -> Result<pb::SavedConfig> {
        let now = pb::unix_now_ms();
        let changed = within(async {
            let mut transaction = self.change().await?;
            if change.is_default == Some(true) {
                no_default(&mut transaction, tenant).await?;
            }
            // The row is locked from here on: versions are numbered without gaps.
            let updated = sqlx::query(
                "UPDATE configs SET name = COALESCE($3, name), is_default = COALESCE($4, is_default), \
                 version = version + $5, updated_ms = $6, updated_by = $7 \
                 WHERE tenant = $1 AND (slug = $2 OR id = $2) RETURNING id, version",
            )
            .bind(tenant)
            .bind(slug)
            .bind(change.name)
            .bind(change.is_default.map(i64::from))
            .bind(i64::from(change.content.is_some()))
            .bind(now)
            .bind(author)
            .fetch_optional(transaction.connection())
            .await?;
            let Some(updated) = updated else { return Ok(false) };
            if let Some(content) = &change.content {
                let (id, version): (String, i64) = (updated.try_get(0)?, updated.try_get(1)?);
                add_version(&mut transaction, &id, version, content, now, author).await?;
            }
            transaction.commit().await?;
            Ok(true)
        })
        .await?;
        if !changed {
            return Err(Error::missing("config", slug));
        }
        self.get_config(tenant, slug, 0).await
    }

    /// Forgets a config with all its versions.
    pub async fn delete_config(&self, tenant: &str, slug: &str) -> Result<()> {
        let statement = "DELETE FROM configs WHERE tenant = $1 AND (slug = $2 OR id = $2)";
        if self.delete(statement, tenant, slug).await? { Ok(()) } else { Err(Error::missing("config", slug)) }
    }

    /// Every tenant's configs as they are in force.
    pub(super) async fn saved_configs(&self) -> Result<Vec<SavedConfig>> {
        let query = sqlx::query(
            "SELECT c.tenant, c.slug, c.version, v.content, c.is_default FROM configs c \
             JOIN config_versions v ON v.config_id = c.id AND v.version = c.version",
        );
        let read = |row: &AnyRow| {
            Ok(SavedConfig {
                tenant: row.try_get(0)?,
                slug: row.try_get(1)?,
                version: row.try_get::<i64, _>(2)? as u32,
                content: row.try_get(3)?,
                is_default: flag(row, "is_default")?,
            })
        };
        self.all(query, read).await
    }
}

/// No config of the tenant is its default any more.
async fn no_default(change: &mut Change, tenant: &str) -> sqlx::Result<()> {
    let query = sqlx::query("UPDATE configs SET is_default = 0 WHERE tenant = $1");
    query.bind(tenant).execute(change.connection()).await.map(drop)
}

async fn add_version(
    change: &mut Change,
    config: &str,
    version: i64,
    content: &str,
    now: i64,
    author: &str,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO config_versions VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(config)
        .bind(version)
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(content)
        .bind(now)
        .bind(author)
        .execute(change.connection())
        .await
        .map(drop)
}

fn read(row: &AnyRow) -> sqlx::Result<pb::SavedConfig> {
    Ok(pb::SavedConfig {
        id: row.try_get("id")?,
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        config_json: row.try_get("content")?,
        version: row.try_get::<i64, _>("version")? as u32,
        version_id: row.try_get("version_id")?,
        is_default: flag(row, "is_default")?,
        created_unix_ms: row.try_get("created_ms")?,
        updated_unix_ms: row.try_get("updated_ms")?,
        created_by: row.try_get("created_by")?,
        updated_by: row.try_get("updated_by")?,
        problem: String::new(),
    })
}
