//! What the reference gateway does with routing configs, row by row, and what we do: the same, or otherwise on
//! purpose, in which case the row says so. docs/compatibility.md has the reasons.

mod conditions;
mod retries;

use imagegate::{
    error::{Error, ErrorKind, Result},
    pb::{self, BillingClass},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Gateway, Mode, Outcome, Worker, attempts, both_ways, fails, fallback, rate_limited, report, slow, target,
    with,
};

/// A config, what its models answer, and what comes of it.
struct Row {
    /// What the reference does; after "but": what we do instead.
    says: &'static str,
    config: Value,
    script: Vec<(&'static str, Vec<Outcome>)>,
    /// The target that answers, or the status of the failure and the target that it is of.
    ends: Ends,
    /// The models that are called.
    called: &'static [&'static str],
}

#[derive(Debug, PartialEq)]
enum Ends {
    Answered(String),
    Failed(u16, String),
}

fn answered(target: &str) -> Ends {
    Ends::Answered(target.to_owned())
}

fn failed(status: u16, target: &str) -> Ends {
    Ends::Failed(status, target.to_owned())
}

fn end(result: &Result<pb::ImageResult>) -> Ends {
    match result {
        Ok(result) => answered(&report(result).target),
        Err(error) => failed(error.status, &error.report.as_ref().unwrap().target),
    }
}

