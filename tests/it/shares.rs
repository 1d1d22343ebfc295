//! Who gets how much of the traffic where one of several targets is chosen.

use crate::{
    scenarios::play,
    world::{Outcome, draws::Draws},
};

/// Calls of each provider, by name.
fn shares(outcome: &Outcome) -> Vec<usize> {
    outcome.figures.calls_by_target.values().map(|counts| counts.all).collect()
}

/// Healthy providers `p0`, `p1` ... with these medians, chosen by a policy.
fn healthy(policy: &str, rate: u32, medians: &[u32]) -> Outcome {
    let target = |i: usize| format!("{{provider: p{i}}}");
    let targets: Vec<String> = (0..medians.len()).map(target).collect();
    let provider =
        |(i, median)| format!("  p{i}: {{latency: {{dist: lognormal, median_ms: {median}, sigma: 0.2}}}}\n");
    let providers: String = medians.iter().enumerate().map(provider).collect();
    play(&format!(
        "
duration_s: 300
arrivals: {{rate_per_s: {rate}}}
config: {{strategy: {{mode: loadbalance, policy: {policy}}}, targets: [{}]}}
providers:
{providers}",
        targets.join(", ")
    ))
}

#[test]
fn weights_are_kept_within_five_deviations() {
    for seed in 1..=8 {
        let mut draws = Draws::new(seed, "weights", 0);
        let weights: Vec<f64> = (0..2 + seed % 4).map(|_| 0.05 + draws.fraction().powi(3) * 10.0).collect();
        let targets: Vec<String> =
            (0..).zip(&weights).map(|(i, w)| format!("{{provider: p{i}, weight: {w}}}")).collect();
        let providers: Vec<String> = (0..weights.len()).map(|i| format!("p{i}: {{}}")).collect();
        let outcome = play(&format!(
            "
seed: {seed}
duration_s: 60
arrivals: {{rate_per_s: 50}}
config: {{strategy: {{mode: loadbalance}}, targets: [{}]}}
providers: {{{}}}
",
            targets.join(", "),
            providers.join(", ")
        ));
        let (requests, total) = (outcome.figures.requests as f64, weights.iter().sum::<f64>());
        let mut counts = vec![0; weights.len()];
        for call in &outcome.calls {
            counts[call.provider[1..].parse::<usize>().unwrap()] += 1;
        }
        for (count, weight) in counts.into_iter().zip(&weights) {
            let share = weight / total;
            let deviation = (requests * share * (1.0 - share)).sqrt();
            let off = (f64::from(count) - requests * share).abs();
            assert!(off <= 5.0 * deviation, "{weights:?}: {count} calls for {weight}\n{outcome}");
        }
    }
}

#[test]
fn users_are_spread_by_weight_and_stay() {
    let outcome = play(
        "
duration_s: 100
arrivals: {rate_per_s: 50}
users: 1000
headers: {x-portkey-metadata: '{\"user\": \"{user}\"}'}
config:
  strategy: {mode: loadbalance, sticky: {hash_fields: [metadata.user]}}
  targets: [{provider: alpha, weight: 3}, {provider: beta, weight: 1}]
providers: {alpha: {}, beta: {}}
",
    );
    let mut homes: Vec<Option<&str>> = vec![None; 1000];
    for request in &outcome.requests {
        // Arrivals count on, and so do users.
        let home = homes[(request.intent % 1000) as usize].get_or_insert(&request.target);
        assert_eq!(*home, request.target, "{request:?}");
    }
    let at_beta = homes.iter().filter(|home| **home == Some("config.targets[1]")).count();
    // Five deviations of 1000 users with a chance of a quarter.
    assert!((250 - 69..=250 + 69).contains(&at_beta), "{at_beta} of 1000 users");
}

#[test]
fn turns_are_equal_whatever_targets_take() {
    let counts = shares(&healthy("round_robin", 10, &[500, 2000, 8000]));
    assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
}

#[test]
fn the_least_busy_choice_starves_nobody() {
    for rate in [1, 20] {
        let outcome = healthy("least_busy", rate, &[1000, 1000, 4000]);
        let counts = shares(&outcome);
        // The slowest by its speed, at least.
        let all: usize = counts.iter().sum();
        assert!(counts.iter().all(|count| *count > all / 12), "{rate} per s: {counts:?}");
        assert!(counts[0].abs_diff(counts[1]) < all / 10, "{rate} per s: {counts:?}");
    }
}

#[test]
fn the_fastest_choice_starves_nobody() {
    for rate in [1, 20] {
        let counts = shares(&healthy("least_latency", rate, &[1000, 1000, 1000, 1500]));
        let all: usize = counts.iter().sum();
        assert!(counts.iter().all(|count| *count > all / 20), "{rate} per s: {counts:?}");
    }
}

#[test]
fn the_fastest_choice_comes_back_to_a_target_that_was_slow_for_a_while() {
    for rate in [1, 10] {
        let outcome = play(&format!(
            "
duration_s: 600
arrivals: {{rate_per_s: {rate}}}
config:
  strategy: {{mode: loadbalance, policy: least_latency}}
  targets: [{{provider: alpha}}, {{provider: beta}}]
providers:
  alpha:
    latency: {{dist: lognormal, median_ms: 1000, sigma: 0.2}}
    phases: [{{from_s: 60, until_s: 120, latency: {{dist: lognormal, median_ms: 10000, sigma: 0.2}}}}]
  beta: {{latency: {{dist: lognormal, median_ms: 1000, sigma: 0.2}}}}
"
        ));
        let calls = |from: u64, until: u64, provider: &str| {
            let within = |second: u64| (from..until).contains(&second);
            outcome
                .calls
                .iter()
                .filter(|call| call.provider == provider && within(call.start.as_secs()))
                .count()
        };
        // It takes some of its own slow times to be forgiven.
        let (alpha, beta) = (calls(420, 600, "alpha"), calls(420, 600, "beta"));
        assert!(alpha * 3 > beta, "{rate} per s: {alpha} and {beta} calls in the last minutes\n{outcome}");
        // And while it was slow, it was not called much.
        let (alpha, beta) = (calls(75, 120, "alpha"), calls(75, 120, "beta"));
        assert!(alpha * 3 < beta, "{rate} per s: {alpha} and {beta} calls while one was slow\n{outcome}");
    }
}
