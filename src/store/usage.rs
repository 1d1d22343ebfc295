//! What requests cost and how they ended, by what they have in common.

use std::collections::BTreeMap;

use sqlx::{Row as _, any::AnyRow};

use super::{
    Store,
    requests::{Conditions, NANOS},
};
use crate::{
    error::{Error, Result},
    pb::{GetUsageRequest, RequestFilter, UsageGroup},
};

const DAY_MS: i64 = 86_400_000;
const HOUR_MS: i64 = 3_600_000;

/// What requests can have in common, and the column.
const GROUPS: &[(&str, &str)] = &[
    ("", "''"),
    ("caller", "r.caller"),
    ("tenant", "r.tenant"),
    ("config", "r.config"),
    ("virtual_key", "r.virtual_key"),
    ("provider", "r.provider"),
    ("model", "r.model"),
    ("operation", "r.operation"),
    ("outcome", "r.outcome"),
    ("status", "CAST(r.status AS TEXT)"),
    ("cache_status", "r.cache_status"),
];

const METADATA: &str = "metadata.";

/// Billionths of a dollar, and requests with a part of unknown price, by provider or model.
type Paid = BTreeMap<String, (i64, i64)>;

impl Store {
    /// The usage of a tenant's requests.
    ///
    /// # Errors
    /// Nobody knows what to group by, or the store is away.
    pub async fn usage(&self, tenant: &str, request: &GetUsageRequest) -> Result<Vec<UsageGroup>> {
        let filter = request.filter.clone().unwrap_or_default();
        let group_by = request.group_by.as_str();
        let mut conditions = Conditions::new(tenant, &filter);
        let is_time = matches!(group_by, "day" | "hour");
        let (key, join) = match group_by {
            "day" => (format!("CAST(r.created_ms / {DAY_MS} * {DAY_MS} AS TEXT)"), String::new()),
            "hour" => (format!("CAST(r.created_ms / {HOUR_MS} * {HOUR_MS} AS TEXT)"), String::new()),
            _ => match (group_by.strip_prefix(METADATA), GROUPS.iter().find(|(name, _)| *name == group_by)) {
                (Some(name), _) if !name.is_empty() => {
                    let name = conditions.parameter(name);
                    let join = format!("JOIN request_metadata g ON g.request_id = r.id AND g.name = {name}");
                    ("g.value".to_owned(), join)
                }
                // No column, or else SQLite reads all rows in the order of its index: that takes three times as long.
                (_, Some((_, column))) => (format!("{column} || ''"), String::new()),
                _ => {
                    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).skip(1).collect();
                    let message = format!(
                        "group_by: \"{group_by}\" is not allowed; allowed: {}, day, hour, {METADATA}NAME",
                        names.join(", ")
                    );
                    return Err(Error::invalid("group_by", message));
                }
            },
        };
        let sum = |what: &str| format!("CAST(COALESCE(SUM({what}), 0) AS BIGINT)");
        let count = |condition: &str| sum(&format!("CASE WHEN {condition} THEN 1 ELSE 0 END"));
        let sql = format!(
            "SELECT {key}, COUNT(*), {}, {}, {}, {}, {}, {}, {}, {} FROM requests r {join} WHERE {} GROUP BY 1",
            count("r.status < 400"),
            count("r.fallback = 1 AND r.status < 400"),
            sum("r.refused"),
            count("r.cache_status IN ('hit', 'semantic_hit')"),
            sum("r.images"),
            sum("r.cost_nanos"),
            sum("r.cost_unknown"),
            sum("r.duration_ms"),
            conditions.text
        );
        let query = conditions.bind(sqlx::query(sqlx::AssertSqlSafe(sql)));
        let mut groups = self.all(query, read).await?;
        if let "provider" | "model" = group_by {
            // An attempt that failed and was billed counts for whoever was paid, not for who answered.
            let (answered, paid) = self.paid(tenant, &filter, group_by).await?;
            groups = by_payee(groups, &answered, paid);
        }
        if is_time {
            groups.sort_by_key(|group| group.key.parse::<i64>().unwrap_or_default());
        } else {
            groups.sort_by(|a, b| b.cost_usd.total_cmp(&a.cost_usd).then(a.key.cmp(&b.key)));
        }
        Ok(groups)
    }

    /// Of the requests that others were paid for than who answered: what they count for by who answered, and for whom
    /// it should count.
    async fn paid(&self, tenant: &str, filter: &RequestFilter, by: &str) -> Result<(Paid, Paid)> {
        let conditions = Conditions::new(tenant, filter);
        let sum = |nanos: &str, unknown: &str| {
            format!("CAST(COALESCE(SUM({nanos}), 0) AS BIGINT), CAST(SUM({unknown}) AS BIGINT)")
        };
        // There are few of them: SQLite is to begin there.
        let answered = format!(
            "SELECT r.{by}, {} FROM (SELECT DISTINCT request_id FROM costs) c CROSS JOIN requests r \
             WHERE r.id = c.request_id AND {} GROUP BY 1",
            sum("r.cost_nanos", "r.cost_unknown"),
            conditions.text
        );
        let paid = format!(
            "SELECT c.{by}, {} FROM costs c CROSS JOIN requests r WHERE r.id = c.request_id AND {} GROUP BY 1",
            sum("c.cost_nanos", "c.unknown"),
            conditions.text
        );
        let read = |row: &AnyRow| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)));
        let answered = conditions.bind(sqlx::query(sqlx::AssertSqlSafe(answered)));
        let paid = conditions.bind(sqlx::query(sqlx::AssertSqlSafe(paid)));
        Ok((
            self.all(answered, read).await?.into_iter().collect(),
            self.all(paid, read).await?.into_iter().collect(),
        ))
    }
}

fn by_payee(groups: Vec<UsageGroup>, answered: &Paid, paid: Paid) -> Vec<UsageGroup> {
    let nanos = |usd: f64| (usd * NANOS).round() as i64;
    let mut groups: BTreeMap<String, UsageGroup> =
        groups.into_iter().map(|group| (group.key.clone(), group)).collect();
    for (key, (less, unknown)) in answered {
        if let Some(group) = groups.get_mut(key) {
            group.cost_usd = (nanos(group.cost_usd) - less) as f64 / NANOS;
            group.cost_unknown = group.cost_unknown.saturating_sub(unknown.unsigned_abs());
        }
    }
    for (key, (more, unknown)) in paid {
        let group = groups.entry(key.clone()).or_insert_with(|| UsageGroup { key, ..Default::default() });
        group.cost_usd = (nanos(group.cost_usd) + more) as f64 / NANOS;
        group.cost_unknown += unknown.unsigned_abs();
    }
    groups.into_values().collect()
}

fn read(row: &AnyRow) -> sqlx::Result<UsageGroup> {
    let number = |i: usize| row.try_get::<i64, _>(i).map(i64::unsigned_abs);
    let requests = number(1)?;
    Ok(UsageGroup {
        key: row.try_get(0)?,
        requests,
        succeeded: number(2)?,
        rescued: number(3)?,
        refused: number(4)?,
        cache_hits: number(5)?,
        images: number(6)?,
        cost_usd: row.try_get::<i64, _>(7)? as f64 / NANOS,
        cost_unknown: number(8)?,
        duration_ms: number(9)? as f64 / requests.max(1) as f64,
    })
}
