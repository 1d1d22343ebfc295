//! `imagegate explain`: what a request would do, for a person or a program. Calls no provider.

use std::io::{Write, stdout};

use anyhow::Result;

use super::{ask::Ask, json};
use crate::pb::{self, ExplainRouteResponse, PlannedTarget, planned_target::Decision};

/// Show what a request would do: targets in order, with reasons, changes and prices
#[derive(Debug, clap::Args)]
pub struct Explain {
    #[command(flatten)]
    ask: Ask,

    /// For programs
    #[arg(long)]
    json: bool,
}

impl Explain {
    /// Asks the router and prints its answer.
    pub async fn run(self) -> Result<()> {
        let request = self.ask.message(pb::ExplainRouteRequest { image: Some(self.ask.image()?) })?;
        let answer = self.ask.router()?.explain_route(request).await;
        let plan = answer.map_err(|status| self.ask.failed(&status))?.into_inner();
        if self.json {
            return json::print(&json::explanation(&plan));
        }
        print(&mut stdout(), &plan)
    }
}

fn print(out: &mut impl Write, plan: &ExplainRouteResponse) -> Result<()> {
    writeln!(out, "route {}", plan.route)?;
    let mut turn = 0;
    for target in &plan.targets {
        if target.decision() == Decision::Tried {
            turn += 1;
            writeln!(out, "{turn:>3}. {} ({})", name(target), notes(target).join(", "))?;
        } else {
            writeln!(out, "  -  {} {}: {}", name(target), target.reason, target.message)?;
        }
        for warning in &target.warnings {
            writeln!(out, "       {}: {}", warning.field, warning.detail)?;
        }
        if let Some(state) = target.state.as_ref().filter(|state| state.breaker != "closed") {
            writeln!(out, "       circuit breaker: {}", state.breaker)?;
        }
    }
    writeln!(out, "{}", costs(plan))?;
    Ok(())
}

/// What an answer costs.
pub fn costs(plan: &ExplainRouteResponse) -> String {
    let is_tried = |target: &PlannedTarget| target.decision() == Decision::Tried;
    match (plan.targets.iter().any(is_tried), plan.min_cost_usd, plan.max_cost_usd) {
        (false, ..) => "no target can serve this request".to_owned(),
        (_, Some(min), Some(max)) if min < max => format!("an answer costs ${min:.4} to ${max:.4}"),
        (_, Some(min), _) => format!("an answer costs ${min:.4}"),
        (_, None, _) => "the price of an answer is not known".to_owned(),
    }
}

fn name(target: &PlannedTarget) -> String {
    [target.target.as_str(), &target.provider, &target.model]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a call of a target costs and takes.
pub fn notes(target: &PlannedTarget) -> Vec<String> {
    let price = target.price_usd.map_or("price unknown".to_owned(), |price| format!("${price:.4}"));
    let mut notes = vec![price];
    if target.cached {
        notes.push("in the cache".to_owned());
    }
    if target.calls > 1 {
        notes.push(format!("{} calls", target.calls));
    }
    if target.max_tries > 1 {
        notes.push(format!("up to {} tries", target.max_tries));
    }
    if let Some(millis) = target.hedged_after_ms {
        notes.push(format!("also beside the one before after {millis} ms"));
    }
    notes
}
