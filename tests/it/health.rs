//! Circuit breakers and pauses: what opens them, who shares them, and that a bad chance beats none.

use std::time::Duration;

use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, BillingClass},
};
use serde_json::{Value, json};

use crate::support::{
    Gateway, Mode, Outcome, Worker, attempts, both_ways, fails, fallback, model, rate_limited, report, slow,
    target, with,
};

const SECOND: Duration = Duration::from_secs(1);

/// A fallback whose targets are left alone for ten seconds after so many failures in a row.
fn guarded(models: &[&str], failures: u32) -> Value {
    with(fallback(models), &json!({"breaker": {"consecutive_failures": failures, "cooldown_s": 10}}))
}

async fn ask(gateway: &Gateway) -> pb::ImageResult {
    gateway.generate(&json!({})).await.unwrap()
}

/// Why the first target was passed over; empty if it was called.
async fn reason(gateway: &Gateway) -> String {
    report(&ask(gateway).await).attempts[0].reason.clone()
}

fn calls_of(worker: &Worker, model: &str) -> usize {
    worker.models_called().iter().filter(|called| *called == model).count()
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_after_failures_in_a_row_and_the_target_is_passed_over() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let gateway = Gateway::over(mode, &worker, &guarded(&["a", "b"], 3));
        for _ in 0..3 {
            assert_eq!(reason(&gateway).await, "");
        }
        let result = ask(&gateway).await;
        assert_eq!(attempts(report(&result)), ["config.targets[0] skipped 0", "config.targets[1] ok 200"]);
        let skipped = &report(&result).attempts[0];
        assert_eq!((skipped.reason.as_str(), skipped.billing()), ("breaker_open", BillingClass::NotSent));
        assert!(skipped.message.starts_with("left alone for another 10.0 s"), "{}", skipped.message);
        assert_eq!(calls_of(&worker, "a"), 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_success_in_between_starts_the_count_again() {
    both_ways(async |mode| {
        let script = [fails(500), fails(500), Outcome::Good, fails(500), fails(500), Outcome::Good];
        let worker = Worker::paint().script("a", script);
        let gateway = Gateway::over(mode, &worker, &guarded(&["a", "b"], 3));
        for _ in 0..6 {
            ask(&gateway).await;
        }
        assert_eq!(calls_of(&worker, "a"), 6);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_any_setting_seven_failures_in_a_row_open_it_for_fifteen_seconds() {
    let worker = Worker::paint().script("a", [fails(500)]);
    let gateway = Gateway::over(Mode::OneProcess, &worker, &fallback(&["a", "b"]));
    for _ in 0..10 {
        ask(&gateway).await;
    }
    assert_eq!(calls_of(&worker, "a"), 7);
    tokio::time::advance(14 * SECOND).await;
    assert_eq!(reason(&gateway).await, "breaker_open");
    tokio::time::advance(SECOND).await;
    assert_eq!(reason(&gateway).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_share_of_failures_opens_it_too() {
    both_ways(async |mode| {
        let every_other = (0..20).map(|i| if i % 2 == 0 { Outcome::Good } else { fails(500) });
        let worker = Worker::paint().script("a", every_other.collect::<Vec<_>>());
        let breaker =
            json!({"breaker": {"consecutive_failures": 100, "failure_ratio": 0.5, "min_requests": 10}});
        let gateway = Gateway::over(mode, &worker, &with(fallback(&["a", "b"]), &breaker));
        for _ in 0..14 {
            ask(&gateway).await;
        }
        assert_eq!(calls_of(&worker, "a"), 10);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_the_cooldown_one_request_probes_and_the_others_pass_the_target_over() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500), slow(5000), Outcome::Good]);
        let gateway = Gateway::over(mode, &worker, &guarded(&["a", "b"], 1));
        ask(&gateway).await;
        tokio::time::advance(10 * SECOND).await;
        let other = async {
            worker.is_called(3).await;
            reason(&gateway).await
        };
        let (probe, other) = futures::join!(ask(&gateway), other);
        assert_eq!(report(&probe).target, "config.targets[0]");
        assert_eq!(other, "breaker_half_open");
        // It gets all of its traffic again after the slow start.
        tokio::time::advance(30 * SECOND).await;
        for _ in 0..10 {
            assert_eq!(report(&ask(&gateway).await).target, "config.targets[0]");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_opens_it_again() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let gateway = Gateway::over(mode, &worker, &guarded(&["a", "b"], 3));
        for _ in 0..3 {
            ask(&gateway).await;
        }
        for _ in 0..2 {
            tokio::time::advance(10 * SECOND).await;
            assert_eq!(reason(&gateway).await, "");
            assert_eq!(reason(&gateway).await, "breaker_open");
        }
        assert_eq!(calls_of(&worker, "a"), 5);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_comes_back_gets_a_tenth_at_first() {
    let worker = Worker::paint().script("a", [fails(500), Outcome::Good]);
    let gateway = Gateway::seeded(&worker, &guarded(&["a", "b"], 1), 11);
    ask(&gateway).await;
    tokio::time::advance(10 * SECOND).await;
    ask(&gateway).await;
    let mut reasons = Vec::new();
    for _ in 0..100 {
        reasons.push(reason(&gateway).await);
    }
    let called = reasons.iter().filter(|reason| reason.is_empty()).count();
    assert!((2..=25).contains(&called), "{called}");
    assert!(reasons.iter().all(|reason| reason.is_empty() || reason == "slow_start"), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_targets_fault_never_opens_it() {
    let outcomes = [400, 401, 403, 404, 409, 413, 422, 429].map(fails).into_iter().chain([
        Outcome::Withheld,
        Outcome::Fail(Error::refused("prompt", "no")),
        Outcome::Fail(Error::refused("prompt", "no").with_status(500)),
        Outcome::Fail(Error::new(ErrorKind::QuotaExhausted, "no credit")),
    ]);
    for outcome in outcomes {
        let worker = Worker::paint().script("a", [outcome.clone()]);
        let gateway = Gateway::over(Mode::OneProcess, &worker, &guarded(&["a", "b"], 1));
        for _ in 0..5 {
            ask(&gateway).await;
        }
        assert_eq!(calls_of(&worker, "a"), 5, "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_shows_that_the_target_does_not_work_opens_it() {
    let refused = Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, "connection refused");
    let outcomes = [500, 502, 503, 504, 529].map(fails).into_iter().chain([
        Outcome::Fail(refused),
        Outcome::Html,
        Outcome::Truncated,
        Outcome::EndsEarly,
        Outcome::Images(Vec::new()),
        Outcome::Silent,
        Outcome::Stalled,
    ]);
    for outcome in outcomes {
        let worker = Worker::paint().script("a", [outcome.clone()]);
        let config = with(guarded(&["a", "b"], 1), &json!({"request_timeout": 500}));
        let gateway = Gateway::over(Mode::OneProcess, &worker, &config);
        ask(&gateway).await;
        assert_eq!(reason(&gateway).await, "breaker_open", "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_are_broken_they_are_called_in_their_order() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]).script("b", [fails(503)]);
        let gateway = Gateway::over(mode, &worker, &guarded(&["a", "b"], 1));
        for _ in 0..3 {
            assert_eq!(gateway.generate(&json!({})).await.unwrap_err().status, 503);
        }
        assert_eq!(worker.models_called(), ["a", "b", "a", "b", "a", "b"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_target_is_called_where_the_others_cannot_serve_the_request() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500), Outcome::Good]);
        let gateway = Gateway::over(mode, &worker, &guarded(&["a", "nosuch"], 1));
        gateway.generate(&json!({})).await.unwrap_err();
        assert_eq!(report(&ask(&gateway).await).target, "config.targets[0]");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_nobody_stands_in_for_is_never_left_alone() {
    both_ways(async |mode| {
        let single = json!({"strategy": {"mode": "single"}, "targets": [target("a"), target("b")]});
        for config in [target("a"), single] {
            let worker = Worker::paint().script("a", [fails(500)]);
            let breaker = json!({"breaker": {"consecutive_failures": 1}});
            let gateway = Gateway::over(mode, &worker, &with(config, &breaker));
            for _ in 0..5 {
                gateway.generate(&json!({})).await.unwrap_err();
            }
            assert_eq!(worker.models_called(), ["a"; 5]);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_fallback_that_does_not_go_on_for_server_errors_still_calls_a_broken_target() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let strategy = json!({"strategy": {"mode": "fallback", "on_status_codes": [429]}});
        let gateway = Gateway::over(mode, &worker, &with(guarded(&["a", "b"], 1), &strategy));
        for _ in 0..3 {
            assert_eq!(gateway.generate(&json!({})).await.unwrap_err().status, 500);
        }
        assert_eq!(worker.models_called(), ["a"; 3]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_breaker_can_be_switched_off_and_the_nearest_setting_counts() {
    let off = with(target("a"), &json!({"breaker": false}));
    let parent = json!({"strategy": {"mode": "fallback"}, "breaker": {"consecutive_failures": 1}});
    let on = json!({"breaker": {"consecutive_failures": 1}});
    let child = with(target("a"), &on);
    for (config, calls) in [
        (with(guarded(&["a", "b"], 1), &json!({"breaker": false})), 12),
        (with(parent, &json!({"targets": [off, target("b")]})), 12),
        (json!({"strategy": {"mode": "fallback"}, "breaker": false, "targets": [child, target("b")]}), 1),
        (
            json!({"strategy": with(json!({"mode": "fallback"}), &on), "targets": [target("a"), target("b")]}),
            1,
        ),
    ] {
        let worker = Worker::paint().script("a", [fails(500)]);
        let gateway = Gateway::over(Mode::OneProcess, &worker, &config);
        for _ in 0..12 {
            ask(&gateway).await;
        }
        assert_eq!(calls_of(&worker, "a"), calls, "{config}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_references_breaker_counts_what_it_lists() {
    let listed = json!({"failure_threshold": 2, "cooldown_interval": 30000, "failure_status_codes": [429]});
    let unlisted = json!({"failure_threshold": 2, "cooldown_interval": 30000});
    let share = json!({
        "failure_threshold": 100, "cooldown_interval": 30000, "failure_threshold_percentage": 50, "minimum_requests": 3,
    });
    for (cb_config, status, calls) in
        [(&listed, 429, 2), (&listed, 500, 6), (&unlisted, 500, 2), (&unlisted, 429, 6), (&share, 500, 3)]
    {
        let worker = Worker::paint().script("a", [fails(status)]);
        let config = with(fallback(&["a", "b"]), &json!({"cb_config": cb_config}));
        let gateway = Gateway::over(Mode::OneProcess, &worker, &config);
        for _ in 0..6 {
            ask(&gateway).await;
        }
        assert_eq!(calls_of(&worker, "a"), calls, "{cb_config} {status}");
        tokio::time::advance(30 * SECOND).await;
        assert_eq!(reason(&gateway).await, "", "{cb_config} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn configs_that_call_the_same_target_share_its_breaker() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let (one, two) = (guarded(&["a", "b"], 1), guarded(&["c", "a", "b"], 1));
        let yaml = format!("auth: open\nconfigs: {{one: {one}}}\n");
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        gateway.generate_with(&json!({}), &[("x-portkey-config", "one")]).await.unwrap();
        worker.script("c", [fails(400)]);
        let two = two.to_string();
        let result = gateway.generate_with(&json!({}), &[("x-portkey-config", &two)]).await.unwrap();
        assert_eq!(report(&result).attempts[1].reason, "breaker_open");
        assert_eq!(worker.models_called(), ["a", "b", "c", "b"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn another_credential_or_model_is_another_target() {
    both_ways(async |mode| {
        let vault = Worker::locked("vault", vec![model("v"), model("w")]).script("v", [fails(500)]);
        let gateway = Gateway::new(mode, "auth: open\n", &[&vault]);
        let with_key = async |key: &str| {
            let target = |model: &str| {
                json!({"provider": "vault", "api_key": key, "override_params": {"model": model}})
            };
            let config = with(guarded(&[], 1), &json!({"targets": [target("v"), target("w")]})).to_string();
            let result = gateway.generate_with(&json!({}), &[("x-portkey-config", &config)]).await.unwrap();
            report(&result).attempts[0].reason.clone()
        };
        assert_eq!(with_key("sk-one").await, "");
        assert_eq!(with_key("sk-one").await, "breaker_open");
        assert_eq!(with_key("sk-two").await, "");
        assert_eq!(calls_of(&vault, "w"), 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_429_pauses_the_target_for_everybody_without_opening_its_breaker() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [rate_limited(20 * SECOND), Outcome::Good]);
        let gateway = Gateway::over(mode, &worker, &guarded(&["a", "b"], 1));
        assert_eq!(reason(&gateway).await, "");
        assert_eq!(reason(&gateway).await, "rate_limited");
        tokio::time::advance(19 * SECOND).await;
        assert_eq!(reason(&gateway).await, "rate_limited");
        tokio::time::advance(SECOND).await;
        // All of its traffic at once: it was not broken.
        for _ in 0..10 {
            assert_eq!(report(&ask(&gateway).await).target, "config.targets[0]");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_believed_for_five_minutes() {
    let worker = Worker::paint().script("a", [rate_limited(86_400 * SECOND), Outcome::Good]);
    let gateway = Gateway::over(Mode::OneProcess, &worker, &fallback(&["a", "b"]));
    ask(&gateway).await;
    tokio::time::advance(299 * SECOND).await;
    assert_eq!(reason(&gateway).await, "rate_limited");
    tokio::time::advance(SECOND).await;
    assert_eq!(reason(&gateway).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_fallback_that_does_not_go_on_for_429_still_calls_a_paused_target() {
    let worker = Worker::paint().script("a", [rate_limited(20 * SECOND)]);
    let strategy = json!({"strategy": {"mode": "fallback", "on_status_codes": [500]}});
    let gateway = Gateway::over(Mode::OneProcess, &worker, &with(fallback(&["a", "b"]), &strategy));
    for _ in 0..3 {
        assert_eq!(gateway.generate(&json!({})).await.unwrap_err().status, 429);
    }
    assert_eq!(worker.models_called(), ["a"; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_starts_with_the_first_target_that_is_not_broken() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let config = with(guarded(&["a", "b"], 1), &json!({"strategy": {"mode": "hedge", "after_ms": 1000}}));
        let gateway = Gateway::over(mode, &worker, &config);
        ask(&gateway).await;
        assert_eq!(reason(&gateway).await, "breaker_open");
        assert_eq!(worker.models_called(), ["a", "b", "b"]);
    })
    .await;
}
