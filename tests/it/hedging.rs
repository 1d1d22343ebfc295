//! A second call beside one that is late: when it is made, who wins, and what keeps it from costing too much.

use std::time::Duration;

use futures::StreamExt as _;
use imagegate::pb;
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Request;

use crate::support::{
    Gateway, Mode, Outcome, Worker, ask, attempts, both_ways, fails, model, report, slow, target, with,
};

const MS: Duration = Duration::from_millis(1);

/// Late is a second, and the budget never runs out.
fn hedge(models: &[&str]) -> Value {
    hedge_with(models, &json!({}))
}

fn hedge_with(models: &[&str], more: &Value) -> Value {
    let strategy = with(json!({"mode": "hedge", "after_ms": 1000, "budget": 1}), more);
    json!({"strategy": strategy, "targets": models.iter().map(|model| target(model)).collect::<Vec<_>>()})
}

fn assert_about(elapsed: Duration, expected: Duration) {
    assert!(elapsed + 20 * MS >= expected && elapsed <= expected + 60 * MS, "{elapsed:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn the_next_target_starts_when_the_first_is_late_and_the_loser_is_given_up() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(5000)]).script("b", [slow(500)]);
        let gateway = Gateway::over(mode, &worker, &hedge(&["a", "b", "c"]));
        let started = Instant::now();
        let result = gateway.generate(&json!({})).await.unwrap();
        assert_about(started.elapsed(), 1500 * MS);
        assert_eq!(attempts(report(&result)), ["config.targets[0] cancelled 0", "config.targets[1] ok 200"]);
        assert_eq!(report(&result).attempts[0].billing(), pb::BillingClass::Unknown);
        assert_eq!(report(&result).target, "config.targets[1]");
        worker.is_dropped(1).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_first_success_wins_whoever_it_is() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(1500)]).script("b", [slow(5000)]);
        let gateway = Gateway::over(mode, &worker, &hedge(&["a", "b"]));
        let started = Instant::now();
        let result = gateway.generate(&json!({})).await.unwrap();
        assert_about(started.elapsed(), 1500 * MS);
        assert_eq!(report(&result).target, "config.targets[0]");
        assert_eq!(worker.models_called(), ["a", "b"]);
        worker.is_dropped(1).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_answers_in_time_is_the_only_one_called() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(900)]);
        Gateway::over(mode, &worker, &hedge(&["a", "b"])).generate(&json!({})).await.unwrap();
        assert_eq!(worker.models_called(), ["a"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_starts_the_next_target_at_once() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]).script("b", [slow(500)]);
        let gateway = Gateway::over(mode, &worker, &hedge(&["a", "b"]));
        let started = Instant::now();
        let result = gateway.generate(&json!({})).await.unwrap();
        assert_about(started.elapsed(), 500 * MS);
        assert_eq!(report(&result).target, "config.targets[1]");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_late_target_starts_another() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", [Outcome::Silent])
            .script("b", [Outcome::Silent])
            .script("c", [slow(100)]);
        let gateway = Gateway::over(mode, &worker, &hedge(&["a", "b", "c"]));
        let started = Instant::now();
        let result = gateway.generate(&json!({})).await.unwrap();
        assert_about(started.elapsed(), 2100 * MS);
        assert_eq!(report(&result).target, "config.targets[2]");
        worker.is_dropped(2).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_not_listed_starts_no_other() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let config = hedge_with(&["a", "b"], &json!({"on_status_codes": [429]}));
        let error = Gateway::over(mode, &worker, &config).generate(&json!({})).await.unwrap_err();
        assert_eq!((error.status, worker.models_called()), (500, vec!["a".to_owned()]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_not_listed_does_not_end_a_call_that_may_succeed() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow(3000)]).script("b", [fails(500)]);
        let config = hedge_with(&["a", "b", "c"], &json!({"on_status_codes": [429]}));
        let result = Gateway::over(mode, &worker, &config).generate(&json!({})).await.unwrap();
        assert_eq!(report(&result).target, "config.targets[0]");
        assert_eq!(worker.models_called(), ["a", "b"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_last_failure_is_returned() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]).script("b", [fails(429)]);
        let error = Gateway::over(mode, &worker, &hedge(&["a", "b"])).generate(&json!({})).await.unwrap_err();
        assert_eq!((error.status, worker.requests().len()), (429, 2));
        assert_eq!(error.report.as_ref().unwrap().target, "config.targets[1]");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn extra_calls_have_a_budget() {
    let worker = Worker::paint().script("a", [slow(1500)]).script("b", [slow(100)]);
    let config = hedge_with(&["a", "b"], &json!({"budget": 0}));
    let gateway = Gateway::over(Mode::OneProcess, &worker, &config);
    for _ in 0..13 {
        gateway.generate(&json!({})).await.unwrap();
    }
    // As many as may come at once, and none is earned.
    let extra = worker.models_called().iter().filter(|model| *model == "b").count();
    assert_eq!(extra, 10);
}

