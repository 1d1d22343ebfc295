//! `imagegate configs dry-run`: what a config would do with requests of the log, for a person or a program.

use std::io::{Write, stdout};

use anyhow::Result;

use super::{
    connect::Memory,
    filter::FilterArgs,
    json,
    table::{Heading, Table, plain, usd},
    times::date,
};
use crate::{
    admin::remote::Remote,
    error::Error,
    pb::{
        self, DryRunConfigResponse, DryRunRequest, DryRunSummary, admin_service_server::AdminService as _,
        dry_run_request::Verdict,
    },
};

/// Changed requests that are shown one by one.
pub const SHOWN: usize = 20;

/// What stands above the reasons of an undecided verdict.
pub const UNDECIDED: &str = "undecided: it depends on what the log does not have";

/// Of which requests, and how much of it.
#[derive(Debug, clap::Args)]
pub struct DryRunArgs {
    /// At most so many requests, the newest
    #[arg(short, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    n: u32,

    /// Every request that changes, not only the first 20
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: FilterArgs,
}

impl DryRunArgs {
    /// Asks the router and prints its answer. `what` is the config; `name` is what it is called.
    pub async fn run(
        &self,
        memory: &Memory<'_>,
        what: pb::DryRunConfigRequest,
        name: &str,
        as_json: bool,
    ) -> Result<Result<(), Error>> {
        let request =
            pb::DryRunConfigRequest { filter: Some(self.filter.to_message()), limit: self.n, ..what };
        let ask = async |admin: &Remote, request| admin.dry_run_config(request).await;
        let tried = match memory.try_ask(request, ask).await? {
            Ok(tried) => tried,
            Err(error) => return Ok(Err(error)),
        };
        if as_json {
            json::print(&json::dry_run(&tried))?;
        } else {
            let shown = if self.all { usize::MAX } else { SHOWN };
            print(&mut stdout(), name, &tried, shown)?;
        }
        Ok(Ok(()))
    }
}

fn print(out: &mut impl Write, name: &str, tried: &DryRunConfigResponse, shown: usize) -> Result<()> {
    let summary = tried.summary.clone().unwrap_or_default();
    let (Some(last), Some(first)) = (tried.requests.first(), tried.requests.last()) else {
        writeln!(out, "{name}: valid; no request in the log matches")?;
        return Ok(());
    };
    let (from, until) = (date(first.created_unix_ms), date(last.created_unix_ms));
    writeln!(out, "{} on {}, {from} to {until}\n", plain(name), count(summary.requests, "request"))?;
    shares(&summary).print(out)?;
    writeln!(out, "\n{}", changes(&summary))?;
    writeln!(out, "{}", costs(&summary))?;
    reasons(out, "refused", &summary.refusals)?;
    reasons(out, UNDECIDED, &summary.open_questions)?;
    let changed: Vec<_> = tried.requests.iter().filter(|request| request.changed).collect();
    if !changed.is_empty() {
        writeln!(out, "\nchanged")?;
        requests(&changed[..changed.len().min(shown)]).print(out)?;
        if changed.len() > shown {
            writeln!(out, "and {} more: --all shows them", changed.len() - shown)?;
        }
    }
    if !summary.notes.is_empty() {
        writeln!(out)?;
    }
    for note in &summary.notes {
        writeln!(out, "note: {}", plain(note))?;
    }
    Ok(())
}

/// Where requests went first, and where they would go.
pub fn shares(summary: &DryRunSummary) -> Table {
    let mut table = Table::new([
        Heading::Left("FIRST CALLED"),
        Heading::Right("THEN"),
        Heading::Right("WITH IT"),
        Heading::Right("EXPECTED"),
    ]);
    let mut went = 0;
    for share in &summary.shares {
        went += share.recorded_requests;
        let expected = (share.expected_cost_usd > 0.0).then(|| usd(Some(share.expected_cost_usd), false));
        table.row([
            format!("{}/{}", share.provider, share.model),
            share.recorded_requests.to_string(),
            share.requests.to_string(),
            expected.unwrap_or_default(),
        ]);
    }
    let nobody = summary.requests.saturating_sub(went);
    if nobody > 0 || summary.refused > 0 {
        let (then, now) = (nobody.to_string(), summary.refused.to_string());
        table.row(["nobody (refused)".to_owned(), then, now, String::new()]);
    }
    if summary.undecided > 0 {
        table.row(["undecided".to_owned(), String::new(), summary.undecided.to_string(), String::new()]);
    }
    table
}

/// How many requests would go another way.
pub fn changes(summary: &DryRunSummary) -> String {
    let mut text = format!("{} of {} would go another way", summary.changed, summary.requests);
    if summary.adjusted > 0 {
        text.push_str(&format!("; {} with changed parameters", summary.adjusted));
    }
    text
}

/// What was paid, and what would be.
pub fn costs(summary: &DryRunSummary) -> String {
    let recorded = usd(Some(summary.recorded_cost_usd), summary.recorded_cost_unknown > 0);
    let expected = usd(Some(summary.expected_cost_usd), summary.expected_cost_unknown > 0);
    let is_known = summary.recorded_cost_unknown + summary.expected_cost_unknown == 0;
    let share = match is_known && summary.recorded_cost_usd > 0.0 {
        true => {
            let more = summary.expected_cost_usd / summary.recorded_cost_usd - 1.0;
            format!(" ({:+.0} %)", more * 100.0)
        }
        false => String::new(),
    };
    format!("cost {recorded} then, {expected} with it{share}, if every first target answers")
}

