//! `ExplainRoute`: what is said is what runs, and saying it calls nobody.

use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, planned_target::Decision},
};
use serde_json::{Value, json};

use crate::support::{Gateway, Outcome, Worker, ask, both_ways, fallback, message, model, target, with};

async fn explain(
    gateway: &Gateway,
    fields: &Value,
    headers: &[(&'static str, &str)],
) -> pb::ExplainRouteResponse {
    let request = message(pb::ExplainRouteRequest { image: Some(ask(fields)) }, headers);
    gateway.router().explain_route(request).await.unwrap().into_inner()
}

/// `config.targets[0] tried` or `config.targets[1] unsupported` for each target.
fn decisions(plan: &pb::ExplainRouteResponse) -> Vec<String> {
    let line = |planned: &pb::PlannedTarget| {
        let decision = if planned.decision() == Decision::Tried { "tried" } else { &planned.reason };
        format!("{} {decision}", planned.target)
    };
    plan.targets.iter().map(line).collect()
}

fn down() -> Outcome {
    Outcome::Fail(Error::new(ErrorKind::Unavailable, "down"))
}

fn priced(name: &str, usd: f64) -> pb::ModelCapability {
    let price = pb::Price { item: "image".into(), usd, ..Default::default() };
    pb::ModelCapability { prices: vec![price], ..model(name) }
}

#[tokio::test(start_paused = true)]
async fn it_shows_order_reasons_changes_and_prices_and_calls_nobody() {
    both_ways(async |mode| {
        let mut small = priced("small", 0.02);
        small.max_n = 1;
        let worker = Worker::new("paint", vec![small, priced("large", 0.08)]);
        let config = json!({
            "strategy": {"mode": "fallback"},
            "retry": {"attempts": 2},
            "targets": [target("small"), target("unknown"), target("large")],
        });
        let gateway = Gateway::over(mode, &worker, &config);
        let plan = explain(&gateway, &json!({"n": 2, "steps": 3, "cfg_scale": 4}), &[]).await;
        assert_eq!(
            decisions(&plan),
            ["config.targets[0] tried", "config.targets[1] unsupported", "config.targets[2] tried"]
        );
        assert_eq!(plan.route, "it");
        let first = &plan.targets[0];
        assert_eq!((first.provider.as_str(), first.model.as_str()), ("paint", "small"));
        assert_eq!((first.calls, first.max_tries, first.price_usd), (2, 3, Some(0.04)));
        let fields: Vec<&str> = first.warnings.iter().map(|warning| warning.field.as_str()).collect();
        assert_eq!(fields, ["guidance", "n"]);
        assert!(plan.targets[1].message.contains("unknown"));
        assert_eq!((plan.min_cost_usd, plan.max_cost_usd), (Some(0.04), Some(0.16)));
        assert_eq!(first.state.as_ref().unwrap().breaker, "closed");
        assert!(worker.requests().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn it_shows_open_breakers_and_what_nobody_chose() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [down()]);
        let first = with(target("a"), &json!({"breaker": {"consecutive_failures": 1}}));
        let balance = json!({
            "strategy": {"mode": "loadbalance"},
            "targets": [with(target("b"), &json!({"weight": 0})), target("c")],
        });
        let config = json!({"strategy": {"mode": "fallback"}, "targets": [first, balance]});
        let gateway = Gateway::over(mode, &worker, &config);
        gateway.generate(&json!({})).await.unwrap();
        let plan = explain(&gateway, &json!({}), &[]).await;
        assert_eq!(
            decisions(&plan),
            [
                "config.targets[0] breaker_open",
                "config.targets[1].targets[1] tried",
                "config.targets[1].targets[0] not_chosen",
            ]
        );
        let state = plan.targets[0].state.as_ref().unwrap();
        assert_eq!((state.breaker.as_str(), state.ejected.as_str()), ("open", "breaker_open"));
        assert_eq!(plan.max_cost_usd, None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn conditions_and_hedges_are_shown_as_they_would_run() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let mut hedge = fallback(&["a", "b"]);
        hedge["strategy"] = json!({"mode": "hedge", "after_ms": 2000});
        hedge["name"] = json!("fast");
        let config = json!({
            "strategy": {
                "mode": "conditional",
                "conditions": [{"query": {"metadata.plan": "pro"}, "then": "fast"}],
                "default": "cheap",
            },
            "targets": [with(target("c"), &json!({"name": "cheap"})), hedge],
        });
        let gateway = Gateway::over(mode, &worker, &config);
        let plan = explain(&gateway, &json!({}), &[("x-portkey-metadata", r#"{"plan": "pro"}"#)]).await;
        assert_eq!(
            decisions(&plan),
            [
                "config.targets[1].targets[0] tried",
                "config.targets[1].targets[1] tried",
                "config.targets[0] not_chosen",
            ]
        );
        let hedged: Vec<_> = plan.targets.iter().map(|target| target.hedged_after_ms).collect();
        assert_eq!(hedged, [None, Some(2000), None]);
        let plan = explain(&gateway, &json!({}), &[]).await;
        assert_eq!(decisions(&plan)[0], "config.targets[0] tried");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_would_be_refused_is_refused() {
    both_ways(async |mode| {
        let gateway = Gateway::over(mode, &Worker::paint(), &target("a"));
        let request = message(pb::ExplainRouteRequest::default(), &[]);
        let status = gateway.router().explain_route(request).await.unwrap_err();
        assert_eq!(Error::from_status(&status).param.as_deref(), Some("prompt"));
    })
    .await;
}

/// With health as it is, the targets of an explanation are the attempts of the request, one for one.
#[tokio::test(start_paused = true)]
async fn what_it_says_is_what_runs() {
    for seed in 0..200 {
        let config = random_tree(&mut Seed(seed, 0), 3);
        let said = {
            let gateway = history(seed, &config).await;
            let plan = explain(&gateway, &json!({}), &[]).await;
            let reached = plan.targets.iter().filter(|target| target.decision() != Decision::NotChosen);
            reached
                .map(|target| {
                    let state = if target.decision() == Decision::Tried { "called" } else { &target.reason };
                    format!("{} {state}", target.target)
                })
                .collect::<Vec<_>>()
        };
        let gateway = history(seed, &config).await;
        let error = gateway.generate(&json!({})).await.unwrap_err();
        let done = error.report.as_ref().unwrap().attempts.iter().map(|attempt| {
            let state = if attempt.outcome == "skipped" { &attempt.reason } else { "called" };
            format!("{} {state}", attempt.target)
        });
        assert_eq!(said, done.collect::<Vec<_>>(), "seed {seed}: {config}");
    }
}

/// A gateway after some requests, all of whose targets fail: some breakers are open by now.
async fn history(seed: u64, config: &Value) -> Gateway {
    let worker = Worker::new("paint", vec![model("m*")]);
    for i in 1..=27 {
        worker.script(&format!("m{i}"), [down()]);
    }
    let gateway = Gateway::seeded(&worker, config, seed);
    for _ in 0..seed % 5 {
        gateway.generate(&json!({})).await.unwrap_err();
    }
    gateway
}

/// A number generator, and how many targets there are.
struct Seed(u64, u32);

impl Seed {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn random_tree(seed: &mut Seed, depth: u32) -> Value {
    if depth == 0 || seed.below(4) == 0 {
        // Each its own: a failure must not change the health of a target that comes later in the same request.
        seed.1 += 1;
        let name = if seed.below(8) == 0 { "none".to_owned() } else { format!("m{}", seed.1) };
        let breaker = json!({"breaker": {"consecutive_failures": 1 + seed.below(3)}});
        return with(target(&name), &breaker);
    }
    let children: Vec<Value> = (0..1 + seed.below(3)).map(|_| random_tree(seed, depth - 1)).collect();
    let policies = ["weighted", "round_robin", "least_busy", "least_latency", "cheapest"];
    let strategy = match seed.below(5) {
        0 => json!({"mode": "loadbalance", "policy": policies[seed.below(5) as usize]}),
        1 => json!({"mode": "hedge", "after_ms": 60000}),
        2 => json!({"mode": "single"}),
        3 => json!({"mode": "fallback", "on_status_codes": [503]}),
        _ => json!({"mode": "fallback"}),
    };
    json!({"strategy": strategy, "targets": children})
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_in_the_cache_is_announced() {
    both_ways(async |mode| {
        let config = with(target("a"), &json!({"cache": {"mode": "simple"}}));
        let gateway = Gateway::over(mode, &Worker::paint(), &config);
        for expected in [false, true] {
            let plan = explain(&gateway, &json!({"seed": 7}), &[]).await;
            assert_eq!(plan.targets[0].cached, expected);
            gateway.generate(&json!({"seed": 7})).await.unwrap();
        }
        assert!(!explain(&gateway, &json!({"seed": 8}), &[]).await.targets[0].cached);
    })
    .await;
}
