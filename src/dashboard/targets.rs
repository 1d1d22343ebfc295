//! How targets and the workers elsewhere stand, as it changes.

use axum::{
    extract::{Query, State},
    response::Response,
};
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::{
    Dashboard,
    failure::Failure,
    layout::{self, Section},
    live,
    session::Visitor,
};
use crate::{
    cli::targets::{Standing, latency, of_request, standing, words},
    pb::{
        ListTargetsRequest, ListTargetsResponse, ListedTarget, WorkerEndpoint,
        worker_endpoint::State as Stands,
    },
};

/// Targets on a page: more are for a filter.
const MOST: usize = 500;

/// Which targets. What is empty is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Filter {
    #[serde(skip_serializing_if = "String::is_empty")]
    config: String,
    /// Only those that are not well, whatever it says.
    #[serde(skip_serializing_if = "String::is_empty")]
    unwell: String,
}

/// `GET /targets`
pub async fn list(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Query(filter): Query<Filter>,
) -> Result<Markup, Failure> {
    let all = listed(&dashboard, &visitor, "").await?;
    let mut configs: Vec<&str> = all.targets.iter().map(|target| target.config.as_str()).collect();
    configs.dedup();
    let shown = match filter.config.as_str() {
        "" => all.clone(),
        config => listed(&dashboard, &visitor, config).await?,
    };
    let query = serde_urlencoded::to_string(&filter).unwrap_or_default();
    let body = html! {
        div class="head" { h1 { "Targets" } (live::switch()) }
        form class="filter" method="get" action="/targets" role="search" aria-label="Filter" {
            label {
                span { "Config" }
                select name="config" {
                    option value="" { "all" }
                    @for config in configs { option value=(config) selected[config == filter.config] { (config) } }
                }
            }
            label class="check" {
                input type="checkbox" name="unwell" value="true" checked[!filter.unwell.is_empty()];
                " Only what is not well"
            }
            div class="actions" {
                button { "Filter" }
                @if filter != Filter::default() { a href="/targets" { "Clear" } }
            }
        }
        div data-live={ "/targets/live?" (query) } { (tables(&shown, &filter)) }
    };
    Ok(layout::page(Some(&visitor), Some(Section::Targets), "Targets", &body))
}

/// `GET /targets/live`: how they stand now, and whenever that changes.
pub async fn live(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Query(filter): Query<Filter>,
) -> Result<Response, Failure> {
    listed(&dashboard, &visitor, &filter.config).await?;
    Ok(live::events(String::new(), move |last| {
        let (dashboard, visitor, filter) = (dashboard.clone(), visitor.clone(), filter.clone());
        Box::pin(async move {
            let shown = tables(&listed(&dashboard, &visitor, &filter.config).await?, &filter);
            if shown.0 == *last {
                return Ok(None);
            }
            last.clone_from(&shown.0);
            Ok(Some(shown))
        })
    }))
}

async fn listed(
    dashboard: &Dashboard,
    visitor: &Visitor,
    config: &str,
) -> Result<ListTargetsResponse, Failure> {
    let request = visitor.ask(ListTargetsRequest { config: config.to_owned() });
    Ok(dashboard.admin.list_targets(request).await?.into_inner())
}

