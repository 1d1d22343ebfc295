//! What must hold when providers fail, fall silent or slow down under a stream of requests: played by the world of
//! the `simulate` example, whose figures are the evidence.

use std::time::Duration;

use crate::world::{
    self, Outcome,
    journal::{CallOutcome, Ended},
    scenario::Scenario,
};

/// Two providers, the first of which does something else from 60 s to 120 s.
fn two_providers(seed: u32, alpha: &str) -> Outcome {
    play(&format!(
        "
seed: {seed}
duration_s: 180
arrivals: {{rate_per_s: 10}}
deadline_ms: 30000
config:
  strategy: {{mode: fallback}}
  request_timeout: 10000
  targets: [{{provider: alpha}}, {{provider: beta}}]
providers:
  alpha:
    price_usd: 0.04
    latency: {{dist: lognormal, median_ms: 3000, sigma: 0.2}}
    phases: [{{from_s: 60, until_s: 120, {alpha}}}]
  beta: {{price_usd: 0.08, latency: {{dist: uniform, min_ms: 4000, max_ms: 8000}}}}
"
    ))
}

/// Plays a scenario.
pub fn play(text: &str) -> Outcome {
    world::run(&scenario(text))
}

/// Reads a scenario.
pub fn scenario(text: &str) -> Scenario {
    Scenario::read(text).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn the_same_seed_plays_the_same_and_another_one_does_not() {
    let play = |seed| two_providers(seed, "errors: {rate: 0.5, status: 500}");
    let (first, second, other) = (play(7), play(7), play(8));
    assert!(first.figures.rescued > 0, "{first}");
    assert_eq!(first.trace_hash, second.trace_hash);
    assert_eq!(first.to_string(), second.to_string());
    assert_ne!(first.trace_hash, other.trace_hash);
}

#[test]
fn an_outage_of_the_first_target_loses_no_request() {
    let outcome = two_providers(7, "errors: {rate: 1.0, status: 503, billed: not_sent}");
    let figures = &outcome.figures;
    assert_eq!(figures.answered, figures.requests, "{outcome}");
    assert!(figures.rescued > 0, "{outcome}");
    assert_eq!(figures.duplicate_usd, 0.0, "{outcome}");
    assert!((figures.cost_usd - figures.reported_usd).abs() < 1e-6, "{outcome}");
}

#[test]
fn a_silent_provider_costs_its_attempt_limit_and_no_more() {
    let outcome = two_providers(7, "silent: true");
    let figures = &outcome.figures;
    assert_eq!(figures.answered, figures.requests, "{outcome}");
    assert_eq!(figures.worst_overshoot, Duration::ZERO, "{outcome}");
    let given_up: Vec<_> =
        outcome.calls.iter().filter(|call| call.outcome == CallOutcome::Cancelled).collect();
    assert!(!given_up.is_empty(), "{outcome}");
    for call in given_up {
        assert_eq!((call.provider.as_str(), call.end - call.start), ("alpha", Duration::from_secs(10)));
    }
    // Its limit, and then the second target's slowest answer.
    assert!(figures.latency.max <= Duration::from_millis(18_010), "{outcome}");
}

#[test]
fn callers_that_leave_stop_their_calls() {
    let outcome = play(
        "
duration_s: 60
arrivals: {concurrency: 20, think_ms: 500}
cancel: {rate: 0.5, after_ms: [0, 2000]}
config: {provider: alpha}
providers: {alpha: {latency: {dist: constant, ms: 3000}, capacity: {in_flight: 20}}}
",
    );
    let left = outcome.requests.iter().filter(|request| request.ended == Ended::Left).count();
    let cancelled = outcome.calls.iter().filter(|call| call.outcome == CallOutcome::Cancelled).count();
    assert!(left > 100, "{outcome}");
    assert_eq!(left, cancelled, "{outcome}");
    // Calls that outlive their callers would fill the provider up.
    assert_eq!(outcome.figures.answered + left, outcome.figures.requests, "{outcome}");
}

#[test]
fn every_scenario_that_is_shown_can_be_played() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/simulate/scenarios");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let mut scenario = scenario(&std::fs::read_to_string(&file).unwrap());
        // The rest is more of the same, for the reader's figures.
        scenario.duration = scenario.duration.min(Duration::from_secs(60));
        let outcome = world::run(&scenario);
        assert!(outcome.figures.success_rate > 0.99, "{file:?}\n{outcome}");
    }
}

#[test]
fn a_misspelt_scenario_is_refused_with_all_its_problems() {
    let text = "
duration_s: 60
arrivals: {rate: 5}
config: {strategy: {mode: fallback}, targets: [{provider: alhpa}]}
providers: {alpha: {latency: {dist: normal}, phases: [{from_s: 3, error: {rate: 1}}]}}
";
    let problems = Scenario::read(text).unwrap_err();
    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "line 3, column 1: arrivals.rate_per_s: Required",
            "line 3, column 12: arrivals.rate: unknown field; allowed: process, rate_per_s",
            "line 4, column 49: config.targets.0.provider: Invalid 'provider' value. Must be one of: alpha",
            "line 5, column 31: providers.alpha.latency.dist: \"normal\" is not allowed; allowed: constant, \
             uniform, exponential, lognormal",
            "line 5, column 67: providers.alpha.phases.0.error: unknown field; did you mean \"errors\"?",
        ]
    );
}