fn reasons(out: &mut impl Write, title: &str, reasons: &[pb::DryRunReason]) -> Result<()> {
    if reasons.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    for reason in reasons {
        let (number, reason, message) = (reason.requests, plain(&reason.reason), plain(&reason.message));
        writeln!(out, "{number:>5}  {reason}: {message}")?;
    }
    Ok(())
}

/// Where each request went, and where it would go.
pub fn requests(requests: &[&DryRunRequest]) -> Table {
    let mut table = Table::new([
        Heading::Left("TIME"),
        Heading::Left("REQUEST"),
        Heading::Left("THEN"),
        Heading::Right("COST"),
        Heading::Left("WITH IT"),
        Heading::Right("COST"),
        Heading::Left("CHANGES"),
    ]);
    for request in requests {
        let then = request.recorded.clone().unwrap_or_default();
        let went = match then.first_provider.as_str() {
            "" => format!("{} {}", then.status, then.outcome),
            provider => format!("{provider}/{}", then.first_model),
        };
        let (goes, price, warnings) = match (request.verdict(), &request.first) {
            (Verdict::Routed, Some(first)) => (
                format!("{}/{}", first.provider, first.model),
                usd(first.price_usd, false),
                first.warnings.iter().map(|warning| warning.field.as_str()).collect::<Vec<_>>().join(", "),
            ),
            _ => (format!("{}: {}", request.verdict().name(), request.reason), String::new(), String::new()),
        };
        table.row([
            date(request.created_unix_ms),
            request.id.clone(),
            went,
            usd(then.cost_usd, then.cost_unknown),
            goes,
            price,
            warnings,
        ]);
    }
    table
}

/// `1 request`, `2 requests`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(tried: &DryRunConfigResponse, shown: usize) -> String {
        let mut out = Vec::new();
        print(&mut out, "hero.yaml", tried, shown).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn request(id: &str, verdict: Verdict) -> DryRunRequest {
        let warning = pb::Warning { field: "size".into(), ..Default::default() };
        let first = pb::PlannedTarget {
            provider: "stability-ai".into(),
            model: "core".into(),
            price_usd: Some(0.03),
            warnings: vec![warning],
            ..Default::default()
        };
        DryRunRequest {
            id: id.into(),
            created_unix_ms: 1_795_780_800_000,
            verdict: verdict.into(),
            reason: "unsupported mask".into(),
            first: (verdict == Verdict::Routed).then_some(first),
            recorded: Some(pb::DryRunRecorded {
                first_provider: "openai".into(),
                first_model: "dall-e-3".into(),
                cost_usd: Some(0.04),
                ..Default::default()
            }),
            changed: true,
            ..Default::default()
        }
    }

    fn tried() -> DryRunConfigResponse {
        let share = |provider: &str, model: &str, requests, recorded_requests| pb::DryRunShare {
            provider: provider.into(),
            model: model.into(),
            requests,
            recorded_requests,
            expected_cost_usd: requests as f64 * 0.03,
        };
        let reason = pb::DryRunReason {
            reason: "unsupported mask".into(),
            message: "core takes no mask".into(),
            requests: 1,
        };
        let summary = DryRunSummary {
            requests: 2,
            routed: 1,
            refused: 1,
            changed: 2,
            adjusted: 1,
            shares: vec![share("stability-ai", "core", 1, 0), share("openai", "dall-e-3", 0, 2)],
            refusals: vec![reason],
            expected_cost_usd: 0.03,
            recorded_cost_usd: 0.08,
            notes: vec!["caches are taken to be empty".into()],
            ..Default::default()
        };
        let requests = vec![request("r-2", Verdict::Routed), request("r-1", Verdict::Refused)];
        DryRunConfigResponse { summary: Some(summary), requests }
    }

    #[test]
    fn it_tells_what_changes_and_what_that_costs() {
        let expected = "\
hero.yaml on 2 requests, 2026-11-27 12:00:00Z to 2026-11-27 12:00:00Z

FIRST CALLED       THEN  WITH IT  EXPECTED
stability-ai/core     0        1   $0.0300
openai/dall-e-3       2        0
nobody (refused)      0        1

2 of 2 would go another way; 1 with changed parameters
cost $0.0800 then, $0.0300 with it (-62 %), if every first target answers

refused
    1  unsupported mask: core takes no mask

changed
TIME                  REQUEST  THEN                COST  WITH IT                       COST  CHANGES
2026-11-27 12:00:00Z  r-2      openai/dall-e-3  $0.0400  stability-ai/core          $0.0300  size
and 1 more: --all shows them

note: caches are taken to be empty
";
        let shown = printed(&tried(), 1);
        // The width of a column depends on its rows alone.
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&shown), squeezed(expected));
        assert!(printed(&tried(), 9).contains("refused: unsupported mask"));
    }

    #[test]
    fn nothing_to_try_it_on_is_said() {
        assert_eq!(
            printed(&DryRunConfigResponse::default(), 1),
            "hero.yaml: valid; no request in the log matches\n"
        );
    }

    #[test]
    fn an_unknown_price_makes_no_percentage() {
        let summary = DryRunSummary {
            recorded_cost_usd: 1.0,
            expected_cost_usd: 2.0,
            expected_cost_unknown: 1,
            ..Default::default()
        };
        assert_eq!(
            costs(&summary),
            "cost $1.0000 then, $2.0000 + unknown with it, if every first target answers"
        );
    }
}
