//! How much somebody may use: `rate_limits` and `usage_limits` in the reference's words, and `quotas` for tenants and
//! metadata.

use super::{
    Problem,
    callers::Callers,
    read::{Object, Problems},
};
use crate::{
    moment,
    pb::{self, BudgetReset, RateUnit},
    quota::Span,
};

/// Billionths of a dollar in one.
const NANOS: f64 = 1e9;

/// Larger amounts could not be counted exactly everywhere: 2⁵³ billionths of a dollar are nine million.
const MOST_USD: f64 = 9e6;
const MOST_REQUESTS: u64 = 1 << 53;

/// The reference's names of units.
const UNITS: &[(&str, RateUnit)] = &[
    ("rps", RateUnit::Second),
    ("rpm", RateUnit::Minute),
    ("rph", RateUnit::Hour),
    ("rpd", RateUnit::Day),
    ("rpw", RateUnit::Week),
];

const RESETS: &[(&str, BudgetReset)] =
    &[("daily", BudgetReset::Daily), ("weekly", BudgetReset::Weekly), ("monthly", BudgetReset::Monthly)];

/// How much somebody may use. Every limit has to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota(pub Vec<Limit>);

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So many requests in each unit of time.
    Rate {
        /// Not unspecified.
        unit: RateUnit,
        /// At least 1.
        requests: i64,
    },
    /// So much money in each period.
    Budget {
        /// Unspecified: once and for all.
        reset: BudgetReset,
        /// In billionths of a dollar, more than 0.
        nanos: i64,
        /// From here on it is said.
        alert: Option<i64>,
    },
}

/// Whose requests are counted together: those of a tenant, or those with the same value of their metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Only this tenant's; none: each tenant's by themselves.
    pub tenant: Option<String>,
    /// By the value of this entry of their metadata; none: all of a tenant.
    pub metadata: Option<String>,
    /// Only those with this value.
    pub value: Option<String>,
    /// How much.
    pub quota: Quota,
}

impl Quota {
    /// Nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads `rate_limits` and `usage_limits` of an object.
    pub fn read(object: &mut Object<'_>) -> Self {
        let mut limits = Vec::new();
        for (i, value) in object.list("rate_limits").unwrap_or_default().iter().enumerate() {
            let Some(entry) = Object::open(value, object.at(&format!("rate_limits.{i}")), object.problems())
            else {
                continue;
            };
            limits.extend(read_rate(entry));
        }
        // One alone is an object in the reference, several are a list here.
        let budgets = match object.value("usage_limits") {
            None => Vec::new(),
            Some(serde_json::Value::Array(list)) => {
                list.iter().enumerate().map(|(i, value)| (format!("usage_limits.{i}"), value)).collect()
            }
            Some(value) => vec![("usage_limits".to_owned(), value)],
        };
        for (name, value) in budgets {
            let entry = Object::open(value, object.at(&name), object.problems());
            limits.extend(entry.and_then(read_budget));
        }
        let quota = Self(limits);
        if let Some(problem) = quota.twice() {
            object.problem(if problem.0 { "rate_limits" } else { "usage_limits" }, problem.1);
        }
        quota
    }

