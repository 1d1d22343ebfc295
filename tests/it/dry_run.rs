//! A config tried on requests of the log: what is said is what would have run, whatever happens today.

use std::collections::BTreeMap;

use imagegate::{
    config::{
        callers::{Caller, digest},
        saved::{Saved, SavedCaller},
    },
    error::{Error, ErrorKind},
    pb::{self, dry_run_request::Verdict},
    router::dry_run::DryRun,
};
use serde_json::{Value, json};
use tonic::Request;

use crate::{
    logging::House,
    support::{Gateway, Mode, Outcome, Worker, ask, fallback, message, model, png, target, with},
};

fn config(house: &House, config: &Value) -> DryRun {
    house.gateway.local().dry_run("default", "tried", config).unwrap()
}

async fn seen(run: &DryRun, records: &[pb::RequestRecord]) -> Vec<pb::DryRunRequest> {
    let mut seen = Vec::new();
    for record in records {
        seen.push(run.of(record).await);
    }
    seen
}

/// `b`, or why not.
fn firsts(seen: &[pb::DryRunRequest]) -> Vec<String> {
    let one = |request: &pb::DryRunRequest| match request.verdict() {
        Verdict::Routed => request.first.clone().unwrap().model,
        verdict => format!("{}: {}", verdict.name(), request.reason),
    };
    seen.iter().map(one).collect()
}

/// Models that take little, and one that takes all.
fn choosy() -> Vec<pb::ModelCapability> {
    let price = |usd| vec![pb::Price { item: "image".into(), usd, ..Default::default() }];
    let short = pb::ModelCapability { max_prompt_chars: 10, prices: price(0.01), ..model("short") };
    let generates = vec![pb::Operation::Generate.into()];
    let no_edits =
        pb::ModelCapability { operations: generates, max_n: 1, prices: price(0.02), ..model("new") };
    let one_input = pb::ModelCapability { max_inputs: 1, ..model("one") };
    vec![short, no_edits, one_input, pb::ModelCapability { prices: price(0.04), ..model("all") }]
}

/// Requests of many kinds.
fn requests() -> Vec<pb::ImageRequest> {
    let mut all = Vec::new();
    for (i, fields) in [
        json!({}),
        json!({"n": 3, "seed": 7}),
        json!({"prompt": "a prompt that is longer than some models take"}),
        json!({"negative_prompt": "rain", "style": "vivid", "user": "mia"}),
        json!({"cfg_scale": 4, "tiling": true, "quality": "high"}),
        json!({"output_format": "jpeg", "size": "512x512"}),
        json!({"params_policy": "x", "sampler": "euler"}),
    ]
    .iter()
    .enumerate()
    {
        all.push(ask(fields));
        let mut edit = ask(fields);
        for _ in 0..=(i % 3) {
            let source = Some(pb::input_image::Source::Data(png(8, 8, 1)));
            edit.inputs.push(pb::InputImage { source, ..Default::default() });
        }
        if i % 2 == 0 {
            edit.mask = Some(pb::Mask { data: png(8, 8, 255), ..Default::default() });
        }
        all.push(edit);
    }
    let weighted = |text: &str, weight| pb::WeightedPrompt { text: text.into(), weight };
    all.push(pb::ImageRequest {
        weighted_prompts: vec![weighted("a cat", 1.0), weighted("a garden at night", 0.5)],
        ..Default::default()
    });
    all
}

async fn send(gateway: &Gateway, image: &pb::ImageRequest) -> Result<pb::ImageResult, Error> {
    gateway.send(Request::new(pb::GenerateImageRequest { image: Some(image.clone()) })).await
}

