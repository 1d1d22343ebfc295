//! Which target a balance chooses, by each of its policies.

use std::{sync::Arc, time::Duration};

use imagegate::{error::ErrorKind, pb};
use serde_json::{Value, json};

use crate::support::{Gateway, Mode, Outcome, Worker, both_ways, fails, model, report, slow, target, with};

const POLICIES: [&str; 6] = ["weighted", "round_robin", "least_busy", "least_latency", "sticky", "cheapest"];

fn balance(policy: &str, targets: &[Value]) -> Value {
    let mut strategy = json!({"mode": "loadbalance", "policy": policy});
    if policy == "sticky" {
        strategy["sticky"] = json!({"hash_fields": ["metadata.user"], "ttl": 600});
    }
    json!({"strategy": strategy, "targets": targets})
}

fn over(policy: &str, models: &[&str]) -> Value {
    balance(policy, &models.iter().map(|model| target(model)).collect::<Vec<_>>())
}

fn weighing(model: &str, weight: f64) -> Value {
    with(target(model), &json!({"weight": weight}))
}

/// One failure opens it, for an hour.
fn fragile(config: Value) -> Value {
    with(config, &json!({"breaker": {"consecutive_failures": 1, "cooldown_s": 3600}}))
}

async fn for_user(gateway: &Gateway, user: usize) -> bool {
    let metadata = json!({"user": user}).to_string();
    gateway.generate_with(&json!({}), &[("x-portkey-metadata", &metadata)]).await.is_ok()
}

fn calls_of(worker: &Worker, model: &str) -> usize {
    worker.models_called().iter().filter(|called| *called == model).count()
}

/// Starts that many calls, each when the one before has reached its target, and waits for all of them.
async fn overlapping(gateway: &Gateway, worker: &Worker, calls: usize) {
    let before = worker.requests().len();
    let call = async |i| {
        worker.is_called(before + i).await;
        gateway.generate(&json!({})).await.unwrap();
    };
    futures::future::join_all((0..calls).map(call)).await;
}

fn priced(name: &str, prices: &[(&str, f64)]) -> pb::ModelCapability {
    let price = |(size, usd): &(&str, f64)| pb::Price {
        item: "image".into(),
        size: (*size).into(),
        usd: *usd,
        ..Default::default()
    };
    pb::ModelCapability { prices: prices.iter().map(price).collect(), ..model(name) }
}

#[tokio::test]
async fn round_robin_takes_turns() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let targets = [target("a"), target("b"), weighing("d", 0.0), target("c")];
        let gateway = Gateway::over(mode, &worker, &balance("round_robin", &targets));
        for _ in 0..7 {
            gateway.generate(&json!({})).await.unwrap();
        }
        assert_eq!(worker.models_called(), ["a", "b", "c", "a", "b", "c", "a"]);
    })
    .await;
}

