//! Conditional routing: operators and their edge cases, and the texts of what cannot be routed.

use imagegate::pb;
use serde_json::{Value, json};

use super::assert_refused;
use crate::support::{
    Gateway, Mode, Worker, ask, attempts, both_ways, fails, message, png, report, target, with,
};

/// Calls model `a` where the query holds, else `b`.
fn either(query: &Value) -> Value {
    let named = |name: &str, model: &str| with(target(model), &json!({"name": name}));
    json!({
        "strategy": {
            "mode": "conditional", "conditions": [{"query": query, "then": "yes"}], "default": "no",
        },
        "targets": [named("no", "b"), named("yes", "a")],
    })
}

/// Whether a query holds for a request with these parameters and metadata.
async fn holds(mode: Mode, query: &Value, fields: &Value, metadata: &str) -> bool {
    let worker = Worker::paint();
    let gateway = Gateway::over(mode, &worker, &either(query));
    let result = gateway.generate_with(fields, &[("x-portkey-metadata", metadata)]).await.unwrap();
    let path = &report(&result).target;
    match worker.models_called()[0].as_str() {
        "a" => path == "config.targets[1]",
        _ => path != "config.targets[0]",
    }
}

#[tokio::test]
async fn every_operator_means_what_the_reference_documents() {
    let metadata =
        r#"{"plan": "pro", "age": "31", "n": 2, "beta": true, "none": null, "geo": {"at": "de"}, "x.y": 1}"#;
    for (query, expected, says) in [
        (json!({}), true, "an empty query holds"),
        (json!({"metadata.plan": "pro"}), true, "a literal is equality"),
        (json!({"metadata.plan": "PRO"}), false, "which is strict about case"),
        (json!({"metadata.n": 2}), true, "numbers are equal by value"),
        (json!({"metadata.n": "2"}), false, "and are no texts"),
        (json!({"metadata.beta": true}), true, "flags too"),
        (json!({"metadata.plan": {"$eq": "pro"}}), true, "$eq is the literal"),
        (json!({"metadata.plan": {"$ne": "free"}}), true, "$ne"),
        (json!({"metadata.plan": {"$ne": "pro"}}), false, "$ne"),
        (
            json!({"metadata.gone": {"$ne": "pro"}}),
            false,
            "$ne of what is not there: true there, documented false",
        ),
        (json!({"metadata.age": {"$gt": 30}}), true, "texts compare as numbers"),
        (json!({"metadata.age": {"$gt": "30"}}), true, "on both sides"),
        (json!({"metadata.age": {"$gte": 31, "$lte": 31}}), true, "several operators all hold"),
        (json!({"metadata.age": {"$gte": 31, "$lt": 31}}), false, "several operators all hold"),
        (json!({"metadata.gone": {"$lt": 5}}), false, "what is not there compares with nothing"),
        (json!({"metadata.plan": {"$lt": 5}}), false, "nor what is no number"),
        (json!({"metadata.plan": {"$in": ["free", "pro"]}}), true, "$in"),
        (json!({"metadata.plan": {"$in": ["free"]}}), false, "$in"),
        (json!({"metadata.plan": {"$nin": ["free"]}}), true, "$nin"),
        (json!({"metadata.plan": {"$nin": ["pro"]}}), false, "$nin"),
        (json!({"metadata.gone": {"$nin": ["pro"]}}), false, "$nin of what is not there: true there"),
        (json!({"metadata.plan": {"$regex": "r"}}), true, "$regex is not anchored"),
        (json!({"metadata.plan": {"$regex": "^P"}}), false, "and knows case"),
        (json!({"metadata.plan": {"$regex": "^(?!free).+$"}}), true, "and look-around"),
        (
            json!({"metadata.gone": {"$regex": "undefined"}}),
            false,
            "what is not there has no text: `undefined` there",
        ),
        (
            json!({"metadata.plan": {"$regex": "p", "$eq": "free"}}),
            false,
            "operators after $regex count: skipped there",
        ),
        (json!({"$and": [{"metadata.plan": "pro"}, {"metadata.n": 2}]}), true, "$and"),
        (json!({"$and": [{"metadata.plan": "pro"}, {"metadata.n": 3}]}), false, "$and"),
        (json!({"$or": [{"metadata.plan": "free"}, {"metadata.n": 2}]}), true, "$or"),
        (json!({"$or": [{"metadata.plan": "free"}, {"metadata.n": 3}]}), false, "$or"),
        (json!({"$or": [{"$and": [{"metadata.n": 2}]}, {"metadata.n": 3}]}), true, "they nest"),
        (
            json!({"$and": [{"metadata.n": 2}], "metadata.plan": "free"}),
            false,
            "siblings after $and count: ignored there",
        ),
        (
            json!({"$or": [{"metadata.n": 2}], "metadata.plan": "free"}),
            false,
            "siblings after $or count: ignored there",
        ),
        (json!({"metadata.plan": "pro", "metadata.n": 3}), false, "several fields all hold"),
        (json!({"metadata.geo.at": "de"}), true, "any depth: two parts only there"),
        (json!({"metadata.x.y": 1}), true, "names with dots: out of reach there"),
        (json!({"url.pathname": "/v1/images/generations"}), true, "the path"),
        (json!({"url.pathname": {"$regex": "edits"}}), false, "the path"),
        (json!({"params.n": 2}), true, "a parameter"),
        (json!({"params.model": "dall-e-3"}), true, "the caller's, not the config's"),
        (json!({"params.lora.id": "x"}), true, "any depth: two parts only there"),
        (json!({"params.quality": "hd"}), true, "as the caller spells it"),
    ] {
        let fields = json!({"model": "dall-e-3", "n": 2, "quality": "hd", "lora": {"id": "x"}});
        both_ways(async |mode| {
            assert_eq!(holds(mode, &query, &fields, metadata).await, expected, "{says}: {query}");
        })
        .await;
    }
}

