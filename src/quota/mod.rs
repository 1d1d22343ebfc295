//! Rate limits and budgets: what somebody may use, what has been used, and what is held for calls in flight.
//!
//! A request is counted once, where it comes in; money is held before each try of a target, as much as it is expected
//! to cost, and what it really cost stays when the try is over. All of that happens in memory. Other routers hear of
//! it through Redis, which is asked before anything is held, and what is to outlast the process is written to the
//! store now and then.

mod counters;
mod hold;
mod ledger;
mod sharing;
mod window;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use serde_json::Value;

pub use self::{
    counters::{Kept, nanos},
    hold::{Hold, Payment},
    ledger::Ledger,
    window::{Span, Window},
};
use crate::{
    config::{
        Settings,
        callers::Caller,
        quota::{Limit, Quota, Rule},
        saved::DEFAULT_TENANT,
    },
    error::{Error, ErrorKind},
    moment, telemetry,
};

/// Longer values of metadata are told apart by so many characters, as in the log.
const VALUE_CHARS: usize = 128;

/// Whose use is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    /// Whose it is; empty: everybody's.
    pub tenant: String,
    /// Id or slug; of metadata `NAME=VALUE`.
    pub id: String,
    /// As people know it.
    pub name: String,
}

/// What can have limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A caller.
    ApiKey,
    /// A credential.
    VirtualKey,
    /// All of a tenant.
    Tenant,
    /// Requests that say the same of themselves.
    Metadata,
}

/// Somebody's limits.
#[derive(Clone, Debug)]
pub struct Metered {
    /// Who.
    pub subject: Arc<Subject>,
    /// How much.
    pub quota: Quota,
}

/// A limit that does not allow what is asked for.
#[derive(Debug)]
pub struct Exceeded {
    /// Whose.
    pub subject: Arc<Subject>,
    /// Which.
    pub limit: Limit,
    /// What has been used, with what is held.
    pub used: i64,
    /// What would be used more.
    pub wanted: i64,
    /// The period.
    pub window: Window,
    /// As the router's clock has it, in ms since 1970.
    pub now: i64,
}

/// Who has a budget, as far as the configuration tells: tenants, virtual keys, callers.
pub fn budgets(settings: &Settings) -> Vec<Arc<Subject>> {
    let mut callers: Vec<&Arc<Caller>> = settings.callers.iter().collect();
    callers.sort_unstable_by(|a, b| (&a.tenant, &a.id).cmp(&(&b.tenant, &b.id)));
    let tenants: BTreeSet<&str> = settings
        .tenants
        .keys()
        .chain(callers.iter().map(|caller| &caller.tenant))
        .map(String::as_str)
        .chain([DEFAULT_TENANT])
        .collect();
    let realms = settings.tenants.values().flat_map(|realm| realm.virtual_keys.values());
    let keys = settings.virtual_keys.values().chain(realms);
    let of_tenants = tenants.into_iter().flat_map(|tenant| {
        let rules = settings.quotas.iter().filter(move |rule| rule.is_for(tenant));
        rules.filter_map(move |rule| Metered::of_rule(rule, tenant))
    });
    of_tenants
        .chain(keys.filter_map(|key| key.metered.clone()))
        .chain(callers.into_iter().filter_map(|caller| Metered::of_caller(caller)))
        .filter(|metered| metered.quota.0.iter().any(|limit| matches!(limit, Limit::Budget { .. })))
        .map(|metered| metered.subject)
        .collect()
}

impl Kind {
    /// For metrics and messages of the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::VirtualKey => "virtual_key",
            Self::Tenant => "tenant",
            Self::Metadata => "metadata",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::ApiKey => write!(f, "API key \"{}\"", self.name),
            Kind::VirtualKey => write!(f, "virtual key \"{}\"", self.name),
            Kind::Tenant => write!(f, "tenant \"{}\"", self.name),
            Kind::Metadata => write!(f, "metadata {}", self.name),
        }
    }
}

impl Metered {
    /// The limits of a virtual key; none if it has none. Those of the file are everybody's, and have no tenant.
    pub fn of_key(tenant: &str, slug: &str, quota: Quota) -> Option<Self> {
        let (kind, id) = (Kind::VirtualKey, slug.to_owned());
        let subject = Subject { kind, tenant: tenant.to_owned(), name: id.clone(), id };
        (!quota.is_empty()).then(|| Self { subject: Arc::new(subject), quota })
    }

