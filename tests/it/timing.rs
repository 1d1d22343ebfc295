//! Time-outs, deadlines, retries, and callers that go away. The clock is paused: it jumps when all wait.

use std::time::Duration;

use futures::StreamExt as _;
use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, BillingClass, stream_image_response::Event},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Request;

use crate::support::{
    Gateway, Mode, Outcome, Worker, ask, attempts, both_ways, fallback, model, report, target, with,
};

const MS: Duration = Duration::from_millis(1);

fn nothing() -> Value {
    json!({})
}

fn rate_limited(retry_after: Duration) -> Outcome {
    let mut error = Error::new(ErrorKind::RateLimited, "slow down");
    error.retry_after = Some(retry_after);
    error.billing = BillingClass::RejectedUnbilled;
    Outcome::Fail(error)
}

fn down() -> Outcome {
    Outcome::Fail(Error::new(ErrorKind::Unavailable, "down"))
}

/// Timers have a grain of a millisecond, and more than one may be waited for.
fn assert_about(elapsed: Duration, expected: Duration) {
    assert!(elapsed + 20 * MS >= expected && elapsed <= expected + 60 * MS, "{elapsed:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_timeout_covers_the_body_and_lets_the_next_target_try() {
    for outcome in [Outcome::Silent, Outcome::Stalled] {
        both_ways(async |mode| {
            let worker = Worker::paint().script("a", [outcome.clone()]);
            let config = with(fallback(&["a", "b"]), &json!({"request_timeout": 500}));
            let gateway = Gateway::over(mode, &worker, &config);
            let started = Instant::now();
            let result = gateway.generate(&nothing()).await.unwrap();
            assert_about(started.elapsed(), 500 * MS);
            assert_eq!(
                attempts(report(&result)),
                ["config.targets[0] timeout 408", "config.targets[1] ok 200"]
            );
            let first = &report(&result).attempts[0];
            assert_eq!(first.message, "Request exceeded the timeout sent in the request: 500ms");
            assert_eq!(first.billing(), BillingClass::Unknown);
            worker.is_dropped(1).await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_timeout_is_of_each_attempt() {
    both_ways(async |mode| {
        let slow = Outcome::After(400 * MS, Box::new(Outcome::Good));
        let worker = Worker::paint().script("a", [Outcome::Silent, Outcome::Stalled, slow]);
        let retry = json!({"retry": {"attempts": 2, "on_status_codes": [408]}, "request_timeout": 500});
        let gateway = Gateway::over(mode, &worker, &with(target("a"), &retry));
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&result).retry_count, 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_nearest_request_timeout_holds_and_the_callers_header_beats_it() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let child = with(target("a"), &json!({"request_timeout": 300}));
        let config = json!({"strategy": {"mode": "fallback"}, "request_timeout": 5000, "targets": [child]});
        let gateway = Gateway::over(mode, &worker, &config);
        for (header, expected) in
            [(None, 300 * MS), (Some("700"), 700 * MS), (Some("a while"), 300 * MS), (Some("0"), 300 * MS)]
        {
            let headers = header.map(|value| ("x-portkey-request-timeout", value));
            let started = Instant::now();
            let error = gateway.generate_with(&nothing(), headers.as_slice()).await.unwrap_err();
            assert_eq!((error.kind, error.status), (ErrorKind::Timeout, 408));
            assert_about(started.elapsed(), expected);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_target_without_a_timeout_still_has_one() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let yaml = format!(
            "limits: {{attempt_timeout_ms: 2000}}\nconfigs: {{it: {}}}\ndefault_config: it\n",
            fallback(&["a", "b"])
        );
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        let result = gateway.generate(&nothing()).await.unwrap();
        assert_eq!(report(&result).attempts[0].message, "no answer within 2 s");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_bounds_all_attempts_together() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]).script("b", [Outcome::Stalled]);
        let config = with(fallback(&["a", "b", "c"]), &json!({"request_timeout": 1500}));
        let gateway = Gateway::over(mode, &worker, &config);
        let started = Instant::now();
        let error = gateway.generate_within(2000 * MS, &nothing()).await.unwrap_err();
        // A little earlier, so that the answer still gets there.
        assert_about(started.elapsed(), 1900 * MS);
        assert_eq!((error.kind, error.status), (ErrorKind::Timeout, 504));
        let report = error.report.as_ref().expect("the error tells what was tried");
        assert_eq!(attempts(report), ["config.targets[0] timeout 408", "config.targets[1] timeout 504"]);
        assert_eq!(worker.models_called(), ["a", "b"]);
        worker.is_dropped(2).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_bounds_a_caller_without_a_deadline() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]).script("b", [Outcome::Silent]);
        let config = with(fallback(&["a", "b", "c"]), &json!({"request_timeout": 4000}));
        let yaml =
            format!("limits: {{total_timeout_ms: 6000}}\nconfigs: {{it: {config}}}\ndefault_config: it\n");
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        for limit in [None, Some(Duration::from_secs(600))] {
            let started = Instant::now();
            let error = match limit {
                None => gateway.generate(&nothing()).await.unwrap_err(),
                Some(limit) => gateway.generate_within(limit, &nothing()).await.unwrap_err(),
            };
            assert_eq!((error.kind, error.status), (ErrorKind::Timeout, 504));
            assert_about(started.elapsed(), 6000 * MS);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_pauses_and_tries_the_same_target_again() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [down(), down(), Outcome::Good]);
        let config = with(fallback(&["a", "b"]), &json!({"retry": {"attempts": 3}}));
        let gateway = Gateway::over(mode, &worker, &config);
        let started = Instant::now();
        let result = gateway.generate(&nothing()).await.unwrap();
        // At most one second, then at most two.
        assert!(started.elapsed() < 3050 * MS, "{:?}", started.elapsed());
        assert_eq!(worker.models_called(), ["a", "a", "a"]);
        assert_eq!((report(&result).target.as_str(), report(&result).retry_count), ("config.targets[0]", 2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_child_replaces_its_parents_retry() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [down()]).script("b", [down()]);
        let own = with(target("a"), &json!({"retry": {"attempts": 1, "on_status_codes": [429]}}));
        let config = json!({
            "strategy": {"mode": "fallback"}, "retry": {"attempts": 2}, "targets": [own, target("b")],
        });
        Gateway::over(mode, &worker, &config).generate(&nothing()).await.unwrap_err();
        assert_eq!(worker.models_called(), ["a", "b", "b", "b"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_provider_says_how_long_to_wait_where_the_config_lets_it() {
    both_ways(async |mode| {
        for (heeds, at_least, at_most) in [(true, 7000 * MS, 8050 * MS), (false, Duration::ZERO, 1050 * MS)] {
            let worker = Worker::paint().script("a", [rate_limited(7000 * MS), Outcome::Good]);
            let retry = json!({"retry": {"attempts": 1, "use_retry_after_header": heeds}});
            let gateway = Gateway::over(mode, &worker, &with(target("a"), &retry));
            let started = Instant::now();
            gateway.generate(&nothing()).await.unwrap();
            let elapsed = started.elapsed();
            assert!(elapsed >= at_least && elapsed <= at_most, "{elapsed:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_outlasts_the_caller_is_not_made() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [rate_limited(7000 * MS)]);
        let retry = json!({"retry": {"attempts": 3, "use_retry_after_header": true}});
        let gateway = Gateway::over(mode, &worker, &with(fallback(&["a", "b"]), &retry));
        let started = Instant::now();
        let result = gateway.generate_within(5000 * MS, &nothing()).await.unwrap();
        assert_about(started.elapsed(), Duration::ZERO);
        assert_eq!(report(&result).target, "config.targets[1]");
        assert_eq!(worker.models_called(), ["a", "b"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_get_better_is_not_tried_again() {
    both_ways(async |mode| {
        for error in [
            Error::refused("prompt", "no").with_status(429),
            Error::new(ErrorKind::QuotaExhausted, "no credit"),
            Error::new(ErrorKind::InvalidRequest, "no"),
            Error::new(ErrorKind::Unavailable, "no").billed(BillingClass::Billed),
            Error::new(ErrorKind::Timeout, "no"),
        ] {
            let worker = Worker::paint().script("a", Outcome::fail(error));
            let gateway =
                Gateway::over(mode, &worker, &with(target("a"), &json!({"retry": {"attempts": 3}})));
            let error = gateway.generate(&nothing()).await.unwrap_err();
            assert_eq!(worker.requests().len(), 1, "{error:?}");
            assert_eq!(error.report.as_ref().unwrap().retry_count, 0, "{error:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_provider_is_tried_again_whatever_the_codes() {
    both_ways(async |mode| {
        let refused = Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, "connection refused");
        let worker = Worker::paint().script("a", [Outcome::Fail(refused), Outcome::Good]);
        let retry = json!({"retry": {"attempts": 1, "on_status_codes": [429]}});
        let result = Gateway::over(mode, &worker, &with(target("a"), &retry)).generate(&nothing()).await;
        assert_eq!(report(&result.unwrap()).retry_count, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_retry_count_tells_how_the_retries_ended() {
    let invalid = || Outcome::Fail(Error::new(ErrorKind::InvalidRequest, "no"));
    let retry = |attempts: u32| json!({"retry": {"attempts": attempts, "use_retry_after_header": true}});
    for (outcomes, config, expected) in [
        // The first call decides.
        (vec![Outcome::Good], retry(2), 0),
        (vec![invalid()], retry(2), 0),
        (vec![down()], json!({}), 0),
        (vec![down()], retry(0), 0),
        // A later one does, for good or bad.
        (vec![down(), Outcome::Good], retry(2), 1),
        (vec![down(), invalid()], retry(2), 1),
        // All were used up, or the provider asks for more patience than there is.
        (vec![down()], retry(2), -1),
        (vec![rate_limited(Duration::from_secs(3600))], retry(2), -1),
    ] {
        both_ways(async |mode| {
            let worker = Worker::paint().script("a", outcomes.clone());
            let gateway = Gateway::over(mode, &worker, &with(target("a"), &config));
            let count = match gateway.generate(&nothing()).await {
                Ok(result) => report(&result).retry_count,
                Err(error) => error.report.as_ref().unwrap().retry_count,
            };
            assert_eq!(count, expected, "{outcomes:?} {config}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_retry_count_is_of_the_last_target_and_counts_no_parallel_calls() {
    both_ways(async |mode| {
        let one = pb::ModelCapability { max_n: 1, ..model("one") };
        let worker =
            Worker::new("paint", vec![model("a"), one]).script("a", [down()]).script("one", [down()]);
        let first = with(target("a"), &json!({"retry": {"attempts": 2}}));
        let config = json!({"strategy": {"mode": "fallback"}, "targets": [first, target("one")]});
        let gateway = Gateway::over(mode, &worker, &config);
        let error = gateway.generate(&json!({"n": 3})).await.unwrap_err();
        assert_eq!(error.report.as_ref().unwrap().retry_count, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_preview_no_other_target_answers() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Previews(2, Box::new(down()))]);
        let config = with(fallback(&["a", "b"]), &json!({"retry": {"attempts": 2}}));
        let gateway = Gateway::over(mode, &worker, &config);
        let (events, end) = gateway.stream(&json!({"partial_images": 2})).await;
        assert_eq!(end.unwrap_err().kind, ErrorKind::Unavailable);
        assert!(events.iter().all(|event| matches!(event, Event::PartialImage(_))), "{events:?}");
        assert_eq!((events.len(), worker.models_called()), (2, vec!["a".to_owned()]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_preview_commits_every_level_of_a_tree() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", [Outcome::Previews(1, Box::new(Outcome::Silent))])
            .script("b", [down()]);
        let inner = with(fallback(&["a", "b"]), &json!({"request_timeout": 300}));
        let config = json!({"strategy": {"mode": "fallback"}, "targets": [inner, target("c")]});
        let (events, end) = Gateway::over(mode, &worker, &config).stream(&json!({"partial_images": 1})).await;
        assert_eq!((events.len(), end.unwrap_err().kind), (1, ErrorKind::Timeout));
        assert_eq!(worker.models_called(), ["a"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_a_preview_a_stream_falls_back_like_any_request() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", [down()])
            .script("b", [Outcome::Previews(1, Box::new(Outcome::Good))]);
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
        let (events, end) = gateway.stream(&json!({"partial_images": 1})).await;
        end.unwrap();
        let kinds: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::PartialImage(_) => "preview",
                Event::ImageChunk(_) => "chunk",
                Event::Result(result) => {
                    assert_eq!(report(result).target, "config.targets[1]");
                    "result"
                }
                Event::Progress(_) => "progress",
            })
            .collect();
        assert_eq!(kinds, ["preview", "chunk", "result"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_ends_the_workers_call() {
    both_ways(async |mode| {
        for outcome in [Outcome::Silent, Outcome::Stalled] {
            let worker = Worker::paint().script("a", [outcome]);
            let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
            let (started, fields) = (Instant::now(), nothing());
            tokio::select! {
                result = gateway.generate(&fields) => panic!("{result:?}"),
                () = worker.is_called(1) => {}
            }
            worker.is_dropped(1).await;
            assert!(started.elapsed() < 100 * MS, "{:?}", started.elapsed());
            assert_eq!(worker.models_called(), ["a"]);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_drops_its_stream_ends_the_workers_call() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Previews(1, Box::new(Outcome::Silent))]);
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
        let image = Some(ask(&json!({"partial_images": 1})));
        let request = Request::new(pb::StreamImageRequest { image });
        let mut events = gateway.router().stream_image(request).await.unwrap().into_inner();
        assert!(events.next().await.unwrap().is_ok());
        drop(events);
        worker.is_dropped(1).await;
        assert_eq!(worker.models_called(), ["a"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_during_a_pause_ends_the_retries() {
    let worker = Worker::paint().script("a", [rate_limited(5000 * MS)]);
    let retry = json!({"retry": {"attempts": 5, "use_retry_after_header": true}});
    let gateway = Gateway::over(Mode::Connected, &worker, &with(target("a"), &retry));
    let result = tokio::time::timeout(1000 * MS, gateway.generate(&nothing())).await;
    assert!(result.is_err());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(worker.requests().len(), 1);
}