    /// The same of a message.
    ///
    /// # Errors
    /// Everything that is wrong with it, by the names that REST and the file have.
    pub fn try_from(message: &pb::Quota) -> Result<Self, Vec<Problem>> {
        let problems = Problems::default();
        let mut limits = Vec::new();
        for (i, rate) in message.rates.iter().enumerate() {
            let at = |field: &str| format!("rate_limits.{i}.{field}");
            if rate.unit() == RateUnit::Unspecified {
                problems.add(at("unit"), format!("Required; allowed: {}", words(UNITS)));
            }
            if !(1..=MOST_REQUESTS).contains(&rate.requests) {
                problems.add(at("value"), format!("{} is not allowed; {ALLOWED_RATE}", rate.requests));
            }
            let requests = i64::try_from(rate.requests).unwrap_or(i64::MAX);
            limits.push(Limit::Rate { unit: rate.unit(), requests });
        }
        for (i, budget) in message.budgets.iter().enumerate() {
            let at = |field: &str| format!("usage_limits.{i}.{field}");
            let nanos = nanos(budget.usd);
            if nanos.is_none() {
                problems.add(at("credit_limit"), format!("{} is not allowed; {ALLOWED_USD}", budget.usd));
            }
            let alert = budget.alert_usd.and_then(self::nanos);
            if budget.alert_usd.is_some_and(|usd| alert.is_none() || usd > budget.usd) {
                let message = format!(
                    "{} is not allowed; allowed: more than 0 and at most the credit_limit",
                    budget.alert_usd.unwrap_or_default()
                );
                problems.add(at("alert_threshold"), message);
            }
            limits.push(Limit::Budget { reset: budget.reset(), nanos: nanos.unwrap_or_default(), alert });
        }
        let quota = Self(limits);
        if let Some((is_rate, message)) = quota.twice() {
            problems.add(if is_rate { "rate_limits" } else { "usage_limits" }, message);
        }
        let problems = problems.into_vec();
        if problems.is_empty() { Ok(quota) } else { Err(problems) }
    }

    /// As a message; none if nothing is limited.
    pub fn message(&self) -> Option<pb::Quota> {
        if self.is_empty() {
            return None;
        }
        let mut message = pb::Quota::default();
        for limit in &self.0 {
            match limit.message() {
                pb::quota_use::Limit::Rate(rate) => message.rates.push(rate),
                pb::quota_use::Limit::Budget(budget) => message.budgets.push(budget),
            }
        }
        Some(message)
    }

    /// `rate_limits` and `usage_limits` as REST shows them; null if there are none. `now_ms` tells when they reset.
    pub fn shown(message: Option<&pb::Quota>, now_ms: i64) -> [serde_json::Value; 2] {
        use serde_json::{Value, json};
        let Some(quota) = message.and_then(|message| Self::try_from(message).ok()) else {
            return [Value::Null, Value::Null];
        };
        let (mut rates, mut budgets) = (Vec::new(), Vec::new());
        for limit in &quota.0 {
            let end = Span::of(limit).window(now_ms).end;
            let resets = (end < i64::MAX).then(|| moment::text(end));
            match limit.message() {
                pb::quota_use::Limit::Rate(rate) => {
                    rates.push(
                        json!({"type": "requests", "unit": unit_word(rate.unit()), "value": rate.requests}),
                    );
                }
                pb::quota_use::Limit::Budget(budget) => budgets.push(json!({
                    "type": "cost",
                    "credit_limit": budget.usd,
                    "periodic_reset": reset_word(budget.reset()),
                    "alert_threshold": budget.alert_usd,
                    "next_usage_reset_at": resets,
                })),
            }
        }
        let rates = if rates.is_empty() { Value::Null } else { rates.into() };
        // The reference has one, which is no list.
        let budgets = match budgets.len() {
            0 => Value::Null,
            1 => budgets.remove(0),
            _ => budgets.into(),
        };
        [rates, budgets]
    }

    /// Says which period has two limits: true if of requests.
    fn twice(&self) -> Option<(bool, String)> {
        self.0.iter().enumerate().find_map(|(i, limit)| {
            let others = &self.0[..i];
            match limit {
                Limit::Rate { unit, .. } => others
                    .iter()
                    .any(|other| matches!(other, Limit::Rate { unit: known, .. } if known == unit))
                    .then(|| (true, format!("two limits have the unit {}", word(UNITS, *unit)))),
                Limit::Budget { reset, .. } => others
                    .iter()
                    .any(|other| matches!(other, Limit::Budget { reset: known, .. } if known == reset))
                    .then(|| (false, "two limits have the same periodic_reset".to_owned())),
            }
        })
    }
}

impl Limit {
    /// As a message.
    pub fn message(&self) -> pb::quota_use::Limit {
        let usd = |nanos: i64| nanos as f64 / NANOS;
        match *self {
            Self::Rate { unit, requests } => pb::quota_use::Limit::Rate(pb::RateLimit {
                unit: unit.into(),
                requests: requests.unsigned_abs(),
            }),
            Self::Budget { reset, nanos, alert } => pb::quota_use::Limit::Budget(pb::Budget {
                usd: usd(nanos),
                reset: reset.into(),
                alert_usd: alert.map(usd),
            }),
        }
    }
}

