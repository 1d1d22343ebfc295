//! More callers than a provider can serve, and callers that all fail at the same moment: retries must not make it
//! worse, and everything must be over when the cause is.

use std::time::Duration;

use crate::{
    scenarios::play,
    world::{Outcome, journal::Ended},
};

/// A provider that answers ten requests a second, and half of it in the second minute, called nine times a second
/// by callers that try again as well.
fn squeezed(arrivals: &str, over: &str, retry: &str) -> Outcome {
    play(&format!(
        "
duration_s: 180
arrivals: {arrivals}
deadline_ms: 20000
clients: {{retries: 2, pause_ms: 500}}
config: {{provider: alpha, retry: {retry}}}
providers:
  alpha:
    latency: {{dist: uniform, min_ms: 1500, max_ms: 2500}}
    capacity: {{in_flight: 20, over: {over}}}
    phases: [{{from_s: 60, until_s: 120, capacity: {{in_flight: 10}}}}]
"
    ))
}

/// Answers per second in a stretch of time.
fn goodput(outcome: &Outcome, from: usize, until: usize) -> f64 {
    outcome.goodput_per_second()[from..until].iter().sum::<usize>() as f64 / (until - from) as f64
}

const OPEN: &str = "{rate_per_s: 9, process: uniform}";
const CLOSED: &str = "{concurrency: 20, think_ms: 200}";
const PATIENT: &str = "{attempts: 2, use_retry_after_header: true}";
const STUBBORN: &str = "{attempts: 5, budget: false}";

fn squeeze_is_borne(arrivals: &str, over: &str, retry: &str) {
    let outcome = squeezed(arrivals, over, retry);
    let name = format!("{arrivals} {over} {retry}");
    let (before, during, after) =
        (goodput(&outcome, 20, 60), goodput(&outcome, 63, 120), goodput(&outcome, 130, 180));
    assert!(during >= 0.8 * 5.0, "{name}: {during} per s\n{outcome}");
    assert!(after >= 0.97 * before, "{name}: {before} per s before, {after} after\n{outcome}");
}

#[test]
fn half_the_capacity_is_used_and_all_of_it_when_it_is_back_under_429() {
    for retry in [PATIENT, STUBBORN] {
        for over in ["{status: 429}", "{status: 429, retry_after_ms: 2000}"] {
            squeeze_is_borne(OPEN, over, retry);
            squeeze_is_borne(CLOSED, over, retry);
        }
    }
}

#[test]
fn half_the_capacity_is_used_and_all_of_it_when_it_is_back_under_503() {
    for retry in [PATIENT, STUBBORN] {
        squeeze_is_borne(OPEN, "{status: 503}", retry);
        squeeze_is_borne(CLOSED, "{status: 503}", retry);
    }
}

#[test]
fn with_two_providers_the_capacity_of_both_is_used() {
    for over in ["{status: 429}", "{status: 429, retry_after_ms: 2000}", "{status: 503}"] {
        let outcome = play(&format!(
            "
duration_s: 180
arrivals: {{rate_per_s: 18, process: uniform}}
deadline_ms: 20000
clients: {{retries: 2, pause_ms: 500}}
config:
  strategy: {{mode: fallback}}
  retry: {{attempts: 1}}
  targets: [{{provider: alpha}}, {{provider: beta}}]
providers:
  alpha:
    latency: {{dist: uniform, min_ms: 1500, max_ms: 2500}}
    capacity: {{in_flight: 20, over: {over}}}
    phases: [{{from_s: 60, until_s: 120, capacity: {{in_flight: 10}}}}]
  beta:
    latency: {{dist: uniform, min_ms: 1500, max_ms: 2500}}
    capacity: {{in_flight: 20, over: {over}}}
    phases: [{{from_s: 60, until_s: 120, capacity: {{in_flight: 10}}}}]
"
        ));
        let during = goodput(&outcome, 63, 120);
        assert!(during >= 0.8 * 10.0, "{over}: {during} per s\n{outcome}");
    }
}

/// Routers that know nothing of each other, each with its callers, whose first calls all fail at once; the share of
/// all retries in the fullest 50 ms.
fn fullest_slot(callers: usize, errors: &str, retry: &str) -> f64 {
    let outcome = play(&format!(
        "
duration_s: 0.001
routers: 64
arrivals: {{concurrency: {callers}}}
config: {{provider: alpha, breaker: false, retry: {retry}}}
providers: {{alpha: {{errors: {{rate: 1, after_ms: 100, {errors}}}}}}}
"
    ));
    assert!(outcome.requests.iter().all(|request| matches!(request.ended, Ended::Failed(..))), "{outcome}");
    let mut seen = vec![false; outcome.requests.len()];
    let mut slots = vec![0_usize; 10_000];
    for call in &outcome.calls {
        if std::mem::replace(&mut seen[call.request.unwrap()], true) {
            let since = call.start - Duration::from_millis(100);
            slots[(since.as_millis() / 50) as usize] += 1;
        }
    }
    let (fullest, all) = (*slots.iter().max().unwrap(), slots.iter().sum::<usize>());
    assert!(all >= callers, "{all} retries");
    fullest as f64 / all as f64
}

#[test]
fn routers_that_fail_together_do_not_come_back_together() {
    let first_only = "{attempts: 1, budget: false, use_retry_after_header: true}";
    let many = "{attempts: 3, budget: false, use_retry_after_header: true}";
    let errors = |asked: u32| format!("status: 429, retry_after_ms: {asked}");
    for (callers, retry) in [(64, many), (640, first_only), (640, many)] {
        for errors in ["status: 503".into(), errors(200), errors(1000), errors(7000)] {
            let share = fullest_slot(callers, &errors, retry);
            assert!(
                share <= 0.1,
                "{callers} callers, {errors}, {retry}: {share} of all retries within 50 ms"
            );
        }
    }
}