#[tokio::test(start_paused = true)]
async fn when_most_calls_are_late_there_are_no_extra_ones() {
    let worker = Worker::paint().script("a", [slow(1500)]).script("b", [slow(100)]);
    let gateway = Gateway::over(Mode::OneProcess, &worker, &hedge(&["a", "b"]));
    for _ in 0..40 {
        gateway.generate(&json!({})).await.unwrap();
    }
    let called = worker.models_called();
    let extra = called.iter().filter(|model| *model == "b").count();
    assert!((10..20).contains(&extra), "{extra}");
    assert!(called[called.len() - 20..].iter().all(|model| model == "a"), "{called:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_shown_previews_is_not_hedged() {
    both_ways(async |mode| {
        let late = Outcome::After(3000 * MS, Box::new(Outcome::Previews(1, Box::new(Outcome::Good))));
        let worker = Worker::paint().script("a", [late]);
        let gateway = Gateway::over(mode, &worker, &hedge(&["a", "b"]));
        let (_, end) = gateway.stream(&json!({"partial_images": 1})).await;
        end.unwrap();
        assert_eq!(worker.models_called(), ["a"]);
        // A stream without previews is hedged like any request.
        let (_, end) = gateway.stream(&json!({})).await;
        end.unwrap();
        assert_eq!(worker.models_called(), ["a", "a", "b"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn extra_calls_stay_within_what_may_be_spent_twice() {
    let priced = |name: &str| pb::ModelCapability {
        prices: vec![pb::Price { item: "image".into(), usd: 0.04, ..Default::default() }],
        ..model(name)
    };
    for (cap, n, second, hedged) in
        [(0.05, 1, "b", true), (0.03, 1, "b", false), (0.05, 2, "b", false), (5.0, 1, "unpriced", false)]
    {
        both_ways(async |mode| {
            let worker = Worker::new("paint", vec![priced("a"), priced("b"), model("unpriced")])
                .script("a", [slow(3000)]);
            let retry = json!({"retry": {"attempts": 0, "max_duplicate_spend_usd": cap}});
            let gateway = Gateway::over(mode, &worker, &with(hedge(&["a", second]), &retry));
            gateway.generate(&json!({"n": n})).await.unwrap();
            assert_eq!(worker.requests().len(), if hedged { 2 } else { 1 }, "{cap} {n} {second}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_ends_all_calls() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]).script("b", [Outcome::Silent]);
        let gateway = Gateway::over(mode, &worker, &hedge(&["a", "b"]));
        let request = Request::new(pb::StreamImageRequest { image: Some(ask(&json!({}))) });
        let mut events = gateway.router().stream_image(request).await.unwrap().into_inner();
        tokio::select! {
            event = events.next() => panic!("{event:?}"),
            () = worker.is_called(2) => {}
        }
        drop(events);
        worker.is_dropped(2).await;
    })
    .await;
}