impl Rule {
    /// Whether it counts the requests of a tenant.
    pub fn is_for(&self, tenant: &str) -> bool {
        self.tenant.as_ref().is_none_or(|own| own == tenant)
    }

    /// Reads `quotas`. `callers` are those of the same file.
    pub fn read_all(file: &mut Object<'_>, callers: &Callers) -> Vec<Self> {
        let mut rules = Vec::new();
        for (i, value) in file.list("quotas").unwrap_or_default().iter().enumerate() {
            let Some(mut entry) = Object::open(value, file.at(&format!("quotas.{i}")), file.problems())
            else {
                continue;
            };
            let mut text = |name: &str| entry.text(name).map(str::to_owned);
            let (tenant, metadata, value) = (text("tenant"), text("metadata"), text("value"));
            let quota = Quota::read(&mut entry);
            if tenant.is_none() && metadata.is_none() {
                entry.problem("tenant", "Required, unless `metadata` is there: whose requests are counted");
            }
            if value.is_some() && metadata.is_none() {
                entry.problem("value", "of which `metadata`? Name it");
            }
            if quota.is_empty() {
                entry.problem("rate_limits", "Required, unless `usage_limits` is there");
            }
            if tenant.as_deref() == Some("*") && metadata.is_none() && callers.is_empty() {
                entry.problem("tenant", "there are no api_keys, and so there are no tenants");
            }
            entry.finish();
            let tenant = tenant.filter(|tenant| tenant != "*");
            rules.push(Self { tenant, metadata, value, quota });
        }
        rules
    }
}

/// The name of a unit or a period.
pub fn unit_word(unit: RateUnit) -> &'static str {
    word(UNITS, unit)
}

/// The name of a period; none: it never ends.
pub fn reset_word(reset: BudgetReset) -> Option<&'static str> {
    Some(word(RESETS, reset)).filter(|word| !word.is_empty())
}

/// The unit of this name.
pub fn unit_named(name: &str) -> Option<RateUnit> {
    UNITS.iter().find(|(word, _)| *word == name).map(|(_, unit)| *unit)
}

/// The period of this name; `total` has no end.
pub fn reset_named(name: &str) -> Option<BudgetReset> {
    let known = RESETS.iter().find(|(word, _)| *word == name).map(|(_, reset)| *reset);
    known.or((name == "total").then_some(BudgetReset::Unspecified))
}

const ALLOWED_RATE: &str = "allowed: a whole number from 1";
const ALLOWED_USD: &str = "allowed: more than 0 and up to 9000000 USD";

fn read_rate(mut entry: Object<'_>) -> Option<Limit> {
    entry.required("unit");
    entry.required("value");
    if let Some(other) = entry.text("type").filter(|kind| *kind != "requests") {
        entry.problem("type", format!("'{other}' is not allowed for images; allowed: requests"));
    }
    let unit = entry.choice("unit", UNITS);
    let requests = entry.whole("value", 0, MOST_REQUESTS);
    entry.finish();
    // As in the reference, 0 limits nothing.
    let requests = requests.filter(|requests| *requests > 0)?;
    Some(Limit::Rate { unit: unit?, requests: i64::try_from(requests).ok()? })
}

fn read_budget(mut entry: Object<'_>) -> Option<Limit> {
    entry.required("credit_limit");
    if let Some(other) = entry.text("type").filter(|kind| *kind != "cost") {
        entry.problem("type", format!("'{other}' is not allowed for images; allowed: cost"));
    }
    let mut money = |name: &str| {
        let usd = entry.number(name)?;
        let amount = nanos(usd);
        if amount.is_none() {
            entry.problem(name, format!("{usd} is not allowed; {ALLOWED_USD}"));
        }
        amount
    };
    let (limit, alert) = (money("credit_limit"), money("alert_threshold"));
    if let (Some(limit), Some(_)) = (limit, alert.filter(|alert| limit.is_some_and(|limit| *alert > limit))) {
        let message = format!("is more than the credit_limit, {}", limit as f64 / NANOS);
        entry.problem("alert_threshold", message);
    }
    let reset = entry.choice("periodic_reset", RESETS).unwrap_or(BudgetReset::Unspecified);
    entry.finish();
    Some(Limit::Budget { reset, nanos: limit?, alert })
}

