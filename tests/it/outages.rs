//! Targets that are down or half down: nobody may notice, and nobody may keep knocking.

use std::time::Duration;

use crate::{
    scenarios::play,
    world::{Outcome, journal::CallRecord},
};

const COOLDOWN: Duration = Duration::from_secs(15);

fn calls<'a>(outcome: &'a Outcome, provider: &str, from: u64, until: u64) -> Vec<&'a CallRecord> {
    let within = |call: &&CallRecord| (from..until).contains(&call.start.as_secs());
    outcome.calls.iter().filter(|call| call.provider == provider).filter(within).collect()
}

/// Ten minutes, with alpha down from the second to the eighth.
fn outage(seed: u32, config: &str) -> Outcome {
    play(&format!(
        "
seed: {seed}
duration_s: 600
arrivals: {{rate_per_s: 5}}
config:
{config}
providers:
  alpha:
    latency: {{dist: lognormal, median_ms: 4000, sigma: 0.3}}
    phases: [{{from_s: 120, until_s: 480, errors: {{rate: 1, status: 500}}}}]
  beta: {{latency: {{dist: lognormal, median_ms: 6000, sigma: 0.3}}}}
"
    ))
}

fn outage_is_not_noticed(outcome: &Outcome) {
    let figures = &outcome.figures;
    assert_eq!(figures.answered, figures.requests, "{outcome}");
    assert!(figures.amplification <= 1.02, "{outcome}");
    // Noted at the end of the second in which it opened, so that calls under way are not counted.
    let opened = *outcome.breaker_changes.first().expect("a breaker that opens");
    let failed_before = calls(outcome, "alpha", 120, opened.as_secs()).len();
    assert!((7..=12).contains(&failed_before), "{failed_before} calls until {opened:?}\n{outcome}");
    let knocks = calls(outcome, "alpha", opened.as_secs(), 480);
    assert!(!knocks.is_empty(), "{outcome}");
    for pair in knocks.windows(2) {
        assert!(pair[1].start - pair[0].start >= COOLDOWN, "{pair:?}\n{outcome}");
    }
    // Back to its share in the last minute: a cooldown, a probe and a slow start after the outage.
    let (before, after) = (calls(outcome, "alpha", 60, 120).len(), calls(outcome, "alpha", 540, 600).len());
    assert!(after * 10 > before * 7, "{before} calls a minute before, {after} after\n{outcome}");
}

#[test]
fn an_outage_of_a_fallbacks_first_target_is_not_noticed() {
    for seed in 1..=3 {
        let config = "  {strategy: {mode: fallback}, targets: [{provider: alpha}, {provider: beta}]}";
        outage_is_not_noticed(&outage(seed, config));
    }
}

#[test]
fn an_outage_within_a_balance_within_a_fallback_is_not_noticed() {
    for policy in ["weighted", "round_robin", "least_busy", "least_latency"] {
        let config = format!(
            "
  strategy: {{mode: fallback}}
  targets:
    - {{strategy: {{mode: loadbalance, policy: {policy}}}, targets: [{{provider: alpha}}, {{provider: beta}}]}}
    - {{provider: beta}}"
        );
        let outcome = outage(1, &config);
        outage_is_not_noticed(&outcome);
    }
}

#[test]
fn a_retry_does_not_knock_at_a_target_whose_breaker_has_opened() {
    let config = "
  strategy: {mode: fallback}
  retry: {attempts: 2}
  targets: [{provider: alpha}, {provider: beta}]";
    outage_is_not_noticed(&outage(1, config));
}

/// Fifteen minutes; from the third to the thirteenth, alpha fails in this way and takes five times as long.
fn brown_out(seed: u32, rate: u32, errors: &str) -> Outcome {
    play(&format!(
        "
seed: {seed}
duration_s: 900
arrivals: {{rate_per_s: {rate}}}
config: {{strategy: {{mode: fallback}}, targets: [{{provider: alpha}}, {{provider: beta}}]}}
providers:
  alpha:
    latency: {{dist: lognormal, median_ms: 3000, sigma: 0.3}}
    phases:
      - from_s: 120
        until_s: 780
        latency: {{dist: lognormal, median_ms: 15000, sigma: 0.3}}
        errors: {{rate: 0.3, status: 500, {errors}}}
  beta: {{latency: {{dist: lognormal, median_ms: 4000, sigma: 0.3}}}}
"
    ))
}

