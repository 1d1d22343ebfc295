//! `imagegate quotas`, and the flags by which limits are given.

use std::io::stdout;

use anyhow::{Result, anyhow};

use super::{
    connect::RouterArgs,
    filter::pair,
    json,
    table::{Table, usd},
    times::date_or_never,
};
use crate::{
    admin::remote::Remote,
    config::quota::{reset_named, reset_word, unit_named, unit_word},
    pb::{self, Quota, QuotaUse, admin_service_server::AdminService as _, quota_use::Limit},
};

/// Show rate limits and budgets with what has been used of them
#[derive(Debug, clap::Args)]
pub struct Quotas {
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    router: RouterArgs,
}

/// Limits to be
#[derive(Debug, clap::Args)]
pub struct QuotaArgs {
    /// Requests in each second, minute, hour, day or week: rpm=60, of rps, rpm, rph, rpd, rpw
    #[arg(long = "rate", value_name = "UNIT=N", value_parser = pair)]
    rates: Vec<(String, String)>,
    /// USD in each day, week or month, or once and for all: monthly=50, of daily, weekly, monthly, total; with
    /// monthly=50:40 it is said in the router's log when 40 are reached
    #[arg(long = "budget", value_name = "PERIOD=USD", value_parser = pair)]
    budgets: Vec<(String, String)>,
}

impl QuotaArgs {
    /// None where nothing was given.
    pub fn message(&self) -> Result<Option<Quota>> {
        let mut quota = Quota::default();
        for (unit, number) in &self.rates {
            quota.rates.push(rate(unit, number).map_err(|reason| anyhow!("--rate {reason}"))?);
        }
        for (period, amount) in &self.budgets {
            let (amount, alert) = match amount.split_once(':') {
                Some((amount, alert)) => (amount, Some(alert)),
                None => (amount.as_str(), None),
            };
            let budget = budget(period, amount, alert).map_err(|reason| anyhow!("--budget {reason}"))?;
            quota.budgets.push(budget);
        }
        Ok((quota != Quota::default()).then_some(quota))
    }
}

impl Quotas {
    /// Asks the router and prints a row for each limit.
    pub async fn run(self) -> Result<()> {
        let ask = async |admin: &Remote, request| admin.list_quotas(request).await;
        let quotas = self.router.memory()?.ask(pb::ListQuotasRequest {}, ask).await?.quotas;
        if self.json {
            return json::print_all(&quotas, json::quota_use);
        }
        table(&quotas).print(&mut stdout())?;
        Ok(())
    }
}

/// So many requests in each unit of time, as a person writes both.
///
/// # Errors
/// What is no unit or no number.
pub fn rate(unit: &str, number: &str) -> Result<pb::RateLimit, String> {
    let known =
        unit_named(unit).ok_or_else(|| format!("{unit}: not a unit; allowed: rps, rpm, rph, rpd, rpw"))?;
    let requests = number.parse().map_err(|_| format!("{unit}={number}: not a number of requests"))?;
    Ok(pb::RateLimit { unit: known.into(), requests })
}

/// So much money in each period, as a person writes both, and from when on it is said.
///
/// # Errors
/// What is no period or no amount.
pub fn budget(period: &str, amount: &str, alert: Option<&str>) -> Result<pb::Budget, String> {
    let known = reset_named(period)
        .ok_or_else(|| format!("{period}: not a period; allowed: daily, weekly, monthly, total"))?;
    let number =
        |text: &str| text.parse::<f64>().map_err(|_| format!("{period}={text}: not an amount in USD"));
    let (usd, alert_usd) = (number(amount)?, alert.map(number).transpose()?);
    Ok(pb::Budget { usd, reset: known.into(), alert_usd })
}

/// A limit in a few words: `60 rpm`, `$50.0000 monthly`.
pub fn words(limit: &Limit) -> String {
    match limit {
        Limit::Rate(rate) => format!("{} {}", rate.requests, unit_word(rate.unit())),
        Limit::Budget(budget) => {
            format!("{} {}", usd(Some(budget.usd), false), reset_word(budget.reset()).unwrap_or("total"))
        }
    }
}

/// All limits of somebody in a few words.
pub fn all_words(quota: Option<&Quota>) -> String {
    let Some(quota) = quota else { return String::new() };
    let rates = quota.rates.iter().map(|rate| words(&Limit::Rate(*rate)));
    let budgets = quota.budgets.iter().map(|budget| words(&Limit::Budget(*budget)));
    rates.chain(budgets).collect::<Vec<_>>().join(", ")
}

fn table(quotas: &[QuotaUse]) -> Table {
    let mut table = Table::of_texts(&["OF", "NAME", "LIMIT", "USED", "IN FLIGHT", "RESETS"]);
    for quota in quotas {
        let is_budget = matches!(quota.limit, Some(Limit::Budget(_)));
        let used = if is_budget { usd(Some(quota.usd), false) } else { quota.requests.to_string() };
        table.row([
            quota.subject.replace('_', " "),
            quota.name.clone(),
            quota.limit.as_ref().map(words).unwrap_or_default(),
            if quota.exhausted { format!("{used} (all)") } else { used },
            if is_budget { usd(Some(quota.reserved_usd), false) } else { String::new() },
            date_or_never(quota.resets_unix_ms),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(rates: &[(&str, &str)], budgets: &[(&str, &str)]) -> QuotaArgs {
        let owned = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        QuotaArgs { rates: owned(rates), budgets: owned(budgets) }
    }

    #[test]
    fn limits_are_read_and_shown_in_the_same_words() {
        let quota = args(&[("rpm", "60")], &[("monthly", "50:40"), ("total", "9.5")]).message().unwrap();
        assert_eq!(all_words(quota.as_ref()), "60 rpm, $50.0000 monthly, $9.5000 total");
        assert_eq!(quota.unwrap().budgets[0].alert_usd, Some(40.0));
        assert_eq!(args(&[], &[]).message().unwrap(), None);
        for (rates, budgets) in [
            (&[("rpx", "1")][..], &[][..]),
            (&[("rpm", "-1")], &[]),
            (&[], &[("yearly", "1")]),
            (&[], &[("daily", "much")]),
            (&[], &[("daily", "1:x")]),
        ] {
            assert!(args(rates, budgets).message().is_err(), "{rates:?} {budgets:?}");
        }
    }

    #[test]
    fn a_spent_budget_is_seen() {
        let quota = QuotaUse {
            subject: "virtual_key".into(),
            name: "openai".into(),
            limit: Some(Limit::Budget(pb::Budget { usd: 1.0, ..Default::default() })),
            usd: 1.0,
            exhausted: true,
            ..Default::default()
        };
        let mut out = Vec::new();
        table(&[quota]).print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let row: Vec<&str> = text.lines().nth(1).unwrap().split("  ").map(str::trim).collect();
        let row: Vec<&str> = row.into_iter().filter(|cell| !cell.is_empty()).collect();
        assert_eq!(row, ["virtual key", "openai", "$1.0000 total", "$1.0000 (all)", "$0.0000", "never"]);
    }
}