#[tokio::test]
async fn what_it_says_of_a_recorded_request_is_what_runs() {
    for tried in [
        json!({"strategy": {"mode": "fallback"}, "targets": [target("short"), target("new"), target("one")]}),
        json!({"strategy": {"mode": "loadbalance", "policy": "cheapest"},
               "targets": [target("all"), target("new"), target("short")]}),
        json!({"strategy": {"mode": "fallback", "on_unsupported": "fail"}, "targets": [target("one"), target("all")]}),
        with(target("all"), &json!({"params_policy": "strict"})),
        json!({"strategy": {"mode": "conditional", "default": "y", "conditions": [
            {"query": {"url.pathname": "/v1/images/edits", "params.n": {"$gt": 1}}, "then": "x"}]},
            "targets": [with(target("one"), &json!({"name": "x"})), with(target("new"), &json!({"name": "y"}))]}),
    ] {
        let worker = Worker::new("paint", choosy());
        let house = House::over(&worker, &target("all")).await;
        let requests = requests();
        for image in &requests {
            send(&house.gateway, image).await.unwrap();
        }
        let records = house.records().await;
        assert_eq!(records.len(), requests.len());
        let seen = seen(&config(&house, &tried), &records).await;

        let gateway = Gateway::over(Mode::OneProcess, &Worker::new("paint", choosy()), &tried);
        for ((image, said), record) in requests.iter().zip(&seen).zip(&records) {
            let done = send(&gateway, image).await;
            let what = format!("{said:?}\n{record:?}\n{done:?}\n{tried}");
            match done {
                Ok(result) => {
                    let report = result.report.unwrap();
                    assert_eq!(said.verdict(), Verdict::Routed, "{what}");
                    let first = said.first.clone().unwrap();
                    assert_eq!((&first.target, &first.model), (&report.target, &report.model), "{what}");
                    assert_eq!(fields(&first.warnings), fields(&report.warnings), "{what}");
                    let paid: Option<f64> = report.cost_lines.iter().map(|line| line.amount_usd).sum();
                    assert_eq!(first.price_usd.map(nanos), paid.map(nanos), "{what}");
                    assert_eq!(said.changed, report.model != "all", "{what}");
                }
                Err(error) => {
                    let reason = format!("{} {}", error.kind.name(), error.param.clone().unwrap_or_default());
                    assert_eq!((said.verdict(), &said.reason), (Verdict::Refused, &reason), "{what}");
                }
            }
        }
        // Asked again, it says the same.
        assert_eq!(self::seen(&config(&house, &tried), &records).await, seen);
    }
}

fn fields(warnings: &[pb::Warning]) -> Vec<(String, i32)> {
    warnings.iter().map(|warning| (warning.field.clone(), warning.action)).collect()
}

fn nanos(usd: f64) -> u64 {
    (usd * 1e9).round() as u64
}

#[tokio::test]
async fn how_targets_stand_today_does_not_count() {
    let worker = Worker::paint().script("a", Outcome::fail(Error::new(ErrorKind::Unavailable, "down")));
    let mut tried = fallback(&["a", "b"]);
    tried["targets"][0]["breaker"] = json!({"consecutive_failures": 1});
    let house = House::over(&worker, &tried).await;
    for _ in 0..3 {
        house.gateway.generate(&json!({})).await.unwrap();
    }
    let explained = message(pb::ExplainRouteRequest { image: Some(ask(&json!({}))) }, &[]);
    let explained = house.gateway.router().explain_route(explained).await.unwrap().into_inner();
    assert_eq!(explained.targets[0].reason, "breaker_open");
    let before = worker.requests().len();
    let seen = seen(&config(&house, &tried), &house.records().await).await;
    assert_eq!(firsts(&seen), ["a", "a", "a"]);
    // Only the first one called `a`; the others found it broken then.
    assert_eq!(seen.iter().map(|request| request.changed).collect::<Vec<_>>(), [false, true, true]);
    let then: Vec<_> = seen.iter().map(|request| request.recorded.clone().unwrap().first_model).collect();
    assert_eq!(then, ["a", "b", "b"]);
    assert!(seen.iter().all(|request| request.targets.iter().all(|target| target.state.is_none())));
    assert_eq!(worker.requests().len(), before);
}

fn by(query: &Value) -> Value {
    json!({
        "strategy": {"mode": "conditional", "conditions": [{"query": query, "then": "x"}], "default": "y"},
        "targets": [with(target("a"), &json!({"name": "x"})), with(target("b"), &json!({"name": "y"}))],
    })
}

