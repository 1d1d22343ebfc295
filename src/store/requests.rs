//! The request log: one row a request, with everything else in an encoded record.

use std::{mem, time::Duration};

use prost::Message as _;
use sqlx::{
    Any, Row as _,
    any::{AnyArguments, AnyRow},
    query::Query,
};

use super::{
    Engine, Store, clean, failed, timed, within,
    words::{self, Wanted},
};
use crate::{
    error::{Error, Result},
    pb::{self, RequestFilter, RequestRecord},
};

/// Billionths in one.
pub const NANOS: f64 = 1e9;

/// Nobody waits for the log; a store that is slow still gets it.
const LOG_WITHIN: Duration = Duration::from_secs(30);

/// Rows of one statement: with as many values as any has they are within what both engines take (32,766).
const MOST_ROWS: usize = 1300;

/// SQLite parses a statement for as long as it takes to do it, and keeps those that come again: there are few sizes. For
/// PostgreSQL each statement is a way there and back.
const SQLITES_ROWS: [usize; 5] = [256, 64, 16, 4, 1];

/// Rows that are forgotten in one transaction: the store is not kept from others for long.
const FORGOTTEN_AT_ONCE: i64 = 2000;

const PAGE: u32 = 50;
const LARGEST_PAGE: u32 = 1000;

/// A request to be kept.
#[derive(Debug)]
pub struct Logged {
    /// Whose it was.
    pub tenant: String,
    /// What is known of it.
    pub record: RequestRecord,
}

/// What became of some requests that were to be kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// They are kept.
    pub kept: usize,
    /// The store did not take them, and never will.
    pub refused: usize,
}

/// What a request cost at one provider and model.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    provider: String,
    model: String,
    nanos: i64,
    is_unknown: bool,
}

/// An entry of metadata that no more requests have than these is looked for first.
const FEW: i64 = 1000;

/// What a row of the log has, in the order in which it is bound.
const REQUESTS: &[&str] = &[
    "id",
    "tenant",
    "created_ms",
    "trace_id",
    "caller",
    "config",
    "operation",
    "outcome",
    "status",
    "provider",
    "model",
    "virtual_key",
    "fallback",
    "refused",
    "cache_status",
    "images",
    "duration_ms",
    "cost_nanos",
    "cost_unknown",
    "config_version",
    "input_tokens",
    "output_tokens",
    "words",
    "metadata_words",
];

const COSTS: &[&str] = &["request_id", "provider", "model", "cost_nanos", "unknown"];

/// A condition or several, with their values in order.
pub(super) struct Conditions {
    /// The rows `r` of `requests`, with what leads to them.
    pub from: String,
    pub text: String,
    values: Vec<Bound>,
}

enum Bound {
    Text(String),
    Number(i64),
}

impl Store {
    /// Keeps some requests, all at once; without those that are such as the store never takes.
    ///
    /// # Errors
    /// Why it takes none now. Those that it has all the same are found again by their ids.
    pub async fn log(&self, requests: &mut [Logged]) -> Result<Written, String> {
        let mut written = Written::default();
        let mut parts = vec![requests];
        while let Some(part) = parts.pop() {
            match timed(LOG_WITHIN, self.insert(part)).await {
                Ok(()) => written.kept += part.len(),
                Err(error) if !self.is_of_rows(&error) => return Err(failed(&error)),
                Err(_) if part.len() == 1 => written.refused += 1,
                Err(_) => {
                    let (first, rest) = part.split_at_mut(part.len() / 2);
                    parts.extend([rest, first]);
                }
            }
        }
        Ok(written)
    }

    /// The newest of a tenant's requests with all that is known of them but feedback, and whether these are all.
    pub async fn newest_requests(
        &self,
        tenant: &str,
        filter: &RequestFilter,
        limit: u32,
    ) -> Result<(Vec<RequestRecord>, bool)> {
        let mut conditions = Conditions::new(tenant, filter);
        self.begin_with_few(&mut conditions, filter).await?;
        self.find(&conditions, limit).await
    }