fn brown_out_is_borne(outcome: &Outcome) {
    let figures = &outcome.figures;
    assert!(figures.success_rate >= 0.999, "{outcome}");
    let flaps = outcome.breaker_changes_per_minute();
    assert!(flaps <= 2, "{flaps} a minute: {:?}\n{outcome}", outcome.breaker_changes);
}

#[test]
fn a_brown_out_that_fails_slowly_is_borne() {
    for seed in 1..=2 {
        brown_out_is_borne(&brown_out(seed, 5, "after_ms: 15000"));
    }
}

#[test]
fn a_brown_out_that_fails_fast_is_borne() {
    for seed in 1..=2 {
        brown_out_is_borne(&brown_out(seed, 5, "after_ms: 300"));
    }
}

#[test]
fn with_all_breakers_open_the_order_stays_and_everybody_gets_a_chance() {
    let outcome = play(
        "
duration_s: 420
arrivals: {rate_per_s: 5}
config: {strategy: {mode: fallback}, targets: [{provider: alpha}, {provider: beta}]}
providers:
  alpha:
    latency: {dist: lognormal, median_ms: 3000, sigma: 0.3}
    phases: [{from_s: 60, until_s: 180, errors: {rate: 1, status: 500}}, {from_s: 300, until_s: 360, errors: {rate: 1}}]
  beta:
    latency: {dist: lognormal, median_ms: 3000, sigma: 0.3}
    phases: [{from_s: 60, until_s: 150, errors: {rate: 1, status: 503}}]
",
    );
    let requests = |from: u64, until: u64| {
        let within = move |second: u64| (from..until).contains(&second);
        outcome.requests.iter().enumerate().filter(move |(_, request)| within(request.start.as_secs()))
    };
    let mut both = 0;
    for (place, request) in requests(90, 150) {
        let called: Vec<_> = outcome.calls.iter().filter(|call| call.request == Some(place)).collect();
        let names: Vec<_> = called.iter().map(|call| call.provider.as_str()).collect();
        assert!(matches!(names[..], ["alpha", "beta"] | ["alpha"] | ["beta"]), "{names:?}\n{request:?}");
        both += usize::from(names.len() == 2);
    }
    // Less than both only for those who find out whether a target works again.
    assert!(both * 10 > requests(90, 150).count() * 9, "{both} tried both\n{outcome}");
    // One of them is back, and needs no cooldown for it: whoever comes next is answered.
    let lost = requests(151, 420).filter(|(_, request)| request.target.is_empty()).count();
    assert_eq!(lost, 0, "{outcome}");
    // Both are back: the first has its place again, and the second stands in when the first fails anew.
    let (alpha, beta) = (calls(&outcome, "alpha", 240, 300).len(), calls(&outcome, "beta", 240, 300).len());
    assert!(alpha > 10 * beta, "{alpha} and {beta} calls\n{outcome}");
    assert!(calls(&outcome, "beta", 310, 360).len() > 200, "{outcome}");
}

#[test]
fn a_last_resort_is_tried_in_a_hedge_as_well() {
    for mode in ["fallback", "hedge, after_ms: 5000"] {
        let outcome = play(&format!(
            "
duration_s: 120
arrivals: {{rate_per_s: 5}}
config: {{strategy: {{mode: {mode}}}, targets: [{{provider: alpha}}, {{provider: beta, override_params: {{model: other}}}}]}}
providers:
  alpha: {{errors: {{rate: 1, status: 500}}}}
  beta: {{}}
"
        ));
        assert_eq!(outcome.figures.calls, outcome.figures.requests, "{mode}\n{outcome}");
    }
}
