//! `imagegate targets`: how the targets of saved configs stand.

use std::io::{Write, stdout};

use anyhow::Result;

use super::{connect::RouterArgs, json, table::Table};
use crate::{
    admin::remote::Remote,
    pb::{self, ListTargetsResponse, ListedTarget, admin_service_server::AdminService as _},
};

/// Show how targets stand, and the workers elsewhere, as the router sees them that answers
#[derive(Debug, clap::Args)]
pub struct Targets {
    /// Those of one config
    #[arg(long, value_name = "ID", default_value_t, hide_default_value = true)]
    config_id: String,
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    router: RouterArgs,
}

impl Targets {
    /// Asks the router and prints a row for each target, and one for each worker elsewhere.
    pub async fn run(self) -> Result<()> {
        let ask = async |admin: &Remote, request| admin.list_targets(request).await;
        let listed =
            self.router.memory()?.ask(pb::ListTargetsRequest { config: self.config_id }, ask).await?;
        if self.json {
            return json::print(&json::targets(&listed));
        }
        print(&mut stdout(), &listed)
    }
}

fn print(out: &mut impl Write, listed: &ListTargetsResponse) -> Result<()> {
    targets(&listed.targets).print(out)?;
    if !listed.endpoints.is_empty() {
        writeln!(out)?;
        endpoints(&listed.endpoints).print(out)?;
    }
    Ok(())
}

fn targets(targets: &[ListedTarget]) -> Table {
    let mut table =
        Table::of_texts(&["CONFIG", "TARGET", "PROVIDER", "MODEL", "STATE", "LATENCY", "IN FLIGHT"]);
    for target in targets {
        table.row([
            target.config.clone(),
            target.target.clone(),
            of_request(&target.provider).to_owned(),
            of_request(&target.model).to_owned(),
            words(target),
            latency(target),
            target.state.as_ref().map_or_else(String::new, |state| state.calls_in_flight.to_string()),
        ]);
    }
    table
}

fn endpoints(endpoints: &[pb::WorkerEndpoint]) -> Table {
    let mut table = Table::of_texts(&["WORKER", "ADDRESS", "STATE", "IN FLIGHT"]);
    for endpoint in endpoints {
        table.row([
            endpoint.provider.clone(),
            endpoint.address.clone(),
            endpoint.state().name().to_owned(),
            endpoint.calls_in_flight.to_string(),
        ]);
    }
    table
}

/// How a target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It cannot be called, whatever its state.
    Problem,
    /// Nothing has been asked of it lately.
    NotAsked,
    /// It should be left alone.
    LeftAlone,
    /// It gets a growing part of its requests.
    ComingBack,
    /// It gets its requests.
    Well,
}

impl Standing {
    /// Whether nobody needs to look.
    pub fn is_well(self) -> bool {
        matches!(self, Self::NotAsked | Self::Well)
    }
}

/// How a target stands.
pub fn standing(target: &ListedTarget) -> Standing {
    match &target.state {
        _ if !target.problem.is_empty() => Standing::Problem,
        None => Standing::NotAsked,
        Some(state) if !state.ejected.is_empty() => Standing::LeftAlone,
        Some(state) if state.warmth < 1.0 => Standing::ComingBack,
        Some(_) => Standing::Well,
    }
}

/// The same in a few words.
pub fn words(target: &ListedTarget) -> String {
    let state = target.state.clone().unwrap_or_default();
    match standing(target) {
        Standing::Problem => target.problem.clone(),
        Standing::NotAsked => "not asked lately".into(),
        Standing::LeftAlone => {
            format!("left alone: {} (breaker {})", state.ejected.replace('_', " "), state.breaker)
        }
        Standing::ComingBack => format!("coming back: {:.0} % of its requests", state.warmth * 100.0),
        Standing::Well => "well".into(),
    }
}

/// A provider or a model, or that the request says it.
pub fn of_request(text: &str) -> &str {
    if text.is_empty() { "(the request's)" } else { text }
}

/// The recent time of a call.
pub fn latency(target: &ListedTarget) -> String {
    let seconds = target.state.as_ref().and_then(|state| state.latency_s);
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::TargetState;

    fn target(problem: &str, state: Option<(&str, &str, f64)>) -> ListedTarget {
        let state = state.map(|(breaker, ejected, warmth)| TargetState {
            breaker: breaker.into(),
            ejected: ejected.into(),
            warmth,
            ..Default::default()
        });
        ListedTarget { problem: problem.into(), state, ..Default::default() }
    }

    #[test]
    fn a_state_is_said_in_words() {
        for (problem, state, said) in [
            ("", None, "not asked lately"),
            ("", Some(("closed", "", 1.0)), "well"),
            ("", Some(("closed", "", 0.25)), "coming back: 25 % of its requests"),
            ("", Some(("open", "breaker_open", 1.0)), "left alone: breaker open (breaker open)"),
            ("virtual key x is disabled", Some(("closed", "", 1.0)), "virtual key x is disabled"),
        ] {
            assert_eq!(words(&target(problem, state)), said);
        }
    }

    #[test]
    fn workers_elsewhere_have_a_table_of_their_own() {
        let endpoint = pb::WorkerEndpoint {
            provider: "fal".into(),
            address: "10.0.0.7:50061".into(),
            state: pb::worker_endpoint::State::Ejected.into(),
            calls_in_flight: 2,
        };
        let listed = ListTargetsResponse { targets: vec![target("", None)], endpoints: vec![endpoint] };
        let mut out = Vec::new();
        print(&mut out, &listed).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\n\nWORKER "), "{text}");
        let last: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["fal", "10.0.0.7:50061", "ejected", "2"]);
        assert!(text.contains("(the request's)"), "{text}");
    }
}
