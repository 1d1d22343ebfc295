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
    usage::{class, class_of},
};

/// Lengths of time that requests can be grouped by, in milliseconds.
const TIMES: &[(&str, i64)] = &[("day", 86_400_000), ("hour", 3_600_000), ("minute", 60_000)];

/// What requests can have in common, and the column.
const GROUPS: &[(&str, &str)] = &[
    ("", "''"),
    ("caller", "r.caller"),
    ("tenant", "r.tenant"),
    ("config", "r.config"),
    (
        "config_version",
        "CASE WHEN r.config_version > 0 THEN r.config || '@' || CAST(r.config_version AS TEXT) ELSE r.config END",
    ),
    ("virtual_key", "r.virtual_key"),
    ("provider", "r.provider"),
    ("model", "r.model"),
    ("operation", "r.operation"),
    ("outcome", "r.outcome"),
    ("status", "CAST(r.status AS TEXT)"),
    ("cache_status", "r.cache_status"),
];

const METADATA: &str = "metadata.";

/// Who a request is for, as clients of the reference say it.
const USER: &str = "_user";

/// What requests have in common.
struct By {
    /// An expression.
    key: String,
    /// What it needs beside the rows of `requests`.
    join: String,
}

impl By {
    fn read(field: &str, name: &str, alias: &str, conditions: &mut Conditions) -> Result<Self> {
        let alone = |key: String| Self { key, join: String::new() };
        match (name, name.strip_prefix(METADATA), GROUPS.iter().find(|(known, _)| *known == name)) {
            _ if length_ms(name).is_some() => Ok(alone(time("r.created_ms", name))),
            (_, Some(name), _) if !name.is_empty() => {
                let name = conditions.parameter(name);
                // Also those without it: the groups add up to all requests.
                let join = format!(
                    "LEFT JOIN request_metadata {alias} ON {alias}.request_id = r.id AND {alias}.name = {name}"
                );
                Ok(Self { key: format!("COALESCE({alias}.value, '')"), join })
            }
            // No column, or else SQLite reads all rows in the order of its index: that takes three times as long.
            (_, _, Some((_, column))) => Ok(alone(format!("{column} || ''"))),
            _ => {
                let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).skip(1).collect();
                let message = format!(
                    "{field}: \"{name}\" is not allowed; allowed: {}, day, hour, minute, {METADATA}NAME",
                    names.join(", ")
                );
                Err(Error::invalid(field, message))
            }
        }
    }
}

/// When the day, the hour or the minute of a time began.
pub(super) fn time(column: &str, unit: &str) -> String {
    let millis = length_ms(unit).unwrap_or(1);
    format!("CAST({column} / {millis} * {millis} AS TEXT)")
}

fn length_ms(unit: &str) -> Option<i64> {
    TIMES.iter().find(|(name, _)| *name == unit).map(|(_, millis)| *millis)
}

/// Billionths of a dollar, and requests with a part of unknown price, by provider or model.
type Paid = BTreeMap<String, (i64, i64)>;

impl Store {
    /// The usage of a tenant's requests.
    ///
    /// # Errors
    /// Nobody knows what to group by, or the store is away.
    pub async fn usage(&self, tenant: &str, request: &GetUsageRequest) -> Result<Vec<UsageGroup>> {
        let filter = request.filter.clone().unwrap_or_default();
        let (group_by, then_by) = (request.group_by.as_str(), request.then_by.as_str());
        let mut conditions = Conditions::new(tenant, &filter);
        let by = By::read("group_by", group_by, "g", &mut conditions)?;
        let then = By::read("then_by", then_by, "t", &mut conditions)?;
        if !then_by.is_empty()
            && let Some(one) =
                [group_by, then_by].into_iter().find(|one| matches!(*one, "provider" | "model"))
        {
            let message =
                format!("then_by: not together with {one}, whose money is counted for whoever was paid");
            return Err(Error::invalid("then_by", message));
        }
        if request.durations && request.count_users {
            let message =
                "durations: not together with count_users: a user's requests may be of several durations";
            return Err(Error::invalid("durations", message));
        }
        let users = match request.count_users {
            true => {
                let user = conditions.parameter(USER);
                format!(
                    "COUNT(DISTINCT (SELECT u.value FROM request_metadata u WHERE u.request_id = r.id AND u.name = {user}))"
                )
            }
            false => "0".to_owned(),
        };
        let sum = |what: &str| format!("CAST(COALESCE(SUM({what}), 0) AS BIGINT)");
        let count = |condition: &str| sum(&format!("CASE WHEN {condition} THEN 1 ELSE 0 END"));
        let class_number = match request.durations {
            true => class_of("r.duration_ms"),
            false => "-1".to_owned(),
        };
        let sql = format!(
            "SELECT {}, COUNT(*), {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, CAST({users} AS BIGINT), \
             CAST({class_number} AS BIGINT) FROM requests r {} {} WHERE {} GROUP BY {}",
            by.key,
            count("r.status < 400"),
            count("r.fallback = 1 AND r.status < 400"),
            sum("r.refused"),
            count("r.cache_status IN ('hit', 'semantic_hit')"),
            sum("r.images"),
            sum("r.cost_nanos"),
            sum("r.cost_unknown"),
            sum("r.duration_ms"),
            then.key,
            sum("r.input_tokens"),
            sum("r.output_tokens"),
            by.join,
            then.join,
            conditions.text,
            match (then_by.is_empty(), request.durations) {
                (true, false) => "1",
                (false, false) => "1, 11",
                (true, true) => "1, 15",
                (false, true) => "1, 11, 15",
            },
        );
        let query = conditions.bind(sqlx::query(sqlx::AssertSqlSafe(sql)));
        let mut groups = self.all(query, read).await?;
        if request.durations {
            groups = together(groups);
        }
        if let "provider" | "model" = group_by {
            // An attempt that failed and was billed counts for whoever was paid, not for who answered.
            let (answered, paid) = self.paid(tenant, &filter, group_by).await?;
            groups = by_payee(groups, &answered, paid);
        }
        if length_ms(group_by).is_some() {
            groups.sort_by_cached_key(|group| {
                (group.key.parse::<i64>().unwrap_or_default(), group.then_key.clone())
            });
        } else {
            groups.sort_by(|a, b| {
                let keys = (&a.key, &a.then_key).cmp(&(&b.key, &b.then_key));
                b.cost_usd.total_cmp(&a.cost_usd).then(keys)
            });
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

/// Groups that differ in the class of durations only, as one.
fn together(parts: Vec<UsageGroup>) -> Vec<UsageGroup> {
    let mut groups: BTreeMap<(String, String), UsageGroup> = BTreeMap::new();
    for part in parts {
        let (key, then_key) = (part.key.clone(), part.then_key.clone());
        let group = groups.entry((key.clone(), then_key.clone()));
        group.or_insert_with(|| UsageGroup { key, then_key, ..Default::default() }).add(&part);
    }
    groups.into_values().collect()
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
        then_key: row.try_get(10)?,
        input_tokens: number(11)?,
        output_tokens: number(12)?,
        users: number(13)?,
        // -1: nobody asked.
        durations: u64::try_from(row.try_get::<i64, _>(14)?)
            .map(|number| vec![class(number, requests)])
            .unwrap_or_default(),
    })
}