    /// A page of a tenant's requests, the newest first.
    pub async fn list_requests(
        &self,
        tenant: &str,
        filter: &RequestFilter,
        page_size: u32,
        page_token: &str,
    ) -> Result<pb::ListRequestsResponse> {
        let size = if page_size == 0 { PAGE } else { page_size };
        if size > LARGEST_PAGE {
            let message = format!("page_size: {size} is not allowed; allowed: 1 to {LARGEST_PAGE}");
            return Err(Error::invalid("page_size", message));
        }
        let mut conditions = Conditions::new(tenant, filter);
        self.begin_with_few(&mut conditions, filter).await?;
        if !page_token.is_empty() {
            let parts = page_token.split_once('.').and_then(|(ms, id)| Some((ms.parse().ok()?, id)));
            let (ms, id): (i64, &str) = parts.ok_or_else(|| {
                Error::invalid("page_token", "page_token: not one that a page before has given")
            })?;
            // The first is for the index, which is then read from there on.
            conditions.add("r.created_ms <= ", Bound::Number(ms), "");
            conditions.add("(r.created_ms < ", Bound::Number(ms), "");
            conditions.or(" OR r.id < ", Bound::Text(id.to_owned()), ")");
        }
        let (mut requests, is_last) = self.find(&conditions, size).await?;
        requests.iter_mut().for_each(|request| request.report = None);
        let next_page_token = match requests.last() {
            Some(last) if !is_last => format!("{}.{}", last.created_unix_ms, last.id),
            _ => String::new(),
        };
        Ok(pb::ListRequestsResponse { requests, next_page_token })
    }

    /// The newest requests that conditions hold for, and whether these are all.
    async fn find(&self, conditions: &Conditions, limit: u32) -> Result<(Vec<RequestRecord>, bool)> {
        let sql = format!(
            "SELECT (SELECT record FROM records WHERE request_id = r.id), r.id, r.trace_id FROM {} WHERE {} \
             ORDER BY r.created_ms DESC, r.id DESC LIMIT {}",
            conditions.from,
            conditions.text,
            limit + 1
        );
        let query = conditions.bind(sqlx::query(sqlx::AssertSqlSafe(sql)));
        let mut requests = self.all(query, read).await?;
        let is_all = requests.len() <= limit as usize;
        requests.truncate(limit as usize);
        Ok((requests, is_all))
    }

    /// A request with everything that is known of it.
    pub async fn get_request(&self, tenant: &str, id: &str) -> Result<RequestRecord> {
        let query = sqlx::query(
            "SELECT record, id, trace_id FROM records JOIN requests ON id = request_id WHERE id = $1 AND tenant = $2",
        );
        let record = self.one(query.bind(id).bind(tenant), read).await?;
        let mut record = record.ok_or_else(|| Error::missing("request", id))?;
        record.feedback = self.feedback_of(tenant, &record.trace_id).await?;
        Ok(record)
    }

    /// Forgets the requests before a time, and the feedback.
    pub async fn forget_before(&self, ms: i64) -> Result<u64> {
        let mut forgotten = 0;
        let mut tenant = self.tenant_after(None).await?;
        while let Some(current) = &tenant {
            loop {
                let query = sqlx::query(
                    "DELETE FROM requests WHERE id IN \
                     (SELECT id FROM requests WHERE tenant = $1 AND created_ms < $2 LIMIT $3)",
                );
                let query = query.bind(current).bind(ms).bind(FORGOTTEN_AT_ONCE);
                let done = within(query.execute(&self.pool)).await?;
                forgotten += done.rows_affected();
                if done.rows_affected() == 0 {
                    break;
                }
            }
            tenant = self.tenant_after(Some(current)).await?;
        }
        self.forget_counters().await?;
        let query = sqlx::query("DELETE FROM feedback WHERE created_ms < $1");
        within(query.bind(ms).execute(&self.pool)).await?;
        Ok(forgotten)
    }

    /// The next of the tenants that have requests, in some order: an index finds each at once.
    async fn tenant_after(&self, last: Option<&str>) -> Result<Option<String>> {
        let query = match last {
            None => sqlx::query("SELECT MIN(tenant) FROM requests"),
            Some(last) => {
                sqlx::query("SELECT MIN(tenant) FROM requests WHERE tenant > $1").bind(last.to_owned())
            }
        };
        Ok(self.one(query, |row| row.try_get(0)).await?.flatten())
    }

    /// Begins a search with those of its entries of metadata that few requests have: they are found at once, and
    /// would not be found for long by reading what came last.
    async fn begin_with_few(&self, conditions: &mut Conditions, filter: &RequestFilter) -> Result<()> {
        for (name, value) in &filter.metadata {
            let query = sqlx::query(
                "SELECT COUNT(*) FROM \
                 (SELECT 1 FROM request_metadata WHERE name = $1 AND value = $2 LIMIT $3) few",
            );
            let query = query.bind(clean(name)).bind(clean(value)).bind(FEW + 1);
            let count = self.one(query, |row| row.try_get::<i64, _>(0)).await?;
            if count.is_some_and(|count| count <= FEW) {
                // In this order, whatever else SQLite would think of.
                conditions.from = "request_metadata few CROSS JOIN requests r".to_owned();
                conditions.add("few.name = ", Bound::Text(name.clone()), "");
                conditions.add("few.value = ", Bound::Text(value.clone()), " AND r.id = few.request_id");
                break;
            }
        }
        Ok(())
    }

