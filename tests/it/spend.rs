//! What second calls gain, and what they cost: hedges and retries within their budgets and caps.

use std::time::Duration;

use imagegate::pb::BillingClass;

use crate::{
    scenarios::play,
    world::{Outcome, draws::Draws, journal::CallRecord},
};

/// The calls of each request, in the order of their starts.
fn by_request(outcome: &Outcome) -> Vec<Vec<&CallRecord>> {
    let mut calls = vec![Vec::new(); outcome.requests.len()];
    for call in &outcome.calls {
        calls[call.request.unwrap()].push(call);
    }
    calls
}

/// Two providers of which one call in twenty takes ten times as long; all of them do from the tenth minute to the
/// twentieth.
fn slow_tail(seed: u32, mode: &str) -> Outcome {
    let provider = "
    latency: {dist: lognormal, median_ms: 4000, sigma: 0.2, slow: {fraction: 0.05, factor: 10}}
    phases: [{from_s: 600, until_s: 1200, latency: {slow: {fraction: 1}}}]";
    play(&format!(
        "
seed: {seed}
duration_s: 1500
arrivals: {{rate_per_s: 3}}
deadline_ms: 180000
config: {{strategy: {{mode: {mode}}}, targets: [{{provider: alpha}}, {{provider: beta}}]}}
providers:
  alpha: {provider}
  beta: {provider}
"
    ))
}

/// p99 in seconds, and calls per request, of the requests that began in a stretch of time.
fn tail(outcome: &Outcome, from: u64, until: u64) -> (f64, f64) {
    let calls = by_request(outcome);
    let within = (0..outcome.requests.len())
        .filter(|place| (from..until).contains(&outcome.requests[*place].start.as_secs()));
    let mut latencies: Vec<Duration> =
        within.clone().map(|place| outcome.requests[place].latency()).collect();
    latencies.sort_unstable();
    let calls: usize = within.map(|place| calls[place].len()).sum();
    let p99 = latencies[latencies.len() * 99 / 100].as_secs_f64();
    (p99, calls as f64 / latencies.len() as f64)
}

#[test]
fn a_hedge_halves_the_tail_for_few_calls() {
    for seed in 1..=2 {
        let (plain, hedged) = (slow_tail(seed, "fallback"), slow_tail(seed, "hedge, after_ms: 8000"));
        let ((p99, one), (hedged_p99, calls)) = (tail(&plain, 0, 540), tail(&hedged, 0, 540));
        assert_eq!(one, 1.0);
        assert!(hedged_p99 <= p99 / 2.0, "p99 {p99} s, hedged {hedged_p99} s\n{hedged}");
        assert!(calls <= 1.06, "{calls} calls per request\n{hedged}");
    }
}

#[test]
fn when_all_calls_are_slow_nothing_is_hedged() {
    // A budget above the share of slow calls: one that is just as large leaves some of them waiting.
    let outcome = slow_tail(1, "hedge, after_ms: 8000, budget: 0.06");
    // The first few, until the lateness of all is known.
    let (_, at_first) = tail(&outcome, 600, 630);
    // To the end of the phase but for a slow call, whose hedge comes when others are fast again.
    let (_, calls) = tail(&outcome, 630, 1120);
    assert_eq!(calls, 1.0, "{outcome}");
    assert!(at_first < 1.25, "{at_first} calls per request\n{outcome}");
    // Afterwards it is as before.
    let (p99, calls) = tail(&outcome, 1260, 1500);
    assert!(
        p99 < 20.0 && (1.01..=1.06).contains(&calls),
        "p99 {p99} s, {calls} calls per request\n{outcome}"
    );
}

/// What was or may have been paid for nothing: everything but the call whose images were wanted in the end, which
/// is the answering one, else the one begun last.
fn duplicate_usd(calls: &[&CallRecord], answered_by: &str) -> f64 {
    let wanted = calls.iter().rposition(|call| call.provider == answered_by).or(calls.len().checked_sub(1));
    let paid = calls.iter().enumerate().filter(|(i, call)| {
        Some(*i) != wanted && matches!(call.billing, BillingClass::Billed | BillingClass::Unknown)
    });
    paid.map(|(_, call)| call.price_usd).sum()
}

/// A single target, or hedged ones where nothing but lateness starts the next: what a fallback costs has no cap.
fn capped(seed: u64) -> (f64, Outcome) {
    let mut draws = Draws::new(seed, "capped", 0);
    let mut pick = |choices: &[f64]| choices[(draws.fraction() * choices.len() as f64) as usize];
    let cap = pick(&[0.0, 0.03, 0.05, 0.1, 0.25]);
    let targets = pick(&[1.0, 2.0, 3.0]) as usize;
    let (after, attempts) = (pick(&[500.0, 2000.0, 4000.0]), pick(&[0.0, 1.0, 3.0, 6.0]));
    let config = |i: usize| format!("{{provider: p{i}}}");
    let targets: Vec<String> = (0..targets).map(config).collect();
    let providers: Vec<String> = (0..targets.len())
        .map(|i| {
            let (price, rate, slow) = (pick(&[0.01, 0.03, 0.05, 0.1]), pick(&[0.0, 0.3, 0.7]), pick(&[0.0, 0.3]));
            let billed = ["unknown", "rejected_unbilled", "unknown", "not_sent"][pick(&[0.0, 1.0, 2.0, 3.0]) as usize];
            let error_after = pick(&[100.0, 3000.0]);
            format!(
                "p{i}: {{price_usd: {price}, errors: {{rate: {rate}, status: 503, billed: {billed}, after_ms: {error_after}}}, \
                 latency: {{dist: exponential, mean_ms: 2000, slow: {{fraction: {slow}, factor: 10}}}}}}"
            )
        })
        .collect();
    let outcome = play(&format!(
        "
seed: {seed}
duration_s: 60
arrivals: {{rate_per_s: 5}}
deadline_ms: 30000
config:
  strategy: {{mode: hedge, after_ms: {after}, budget: 1, on_status_codes: [418]}}
  breaker: false
  request_timeout: 8000
  retry: {{attempts: {attempts}, budget: false, on_status_codes: [408, 503], max_duplicate_spend_usd: {cap}}}
  targets: [{}]
providers: {{{}}}
",
        targets.join(", "),
        providers.join(", ")
    ));
    (cap, outcome)
}

#[test]
fn retries_and_hedges_cost_no_more_than_their_cap() {
    let mut duplicates = 0;
    for seed in 1..=40 {
        let (cap, outcome) = capped(seed);
        for (request, calls) in outcome.requests.iter().zip(by_request(&outcome)) {
            let spent = duplicate_usd(&calls, &request.answered_by.0);
            duplicates += usize::from(spent > 0.0);
            assert!(spent <= cap + 1e-9, "seed {seed}: {spent} USD of {cap}\n{request:?}\n{calls:#?}");
        }
    }
    assert!(duplicates > 500, "only {duplicates} requests had any");
}
