//! Callers that go away at any moment: nothing of what was done for them may stay behind.

use std::time::Duration;

use serde_json::json;
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use crate::{
    scenarios::play,
    support::{Gateway, Mode, Outcome, Worker, fallback, with},
    world::{
        LeftOver,
        draws::Draws,
        journal::{CallOutcome, Ended},
    },
};

#[test]
fn ten_thousand_callers_that_leave_leave_nothing_behind() {
    let outcome = play(
        "
duration_s: 200
arrivals: {rate_per_s: 65}
cancel: {rate: 1, after_ms: [0, 6000]}
users: 7
headers: {x-portkey-metadata: '{\"user\": \"{user}\"}'}
config:
  strategy: {mode: fallback}
  retry: {attempts: 2, budget: false}
  total_timeout_ms: 20000
  targets:
    - strategy: {mode: hedge, after_ms: 1000, budget: 1}
      targets: [{provider: alpha}, {provider: beta}]
    - strategy: {mode: loadbalance, sticky: {hash_fields: [metadata.user]}}
      targets: [{provider: beta}, {provider: gamma}]
providers:
  alpha:
    latency: {dist: exponential, mean_ms: 6000}
    errors: {rate: 0.3, after_ms: 500}
    phases: [{from_s: 50, until_s: 80, errors: {rate: 1}}, {from_s: 100, until_s: 130, silent: true}]
  beta:
    latency: {dist: exponential, mean_ms: 6000}
    errors: {rate: 0.3, status: 429, retry_after_ms: 1000}
    capacity: {in_flight: 200}
  gamma: {silent: true}
",
    );
    let left = outcome.requests.iter().filter(|request| request.ended == Ended::Left).count();
    let cancelled = outcome.calls.iter().filter(|call| call.outcome == CallOutcome::Cancelled).count();
    assert!(
        left >= 10_000 && cancelled > left / 2,
        "{left} left, {cancelled} calls were given up\n{outcome}"
    );
    for call in &outcome.calls {
        let request = &outcome.requests[call.request.unwrap()];
        assert!(call.end <= request.end, "{call:?} outlived {request:?}");
    }
    assert_eq!(outcome.left_over, LeftOver::default(), "{outcome}");
}

#[test]
fn nothing_is_left_behind_across_connections() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let after = |millis, outcome| Outcome::After(Duration::from_millis(millis), Box::new(outcome));
        let worker = Worker::paint();
        worker.script("a", [after(50, Outcome::Stalled)]);
        worker.script("b", [after(100, Outcome::Good)]);
        let mut hedged = with(fallback(&["a", "b"]), &json!({"breaker": false}));
        hedged["strategy"] = json!({"mode": "hedge", "after_ms": 50, "budget": 1});
        let gateway = Gateway::over(Mode::Connected, &worker, &hedged);
        gateway.generate(&json!({})).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let (tasks_before, connections) = (tasks(), gateway.connections());

        let mut draws = Draws::new(1, "leavers", 0);
        let mut left = 0;
        for _ in 0..1000 {
            let patience = draws.between(Duration::ZERO, Duration::from_millis(200));
            left += usize::from(timeout(patience, gateway.generate(&json!({}))).await.is_err());
        }
        sleep(Duration::from_secs(1)).await;
        assert!(left > 500, "{left} left");
        assert_eq!(worker.in_flight(), 0);
        assert_eq!((tasks(), gateway.connections()), (tasks_before, connections));
        gateway.generate(&json!({})).await.unwrap();
    });
}
