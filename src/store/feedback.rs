//! What somebody thinks of answers, by trace.

use sqlx::{Row as _, any::AnyRow};

use super::{Store, within};
use crate::{
    error::{Error, Result},
    pb::{CreateFeedbackRequest, Feedback, UpdateFeedbackRequest, unix_now_ms},
};

impl Store {
    /// Keeps an opinion that was checked.
    pub async fn create_feedback(&self, tenant: &str, new: &CreateFeedbackRequest) -> Result<Feedback> {
        let id = uuid::Uuid::now_v7().to_string();
        let query = sqlx::query("INSERT INTO feedback VALUES ($1, $2, $3, $4, $5, $6, $7)")
            .bind(&id)
            .bind(tenant)
            .bind(&new.trace_id)
            .bind(i64::from(new.value))
            .bind(new.weight.unwrap_or(1.0))
            .bind(&new.metadata_json)
            .bind(unix_now_ms());
        within(query.execute(&self.pool)).await?;
        self.get_feedback(tenant, &id).await
    }

    /// Changes an opinion, as was checked.
    pub async fn update_feedback(&self, tenant: &str, change: &UpdateFeedbackRequest) -> Result<Feedback> {
        let query = sqlx::query(
            "UPDATE feedback SET value = COALESCE($3, value), weight = COALESCE($4, weight), \
             metadata = COALESCE($5, metadata) WHERE id = $1 AND tenant = $2",
        )
        .bind(&change.id)
        .bind(tenant)
        .bind(change.value.map(i64::from))
        .bind(change.weight)
        .bind(change.metadata_json.clone());
        within(query.execute(&self.pool)).await?;
        self.get_feedback(tenant, &change.id).await
    }

    /// What was said of a trace.
    pub(super) async fn feedback_of(&self, tenant: &str, trace_id: &str) -> Result<Vec<Feedback>> {
        let query =
            sqlx::query("SELECT * FROM feedback WHERE tenant = $1 AND trace_id = $2 ORDER BY created_ms");
        self.all(query.bind(tenant).bind(trace_id), read).await
    }

    async fn get_feedback(&self, tenant: &str, id: &str) -> Result<Feedback> {
        let query = sqlx::query("SELECT * FROM feedback WHERE tenant = $1 AND id = $2");
        let found = self.one(query.bind(tenant).bind(id), read).await?;
        found.ok_or_else(|| Error::missing("feedback", id))
    }
}

fn read(row: &AnyRow) -> sqlx::Result<Feedback> {
    Ok(Feedback {
        id: row.try_get("id")?,
        trace_id: row.try_get("trace_id")?,
        value: row.try_get::<i64, _>("value")? as i32,
        weight: row.try_get("weight")?,
        metadata_json: row.try_get("metadata")?,
        created_unix_ms: row.try_get("created_ms")?,
    })
}