#[tokio::test]
async fn round_robin_gives_the_turn_of_a_broken_target_to_the_next() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("b", [fails(500)]);
        let gateway = Gateway::over(mode, &worker, &fragile(over("round_robin", &["a", "b", "c"])));
        for _ in 0..6 {
            _ = gateway.generate(&json!({})).await;
        }
        assert_eq!(worker.models_called(), ["a", "b", "c", "a", "c", "c"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn least_busy_spreads_calls_that_overlap() {
    for seed in 0..8 {
        let worker = Worker::paint();
        for model in ["a", "b", "c"] {
            worker.script(model, [slow(1000)]);
        }
        let gateway = Gateway::seeded(&worker, &over("least_busy", &["a", "b", "c"]), seed);
        overlapping(&gateway, &worker, 3).await;
        let mut called = worker.models_called();
        called.sort_unstable();
        assert_eq!(called, ["a", "b", "c"], "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn least_busy_gives_a_heavier_target_more() {
    for seed in 0..8 {
        let worker = Worker::paint().script("a", [slow(1000)]).script("b", [slow(1000)]);
        let targets = [weighing("a", 3.0), weighing("b", 1.0)];
        let gateway = Gateway::seeded(&worker, &balance("least_busy", &targets), seed);
        overlapping(&gateway, &worker, 4).await;
        assert_eq!((calls_of(&worker, "a"), calls_of(&worker, "b")), (3, 1), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn least_busy_does_not_send_everything_to_the_first_while_there_is_little_to_do() {
    let worker = Worker::paint();
    let gateway = Gateway::seeded(&worker, &over("least_busy", &["a", "b"]), 3);
    for _ in 0..40 {
        gateway.generate(&json!({})).await.unwrap();
    }
    assert!((8..=32).contains(&calls_of(&worker, "a")), "{}", calls_of(&worker, "a"));
}

#[tokio::test(start_paused = true)]
async fn least_latency_tries_the_unknown_and_prefers_the_faster() {
    for seed in 0..8 {
        let worker = Worker::paint().script("a", [slow(4000)]).script("b", [slow(1000)]);
        let gateway = Gateway::seeded(&worker, &over("least_latency", &["a", "b"]), seed);
        for _ in 0..12 {
            gateway.generate(&json!({})).await.unwrap();
        }
        let called = worker.models_called();
        assert_ne!(called[0], called[1], "seed {seed}: {called:?}");
        assert!(called[2..].iter().all(|model| model == "b"), "seed {seed}: {called:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn least_latency_does_not_take_failing_fast_for_being_fast() {
    let worker = Worker::paint().script("a", [fails(500)]).script("b", [slow(3000)]);
    let config = with(over("least_latency", &["a", "b"]), &json!({"breaker": false}));
    let gateway = Gateway::seeded(&worker, &config, 5);
    for _ in 0..12 {
        _ = gateway.generate(&json!({})).await;
    }
    assert_eq!(calls_of(&worker, "a"), 1, "{:?}", worker.models_called());
}

#[tokio::test]
async fn sticky_keeps_each_session_with_one_target() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &over("sticky", &["a", "b"]));
        for _ in 0..3 {
            for user in 0..20 {
                for_user(&gateway, user).await;
            }
        }
        let called = worker.models_called();
        assert_eq!(called[..20], called[20..40]);
        assert_eq!(called[..20], called[40..]);
        assert!(calls_of(&worker, "a") > 0 && calls_of(&worker, "b") > 0, "{called:?}");
        // Routers that know nothing of each other choose the same.
        let other = Worker::paint();
        let gateway = Gateway::over(mode, &other, &over("sticky", &["a", "b"]));
        for user in 0..20 {
            for_user(&gateway, user).await;
        }
        assert_eq!(other.models_called(), called[..20]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn sticky_splits_sessions_by_weight() {
    const USERS: usize = 400;
    let worker = Worker::paint();
    let targets = [weighing("a", 3.0), weighing("b", 1.0)];
    let gateway = Gateway::seeded(&worker, &balance("sticky", &targets), 1);
    for user in 0..USERS {
        for_user(&gateway, user).await;
    }
    // Four standard deviations.
    assert!((265..=335).contains(&calls_of(&worker, "a")), "{}", calls_of(&worker, "a"));
}

#[tokio::test(start_paused = true)]
async fn sticky_moves_a_session_from_a_broken_target_and_back_when_its_time_is_over() {
    const TTL: u64 = 600;
    let config = |worker: &Arc<Worker>| {
        let breaker = json!({"breaker": {"consecutive_failures": 1, "cooldown_s": 15}});
        Gateway::over(Mode::OneProcess, worker, &with(over("sticky", &["a", "b"]), &breaker))
    };
    let healthy = Worker::paint();
    let gateway = config(&healthy);
    let mut user = 0;
    while healthy.models_called().last().is_none_or(|model| model != "a") {
        user += 1;
        for_user(&gateway, user).await;
    }
    let worker = Worker::paint().script("a", [fails(500), Outcome::Good]);
    let gateway = config(&worker);
    assert!(!for_user(&gateway, user).await);
    assert!(for_user(&gateway, user).await);
    tokio::time::advance(std::time::Duration::from_secs(TTL / 2)).await;
    assert!(for_user(&gateway, user).await);
    tokio::time::advance(std::time::Duration::from_secs(TTL)).await;
    assert!(for_user(&gateway, user).await);
    assert_eq!(worker.models_called(), ["a", "b", "b", "a"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_the_sticky_fields_is_drawn_by_weight() {
    let off = json!({"enabled": false, "hash_fields": ["metadata.user"]});
    let disabled = json!({"strategy": {"mode": "loadbalance", "sticky": off}});
    let named = json!({"strategy": {"mode": "loadbalance", "policy": "sticky", "sticky": off}});
    for (config, metadata) in [
        (over("sticky", &["a", "b"]), "{}"),
        (over("sticky", &["a", "b"]), r#"{"team": "red"}"#),
        (with(over("weighted", &["a", "b"]), &disabled), r#"{"user": 1}"#),
        (with(over("weighted", &["a", "b"]), &named), r#"{"user": 1}"#),
    ] {
        let worker = Worker::paint();
        let gateway = Gateway::seeded(&worker, &config, 2);
        for _ in 0..40 {
            gateway.generate_with(&json!({}), &[("x-portkey-metadata", metadata)]).await.unwrap();
        }
        assert!((8..=32).contains(&calls_of(&worker, "a")), "{config}: {:?}", worker.models_called());
    }
}

#[tokio::test]
async fn the_cheapest_is_so_for_this_very_request() {
    let models = || {
        vec![
            priced("small", &[("512x512", 0.01), ("", 0.10)]),
            priced("flat", &[("", 0.04)]),
            model("unknown"),
        ]
    };
    for (targets, size, expected) in [
        (vec!["unknown", "small", "flat"], "512x512", "small"),
        (vec!["unknown", "small", "flat"], "1024x1024", "flat"),
        (vec!["unknown", "small"], "1024x1024", "small"),
        (vec!["nosuch", "small"], "1024x1024", "small"),
        (vec!["nosuch", "unknown"], "1024x1024", "unknown"),
    ] {
        both_ways(async |mode| {
            let worker = Worker::new("paint", models());
            let gateway = Gateway::over(mode, &worker, &over("cheapest", &targets));
            gateway.generate(&json!({"size": size})).await.unwrap();
            assert_eq!(worker.models_called(), [expected], "{targets:?} {size}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_policy_chooses_a_broken_target_while_another_is_free() {
    for policy in POLICIES {
        let worker = Worker::new("paint", vec![priced("a", &[("", 0.01)]), priced("b", &[("", 0.02)])])
            .script("a", [fails(500)]);
        let gateway = Gateway::seeded(&worker, &fragile(over(policy, &["a", "b"])), 9);
        let mut failed = 0;
        for user in 0..40 {
            failed += usize::from(!for_user(&gateway, user).await);
        }
        assert_eq!((failed, calls_of(&worker, "a"), calls_of(&worker, "b")), (1, 1, 39), "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_are_broken_every_policy_still_calls_one() {
    for policy in POLICIES {
        let worker = Worker::paint().script("a", [fails(500)]).script("b", [fails(500)]);
        let gateway = Gateway::seeded(&worker, &fragile(over(policy, &["a", "b"])), 9);
        for user in 0..10 {
            for_user(&gateway, user).await;
        }
        assert_eq!(worker.requests().len(), 10, "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_policy_chooses_a_target_that_asked_for_a_pause() {
    for policy in POLICIES {
        let worker = Worker::new("paint", vec![priced("a", &[("", 0.01)]), priced("b", &[("", 0.02)])])
            .script("a", [crate::support::rate_limited(std::time::Duration::from_secs(20)), Outcome::Good]);
        let gateway = Gateway::seeded(&worker, &over(policy, &["a", "b"]), 9);
        for user in 0..40 {
            for_user(&gateway, user).await;
        }
        assert_eq!((calls_of(&worker, "a"), calls_of(&worker, "b")), (1, 39), "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_comes_back_gets_its_share_little_by_little() {
    let worker = Worker::paint().script("a", [fails(500), Outcome::Good]);
    let breaker = json!({"breaker": {"consecutive_failures": 1, "cooldown_s": 15}});
    let gateway = Gateway::seeded(&worker, &with(over("weighted", &["a", "b"]), &breaker), 4);
    let until_called = async |calls| {
        while calls_of(&worker, "a") < calls {
            _ = gateway.generate(&json!({})).await;
        }
    };
    until_called(1).await;
    tokio::time::advance(std::time::Duration::from_secs(15)).await;
    until_called(2).await;
    let share = async || {
        let before = calls_of(&worker, "a");
        for _ in 0..200 {
            gateway.generate(&json!({})).await.unwrap();
        }
        calls_of(&worker, "a") - before
    };
    // A tenth of its weight beside the whole of the other's: one in eleven.
    let at_first = share().await;
    assert!((5..=36).contains(&at_first), "{at_first}");
    tokio::time::advance(std::time::Duration::from_secs(30)).await;
    let at_last = share().await;
    assert!((72..=128).contains(&at_last), "{at_last}");
}

#[tokio::test]
async fn a_balance_around_groups_chooses_by_the_target_that_a_group_would_call() {
    both_ways(async |mode| {
        let worker = Worker::new("paint", vec![priced("a", &[("", 0.05)]), priced("b", &[("", 0.01)])]);
        let group = |first: &str, second: &str| crate::support::fallback(&[first, second]);
        let config = balance("cheapest", &[group("a", "b"), group("b", "a")]);
        let result = Gateway::over(mode, &worker, &config).generate(&json!({})).await.unwrap();
        assert_eq!(report(&result).target, "config.targets[1].targets[0]");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_cannot_serve_the_request_is_no_choice() {
    both_ways(async |mode| {
        for policy in ["weighted", "round_robin", "least_busy", "least_latency"] {
            let worker = Worker::paint();
            let strategy = json!({"mode": "loadbalance", "policy": policy});
            let config = json!({"strategy": strategy, "targets": [target("unknown"), target("a")]});
            let gateway = Gateway::over(mode, &worker, &config);
            for _ in 0..10 {
                let result = gateway.generate(&json!({})).await.unwrap();
                assert_eq!(report(&result).target, "config.targets[1]", "{policy}");
            }
            let strict =
                with(config, &json!({"strategy": {"mode": "loadbalance", "on_unsupported": "fail"}}));
            let gateway = Gateway::seeded(&worker, &strict, 3);
            let mut refused = 0;
            for _ in 0..10 {
                refused += u32::from(gateway.generate(&json!({})).await.is_err());
            }
            assert!((1..10).contains(&refused), "{refused}");
        }
        let config =
            json!({"strategy": {"mode": "loadbalance"}, "targets": [target("unknown"), target("gone")]});
        let error = Gateway::over(mode, &Worker::paint(), &config).generate(&json!({})).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
    })
    .await;
}

/// The balance gives a target that comes back its part; it is not asked a second time whether it wants it.
#[tokio::test(start_paused = true)]
async fn slow_start_counts_once_inside_a_fallback() {
    let worker = Worker::paint().script("a", [fails(500), Outcome::Good]);
    let breaker = json!({"breaker": {"consecutive_failures": 1, "cooldown_s": 1}});
    let balance = json!({
        "strategy": {"mode": "loadbalance"},
        "targets": [with(with(target("a"), &breaker), &json!({"weight": 1})), with(target("b"), &json!({"weight": 1}))],
    });
    let config = json!({"strategy": {"mode": "fallback"}, "targets": [balance, target("c")]});
    let gateway = Gateway::seeded(&worker, &config, 5);
    // Until its breaker has opened and a probe has closed it.
    while worker.models_called().iter().filter(|model| *model == "a").count() < 2 {
        gateway.generate(&json!({})).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let before = worker.models_called().len();
    for _ in 0..1000 {
        gateway.generate(&json!({})).await.unwrap();
    }
    let called = worker.models_called().split_off(before);
    let count = |name: &str| called.iter().filter(|model| *model == name).count();
    // A tenth of its weight: 0.1 of 1.1, and a second later a little more.
    assert!((60..160).contains(&count("a")), "{}", count("a"));
    assert_eq!(count("c"), 0);
}