    /// In as few statements as it takes: each is a way to the database and back. Some requests may be kept already, by a
    /// transaction that was not known to have succeeded.
    async fn insert(&self, requests: &mut [Logged]) -> sqlx::Result<()> {
        let mut transaction = self.begin(&self.log).await?;
        let encoded: Vec<_> = requests.iter_mut().map(|request| encoded(&mut request.record)).collect();
        let requests = &*requests;
        let all: Vec<_> = requests.iter().map(|request| (request, costs(&request.record))).collect();
        for some in self.parts(&all) {
            let query = some.iter().fold(
                self.rows_into("requests", REQUESTS, some.len()),
                |query, (request, costs)| {
                    let Logged { tenant, record } = request;
                    let known: i64 = costs.iter().map(|cost| cost.nanos).sum();
                    query
                        .bind(&record.id)
                        .bind(clean(tenant))
                        .bind(record.created_unix_ms)
                        .bind(clean(&record.trace_id))
                        .bind(clean(&record.caller))
                        .bind(clean(&record.config))
                        .bind(record.operation().name())
                        .bind(&record.outcome)
                        .bind(i64::from(record.status))
                        .bind(clean(&record.provider))
                        .bind(clean(&record.model))
                        .bind(clean(&record.virtual_key))
                        .bind(i64::from(record.fallback))
                        .bind(i64::from(record.refused))
                        .bind(record.cache_status().name().unwrap_or_default())
                        .bind(i64::from(record.images))
                        .bind(whole(record.duration_ms))
                        .bind(record.cost_usd.map(|_| known))
                        .bind(i64::from(record.cost_unknown))
                        .bind(i64::from(record.config_version))
                        .bind(whole(record.usage.map_or(0, |usage| usage.input_tokens())))
                        .bind(whole(record.usage.map_or(0, |usage| usage.output_tokens())))
                        .bind(words::of_request(record))
                        .bind(words::of_metadata(&record.metadata))
                },
            );
            query.execute(&mut *transaction).await?;
        }
        let mut encoded = encoded.into_iter();
        for some in self.parts(requests) {
            let insert = self.rows_into("records", &["request_id", "record"], some.len());
            let query = some
                .iter()
                .zip(&mut encoded)
                .fold(insert, |query, (Logged { record, .. }, encoded)| query.bind(&record.id).bind(encoded));
            query.execute(&mut *transaction).await?;
        }
        let metadata = requests.iter().map(|request| &request.record);
        let metadata: Vec<_> = metadata
            .flat_map(|record| record.metadata.iter().map(|(name, value)| (name, value, &record.id)))
            .collect();
        for some in self.parts(&metadata) {
            let insert = self.rows_into("request_metadata", &["request_id", "name", "value"], some.len());
            let query = some.iter().fold(insert, |query, (name, value, id)| {
                query.bind(*id).bind(clean(name)).bind(clean(value))
            });
            query.execute(&mut *transaction).await?;
        }
        let costs = all.iter().filter(|(request, costs)| !is_plain(&request.record, costs));
        let costs = costs.map(|(request, costs)| (&request.record.id, costs));
        let costs: Vec<_> = costs.flat_map(|(id, costs)| costs.iter().map(move |cost| (id, cost))).collect();
        for some in self.parts(&costs) {
            let query = some.iter().fold(self.rows_into("costs", COSTS, some.len()), |query, (id, cost)| {
                query
                    .bind(*id)
                    .bind(clean(&cost.provider))
                    .bind(clean(&cost.model))
                    .bind(cost.nanos)
                    .bind(i64::from(cost.is_unknown))
            });
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Rows in their order, for one statement after the other.
    fn parts<'a, T>(&self, mut rows: &'a [T]) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
        let engine = self.engine;
        std::iter::from_fn(move || {
            let size = match engine {
                Engine::Sqlite => SQLITES_ROWS.into_iter().find(|size| *size <= rows.len()),
                Engine::Postgres => Some(rows.len().min(MOST_ROWS)).filter(|size| *size > 0),
            };
            let (part, rest) = rows.split_at(size?);
            rows = rest;
            Some(part)
        })
    }