fn nanos(usd: f64) -> Option<i64> {
    let nanos = (usd * NANOS).round();
    (usd.is_finite() && nanos >= 1.0 && usd <= MOST_USD).then_some(nanos as i64)
}

fn word<T: PartialEq>(words: &[(&'static str, T)], wanted: T) -> &'static str {
    words.iter().find(|(_, value)| *value == wanted).map_or("", |(word, _)| *word)
}

fn words<T>(words: &[(&str, T)]) -> String {
    words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value) -> Result<Quota, Vec<String>> {
        let problems = Problems::default();
        let mut object = Object::open(value, "", &problems).unwrap();
        let quota = Quota::read(&mut object);
        object.finish();
        let found: Vec<_> = problems.into_vec().iter().map(ToString::to_string).collect();
        if found.is_empty() { Ok(quota) } else { Err(found) }
    }

    #[test]
    fn limits_are_written_as_the_reference_writes_them() {
        let quota = read(&json!({
            "rate_limits": [{"type": "requests", "unit": "rpm", "value": 60}, {"unit": "rpd", "value": 0}],
            "usage_limits": {"type": "cost", "credit_limit": 10, "periodic_reset": "monthly", "alert_threshold": 8},
        }));
        let budget =
            Limit::Budget { reset: BudgetReset::Monthly, nanos: 10_000_000_000, alert: Some(8_000_000_000) };
        assert_eq!(quota, Ok(Quota(vec![Limit::Rate { unit: RateUnit::Minute, requests: 60 }, budget])));
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let problems = read(&json!({
            "rate_limits": [{"type": "tokens", "unit": "rpx", "value": 1.5}, {}],
            "usage_limits": [
                {"credit_limit": 5, "alert_threshold": 6, "periodic_reset": "yearly"},
                {"type": "tokens", "credit_limit": 0},
            ],
        }))
        .unwrap_err();
        assert_eq!(
            problems,
            [
                "rate_limits.0.type: 'tokens' is not allowed for images; allowed: requests",
                "rate_limits.0.unit: 'rpx' is not allowed; allowed: rps, rpm, rph, rpd, rpw",
                "rate_limits.0.value: 1.5 is not allowed; allowed: a whole number from 0 to 9007199254740992",
                "rate_limits.1.unit: Required",
                "rate_limits.1.value: Required",
                "usage_limits.0.alert_threshold: is more than the credit_limit, 5",
                "usage_limits.0.periodic_reset: 'yearly' is not allowed; allowed: daily, weekly, monthly",
                "usage_limits.1.type: 'tokens' is not allowed for images; allowed: cost",
                "usage_limits.1.credit_limit: 0 is not allowed; allowed: more than 0 and up to 9000000 USD",
            ]
        );
        let twice = json!({"rate_limits": [{"unit": "rps", "value": 1}, {"unit": "rps", "value": 2}]});
        assert_eq!(read(&twice).unwrap_err(), ["rate_limits: two limits have the unit rps"]);
    }

    #[test]
    fn a_message_says_the_same() {
        let quota = read(&json!({
            "rate_limits": [{"unit": "rpw", "value": 7}],
            "usage_limits": [{"credit_limit": 0.1}, {"credit_limit": 0.25, "periodic_reset": "daily"}],
        }))
        .unwrap();
        assert_eq!(Quota::try_from(&quota.message().unwrap()), Ok(quota));
        let wrong = pb::Quota {
            rates: vec![pb::RateLimit::default()],
            budgets: vec![pb::Budget { usd: f64::NAN, alert_usd: Some(-1.0), ..Default::default() }],
        };
        let found: Vec<_> = Quota::try_from(&wrong).unwrap_err().into_iter().map(|p| p.path).collect();
        assert_eq!(
            found,
            [
                "rate_limits.0.unit",
                "rate_limits.0.value",
                "usage_limits.0.credit_limit",
                "usage_limits.0.alert_threshold"
            ]
        );
    }
}
