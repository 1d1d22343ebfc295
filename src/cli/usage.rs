//! `imagegate usage`: what requests cost and how they ended.

use std::io::stdout;

use anyhow::Result;

use super::{
    connect::RouterArgs,
    filter::FilterArgs,
    json,
    table::{Heading, Table, usd},
    times::{date, short},
};
use crate::{
    admin::remote::Remote,
    pb::{self, UsageGroup, admin_service_server::AdminService as _},
    usage::total,
};

/// Show what requests cost and how they ended
#[derive(Debug, clap::Args)]
pub struct Usage {
    /// caller, tenant, config, config_version, virtual_key, provider, model, operation, outcome, status, cache_status,
    /// day, hour, minute or metadata.NAME; without it all requests together
    #[arg(long, value_name = "WHAT")]
    by: Option<String>,

    /// For programs
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: FilterArgs,

    #[command(flatten)]
    router: RouterArgs,
}

impl Usage {
    /// Asks the router and prints a row for each group.
    pub async fn run(self) -> Result<()> {
        let group_by = self.by.clone().unwrap_or_default();
        let request =
            pb::GetUsageRequest { filter: Some(self.filter.to_message()), group_by, ..Default::default() };
        let ask = async |admin: &Remote, request| admin.get_usage(request).await;
        let groups = self.router.memory()?.ask(request, ask).await?.groups;
        if self.json {
            return json::print_all(&groups, json::usage_group);
        }
        table(self.by.as_deref(), &groups).print(&mut stdout())?;
        Ok(())
    }
}

fn table(by: Option<&str>, groups: &[UsageGroup]) -> Table {
    let counts =
        ["REQUESTS", "OK", "RESCUED", "REFUSED", "CACHED", "IMAGES", "MEAN", "COST"].map(Heading::Right);
    let mut table = Table::new([&[Heading::Left("GROUP")], counts.as_slice()].concat());
    for group in groups {
        table.row(cells(&name(by, &group.key), group));
    }
    if groups.len() > 1 {
        table.row(cells("total", &total(groups)));
    }
    table
}

fn name(by: Option<&str>, key: &str) -> String {
    match (by, key.parse()) {
        (None, _) => "all".to_owned(),
        // Times come as milliseconds since 1970.
        (Some("day"), Ok(unix_ms)) => date(unix_ms).chars().take("2026-11-27".len()).collect(),
        (Some("hour" | "minute"), Ok(unix_ms)) => {
            date(unix_ms).chars().take("2026-11-27 10:00".len()).collect()
        }
        (Some(_), _) if key.is_empty() => "(none)".to_owned(),
        (Some(_), _) => key.to_owned(),
    }
}

fn cells(key: &str, group: &UsageGroup) -> [String; 9] {
    [
        key.to_owned(),
        group.requests.to_string(),
        group.succeeded.to_string(),
        group.rescued.to_string(),
        group.refused.to_string(),
        group.cache_hits.to_string(),
        group.images.to_string(),
        short(group.duration_ms.round() as u64),
        usd(Some(group.cost_usd), group.cost_unknown > 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(key: &str, requests: u64, cost_usd: f64, cost_unknown: u64, duration_ms: f64) -> UsageGroup {
        UsageGroup { key: key.into(), requests, cost_usd, cost_unknown, duration_ms, ..Default::default() }
    }

    fn lines(by: Option<&str>, groups: &[UsageGroup]) -> Vec<Vec<String>> {
        let mut out = Vec::new();
        table(by, groups).print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words = |line: &str| {
            line.split("  ").map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned).collect()
        };
        text.lines().skip(1).map(words).collect()
    }

    #[test]
    fn several_groups_have_a_total() {
        let groups = [group("openai", 3, 0.12, 0, 1000.0), group("", 1, 0.0, 1, 5000.0)];
        let lines = lines(Some("provider"), &groups);
        assert_eq!(lines[0], ["openai", "3", "0", "0", "0", "0", "0", "1.0s", "$0.1200"]);
        assert_eq!(lines[1], ["(none)", "1", "0", "0", "0", "0", "0", "5.0s", "unknown"]);
        assert_eq!(lines[2], ["total", "4", "0", "0", "0", "0", "0", "2.0s", "$0.1200 + unknown"]);
    }

    #[test]
    fn days_and_hours_are_dates() {
        assert_eq!(name(Some("day"), "1795780800000"), "2026-11-27");
        assert_eq!(name(Some("hour"), "1795780800000"), "2026-11-27 12:00");
        assert_eq!(name(Some("minute"), "1795780860000"), "2026-11-27 12:01");
        assert_eq!(name(Some("metadata.order"), "1795780800000"), "1795780800000");
    }

    #[test]
    fn one_group_is_its_own_total() {
        let lines = lines(None, &[group("", 2, 0.08, 0, 10.0)]);
        assert_eq!(lines, [["all", "2", "0", "0", "0", "0", "0", "10ms", "$0.0800"]]);
    }
}
