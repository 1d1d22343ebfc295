//! What calls cost: by the sizes that were made, by an operator's own prices, and where nobody knows.

use std::time::Duration;

use imagegate::{
    config::{Origin, providers::Providers},
    error::{Error, ErrorKind},
    pb::{self, CostLine, CostSource},
};
use serde_json::{Value, json};
use tonic::Request;

use crate::support::{
    Gateway, Mode, Outcome, Worker, ask, both_ways, model, png, report, slow, target, with,
};

fn price(item: &str, usd: f64) -> pb::Price {
    pb::Price { item: item.into(), usd, ..Default::default() }
}

fn priced(name: &str, prices: Vec<pb::Price>) -> pb::ModelCapability {
    pb::ModelCapability { prices, ..model(name) }
}

/// A router whose operator has written down prices.
fn with_prices(worker: &std::sync::Arc<Worker>, models: &Value) -> Gateway {
    let prices = json!({"providers": {"paint": {"models": models}}});
    let yaml = json!({
        "prices": prices,
        "virtual_keys": {
            "own": {"provider": "paint", "models": [{
                "ids": ["a"], "operations": ["generate"], "formats": ["png"],
                "prices": [{"item": "image", "usd": 7}],
            }]},
        },
        "configs": {"it": {"provider": "paint"}, "own": {"virtual_key": "own"}},
        "default_config": "it",
    });
    Gateway::new(Mode::OneProcess, &yaml.to_string(), &[worker])
}

fn amounts(result: &pb::ImageResult) -> Vec<Option<f64>> {
    report(result).cost_lines.iter().map(|line| line.amount_usd).collect()
}

#[tokio::test]
async fn what_was_made_is_charged_before_it_is_resized() {
    both_ways(async |mode| {
        let per_pixel = pb::Price { per: 1000.0, ..price("output_pixel", 1.0) };
        let list = pb::SizeList { sizes: vec![pb::Dimensions { width: 40, height: 50 }] };
        let rule = pb::SizeRule { rule: Some(pb::size_rule::Rule::List(list)), auto: false };
        let capability = pb::ModelCapability { size: Some(rule), ..priced("a", vec![per_pixel]) };
        let worker =
            Worker::new("paint", vec![capability]).script("a", [Outcome::Images(vec![png(40, 50, 1)])]);
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let mut image = ask(&json!({"size": "20x25"}));
        image.size_policy = pb::SizePolicy::ResizeAfter.into();
        let request = Request::new(pb::GenerateImageRequest { image: Some(image) });
        let result = gateway.send(request).await.unwrap();
        assert_eq!((result.images[0].width, result.images[0].height), (20, 25));
        assert_eq!(amounts(&result), [Some(2.0)]);
    })
    .await;
}

#[tokio::test]
async fn an_operators_prices_win_over_a_workers_and_lose_to_a_virtual_keys() {
    let described = || ["a", "b", "c"].map(|name| priced(name, vec![price("image", 1.0)]));
    let worker = Worker::new("paint", [described().to_vec(), vec![model("*")]].concat());
    let models = json!([
        {"ids": ["a", "new"], "prices": [{"item": "image", "usd": 2}, {"item": "request", "usd": 0.5}]},
        {"ids": ["b"], "prices": []},
    ]);
    let gateway = with_prices(&worker, &models);
    let cost = async |model: &str| amounts(&gateway.generate(&json!({"model": model})).await.unwrap());
    assert_eq!(cost("a").await, [Some(0.5), Some(2.0)]);
    // A model that nobody described, or whose price the operator does not believe.
    assert_eq!(cost("new").await, [Some(0.5), Some(2.0)]);
    assert_eq!(cost("b").await, [None]);
    assert_eq!(cost("c").await, [Some(1.0)]);
    let own = gateway.generate_with(&json!({"model": "a"}), &[("x-portkey-config", "own")]).await.unwrap();
    assert_eq!(amounts(&own), [Some(7.0)]);
}

