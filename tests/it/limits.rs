//! What bounds a request: deadlines inside deadlines, the wait for a first byte, budgets of retries and money.

use std::time::Duration;

use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, BillingClass},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Gateway, Mode, Outcome, Worker, attempts, both_ways, fails, fallback, model, report, target, with,
};

const MS: Duration = Duration::from_millis(1);

fn assert_about(elapsed: Duration, expected: Duration) {
    assert!(elapsed + 20 * MS >= expected && elapsed <= expected + 60 * MS, "{elapsed:?}, not {expected:?}");
}

fn nested(targets: &[Value]) -> Value {
    with(fallback(&[]), &json!({"targets": targets}))
}

/// No answer, and nobody knows whether it was paid for.
fn broken() -> Outcome {
    Outcome::Fail(Error::new(ErrorKind::Unavailable, "reset").billed(BillingClass::Unknown))
}

#[tokio::test(start_paused = true)]
async fn a_group_has_its_own_deadline_and_the_fallback_around_it_goes_on() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let group = with(fallback(&["a", "b"]), &json!({"total_timeout_ms": 1000}));
        let gateway = Gateway::over(mode, &worker, &nested(&[group, target("c")]));
        let started = Instant::now();
        let result = gateway.generate(&json!({})).await.unwrap();
        assert_about(started.elapsed(), 1000 * MS);
        assert_eq!(
            attempts(report(&result)),
            ["config.targets[0].targets[0] timeout 504", "config.targets[1] ok 200"]
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_below_is_never_later_than_the_one_above() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let group = with(fallback(&["a", "b"]), &json!({"total_timeout_ms": 5000}));
        let config = with(nested(&[group, target("c")]), &json!({"total_timeout_ms": 1000}));
        let started = Instant::now();
        let error = Gateway::over(mode, &worker, &config).generate(&json!({})).await.unwrap_err();
        assert_about(started.elapsed(), 1000 * MS);
        assert_eq!((error.status, worker.models_called()), (504, vec!["a".to_owned()]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_outlasts_its_group_is_not_begun() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let retry = json!({"retry": {"attempts": 5, "jitter": false}, "total_timeout_ms": 2500});
        let gateway = Gateway::over(mode, &worker, &nested(&[with(target("a"), &retry), target("b")]));
        let started = Instant::now();
        let result = gateway.generate(&json!({})).await.unwrap();
        // A second, and two more would be too many.
        assert_about(started.elapsed(), 1000 * MS);
        assert_eq!(
            (worker.models_called(), report(&result).target.as_str()),
            (vec!["a".into(), "a".into(), "b".into()], "config.targets[1]")
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_total_timeout_bounds_the_request() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let config = fallback(&["a", "b"]);
        let yaml =
            format!("limits: {{total_timeout_ms: 3000}}\nconfigs: {{it: {config}}}\ndefault_config: it\n");
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        for (header, takes) in [("1500", 1500 * MS), ("60000", 3000 * MS)] {
            let headers = [("x-imagegate-total-timeout-ms", header)];
            let started = Instant::now();
            let error = gateway.generate_with(&json!({}), &headers).await.unwrap_err();
            assert_about(started.elapsed(), takes);
            assert_eq!((error.kind, error.status), (ErrorKind::Timeout, 504));
        }
        for header in ["soon", "0", "-1", "1.5"] {
            let headers = [("x-imagegate-total-timeout-ms", header)];
            let error = gateway.generate_with(&json!({}), &headers).await.unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("x-imagegate-total-timeout-ms")));
        }
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_says_nothing_is_given_up_before_one_that_is_slow() {
    both_ways(async |mode| {
        let limits = json!({"first_byte_timeout_ms": 500, "request_timeout": 3000});
        for (outcome, takes, message) in [
            (Outcome::Silent, 500 * MS, "no first byte of an answer within 500 ms"),
            (Outcome::Stalled, 3000 * MS, "Request exceeded the timeout sent in the request: 3000ms"),
        ] {
            let worker = Worker::paint().script("a", [outcome]);
            let gateway = Gateway::over(mode, &worker, &with(fallback(&["a", "b"]), &limits));
            let started = Instant::now();
            let result = gateway.generate(&json!({})).await.unwrap();
            assert_about(started.elapsed(), takes);
            let first = &report(&result).attempts[0];
            assert_eq!((first.status, first.message.as_str()), (408, message));
            worker.is_dropped(1).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn retries_of_a_target_are_a_share_of_its_requests() {
    for (budget, second) in [(json!(0.2), 1), (json!(false), 11), (json!(3), 7)] {
        let worker = Worker::paint().script("a", [fails(500)]);
        let retry = json!({"retry": {"attempts": 10, "max_delay_ms": 10, "jitter": false, "budget": budget}});
        let gateway = Gateway::over(Mode::OneProcess, &worker, &with(target("a"), &retry));
        for _ in 0..2 {
            gateway.generate(&json!({})).await.unwrap_err();
        }
        assert_eq!(worker.requests().len(), 22, "{budget}: twenty may come at once");
        let error = gateway.generate(&json!({})).await.unwrap_err();
        assert_eq!(worker.requests().len(), 22 + second, "{budget}");
        let report = error.report.as_ref().unwrap();
        assert_eq!(report.retry_count, -1);
        let told = report.warnings.iter().any(|warning| warning.detail.contains("share of its requests"));
        assert_eq!(told, second < 11, "{budget}: {:?}", report.warnings);
    }
}

#[tokio::test(start_paused = true)]
async fn retries_stop_when_too_much_may_have_been_paid_twice() {
    let priced = pb::ModelCapability {
        prices: vec![pb::Price { item: "image".into(), usd: 0.04, ..Default::default() }],
        ..model("priced")
    };
    for (name, outcome, cap, calls) in [
        ("priced", broken(), Some(0.1), 3),
        ("priced", broken(), Some(0.0), 1),
        ("priced", broken(), None, 6),
        // Refused, so not paid for.
        ("priced", fails(500), Some(0.0), 6),
        // Nobody knows what it may cost.
        ("a", broken(), Some(100.0), 1),
    ] {
        both_ways(async |mode| {
            let worker =
                Worker::new("paint", vec![priced.clone(), model("a")]).script(name, [outcome.clone()]);
            let retry = json!({"retry": {"attempts": 5, "max_duplicate_spend_usd": cap}});
            let gateway = Gateway::over(mode, &worker, &with(target(name), &retry));
            let error = gateway.generate(&json!({})).await.unwrap_err();
            assert_eq!(worker.requests().len(), calls, "{name} {outcome:?} {cap:?}");
            let warnings = &error.report.as_ref().unwrap().warnings;
            let told = warnings.iter().any(|warning| warning.detail.contains("max_duplicate_spend_usd"));
            assert_eq!(told, calls < 6, "{name} {outcome:?} {cap:?}: {warnings:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_whose_breaker_opens_is_not_tried_again_where_another_can_take_over() {
    both_ways(async |mode| {
        let more = json!({"retry": {"attempts": 5}, "breaker": {"consecutive_failures": 2}});
        let worker = Worker::paint().script("a", [fails(500)]);
        Gateway::over(mode, &worker, &with(fallback(&["a", "b"]), &more)).generate(&json!({})).await.unwrap();
        assert_eq!(worker.models_called(), ["a", "a", "b"]);
        let worker = Worker::paint().script("a", [fails(500)]);
        Gateway::over(mode, &worker, &with(target("a"), &more)).generate(&json!({})).await.unwrap_err();
        assert_eq!(worker.models_called(), ["a"; 6]);
    })
    .await;
}
