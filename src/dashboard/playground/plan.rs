//! The plan of a request, before anything is paid for.

use maud::{Markup, html};

use super::asked::Asked;
use crate::{
    cli::{
        explain::{costs, notes},
        table::usd,
        times::short,
    },
    pb::{ExplainRouteResponse, PlannedTarget, TargetState, Warning, planned_target::Decision},
};

/// Every target in the order of trying; and where each is asked on its own, what that comes to.
pub fn show(plan: &ExplainRouteResponse, asked: &Asked) -> Markup {
    html! {
        section class="plan" aria-labelledby="plan-title" {
            h2 id="plan-title" { "Plan" }
            p { "By route " code { (plan.route) } ": " (costs(plan)) "." }
            ol { @for planned in &plan.targets { (target(planned)) } }
            @if asked.each() { (confirmation(plan, asked)) }
        }
    }
}

/// The targets that are called if all before them fail.
pub fn tried(plan: &ExplainRouteResponse) -> Vec<&PlannedTarget> {
    plan.targets.iter().filter(|target| target.decision() == Decision::Tried).collect()
}

fn target(planned: &PlannedTarget) -> Markup {
    let is_tried = planned.decision() == Decision::Tried;
    html! {
        li class=(if is_tried { "tried" } else { "passed-over" }) {
            p {
                b { (planned.provider) " " (planned.model) } " " code class="faint" { (planned.target) } " "
                @if is_tried { span class="status good" { "tried" } }
                @else {
                    span class="status skipped" { (planned.decision().name().replace('_', " ")) } ": "
                    @if planned.decision() == Decision::Skipped { code { (planned.reason) } ", " }
                    (planned.message)
                }
            }
            @if is_tried { p { (notes(planned).join(", ")) } }
            (warnings(&planned.warnings))
            @if let Some(state) = &planned.state { (standing(state)) }
        }
    }
}

/// What became of parameters, and why.
pub fn warnings(warnings: &[Warning]) -> Markup {
    html! {
        @if !warnings.is_empty() {
            ul class="changes" {
                @for warning in warnings {
                    li {
                        code { (warning.field) } " "
                        @if let Some(action) = warning.action().name() { span class="badge" { (action) } " " }
                        (warning.detail)
                    }
                }
            }
        }
    }
}

fn standing(state: &TargetState) -> Markup {
    let mut said = Vec::new();
    if let Some(latency_s) = state.latency_s {
        said.push(format!("lately {}", short((latency_s * 1000.0) as u64)));
    }
    if state.calls_in_flight > 0 {
        said.push(format!("{} calls in flight", state.calls_in_flight));
    }
    if state.breaker != "closed" {
        said.push(format!("circuit breaker {}", state.breaker.replace('_', "-")));
    }
    if !state.ejected.is_empty() {
        said.push(format!("better left alone: {}", state.ejected.replace('_', " ")));
    }
    if state.warmth < 1.0 {
        said.push(format!("comes back: gets {:.0} % of its requests", state.warmth * 100.0));
    }
    html! { @if !said.is_empty() { p class="faint" { (said.join(", ")) } } }
}

fn confirmation(plan: &ExplainRouteResponse, asked: &Asked) -> Markup {
    let targets = tried(plan);
    let count = targets.len();
    let requests =
        if count == 1 { "1 request".to_owned() } else { format!("{count} requests, one for each target") };
    let (calls, cost) = at_most(&targets);
    html! {
        @if count > 0 {
            div class="notice" {
                p {
                    "Each target on its own: " b { (requests) } ", at most " (calls) " calls of providers, which cost at most "
                    b { (cost) } " at list price, retries counted."
                }
                @if asked.has_input() {
                    noscript { p { "The image to edit has to be chosen again." } }
                }
                button form="playground" name="do" value="confirmed" data-confirmed { "Generate at " (count) @if count == 1 { " target" } @else { " targets" } }
            }
        }
    }
}

/// Calls of providers and what they cost, if every try is made and billed.
fn at_most(targets: &[&PlannedTarget]) -> (u32, String) {
    let paid = || targets.iter().filter(|target| !target.cached);
    let prices = paid().map(|target| target.price_usd.map(|price| price * f64::from(target.max_tries)));
    let known = prices.clone().flatten().fold(0.0, |sum, price| sum + price);
    let calls = paid().map(|target| target.calls * target.max_tries).sum();
    (calls, usd(Some(known), prices.clone().any(|price| price.is_none())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_every_try_of_every_target_is_paid() {
        let planned = |price_usd, calls, max_tries, cached| PlannedTarget {
            price_usd,
            calls,
            max_tries,
            cached,
            ..Default::default()
        };
        let (a, b) = (planned(Some(0.04), 1, 3, false), planned(Some(0.10), 2, 1, false));
        assert_eq!(at_most(&[&a, &b]), (5, "$0.2200".to_owned()));
        let (cached, unknown) = (planned(Some(1.0), 4, 4, true), planned(None, 1, 1, false));
        assert_eq!(at_most(&[&a, &cached]), (3, "$0.1200".to_owned()));
        assert_eq!(at_most(&[&a, &unknown]), (4, "$0.1200 + unknown".to_owned()));
    }
}