#[tokio::test]
async fn metadata_that_is_no_object_says_nothing() {
    for metadata in ["", "pro", "{\"plan\": ", "[1]", "null"] {
        assert!(!holds(Mode::OneProcess, &json!({"metadata.plan": "pro"}), &json!({}), metadata).await);
        assert!(holds(Mode::OneProcess, &json!({}), &json!({}), metadata).await);
    }
}

#[tokio::test]
async fn the_first_query_that_holds_decides() {
    let named = |model: &str| with(target(model), &json!({"name": model}));
    let case = |query: Value, then: &str| json!({"query": query, "then": then});
    let config = json!({
        "strategy": {"mode": "conditional", "conditions": [
            case(json!({"metadata.plan": "free"}), "a"),
            case(json!({"params.n": {"$gte": 2}}), "b"),
            case(json!({"metadata.plan": "pro"}), "c"),
        ], "default": "d"},
        "targets": [named("d"), named("c"), named("b"), named("a")],
    });
    for (n, metadata, expected) in [
        (1, r#"{"plan": "pro"}"#, "c"),
        (2, r#"{"plan": "pro"}"#, "b"),
        (2, r#"{"plan": "free"}"#, "a"),
        (1, "{}", "d"),
    ] {
        both_ways(async |mode| {
            let worker = Worker::paint();
            let gateway = Gateway::over(mode, &worker, &config);
            gateway.generate_with(&json!({"n": n}), &[("x-portkey-metadata", metadata)]).await.unwrap();
            assert_eq!(worker.models_called(), [expected]);
        })
        .await;
    }
}

#[tokio::test]
async fn edits_have_parameters_too() {
    // In the reference a multipart request has none.
    both_ways(async |mode| {
        let worker = Worker::paint();
        let query = json!({"params.n": 2, "url.pathname": "/v1/images/edits"});
        let gateway = Gateway::over(mode, &worker, &either(&query));
        let mut image = ask(&json!({"n": 2}));
        let source = Some(pb::input_image::Source::Data(png(8, 8, 0)));
        image.inputs.push(pb::InputImage { source, ..Default::default() });
        let request = message(pb::EditImageRequest { image: Some(image) }, &[]);
        gateway.router().edit_image(request).await.unwrap();
        assert_eq!(worker.models_called(), ["a"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_query_that_cannot_be_evaluated_is_refused_when_it_is_read() {
    for (query, path, text) in [
        (
            json!({"metadata.x": {"$exists": true}}),
            ".metadata.x.$exists",
            "Unsupported operator used in the query router: $exists",
        ),
        (json!({"$not": {}}), ".$not", "Unsupported operator used in the query router: $not"),
        // The reference raises an error when a request comes, for some of them; others are never true.
        (json!({"metadata.x": [1, 2]}), ".metadata.x", "the value to compare with is"),
        (json!({"metadata.x": {"$in": "pro"}}), ".metadata.x.$in", "a list of values is required"),
        (json!({"metadata.x": {"$nin": "pro"}}), ".metadata.x.$nin", "a list of values is required"),
        (json!({"metadata.x": {"$regex": "("}}), ".metadata.x.$regex", "\"(\""),
        (json!({"metadata.x": {"$gt": "old"}}), ".metadata.x.$gt", "\"old\" is not a number"),
        (json!({"metadata.x": {"$gt": "18 years"}}), ".metadata.x.$gt", "\"18 years\" is not a number"),
        (json!({"body.x": 1}), ".body.x", "\"body.x\" is not a field of a request"),
        (json!({"params": 1}), ".params", "\"params\" is not a field of a request"),
        (json!(["x"]), "", "a query is an object"),
    ] {
        let problem = format!("strategy.conditions.0.query{path}: {text}");
        both_ways(async |mode| assert_refused(mode, &either(&query), &problem).await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn routing_errors_have_the_references_words() {
    let targets = json!([with(target("a"), &json!({"name": "yes"}))]);
    let conditional =
        |more: Value| json!({"strategy": with(more, &json!({"mode": "conditional"})), "targets": targets});
    let case = |then: &str| json!([{"query": {"metadata.x": 1}, "then": then}]);
    for (config, problem) in [
        (conditional(json!({})), "strategy.conditions: No conditions passed in the query router"),
        (
            conditional(json!({"conditions": case("ye")})),
            "strategy.conditions.0.then: Invalid target name found in the query router: ye; did you mean \"yes\"?",
        ),
        (
            conditional(json!({"conditions": case("yes"), "default": "nobody"})),
            "strategy.default: Invalid target name found in the query router: nobody",
        ),
        (conditional(json!({"conditions": [{"then": "yes"}]})), "strategy.conditions.0.query: Required"),
        (
            conditional(json!({"conditions": [{"query": {}, "then": 1}]})),
            "strategy.conditions.0.then: Expected string, received number",
        ),
    ] {
        both_ways(async |mode| assert_refused(mode, &config, problem).await).await;
    }
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &conditional(json!({"conditions": case("yes")})));
        let error = gateway.generate(&json!({})).await.unwrap_err();
        // There a 500 `Something went wrong` on the image routes.
        assert_eq!((error.status, error.param.as_deref()), (400, Some("x-portkey-config")));
        assert_eq!(error.message, "Query router did not resolve to any valid target");
        assert_eq!(worker.requests().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_conditional_that_fails_lets_a_fallback_around_it_go_on() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [fails(500)]);
        let unresolved = json!({
            "strategy": {"mode": "conditional", "conditions": [{"query": {"metadata.x": 1}, "then": "x"}]},
            "targets": [with(target("b"), &json!({"name": "x"}))],
        });
        let config =
            json!({"strategy": {"mode": "fallback"}, "targets": [unresolved, either(&json!({})), target("c")]});
        let result = Gateway::over(mode, &worker, &config).generate(&json!({})).await.unwrap();
        assert_eq!(
            attempts(report(&result)),
            ["config.targets[1].targets[1] unavailable 500", "config.targets[2] ok 200"]
        );
    })
    .await;
}
