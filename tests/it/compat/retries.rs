//! Retries, pauses, counts and time-outs of one target.

use std::time::Duration;

use imagegate::{
    error::{Error, ErrorKind, Result},
    pb::{self, BillingClass},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{refused, worker};
use crate::support::{
    Gateway, Mode, Outcome, Worker, both_ways, fails, fallback, rate_limited, report, slow, target, with,
};

const MS: Duration = Duration::from_millis(1);

/// One target, what it answers, and what comes of it.
struct Row {
    /// What the reference does; after "but": what we do instead.
    says: &'static str,
    retry: Value,
    script: Vec<Outcome>,
    calls: usize,
    takes: Duration,
    /// `x-portkey-retry-attempt-count`.
    count: i32,
}

fn count(result: &Result<pb::ImageResult>) -> i32 {
    match result {
        Ok(result) => report(result).retry_count,
        Err(error) => error.report.as_ref().unwrap().retry_count,
    }
}

async fn check(rows: &[Row]) {
    for row in rows {
        both_ways(async |mode| {
            let worker = worker(&[("a", row.script.clone())]);
            let gateway = Gateway::over(mode, &worker, &with(target("a"), &row.retry));
            let started = Instant::now();
            let result = gateway.generate(&json!({})).await;
            let took = started.elapsed();
            assert_eq!(worker.requests().len(), row.calls, "{}", row.says);
            assert_eq!(count(&result), row.count, "{}: {result:?}", row.says);
            // Timers have a grain of a millisecond, and more than one may be waited for.
            assert!(took >= row.takes && took < row.takes + 100 * MS, "{}: {took:?}", row.says);
        })
        .await;
    }
}

fn exactly(attempts: u32) -> Value {
    json!({"retry": {"attempts": attempts, "jitter": false}})
}

fn listed(attempts: u32, codes: &[u16]) -> Value {
    json!({"retry": {"attempts": attempts, "on_status_codes": codes, "jitter": false}})
}

fn heeding(attempts: u32) -> Value {
    json!({"retry": {"attempts": attempts, "use_retry_after_header": true, "jitter": false}})
}

#[tokio::test(start_paused = true)]
async fn retries_are_as_many_and_as_far_apart_as_in_the_reference() {
    let broken = Error::transport(ErrorKind::Unavailable, BillingClass::Unknown, "connection reset");
    check(&[
        Row {
            says: "attempts + 1 calls at most, 1, 2, 4, 8, 16 s apart",
            retry: exactly(5),
            script: vec![fails(500)],
            calls: 6,
            takes: 31_000 * MS,
            count: -1,
        },
        Row {
            says: "the waits double without end, but here the longest is 16 s",
            retry: exactly(7),
            script: vec![fails(500)],
            calls: 8,
            takes: 63_000 * MS,
            count: -1,
        },
        Row {
            says: "a success stops",
            retry: exactly(3),
            script: vec![fails(500), Outcome::Good],
            calls: 2,
            takes: 1000 * MS,
            count: 1,
        },
        Row {
            says: "a status that is not listed stops",
            retry: exactly(3),
            script: vec![fails(400)],
            calls: 1,
            takes: Duration::ZERO,
            count: 0,
        },
        Row {
            says: "without attempts there are none",
            retry: listed(0, &[500]),
            script: vec![fails(500)],
            calls: 1,
            takes: Duration::ZERO,
            count: 0,
        },
        Row {
            says: "without `retry` there are none",
            retry: json!({}),
            script: vec![fails(500)],
            calls: 1,
            takes: Duration::ZERO,
            count: 0,
        },
        Row {
            says: "an empty list switches retries of statuses off",
            retry: listed(2, &[]),
            script: vec![fails(500)],
            calls: 1,
            takes: Duration::ZERO,
            count: 0,
        },
        Row {
            says: "a refused connection is retried whatever the list; its count is 1, but here -1: all were used",
            retry: listed(1, &[429]),
            script: vec![refused()],
            calls: 2,
            takes: 1000 * MS,
            count: -1,
        },
        Row {
            says: "any network failure is, but here only if nothing was sent",
            retry: listed(1, &[429]),
            script: vec![Outcome::Fail(broken.clone())],
            calls: 1,
            takes: Duration::ZERO,
            count: 0,
        },
        Row {
            says: "or if its status is listed",
            retry: listed(1, &[503]),
            script: vec![Outcome::Fail(broken)],
            calls: 2,
            takes: 1000 * MS,
            count: -1,
        },
        Row {
            says: "a success of no use is a success, but here it was paid for, and is not tried again",
            retry: exactly(2),
            script: vec![Outcome::Html],
            calls: 1,
            takes: Duration::ZERO,
            count: 0,
        },
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_default_list_is_the_references_with_529() {
    let row = |status, calls, takes, count| Row {
        says: "the default list",
        retry: exactly(1),
        script: vec![fails(status)],
        calls,
        takes,
        count,
    };
    for status in [429, 500, 502, 503, 504, 529] {
        check(&[row(status, 2, 1000 * MS, -1)]).await;
    }
    for status in [400, 401, 403, 404, 408, 409, 422, 501] {
        check(&[row(status, 1, Duration::ZERO, 0)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn waits_are_drawn_from_below_the_references() {
    let worker = Worker::paint().script("a", [fails(500)]);
    let config = with(target("a"), &json!({"retry": {"attempts": 3}, "breaker": false}));
    let gateway = Gateway::seeded(&worker, &config, 1);
    let mut waits = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        gateway.generate(&json!({})).await.unwrap_err();
        waits.push(started.elapsed());
    }
    assert!(waits.iter().all(|wait| *wait < 7000 * MS), "{waits:?}");
    assert!(waits[0] != waits[1] && waits[1] != waits[2], "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_provider_is_given_the_pause_it_asks_for() {
    let mut overloaded = Error::new(ErrorKind::Unavailable, "overloaded").with_status(503);
    overloaded.retry_after = Some(2000 * MS);
    check(&[
        Row {
            says: "without the flag the waits are our own",
            retry: exactly(1),
            script: vec![rate_limited(2000 * MS), Outcome::Good],
            calls: 2,
            takes: 1000 * MS,
            count: 1,
        },
        Row {
            says: "2 s are 2 s, and 2 s more after the last failure, but here not those",
            retry: heeding(1),
            script: vec![rate_limited(2000 * MS)],
            calls: 2,
            takes: 2000 * MS,
            count: -1,
        },
        Row {
            says: "300 ms, three calls: 0.9 s, but here 0.6 s",
            retry: heeding(2),
            script: vec![rate_limited(300 * MS)],
            calls: 3,
            takes: 600 * MS,
            count: -1,
        },
        Row {
            says: "0 is no pause: the wait is our own",
            retry: heeding(1),
            script: vec![rate_limited(Duration::ZERO)],
            calls: 2,
            takes: 1000 * MS,
            count: -1,
        },
        Row {
            says: "none is no pause: the wait is our own",
            retry: heeding(1),
            script: vec![fails(429)],
            calls: 2,
            takes: 1000 * MS,
            count: -1,
        },
        Row {
            says: "for a 429 only, but here for any status that is retried",
            retry: heeding(1),
            script: vec![Outcome::Fail(overloaded), Outcome::Good],
            calls: 2,
            takes: 2000 * MS,
            count: 1,
        },
        Row {
            says: "60 s and more end the retries, but here only what is longer than the request",
            retry: heeding(1),
            script: vec![rate_limited(90_000 * MS), Outcome::Good],
            calls: 2,
            takes: 90_000 * MS,
            count: 1,
        },
        Row {
            says: "too long a pause ends the retries at once",
            retry: heeding(1),
            script: vec![rate_limited(3_600_000 * MS)],
            calls: 1,
            takes: Duration::ZERO,
            count: -1,
        },
        Row {
            says: "a 429 that is not retried has no pause",
            retry: json!({"retry": {"attempts": 1, "use_retry_after_header": true, "on_status_codes": [500]}}),
            script: vec![rate_limited(2000 * MS)],
            calls: 1,
            takes: Duration::ZERO,
            count: 0,
        },
        Row {
            says: "the plural spelling of the flag is the same",
            retry: json!({"retry": {"attempts": 1, "use_retry_after_headers": true, "jitter": false}}),
            script: vec![rate_limited(3000 * MS), Outcome::Good],
            calls: 2,
            takes: 3000 * MS,
            count: 1,
        },
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_count_tells_how_the_last_targets_retries_ended() {
    let row = |says, retry, script: Vec<Outcome>, takes, count| {
        let calls = script.len();
        Row { says, retry, script, calls, takes, count }
    };
    check(&[
        row("0: the first call succeeded", exactly(2), vec![Outcome::Good], Duration::ZERO, 0),
        row("0: the first failure is not retried", exactly(2), vec![fails(401)], Duration::ZERO, 0),
        row("0: retries are off", json!({}), vec![fails(500)], Duration::ZERO, 0),
        row("k: then success", exactly(2), vec![fails(500), fails(500), Outcome::Good], 3000 * MS, 2),
        row("k: then a status that is not listed", exactly(2), vec![fails(500), fails(400)], 1000 * MS, 1),
        row("-1: all used", exactly(2), vec![fails(500), fails(503), fails(500)], 3000 * MS, -1),
    ])
    .await;
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let config = with(fallback(&["a", "b"]), &exactly(2));
        let result = Gateway::over(mode, &worker, &config).generate(&json!({})).await;
        assert_eq!(count(&result), 0, "retries of earlier targets do not show in it");
        // Here they do elsewhere.
        assert_eq!(report(&result.unwrap()).attempts.len(), 4);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_of_one_attempt_and_has_the_references_words() {
    let limited = |more: &Value| with(json!({"request_timeout": 300}), more);
    check(&[
        Row {
            says: "408 is not in the default list",
            retry: limited(&exactly(1)),
            script: vec![Outcome::Silent],
            calls: 1,
            takes: 300 * MS,
            count: 0,
        },
        Row {
            says: "listed, it is retried: 0.3 + 1 + 0.3 s",
            retry: limited(&listed(1, &[408])),
            script: vec![Outcome::Silent],
            calls: 2,
            takes: 1600 * MS,
            count: -1,
        },
        Row {
            says: "the limit is of the answer's headers, but here of its body too",
            retry: limited(&json!({})),
            script: vec![Outcome::Stalled],
            calls: 1,
            takes: 300 * MS,
            count: 0,
        },
        Row {
            says: "0 is no limit",
            retry: json!({"request_timeout": 0}),
            script: vec![slow(5000)],
            calls: 1,
            takes: 5000 * MS,
            count: 0,
        },
        Row {
            says: "there is no default limit, but here one of 300 s",
            retry: json!({}),
            script: vec![Outcome::Silent],
            calls: 1,
            takes: 300_000 * MS,
            count: 0,
        },
    ])
    .await;
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent]);
        let gateway = Gateway::over(mode, &worker, &with(target("a"), &json!({"request_timeout": 500})));
        for (header, limit) in [(None, 500), (Some("700"), 700), (Some("soon"), 500)] {
            let headers = header.map(|value| ("x-portkey-request-timeout", value));
            let error = gateway.generate_with(&json!({}), headers.as_slice()).await.unwrap_err();
            assert_eq!(
                (error.status, &*error.openai_type(), error.openai_code()),
                (408, "timeout_error", None)
            );
            assert_eq!(error.message, format!("Request exceeded the timeout sent in the request: {limit}ms"));
            // There no provider is named.
            assert_eq!(error.provider, "paint");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_childs_retry_replaces_its_parents_and_the_nearest_time_out_counts() {
    let worker = Worker::paint().script("a", [fails(400)]).script("b", [Outcome::Silent]);
    let parent = json!({"retry": {"attempts": 1, "on_status_codes": [400]}, "request_timeout": 5000});
    let children = json!({"targets": [
        with(target("a"), &json!({"retry": {"attempts": 1}})),
        with(target("b"), &json!({"request_timeout": 200})),
    ]});
    let config = with(with(fallback(&[]), &parent), &children);
    let started = Instant::now();
    Gateway::over(Mode::OneProcess, &worker, &config).generate(&json!({})).await.unwrap_err();
    assert_eq!(worker.models_called(), ["a", "b"]);
    assert!(started.elapsed() < 300 * MS, "{:?}", started.elapsed());
}