#[tokio::test]
async fn only_prices_of_today_hold() {
    let day = |field: &str, day: &str, usd: f64| json!({"item": "image", "usd": usd, field: day});
    let worker = Worker::paint();
    let models = json!([
        {"ids": ["a"], "prices": [day("until", "2001-01-01", 1.0), day("from", "2001-01-01", 2.0)]},
        {"ids": ["b"], "prices": [day("from", "9999-01-01", 3.0)]},
    ]);
    let gateway = with_prices(&worker, &models);
    assert_eq!(amounts(&gateway.generate(&json!({"model": "a"})).await.unwrap()), [Some(2.0)]);
    assert_eq!(amounts(&gateway.generate(&json!({"model": "b"})).await.unwrap()), [None]);
}

/// What lines say of whether there was a bill.
fn sources(lines: &[CostLine]) -> Vec<(u32, &str, CostSource, Option<f64>)> {
    lines.iter().map(|line| (line.attempt, line.item.as_str(), line.source(), line.amount_usd)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_lost_may_have_been_billed() {
    both_ways(async |mode| {
        let models = ["a", "b"].map(|name| priced(name, vec![price("image", 0.5)]));
        let worker = Worker::new("paint", models.to_vec()).script("a", [slow(5000)]).script("b", [slow(500)]);
        let strategy = json!({"mode": "hedge", "after_ms": 1000, "budget": 1});
        let config = json!({"strategy": strategy, "targets": [target("a"), target("b")]});
        let result = Gateway::over(mode, &worker, &config).generate(&json!({})).await.unwrap();
        let mut lines = sources(&report(&result).cost_lines);
        lines.sort_by_key(|line| line.0);
        assert_eq!(
            lines,
            [(1, "request", CostSource::UnknownBilling, None), (2, "image", CostSource::Table, Some(0.5))]
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_took_too_long_may_have_been_billed_and_a_refused_one_was_not() {
    both_ways(async |mode| {
        let models = ["a", "b", "c"].map(|name| priced(name, vec![price("image", 0.5)]));
        let refused = Error::new(ErrorKind::RateLimited, "no").billed(pb::BillingClass::RejectedUnbilled);
        let worker = Worker::new("paint", models.to_vec())
            .script("a", [Outcome::Silent])
            .script("b", Outcome::fail(refused))
            .script("c", [Outcome::Truncated]);
        let slow = with(target("a"), &json!({"request_timeout": 1000}));
        let config = json!({"strategy": {"mode": "fallback"}, "targets": [slow, target("b"), target("c")]});
        let gateway = Gateway::over(mode, &worker, &config);
        let error = gateway.generate_within(Duration::from_secs(60), &json!({})).await.unwrap_err();
        let lines = sources(&error.report.as_ref().unwrap().cost_lines);
        assert_eq!(
            lines,
            [(1, "request", CostSource::UnknownBilling, None), (3, "image", CostSource::Table, Some(0.5))]
        );
    })
    .await;
}

#[test]
fn a_book_beside_the_file_is_read_from_its_folder_and_its_problems_have_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (file, book) = (folder.path().join("imagegate.yaml"), folder.path().join("prices.yaml"));
    std::fs::write(&file, "prices: prices.yaml\n").unwrap();
    let built_in = Providers::default().with(&pb::Provider { name: "openai".into(), ..Default::default() });
    let read = || Origin::File(file.clone()).read(&built_in);
    let missing = read().unwrap_err().to_string();
    assert!(
        missing.contains("line 1, column 1: prices: ") && missing.contains("cannot be read"),
        "{missing}"
    );
    let good = "providers:\n  openai:\n    models: [{ids: [m], prices: [{item: image, usd: 1}]}]\n";
    std::fs::write(&book, good).unwrap();
    let settings = read().unwrap();
    assert_eq!(settings.prices.prices("openai", "m").unwrap()[0].usd, 1.0);
    assert_eq!(settings.prices_file.as_deref(), Some(book.as_path()));
    std::fs::write(&book, good.replace("openai", "opnai").replace("usd: 1", "usd: -1")).unwrap();
    let problems = read().unwrap_err();
    let said: Vec<String> = problems.problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    let all = said.join("\n");
    assert!(all.contains("prices.yaml: line 2, column 3: providers.opnai: unknown provider"), "{all}");
    assert!(all.contains("prices.yaml: line 3, column "), "{all}");
    assert!(all.contains("providers.opnai.models.0.prices.0.usd: -1 is not allowed"), "{all}");
}