    /// A statement that inserts so many rows of so many values, without those that are there, to be bound row by row.
    fn rows_into<'q>(&self, table: &str, names: &[&str], rows: usize) -> Query<'q, Any, AnyArguments> {
        let columns = names.len();
        let rows: Vec<String> = match self.engine {
            // It looks a parameter with a name or a number up in a list of all of them, each time it is named or bound: of
            // thousands, that takes longer than all else.
            Engine::Sqlite => vec![format!("({})", vec!["?"; columns].join(", ")); rows],
            Engine::Postgres => {
                let row = |row| (1..=columns).map(move |column| format!("${}", row * columns + column));
                (0..rows).map(|i| format!("({})", row(i).collect::<Vec<_>>().join(", "))).collect()
            }
        };
        let (names, rows) = (names.join(", "), rows.join(", "));
        let sql = format!("INSERT INTO {table} ({names}) VALUES {rows} ON CONFLICT DO NOTHING");
        // PostgreSQL would hold MBs for each that was kept.
        sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(self.engine == Engine::Sqlite)
    }

    /// Whether a row is at fault, and not the store: the same would be refused by any.
    fn is_of_rows(&self, error: &sqlx::Error) -> bool {
        let sqlx::Error::Database(error) = error else { return false };
        let code = error.code().unwrap_or_default();
        match self.engine {
            // Too big, a constraint, a wrong type; the upper bits tell more: https://sqlite.org/rescode.html
            Engine::Sqlite => code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 18..=20)),
            // Data, constraints, program limits: https://www.postgresql.org/docs/current/errcodes-appendix.html
            Engine::Postgres => ["22", "23", "54"].iter().any(|class| code.starts_with(class)),
        }
    }
}

impl Conditions {
    /// What a filter asks of the rows `r` of `requests`.
    pub(super) fn new(tenant: &str, filter: &RequestFilter) -> Self {
        let mut all = Self { from: "requests r".to_owned(), text: String::new(), values: Vec::new() };
        let text = |text: &str| Bound::Text(text.to_owned());
        all.or("r.tenant = ", text(tenant), "");
        for (column, value) in [
            ("provider", &filter.provider),
            ("model", &filter.model),
            ("config", &filter.config),
            ("caller", &filter.caller),
            ("virtual_key", &filter.virtual_key),
            ("trace_id", &filter.trace_id),
            ("cache_status", &filter.cache_status),
        ] {
            if !value.is_empty() {
                all.add(&format!("r.{column} = "), text(value), "");
            }
        }
        let nanos = |usd: f64| (usd * NANOS).round() as i64;
        for (comparison, value) in [
            ("r.created_ms >= ", filter.from_unix_ms),
            ("r.created_ms < ", filter.until_unix_ms),
            ("r.cost_nanos >= ", filter.min_cost_usd.map(nanos)),
            ("r.cost_nanos <= ", filter.max_cost_usd.map(nanos)),
        ] {
            if let Some(value) = value {
                all.add(comparison, Bound::Number(value), "");
            }
        }
        // Written out: only then are indexes of such requests used.
        for (column, value) in [("fallback", filter.fallback), ("refused", filter.refused)] {
            if let Some(value) = value {
                all.text.push_str(&format!(" AND r.{column} = {}", i64::from(value)));
            }
        }
        if !filter.cache_status.is_empty() {
            all.text.push_str(" AND r.cache_status <> ''");
        }
        if filter.config_version > 0 {
            all.add("r.config_version = ", Bound::Number(filter.config_version.into()), "");
        }
        let fails = |status: &u32| *status >= 400;
        match filter.success {
            Some(true) => all.text.push_str(" AND r.status < 400"),
            Some(false) => all.text.push_str(" AND r.status >= 400"),
            None if !filter.statuses.is_empty() && filter.statuses.iter().all(fails) => {
                all.text.push_str(" AND r.status >= 400");
            }
            None => {}
        }
        if let Some(Wanted { mask, values }) = words::wanted(filter) {
            all.add("(r.words < 0 OR (r.words & ", Bound::Number(mask), ") IN (");
            for (i, value) in values.into_iter().enumerate() {
                all.or(if i == 0 { "" } else { ", " }, Bound::Number(value), "");
            }
            all.text.push_str("))");
        }
        if !filter.metadata.is_empty() {
            let bits = words::of_metadata(&filter.metadata);
            all.add("(r.metadata_words & ", Bound::Number(bits), ")");
            all.or(" = ", Bound::Number(bits), "");
        }
        if !filter.statuses.is_empty() {
            let statuses: Vec<String> = filter.statuses.iter().map(u32::to_string).collect();
            all.text.push_str(&format!(" AND r.status IN ({})", statuses.join(", ")));
        }
        for (name, value) in &filter.metadata {
            let exists = "EXISTS (SELECT 1 FROM request_metadata m WHERE m.request_id = r.id AND m.name = ";
            all.add(exists, text(name), "");
            all.or(" AND m.value = ", text(value), ")");
        }
        all
    }