/// The row's worker, for a gateway of its own.
fn worker(script: &[(&'static str, Vec<Outcome>)]) -> std::sync::Arc<Worker> {
    script.iter().fold(Worker::paint(), |worker, (model, outcomes)| worker.script(model, outcomes.clone()))
}

async fn check(rows: &[Row]) {
    for row in rows {
        both_ways(async |mode| {
            let worker = worker(&row.script);
            let gateway = Gateway::over(mode, &worker, &row.config);
            let result = gateway.generate(&json!({})).await;
            assert_eq!(end(&result), row.ends, "{}: {result:?}", row.says);
            assert_eq!(worker.models_called(), row.called, "{}", row.says);
        })
        .await;
    }
}

fn nested(strategy: &Value, targets: &[Value]) -> Value {
    json!({"strategy": strategy, "targets": targets})
}

fn on(codes: &[u16], models: &[&str]) -> Value {
    with(fallback(models), &json!({"strategy": {"mode": "fallback", "on_status_codes": codes}}))
}

fn refused() -> Outcome {
    Outcome::Fail(Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, "connection refused"))
}

#[tokio::test(start_paused = true)]
async fn fallback_goes_on_and_stops_where_the_reference_does() {
    let (first, second, third) = ("config.targets[0]", "config.targets[1]", "config.targets[2]");
    let limit = json!({"request_timeout": 500});
    let retry = json!({"retry": {"attempts": 1, "jitter": false}});
    check(&[
        Row {
            says: "401, then ok",
            config: fallback(&["a", "b"]),
            script: vec![("a", vec![fails(401)])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "a success stops",
            config: fallback(&["a", "b"]),
            script: vec![],
            ends: answered(first),
            called: &["a"],
        },
        Row {
            says: "all fail: the last one's status and target",
            config: fallback(&["a", "b", "c"]),
            script: vec![("a", vec![fails(401)]), ("b", vec![fails(500)]), ("c", vec![fails(429)])],
            ends: failed(429, third),
            called: &["a", "b", "c"],
        },
        Row {
            says: "a status that is not listed stops",
            config: on(&[429], &["a", "b"]),
            script: vec![("a", vec![fails(500)])],
            ends: failed(500, first),
            called: &["a"],
        },
        Row {
            says: "a listed status goes on",
            config: on(&[429], &["a", "b"]),
            script: vec![("a", vec![fails(429)])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "with an empty list nothing goes on",
            config: on(&[], &["a", "b"]),
            script: vec![("a", vec![fails(503)])],
            ends: failed(503, first),
            called: &["a"],
        },
        Row {
            says: "a listed 200 lets a success fall through, but here a success never does",
            config: on(&[200], &["a", "b"]),
            script: vec![],
            ends: answered(first),
            called: &["a"],
        },
        Row {
            says: "connection refused goes on",
            config: fallback(&["a", "b"]),
            script: vec![("a", vec![refused()])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "connection refused is a 500 to the list",
            config: on(&[500], &["a", "b"]),
            script: vec![("a", vec![refused()])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "a time-out goes on, and each target has its own",
            config: with(fallback(&["a", "b"]), &limit),
            script: vec![("a", vec![Outcome::Silent]), ("b", vec![slow(400)])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "a time-out is a 408 to the list",
            config: with(on(&[408], &["a", "b"]), &limit),
            script: vec![("a", vec![Outcome::Silent])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "a target that cannot make images stops with 500, but here it is skipped",
            config: fallback(&["nosuch", "b"]),
            script: vec![],
            ends: answered(second),
            called: &["b"],
        },
        Row {
            says: "a 200 that cannot be read stops with 500, but here it is a failure like any",
            config: fallback(&["a", "b"]),
            script: vec![("a", vec![Outcome::Html])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "a 200 of an unknown shape is a success, but here it is a failure like any",
            config: fallback(&["a", "b"]),
            script: vec![("a", vec![Outcome::Images(Vec::new())])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "a filtered image is a success, but here it is a refusal, which goes on",
            config: fallback(&["a", "b"]),
            script: vec![("a", vec![Outcome::Withheld])],
            ends: answered(second),
            called: &["a", "b"],
        },
        Row {
            says: "the retries of a target are used up before the next one",
            config: with(fallback(&["a", "b"]), &retry),
            script: vec![("a", vec![fails(500)]), ("b", vec![fails(500), Outcome::Good])],
            ends: answered(second),
            called: &["a", "a", "b", "b"],
        },
    ])
    .await;
}

#[tokio::test]
async fn every_error_status_lets_the_next_target_try_unless_a_list_says_otherwise() {
    for status in [400, 401, 403, 404, 408, 409, 422, 429, 446, 500, 502, 503, 504, 529] {
        let row = |says, config, ends, called| Row {
            says,
            config,
            script: vec![("a", vec![fails(status)])],
            ends,
            called,
        };
        let next = || answered("config.targets[1]");
        check(&[
            row("any error status goes on", fallback(&["a", "b"]), next(), &["a", "b"]),
            row("a listed status goes on", on(&[status], &["a", "b"]), next(), &["a", "b"]),
            row("another status stops", on(&[418], &["a", "b"]), failed(status, "config.targets[0]"), &["a"]),
        ])
        .await;
    }
}

#[tokio::test]
async fn the_last_targets_error_is_returned_and_the_earlier_ones_are_not_lost() {
    both_ways(async |mode| {
        let worker = worker(&[("a", vec![fails(401)]), ("b", vec![rate_limited(std::time::Duration::ZERO)])]);
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
        let error = gateway.generate(&json!({})).await.unwrap_err();
        // The reference discards earlier errors; here the message goes on with all of them.
        assert!(error.message.starts_with("slow down (every target failed: config.targets[0] "), "{error}");
        assert_eq!((error.status, error.openai_code()), (429, Some("rate_limit_exceeded")));
        assert_eq!(attempts(error.report.as_ref().unwrap())[0], "config.targets[0] permission_denied 401");
    })
    .await;
}

#[tokio::test]
async fn a_balance_without_policy_does_what_the_reference_does() {
    let weighted = |a: f64, b: f64| {
        let targets = [with(target("a"), &json!({"weight": a})), with(target("b"), &json!({"weight": b}))];
        nested(&json!({"mode": "loadbalance"}), &targets)
    };
    let failing = || vec![("a", vec![fails(500)])];
    check(&[
        Row {
            says: "weight 0 is never drawn",
            config: weighted(0.0, 1.0),
            script: vec![],
            ends: answered("config.targets[1]"),
            called: &["b"],
        },
        Row {
            says: "the drawn target's error is returned, without spill-over",
            config: weighted(1.0, 0.0),
            script: failing(),
            ends: failed(500, "config.targets[0]"),
            called: &["a"],
        },
        Row {
            says: "a fallback around it goes on",
            config: nested(&json!({"mode": "fallback"}), &[weighted(1.0, 0.0), target("c")]),
            script: failing(),
            ends: answered("config.targets[1]"),
            called: &["a", "c"],
        },
    ])
    .await;
}

/// Draws by weight. The bounds are four standard deviations.
async fn assert_shares(weights: [Option<f64>; 3], shares: [f64; 3]) {
    const DRAWS: f64 = 900.0;
    let weigh = |(model, weight): (&str, Option<f64>)| match weight {
        Some(weight) => with(target(model), &json!({"weight": weight})),
        None => target(model),
    };
    let targets: Vec<Value> = ["a", "b", "c"].into_iter().zip(weights).map(weigh).collect();
    let worker = Worker::paint();
    let gateway = Gateway::seeded(&worker, &nested(&json!({"mode": "loadbalance"}), &targets), 20);
    for _ in 0..DRAWS as usize {
        gateway.generate(&json!({})).await.unwrap();
    }
    let called = worker.models_called();
    for (model, share) in ["a", "b", "c"].into_iter().zip(shares) {
        let count = called.iter().filter(|called| *called == model).count() as f64;
        let deviation = (DRAWS * share * (1.0 - share)).sqrt();
        assert!((count - DRAWS * share).abs() <= 4.0 * deviation, "{weights:?}: {count} of {model}");
    }
}

#[tokio::test(start_paused = true)]
async fn draws_are_in_proportion_to_the_weights_and_a_missing_weight_is_one() {
    assert_shares([Some(5.0), Some(3.0), None], [5.0 / 9.0, 3.0 / 9.0, 1.0 / 9.0]).await;
}

#[tokio::test(start_paused = true)]
async fn weights_need_not_add_up_to_anything() {
    assert_shares([Some(0.95), Some(0.05), Some(0.0)], [0.95, 0.05, 0.0]).await;
}

#[tokio::test]
async fn single_and_no_strategy_run_one_target_and_paths_name_it() {
    let single = json!({"mode": "single"});
    let in_turn = json!({"mode": "fallback"});
    let deep = nested(&in_turn, &[target("a"), nested(&in_turn, &[target("a"), target("b")])]);
    let by_name = |name: &str, model: &str| with(target(model), &json!({"name": name}));
    let conditional = json!({"mode": "conditional", "conditions": [{"query": {}, "then": "second"}]});
    check(&[
        Row {
            says: "no strategy: the node is the target",
            config: target("a"),
            script: vec![],
            ends: answered("config"),
            called: &["a"],
        },
        Row {
            says: "single runs its first target and ignores the rest",
            config: nested(&single, &[target("a"), target("b")]),
            script: vec![("a", vec![fails(500)])],
            ends: failed(500, "config.targets[0]"),
            called: &["a"],
        },
        Row {
            says: "a path has a part for each level",
            config: nested(&in_turn, &[target("a"), deep]),
            script: vec![("a", vec![fails(500)])],
            ends: answered("config.targets[1].targets[1].targets[1]"),
            called: &["a", "a", "a", "b"],
        },
        Row {
            says: "a conditional's path has the index of the named target",
            config: nested(&conditional, &[by_name("first", "a"), by_name("second", "b")]),
            script: vec![],
            ends: answered("config.targets[1]"),
            called: &["b"],
        },
        Row {
            says: "any strategy nests in any other",
            config: nested(&single, &[nested(&conditional, &[by_name("x", "a"), by_name("second", "b")])]),
            script: vec![],
            ends: answered("config.targets[0].targets[1]"),
            called: &["b"],
        },
    ])
    .await;
}

/// Sends a config with the request; it must be refused with a problem at this path.
async fn assert_refused(mode: Mode, config: &Value, problem: &str) {
    let worker = Worker::paint();
    let vault = Worker::locked("vault", vec![crate::support::model("v")]);
    let gateway =
        Gateway::new(mode, "auth: open\nworkers: {vault: 'http://vault.example'}\n", &[&worker, &vault]);
    let text = config.to_string();
    let started = Instant::now();
    let error = gateway.generate_with(&json!({}), &[("x-portkey-config", &text)]).await.unwrap_err();
    assert_eq!((error.status, error.code.as_deref()), (400, Some("invalid_config")), "{config}: {error:?}");
    let found: Vec<String> = error.violations.iter().map(|v| format!("{}: {}", v.path, v.message)).collect();
    assert!(found.iter().any(|found| found.starts_with(problem)), "{config}: {found:?}");
    assert_eq!(worker.requests().len() + vault.requests().len(), 0);
    assert_eq!(started.elapsed(), std::time::Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_the_reference_accepts_and_cannot_run_is_refused() {
    let balance = json!({"mode": "loadbalance"});
    for (config, problem) in [
        // There the request hangs.
        (nested(&json!({"mode": "fallback"}), &[]), "targets: at least one target is required"),
        (
            nested(&balance, &[with(target("a"), &json!({"weight": 0}))]),
            "targets.0.weight: at least one target needs a weight above 0",
        ),
        // There a 500.
        (nested(&json!({"mode": "single"}), &[]), "targets: at least one target is required"),
        (json!({"targets": [target("a")], "cache": {"mode": "simple"}}), ": Invalid configuration."),
        // There `Bearer undefined` is sent.
        (
            nested(&json!({"mode": "fallback"}), &[json!({"provider": "vault", "retry": {"attempts": 1}})]),
            "targets.0: Invalid configuration.",
        ),
        // There the last weight is drawn more often than it should, or never.
        (nested(&balance, &[with(target("a"), &json!({"weight": -1}))]), "targets.0.weight: a weight cannot"),
        // There skipped in silence: typing errors, and checks that are not carried out for images.
        (with(target("a"), &json!({"overide_params": {}})), "overide_params: unknown field; did you mean"),
        (with(target("a"), &json!({"input_guardrails": ["x"]})), "input_guardrails: guardrails are not"),
        (with(target("a"), &json!({"override_params": {"n": 0}})), "override_params.n: n: 0 is not allowed"),
    ] {
        both_ways(async |mode| assert_refused(mode, &config, problem).await).await;
    }
}
