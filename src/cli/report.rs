//! What routing did for a request, for a person.

use std::io::Write;

use anyhow::Result;

use super::{
    json,
    table::{Heading, Table, plain, usd},
    times::short,
};
use crate::pb;

/// What was tried, if anything was.
pub fn attempts(out: &mut impl Write, attempts: &[pb::Attempt]) -> Result<()> {
    if !attempts.is_empty() {
        writeln!(out, "\nattempts")?;
        attempts_table(attempts).print(out)?;
    }
    Ok(())
}

/// What it costs and how that is known, and what was changed.
pub fn costs_and_changes(out: &mut impl Write, report: &pb::RouteReport) -> Result<()> {
    if !report.cost_lines.is_empty() {
        writeln!(out, "\ncost lines")?;
        cost_lines_table(&report.cost_lines).print(out)?;
    }
    if !report.warnings.is_empty() {
        writeln!(out, "\nwarnings")?;
    }
    for warning in &report.warnings {
        writeln!(out, "{}: {}", plain(&warning.field), plain(&warning.detail))?;
    }
    Ok(())
}

fn attempts_table(attempts: &[pb::Attempt]) -> Table {
    let mut table = Table::new([
        Heading::Right("#"),
        Heading::Left("TARGET"),
        Heading::Left("PROVIDER/MODEL"),
        Heading::Left("OUTCOME"),
        Heading::Right("BEGAN"),
        Heading::Right("TOOK"),
        Heading::Left("BILLING"),
        Heading::Left("MESSAGE"),
    ]);
    for attempt in attempts {
        let outcome = match (attempt.status, attempt.reason.as_str()) {
            (0, "") => attempt.outcome.clone(),
            (0, reason) => format!("{} ({reason})", attempt.outcome),
            (status, _) => format!("{} {status}", attempt.outcome),
        };
        table.row([
            attempt.number.to_string(),
            attempt.target.clone(),
            format!("{}/{}", attempt.provider, attempt.model).trim_end_matches('/').to_owned(),
            outcome,
            short(attempt.started_ms),
            short(attempt.duration_ms),
            attempt.billing().name().to_owned(),
            attempt.message.clone(),
        ]);
    }
    table
}

fn cost_lines_table(lines: &[pb::CostLine]) -> Table {
    let mut table = Table::new([
        Heading::Right("#"),
        Heading::Left("ITEM"),
        Heading::Left("PROVIDER/MODEL"),
        Heading::Right("QUANTITY"),
        Heading::Right("AMOUNT"),
        Heading::Left("KNOWN BY"),
    ]);
    for line in lines {
        table.row([
            line.attempt.to_string(),
            line.item.clone(),
            format!("{}/{}", line.provider, line.model),
            line.quantity.to_string(),
            usd(line.amount_usd, false),
            json::cost_source(line.source()).to_owned(),
        ]);
    }
    table
}