    /// Adds a condition that must hold, too.
    fn add(&mut self, before: &str, value: Bound, after: &str) {
        self.text.push_str(" AND ");
        self.or(before, value, after);
    }

    /// Goes on with a condition.
    fn or(&mut self, before: &str, value: Bound, after: &str) {
        self.values.push(value);
        self.text.push_str(&format!("{before}${}{after}", self.values.len()));
    }

    /// Whether more is asked than that they are a tenant's.
    pub(super) fn ask_something(&self) -> bool {
        self.values.len() > 1 || self.text.contains(" AND ")
    }

    /// Goes on with a number that is no condition yet.
    pub(super) fn number(&mut self, value: i64) -> String {
        self.values.push(Bound::Number(value));
        format!("${}", self.values.len())
    }

    /// Goes on with a text that is no value.
    pub(super) fn parameter(&mut self, value: &str) -> String {
        self.values.push(Bound::Text(value.to_owned()));
        format!("${}", self.values.len())
    }

    pub(super) fn bind<'q>(&self, query: Query<'q, Any, AnyArguments>) -> Query<'q, Any, AnyArguments> {
        self.values.iter().fold(query, |query, value| match value {
            Bound::Text(text) => query.bind(clean(text)),
            Bound::Number(number) => query.bind(*number),
        })
    }
}

/// Whether the row of a request says all of what it cost: that nobody was paid but who answered.
fn is_plain(record: &RequestRecord, costs: &[Cost]) -> bool {
    match costs {
        [] => true,
        [only] => only.provider == record.provider && only.model == record.model,
        _ => false,
    }
}

/// What the record's lines say, in a row for each provider and model.
fn costs(record: &RequestRecord) -> Vec<Cost> {
    let mut costs: Vec<Cost> = Vec::new();
    for line in record.report.iter().flat_map(|report| &report.cost_lines) {
        let at = costs.iter().position(|cost| cost.provider == line.provider && cost.model == line.model);
        let at = at.unwrap_or_else(|| {
            let (provider, model) = (line.provider.clone(), line.model.clone());
            costs.push(Cost { provider, model, nanos: 0, is_unknown: false });
            costs.len() - 1
        });
        match line.amount_usd {
            Some(usd) => costs[at].nanos += (usd * NANOS).round() as i64,
            None => costs[at].is_unknown = true,
        }
    }
    costs
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Without what its row says, too.
fn encoded(record: &mut RequestRecord) -> Vec<u8> {
    let (id, trace_id) = (mem::take(&mut record.id), mem::take(&mut record.trace_id));
    // The row has it without characters that PostgreSQL has not.
    if trace_id.contains('\0') {
        record.trace_id.clone_from(&trace_id);
    }
    let encoded = record.encode_to_vec();
    (record.id, record.trace_id) = (id, trace_id);
    encoded
}

/// Of a record, and of its row the id and the trace id.
fn read(row: &AnyRow) -> sqlx::Result<RequestRecord> {
    let record: Vec<u8> = row.try_get(0)?;
    let mut record =
        RequestRecord::decode(record.as_slice()).map_err(|error| sqlx::Error::Decode(error.into()))?;
    if record.id.is_empty() {
        record.id = row.try_get(1)?;
    }
    if record.trace_id.is_empty() {
        record.trace_id = row.try_get(2)?;
    }
    // A report that says neither is the record's own.
    if let Some(report) = record.report.as_mut().filter(|report| report.request_id.is_empty()) {
        report.request_id.clone_from(&record.id);
        report.trace_id.clone_from(&record.trace_id);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_summed_by_who_was_paid() {
        let line = |provider: &str, amount_usd| pb::CostLine {
            provider: provider.into(),
            model: "m".into(),
            amount_usd,
            ..Default::default()
        };
        let lines = vec![line("a", Some(0.1)), line("b", None), line("a", Some(0.2))];
        let report = pb::RouteReport { cost_lines: lines, ..Default::default() };
        let record = RequestRecord { report: Some(report), ..Default::default() };
        let cost = |provider: &str, nanos, is_unknown| Cost {
            provider: provider.into(),
            model: "m".into(),
            nanos,
            is_unknown,
        };
        assert_eq!(costs(&record), [cost("a", 300_000_000, false), cost("b", 0, true)]);
    }
}
