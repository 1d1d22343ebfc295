//! What somebody thinks of answers, by trace.

use std::collections::BTreeMap;

use sqlx::{Row as _, any::AnyRow};

use super::{Store, requests::Conditions, usage::time, within};
use crate::{
    error::{Error, Result},
    pb::{
        CreateFeedbackRequest, Feedback, FeedbackGroup, GetFeedbackUsageRequest, RequestFilter,
        UpdateFeedbackRequest, unix_now_ms,
    },
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

    /// What was thought of a tenant's answers.
    ///
    /// # Errors
    /// Nobody knows what to group by, or the store is away.
    pub async fn feedback_usage(
        &self,
        tenant: &str,
        request: &GetFeedbackUsageRequest,
    ) -> Result<Vec<FeedbackGroup>> {
        let filter = request.filter.clone().unwrap_or_default();
        let key = match request.group_by.as_str() {
            "" => "''".to_owned(),
            unit @ ("day" | "hour") => time("f.created_ms", unit),
            other => {
                let message = format!("group_by: \"{other}\" is not allowed; allowed: day, hour");
                return Err(Error::invalid("group_by", message));
            }
        };
        let times = (filter.from_unix_ms, filter.until_unix_ms);
        let of_requests = RequestFilter { from_unix_ms: None, until_unix_ms: None, ..filter };
        let mut conditions = Conditions::new(tenant, &of_requests);
        // The tenant is the first value.
        let mut text = "f.tenant = $1".to_owned();
        if conditions.ask_something() {
            text.push_str(&format!(
                " AND EXISTS (SELECT 1 FROM requests r WHERE r.trace_id = f.trace_id AND {})",
                conditions.text
            ));
        }
        for (comparison, at) in [(">=", times.0), ("<", times.1)] {
            if let Some(at) = at {
                text.push_str(&format!(" AND f.created_ms {comparison} {}", conditions.number(at)));
            }
        }
        let sql = format!(
            "SELECT {key}, f.value, COUNT(*), SUM(f.weight) FROM feedback f WHERE {text} GROUP BY 1, 2 ORDER BY 1, 2"
        );
        let query = conditions.bind(sqlx::query(sqlx::AssertSqlSafe(sql)));
        let read = |row: &AnyRow| {
            let (key, value): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            let (count, weight): (i64, f64) = (row.try_get(2)?, row.try_get(3)?);
            Ok((key, value as i32, count.unsigned_abs(), weight))
        };
        Ok(by_time(self.all(query, read).await?))
    }

    async fn get_feedback(&self, tenant: &str, id: &str) -> Result<Feedback> {
        let query = sqlx::query("SELECT * FROM feedback WHERE tenant = $1 AND id = $2");
        let found = self.one(query.bind(tenant).bind(id), read).await?;
        found.ok_or_else(|| Error::missing("feedback", id))
    }
}

/// Rows of a time, a value, how often it was given, and the weight of these together.
fn by_time(rows: Vec<(String, i32, u64, f64)>) -> Vec<FeedbackGroup> {
    let mut sums: BTreeMap<i64, (FeedbackGroup, f64, f64)> = BTreeMap::new();
    for (key, value, count, weight) in rows {
        let at = key.parse().unwrap_or_default();
        let (group, weighted, weights) = sums.entry(at).or_default();
        group.key = key;
        group.feedbacks += count;
        // Of a sum, until all are added.
        group.mean += f64::from(value) * count as f64;
        group.scores.insert(value, count);
        *weighted += f64::from(value) * weight;
        *weights += weight;
    }
    let mean = |(group, weighted, weights): (FeedbackGroup, f64, f64)| FeedbackGroup {
        mean: group.mean / group.feedbacks.max(1) as f64,
        weighted_mean: (weights > 0.0).then(|| weighted / weights),
        ..group
    };
    sums.into_values().map(mean).collect()
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
