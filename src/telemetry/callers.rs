//! Who calls: limits, budgets, issuers of tokens.

use metrics::{counter, gauge};
use tracing::{error, info, warn};

use super::{Metric, labels};
use crate::quota::Subject;

const OVER_QUOTA: &str = "imagegate_over_quota_total";
const BUDGET_USED: &str = "imagegate_budget_used_ratio";
const ISSUER_UP: &str = "imagegate_jwt_issuer_up";
const ISSUER_FETCHES: &str = "imagegate_jwt_key_fetches_total";

/// What there is.
pub(super) const METRICS: &[Metric] = &[
    Metric::counter(OVER_QUOTA, "What limits did not allow, by whose they are and of what."),
    Metric::gauge(
        BUDGET_USED,
        "The used part of budgets in the period that runs, when something of it was used last.",
    ),
    Metric::gauge(ISSUER_UP, "Whether an issuer's keys could be had the last time: 1 or 0."),
    Metric::counter(ISSUER_FETCHES, "How often keys of an issuer were asked for, by outcome."),
];

/// Notes a request or a call that a limit did not allow.
pub fn over_quota(subject: &Subject, is_budget: bool) {
    let limit = if is_budget { "budget" } else { "rate" };
    counter!(OVER_QUOTA, "subject" => subject.kind.name(), "limit" => limit).increment(1);
}

/// Notes how much of a budget is used, if there is room for it.
pub fn budget_used(subject: &Subject, used: i64, nanos: i64) {
    if labels::shows_budget(subject) {
        let (tenant, id) = (subject.tenant.clone(), subject.id.clone());
        gauge!(BUDGET_USED, "subject" => subject.kind.name(), "tenant" => tenant, "name" => id)
            .set(used as f64 / nanos.max(1) as f64);
    }
}

/// Says once that a budget has reached what somebody wants to know of.
pub fn budget_alert(subject: &Subject, period: &str, used: i64, nanos: i64) {
    let usd = |nanos: i64| nanos as f64 / 1e9;
    warn!(%subject, period, used_usd = usd(used), budget_usd = usd(nanos), "a budget has reached its alert threshold");
}

/// Notes whether an issuer's keys could be had.
pub fn issuer_asked(issuer: &str, ok: bool) {
    // Issuers are as many as the file names, so the label is bounded.
    gauge!(ISSUER_UP, "issuer" => issuer.to_owned()).set(if ok { 1.0 } else { 0.0 });
    let outcome = if ok { "ok" } else { "failed" };
    counter!(ISSUER_FETCHES, "issuer" => issuer.to_owned(), "outcome" => outcome).increment(1);
}

/// Says once that an issuer's keys cannot be had.
pub fn issuer_away(issuer: &str, reason: &str) {
    error!(issuer, reason, "the keys of an issuer cannot be had: those that are known stay in use");
}

/// Says once that an issuer's keys can be had again.
pub fn issuer_back(issuer: &str) {
    info!(issuer, "the keys of an issuer can be had again");
}

/// Says that somebody could not sign in to the dashboard at an issuer.
pub fn sign_in_failed(issuer: &str, reason: &str) {
    warn!(issuer, reason, "somebody could not sign in to the dashboard");
}