fn tables(listed: &ListTargetsResponse, filter: &Filter) -> Markup {
    let is_wanted = |is_well: bool| filter.unwell.is_empty() || !is_well;
    let targets: Vec<&ListedTarget> =
        listed.targets.iter().filter(|target| is_wanted(standing(target).is_well())).collect();
    let endpoints: Vec<&WorkerEndpoint> =
        listed.endpoints.iter().filter(|endpoint| is_wanted(endpoint.state() == Stands::Ready)).collect();
    html! {
        @if targets.is_empty() && endpoints.is_empty() {
            p { @if filter.unwell.is_empty() { "There are no targets." } @else { "Nothing is unwell." } }
        }
        @if !targets.is_empty() {
            table class="stacks" {
                caption { "As the router sees them that answers" }
                thead {
                    tr {
                        th scope="col" { "Target" }
                        th scope="col" { "State" }
                        th scope="col" { "Provider and model" }
                        th scope="col" { "Virtual key" }
                        th scope="col" { "Breaker" }
                        th scope="col" class="number" { "Latency" }
                        th scope="col" class="number" { "In flight" }
                    }
                }
                tbody { @for target in targets.iter().take(MOST) { (row(target)) } }
            }
            @if targets.len() > MOST {
                p class="hint" { "And " (targets.len() - MOST) " more: choose a config." }
            }
        }
        @if !endpoints.is_empty() {
            h2 { "Workers elsewhere" }
            table class="stacks" {
                thead {
                    tr {
                        th scope="col" { "Worker" }
                        th scope="col" { "State" }
                        th scope="col" { "Address" }
                        th scope="col" class="number" { "In flight" }
                    }
                }
                tbody {
                    @for endpoint in endpoints {
                        tr {
                            th scope="row" { (endpoint.provider) }
                            td data-name="State" {
                                span class={ "status " (kind_of(endpoint.state())) } { (endpoint.state().name()) }
                            }
                            td data-name="Address" { code { (endpoint.address) } }
                            td data-name="In flight" class="number" { (endpoint.calls_in_flight) }
                        }
                    }
                }
            }
        }
    }
}

fn row(target: &ListedTarget) -> Markup {
    let kind = match standing(target) {
        Standing::Problem | Standing::LeftAlone => "bad",
        Standing::ComingBack => "warning",
        Standing::NotAsked => "skipped",
        Standing::Well => "good",
    };
    html! {
        tr {
            th scope="row" { (target.config) div class="faint" { code { (target.target) } } }
            td data-name="State" { span class={ "status " (kind) } { (words(target)) } }
            td data-name="Asks" { (of_request(&target.provider)) " " span class="faint" { (of_request(&target.model)) } }
            td data-name="Virtual key" { (target.virtual_key) }
            td data-name="Breaker" { @if let Some(state) = &target.state { (state.breaker.replace('_', " ")) } }
            td data-name="Latency" class="number" { (latency(target)) }
            td data-name="In flight" class="number" { @if let Some(state) = &target.state { (state.calls_in_flight) } }
        }
    }
}

fn kind_of(state: Stands) -> &'static str {
    match state {
        Stands::Ready => "good",
        Stands::Warming | Stands::Unspecified => "warning",
        Stands::Ejected => "bad",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::TargetState;

    #[test]
    fn what_is_not_well_is_shown_alone() {
        let target = |config: &str, ejected: &str| ListedTarget {
            config: config.into(),
            state: Some(TargetState { ejected: ejected.into(), warmth: 1.0, ..Default::default() }),
            ..Default::default()
        };
        let endpoint = |provider: &str, state: Stands| WorkerEndpoint {
            provider: provider.into(),
            state: state.into(),
            ..Default::default()
        };
        let listed = ListTargetsResponse {
            targets: vec![target("pc-well", ""), target("pc-ill", "breaker_open"), ListedTarget::default()],
            endpoints: vec![endpoint("fal", Stands::Ready), endpoint("gone", Stands::Ejected)],
        };
        let all = tables(&listed, &Filter::default()).0;
        let unwell = tables(&listed, &Filter { unwell: "true".into(), ..Default::default() }).0;
        for (part, is_in_both) in [
            ("pc-well", false),
            ("not asked lately", false),
            ("fal", false),
            ("pc-ill", true),
            ("gone", true),
        ] {
            assert_eq!((all.contains(part), unwell.contains(part)), (true, is_in_both), "{part}");
        }
        let well = ListTargetsResponse { targets: vec![target("pc-well", "")], ..Default::default() };
        assert!(
            tables(&well, &Filter { unwell: "true".into(), ..Default::default() })
                .0
                .contains("Nothing is unwell")
        );
    }
}
