//! `Idempotency-Key`: the same key and request are paid once.

use std::time::Duration;

use futures::future::join_all;
use imagegate::{
    error::{Error, ErrorKind, Result},
    pb,
};
use serde_json::{Value, json};

use crate::support::{Gateway, Outcome, Worker, both_ways, report, target};

const KEY: (&str, &str) = ("idempotency-key", "order-1");
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn nothing() -> Value {
    json!({})
}

async fn ask(gateway: &Gateway, fields: &Value) -> Result<pb::ImageResult> {
    gateway.generate_with(fields, &[KEY]).await
}

fn slow() -> Outcome {
    Outcome::After(Duration::from_secs(5), Box::new(Outcome::Good))
}

#[tokio::test(start_paused = true)]
async fn the_same_key_and_request_get_the_same_answer_from_one_call() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let first = ask(&gateway, &json!({"seed": 7})).await.unwrap();
        let second = ask(&gateway, &json!({"seed": 7})).await.unwrap();
        assert_eq!(worker.requests().len(), 1);
        assert_eq!(second.images, first.images);
        assert_eq!(report(&second).replay_of, report(&first).request_id);
        assert_ne!(report(&second).request_id, report(&first).request_id);
        assert_eq!(report(&second).target, "config");
        assert!(report(&second).attempts.is_empty() && report(&second).cost_lines.is_empty());
        assert_eq!(report(&first).replay_of, "");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_a_key_every_request_is_its_own() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        for _ in 0..2 {
            gateway.generate(&json!({})).await.unwrap();
        }
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_request_is_refused() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        ask(&gateway, &json!({"seed": 7})).await.unwrap();
        let config = target("b").to_string();
        let headers = [KEY, ("x-portkey-config", config.as_str())];
        let other_route = gateway.generate_with(&json!({"seed": 7}), &headers).await;
        for error in [ask(&gateway, &json!({"seed": 8})).await.unwrap_err(), other_route.unwrap_err()] {
            assert_eq!((error.kind, error.status), (ErrorKind::InvalidRequest, 422));
            assert_eq!(error.code.as_deref(), Some("idempotency_key_reused"));
        }
        assert_eq!(worker.requests().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_still_runs_is_waited_for() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow()]);
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let answers = join_all((0..10).map(|_| async { ask(&gateway, &nothing()).await })).await;
        assert_eq!(worker.requests().len(), 1);
        let first = answers[0].as_ref().unwrap();
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap().images == first.images));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_not_kept() {
    both_ways(async |mode| {
        let down = Outcome::Fail(Error::new(ErrorKind::Unavailable, "down"));
        let worker = Worker::paint().script("a", [down, Outcome::Good]);
        let gateway = Gateway::over(mode, &worker, &target("a"));
        ask(&gateway, &nothing()).await.unwrap_err();
        ask(&gateway, &nothing()).await.unwrap();
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_its_place_to_the_next() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Silent, Outcome::Good]);
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let nothing = nothing();
        let gone = tokio::time::timeout(Duration::from_secs(3), ask(&gateway, &nothing));
        let (gone, stayed) = tokio::join!(gone, ask(&gateway, &nothing));
        assert!(gone.is_err());
        stayed.unwrap();
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_its_own_deadline() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [slow()]);
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let hurried = [KEY, ("x-imagegate-total-timeout-ms", "1000")];
        let nothing = nothing();
        let (first, hurried) =
            tokio::join!(ask(&gateway, &nothing), gateway.generate_with(&nothing, &hurried));
        first.unwrap();
        assert_eq!(hurried.unwrap_err().kind, ErrorKind::Timeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_forgotten_after_a_day() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        ask(&gateway, &nothing()).await.unwrap();
        tokio::time::sleep(DAY).await;
        ask(&gateway, &json!({"seed": 8})).await.unwrap();
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn callers_do_not_meet_each_others_keys() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let yaml = format!(
            "configs: {{it: {}}}\ndefault_config: it\napi_keys: [{{name: a, key: key-a}}, {{name: b, key: key-b}}]\n",
            target("a")
        );
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        for caller in ["key-a", "key-b"] {
            let headers = [KEY, ("x-portkey-api-key", caller)];
            assert_eq!(report(&gateway.generate_with(&nothing(), &headers).await.unwrap()).replay_of, "");
        }
        assert_eq!(worker.requests().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_longer_kept_is_not_paid_for_again() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let yaml = format!(
            "configs: {{it: {}}}\ndefault_config: it\nlimits: {{idempotency_bytes: 0}}\n",
            target("a")
        );
        let gateway = Gateway::new(mode, &yaml, &[&worker]);
        ask(&gateway, &nothing()).await.unwrap();
        let error = ask(&gateway, &nothing()).await.unwrap_err();
        assert_eq!((error.status, error.code.as_deref()), (409, Some("idempotency_answer_gone")));
        assert_eq!(worker.requests().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_a_key_is_refused() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        for key in ["", &"x".repeat(256)] {
            let answer = gateway.generate_with(&nothing(), &[("idempotency-key", key)]).await;
            assert_eq!(answer.unwrap_err().param.as_deref(), Some("idempotency-key"));
        }
        assert!(worker.requests().is_empty());
    })
    .await;
}