    /// The limits of a caller; none if it has none.
    pub fn of_caller(caller: &Caller) -> Option<Self> {
        let subject = Subject {
            kind: Kind::ApiKey,
            tenant: caller.tenant.clone(),
            id: caller.id.clone(),
            name: caller.name.clone(),
        };
        let quota = &caller.quota;
        (!quota.is_empty()).then(|| Self { subject: Arc::new(subject), quota: quota.clone() })
    }

    /// The limits of a tenant or of one value of metadata; none if each value has its own.
    pub fn of_rule(rule: &Rule, tenant: &str) -> Option<Self> {
        match (&rule.metadata, &rule.value) {
            (None, _) => Some(Self::new(Kind::Tenant, tenant, tenant.to_owned(), rule)),
            (Some(name), Some(value)) => {
                Some(Self::new(Kind::Metadata, tenant, format!("{name}={value}"), rule))
            }
            (Some(_), None) => None,
        }
    }

    /// The limits that a request of a caller comes under, with those of its tenant and of its metadata.
    pub fn of_request(caller: Option<&Caller>, tenant: &str, metadata: &Value, rules: &[Rule]) -> Vec<Self> {
        let mut found: Vec<Self> = caller.and_then(Self::of_caller).into_iter().collect();
        for rule in rules.iter().filter(|rule| rule.is_for(tenant)) {
            let Some(name) = &rule.metadata else {
                found.extend(Self::of_rule(rule, tenant));
                continue;
            };
            let value = match &metadata[name] {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if rule.value.as_ref().is_some_and(|wanted| *wanted != value) {
                continue;
            }
            let value: String = value.chars().take(VALUE_CHARS).collect();
            found.push(Self::new(Kind::Metadata, tenant, format!("{name}={value}"), rule));
        }
        found
    }

    fn new(kind: Kind, tenant: &str, id: String, rule: &Rule) -> Self {
        let subject = Subject { kind, tenant: tenant.to_owned(), name: id.clone(), id };
        Self { subject: Arc::new(subject), quota: rule.quota.clone() }
    }
}

impl Exceeded {
    /// The refusal of whatever was asked for, which is counted.
    pub fn refuse(self) -> Error {
        telemetry::over_quota(&self.subject, matches!(self.limit, Limit::Budget { .. }));
        self.into()
    }

    /// How long until it resets; none: never.
    fn left(&self) -> Option<Duration> {
        let left = self.window.end.checked_sub(self.now).filter(|_| self.window.end < i64::MAX)?;
        Some(Duration::from_millis(left.unsigned_abs()))
    }
}

/// Which limit, and when it resets.
impl From<Exceeded> for Error {
    fn from(exceeded: Exceeded) -> Self {
        let Exceeded { subject, limit, used, wanted, window, .. } = &exceeded;
        let left = exceeded.left();
        let resets = match left {
            Some(left) => format!("; it resets at {} (in {} s)", moment::text(window.end), seconds(left)),
            None => "; it does not reset".to_owned(),
        };
        let span = Span::of(limit);
        match *limit {
            Limit::Rate { requests, .. } => {
                let message = format!(
                    "the rate limit of {subject} is reached: {requests} requests a {}{resets}",
                    span.name()
                );
                let mut error = Error::new(ErrorKind::RateLimited, message);
                error.retry_after = left;
                error
            }
            Limit::Budget { nanos, .. } => {
                let period = if span == Span::Always { "in all" } else { &format!("a {}", span.name()) };
                let state = if *used >= nanos {
                    "is spent".to_owned()
                } else {
                    format!(
                        "has {} left and the call is expected to cost {}",
                        usd(nanos - used),
                        usd(*wanted)
                    )
                };
                let message = format!("the budget of {subject} {state}: {} {period}{resets}", usd(nanos));
                // The reference's status.
                Error::new(ErrorKind::QuotaExhausted, message).with_status(412).with_code("budget_exceeded")
            }
        }
    }
}

fn usd(nanos: i64) -> String {
    let text = format!("{:.6}", nanos as f64 / 1e9);
    let (whole, cents) = text.split_at(text.len() - 4);
    format!("${whole}{}", cents.trim_end_matches('0'))
}

/// Rounded up: whoever waits so long waits long enough.
fn seconds(length: Duration) -> u64 {
    length.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
