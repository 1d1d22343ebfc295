//! `imagegate targets`: how the targets of saved configs stand.

use std::io::{Write, stdout};

use anyhow::Result;

use super::{connect::RouterArgs, json, table::Table};
use crate::{
    admin::remote::Remote,
    pb::{self, ListTargetsResponse, ListedTarget, TargetState, admin_service_server::AdminService as _},
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
        let state = target.state.as_ref();
        let of_request =
            |text: &str| if text.is_empty() { "(the request's)".to_owned() } else { text.to_owned() };
        table.row([
            target.config.clone(),
            target.target.clone(),
            of_request(&target.provider),
            of_request(&target.model),
            words(target),
            state
                .and_then(|state| state.latency_s)
                .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s")),
            state.map_or_else(String::new, |state| state.calls_in_flight.to_string()),
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

/// How a target stands in a few words.
fn words(target: &ListedTarget) -> String {
    match &target.state {
        _ if !target.problem.is_empty() => target.problem.clone(),
        None => "not asked lately".into(),
        Some(TargetState { ejected, breaker, .. }) if !ejected.is_empty() => {
            format!("left alone: {} (breaker {breaker})", ejected.replace('_', " "))
        }
        Some(TargetState { warmth, .. }) if *warmth < 1.0 => {
            format!("coming back: {:.0} % of its requests", warmth * 100.0)
        }
        Some(_) => "well".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