#[tokio::test]
async fn what_depends_on_an_unknown_prompt_is_undecided() {
    let (cat, dog) = (json!({"prompt": "a cat", "n": 2}), json!({"prompt": "a dog"}));
    let on_prompt = by(&json!({"params.prompt": {"$regex": "cat"}}));
    let on_both = by(&json!({"params.prompt": {"$regex": "cat"}, "params.n": 2}));
    let on_plan = by(&json!({"metadata.plan": "pro", "metadata.age": {"$gte": 18}}));
    let unknown = "undecided: params.prompt".to_owned();
    for (prompts, expected) in [
        (false, [[unknown.clone(), unknown.clone()], [unknown, "b".into()], ["a".into(), "b".into()]]),
        (true, [["a".into(), "b".into()], ["a".into(), "b".into()], ["a".into(), "b".into()]]),
    ] {
        let yaml =
            format!("log: {{prompts: {prompts}}}\nconfigs: {{it: {}}}\ndefault_config: it\n", target("c"));
        let house = House::new(&Worker::paint(), &yaml).await;
        let metadata = |said| [("x-portkey-metadata", said)];
        house.gateway.generate_with(&cat, &metadata(r#"{"plan": "pro", "age": 31}"#)).await.unwrap();
        house.gateway.generate_with(&dog, &metadata(r#"{"plan": "pro"}"#)).await.unwrap();
        let records = house.records().await;
        for (tried, expected) in [&on_prompt, &on_both, &on_plan].into_iter().zip(expected) {
            assert_eq!(firsts(&seen(&config(&house, tried), &records).await), expected, "{tried}");
        }
        // Whoever comes first is known, whatever is not known of those behind.
        let behind = json!({"strategy": {"mode": "fallback"}, "targets": [target("d"), on_prompt]});
        assert_eq!(firsts(&seen(&config(&house, &behind), &records).await), ["d", "d"]);
    }
}

#[tokio::test]
async fn balances_share_recorded_requests_as_they_would_have() {
    let house = House::over(&Worker::paint(), &target("c")).await;
    for _ in 0..200 {
        house.gateway.generate(&json!({})).await.unwrap();
    }
    let records = house.records().await;
    let balance = |policy: &str| {
        let mut balance = fallback(&["a", "b"]);
        balance["strategy"] = json!({"mode": "loadbalance", "policy": policy});
        if policy == "weighted" {
            balance["targets"][0]["weight"] = json!(3);
        }
        balance
    };
    let tried = async |policy: &str| {
        let run = config(&house, &balance(policy));
        let mut counts = BTreeMap::new();
        let firsts = firsts(&seen(&run, &records).await);
        firsts.iter().for_each(|model| *counts.entry(model.clone()).or_insert(0) += 1);
        (firsts, counts["a"])
    };
    let (firsts, by_weight) = tried("weighted").await;
    assert!((120..=180).contains(&by_weight), "{by_weight} of 200");
    assert_eq!(tried("weighted").await.0, firsts);
    assert_eq!(tried("round_robin").await.1, 100);
    assert!(config(&house, &balance("least_busy")).notes()[0].contains("by load or latency"));
}

#[tokio::test]
async fn a_request_that_named_its_provider_names_it_again() {
    let yaml = format!("configs: {{it: {}}}\ndefault_config: it\n", target("a"));
    let house = House::new(&Worker::paint(), &yaml).await;
    house.gateway.generate_with(&json!({"model": "b"}), &[("x-portkey-provider", "paint")]).await.unwrap();
    house.gateway.generate(&json!({"model": "b"})).await.unwrap();
    house.gateway.generate_with(&json!({}), &[("x-portkey-debug", "false")]).await.unwrap();
    let own = json!({"override_params": {"quality": "high"}});
    let seen = seen(&config(&house, &own), &house.records().await).await;
    assert_eq!(firsts(&seen), ["b", "undecided: provider", "undecided: not_kept"]);
}

#[tokio::test]
async fn what_a_caller_may_not_use_is_refused() {
    let yaml = "
        configs: {it: {provider: paint, override_params: {model: a}}}
        default_config: it
        virtual_keys: {vk-one: {provider: paint}, vk-two: {provider: paint}}
    ";
    let caller = |key: &str, virtual_keys: Option<&str>| SavedCaller {
        digest: digest(key),
        expires_ms: None,
        caller: Caller {
            id: format!("id of {key}"),
            virtual_keys: virtual_keys.map(|id| [id.to_owned()].into()),
            ..Caller::anybody()
        },
    };
    let callers = vec![caller("ig-all", None), caller("ig-one", Some("vk-one"))];
    let house = House::remembering(&Worker::paint(), yaml, &Saved { callers, ..Saved::default() }).await;
    for key in ["ig-all", "ig-one"] {
        house.gateway.generate_with(&json!({}), &[("x-portkey-api-key", key)]).await.unwrap();
    }
    let tried = json!({"virtual_key": "vk-two", "override_params": {"model": "b"}});
    let seen = seen(&config(&house, &tried), &house.records().await).await;
    assert_eq!(firsts(&seen), ["b", "refused: permission_denied"]);
    let problems =
        house.gateway.local().dry_run("default", "tried", &json!({"virtual_key": "gone", "retry": 3}));
    assert_eq!(problems.unwrap_err().len(), 2);
}

#[tokio::test]
async fn what_is_kept_for_it_is_small_and_says_nothing() {
    let house = House::over(&Worker::paint(), &target("a")).await;
    let fields =
        json!({"prompt": "secretive ".repeat(300), "negative_prompt": "secretive", "own": "secretive"});
    house.gateway.generate(&fields).await.unwrap();
    let record = house.records().await.remove(0);
    let size = prost::Message::encoded_len(&record);
    assert!(size < 1000, "{size} bytes");
    assert!(!format!("{record:?}").contains("secretive"));
    assert_eq!(record.subject.unwrap().prompt_chars, 3000);
}
