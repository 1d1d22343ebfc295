//! Who may call, which route a request takes, and whose credential goes where.

use std::sync::Arc;

use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, credential::Credential},
};
use serde_json::json;
use tonic::Request;

use crate::support::{Gateway, Mode, Outcome, Worker, both_ways, message, model, report};

/// Providers: `paint` needs no credential, `vault` does.
const YAML: &str = "
workers: {vault: 'http://vault.example:50061'}
virtual_keys:
  vk-one: {provider: vault, api_key: {env: PAINT_KEY}, base_url: 'https://vault.example/v1/'}
  vk-two: {provider: vault, held_by: worker}
configs:
  open: {provider: paint, override_params: {model: a}}
  keyed: {virtual_key: vk-one, override_params: {model: v}}
  own: {provider: paint, override_params: {model: b}}
default_config: open
";

const KEYS: &str = "
api_keys:
  - {name: app, key: ig-app}
  - {name: owner, key: ig-own, default_config: own}
  - {name: reader, key: ig-logs, scopes: [logs]}
  - {name: root, key: ig-root, scopes: [admin]}
";

struct House {
    gateway: Gateway,
    paint: Arc<Worker>,
    vault: Arc<Worker>,
}

fn house(mode: Mode, yaml: &str) -> House {
    let paint = Worker::paint();
    let vault = Worker::locked("vault", vec![model("v"), model("w")]);
    House { gateway: Gateway::new(mode, yaml, &[&paint, &vault]), paint, vault }
}

/// `api key sk-stored` or `held vk-two`.
fn credential(request: &pb::GenerateRequest) -> String {
    match request.upstream.clone().unwrap().credential.and_then(|credential| credential.credential) {
        Some(Credential::ApiKey(key)) => format!("api key {key}"),
        Some(Credential::HeldByWorker(name)) => format!("held {name}"),
        None => "none".into(),
    }
}

#[tokio::test]
async fn callers_are_told_apart_by_their_keys() {
    both_ways(async |mode| {
        let house = house(mode, &format!("{YAML}{KEYS}"));
        for (headers, expected) in [
            (vec![], Err((ErrorKind::Unauthenticated, 401))),
            (vec![("x-portkey-api-key", "ig-wrong")], Err((ErrorKind::Unauthenticated, 401))),
            (vec![("authorization", "Bearer sk-somebody")], Err((ErrorKind::Unauthenticated, 401))),
            (vec![("x-portkey-api-key", "ig-logs")], Err((ErrorKind::PermissionDenied, 403))),
            (vec![("x-portkey-api-key", "ig-app")], Ok("a")),
            (vec![("authorization", "Bearer ig-app")], Ok("a")),
            (vec![("authorization", "bearer ig-app")], Ok("a")),
            (vec![("api-key", "ig-app")], Ok("a")),
            (vec![("x-portkey-api-key", "ig-root")], Ok("a")),
            (vec![("x-portkey-api-key", "ig-own")], Ok("b")),
        ] {
            let answer = house.gateway.generate_with(&json!({}), &headers).await;
            match (answer, expected) {
                (Ok(result), Ok(model)) => assert_eq!(report(&result).model, model, "{headers:?}"),
                (Err(error), Err(expected)) => {
                    assert_eq!((error.kind, error.status), expected, "{headers:?}");
                    assert!(!error.message.contains("ig-wrong"));
                    assert!(!error.report.as_ref().unwrap().trace_id.is_empty());
                }
                (answer, expected) => panic!("{headers:?}: {answer:?}, not {expected:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn models_are_listed_for_those_who_may_call() {
    both_ways(async |mode| {
        let house = house(mode, &format!("{YAML}{KEYS}"));
        let list = async |headers: &[(&'static str, &str)]| {
            let answer = house.gateway.router().list_models(message(pb::ListModelsRequest {}, headers)).await;
            answer.map(|answer| answer.into_inner().models).map_err(|status| Error::from_status(&status))
        };
        assert_eq!(list(&[]).await.unwrap_err().status, 401);
        assert_eq!(list(&[("api-key", "ig-logs")]).await.unwrap_err().status, 403);
        let models = list(&[("api-key", "ig-app")]).await.unwrap();
        let ids: Vec<_> = models.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c", "d", "v", "w", "@vk-one/v", "@vk-one/w", "@vk-two/v", "@vk-two/w"]);
        assert_eq!((models[0].provider.as_str(), models[4].provider.as_str()), ("paint", "vault"));
    })
    .await;
}

#[tokio::test]
async fn providers_that_nobody_has_a_key_for_are_not_listed() {
    both_ways(async |mode| {
        let house = house(mode, "auth: open\n");
        let answer =
            house.gateway.router().list_models(Request::new(pb::ListModelsRequest {})).await.unwrap();
        let models = answer.into_inner().models;
        assert!(models.iter().all(|model| model.provider == "paint"), "{models:?}");
    })
    .await;
}

#[tokio::test]
async fn a_request_picks_its_route_in_six_ways() {
    both_ways(async |mode| {
        let inline = json!({"virtual_key": "vk-two", "override_params": {"model": "w"}}).to_string();
        let own = ("x-portkey-api-key", "ig-own");
        let app = ("x-portkey-api-key", "ig-app");
        for (way, headers, model, expected) in [
            ("saved config", vec![own, ("x-portkey-config", "keyed")], "", ("vault", "v")),
            ("inline config", vec![own, ("x-portkey-config", &inline)], "", ("vault", "w")),
            ("virtual key", vec![own, ("x-portkey-virtual-key", "vk-one")], "w", ("vault", "w")),
            (
                "provider with its key",
                vec![own, ("x-portkey-provider", "vault"), ("authorization", "Bearer sk-theirs")],
                "v",
                ("vault", "v"),
            ),
            ("provider by slug", vec![own, ("x-portkey-provider", "@vk-one")], "v", ("vault", "v")),
            ("virtual key in the model", vec![own], "@vk-one/w", ("vault", "w")),
            ("the caller's default", vec![own], "", ("paint", "b")),
            ("the file's default", vec![app], "", ("paint", "a")),
        ] {
            let house = house(mode, &format!("{YAML}{KEYS}"));
            let fields = if model.is_empty() { json!({}) } else { json!({"model": model}) };
            let result = house.gateway.generate_with(&fields, &headers).await;
            let result = result.unwrap_or_else(|error| panic!("{way}: {error:?}"));
            let report = report(&result);
            assert_eq!((report.provider.as_str(), report.model.as_str()), expected, "{way}");
        }
    })
    .await;
}

#[tokio::test]
async fn each_way_brings_its_own_credential() {
    both_ways(async |mode| {
        let inline = json!({"provider": "vault", "api_key": "sk-inline", "override_params": {"model": "v"}});
        let inline = inline.to_string();
        let provider = ("x-portkey-provider", "vault");
        for (headers, model, expected) in [
            (vec![("x-portkey-config", "keyed")], "", "api key sk-stored"),
            (vec![("x-portkey-config", inline.as_str())], "", "api key sk-inline"),
            (vec![("x-portkey-virtual-key", "vk-one")], "v", "api key sk-stored"),
            (vec![("x-portkey-virtual-key", "vk-two")], "v", "held vk-two"),
            (vec![provider, ("authorization", "Bearer sk-theirs")], "v", "api key sk-theirs"),
            (vec![], "@vk-one/v", "api key sk-stored"),
        ] {
            let house = house(mode, YAML);
            let fields = if model.is_empty() { json!({}) } else { json!({"model": model}) };
            house.gateway.generate_with(&fields, &headers).await.unwrap();
            assert_eq!(credential(&house.vault.only_request()), expected, "{headers:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn neither_our_own_keys_nor_a_placeholder_go_to_a_provider() {
    both_ways(async |mode| {
        let one_key = "virtual_keys: {vk-one: {provider: vault, api_key: {env: PAINT_KEY}}}\n\
                       configs: {own: {provider: paint}}\n";
        let provider = ("x-portkey-provider", "vault");
        for headers in [
            vec![provider, ("x-portkey-api-key", "ig-app"), ("authorization", "Bearer OPENAI_API_KEY")],
            vec![provider, ("x-portkey-api-key", "ig-app"), ("authorization", "Bearer ig-app")],
            vec![provider, ("authorization", "Bearer ig-app")],
        ] {
            // The only virtual key of the provider is meant.
            let house = house(mode, &format!("{one_key}{KEYS}"));
            house.gateway.generate_with(&json!({"model": "v"}), &headers).await.unwrap();
            assert_eq!(credential(&house.vault.only_request()), "api key sk-stored", "{headers:?}");
        }
        let house = house(mode, "auth: open\n");
        let headers = [provider, ("authorization", "Bearer OPENAI_API_KEY")];
        let error = house.gateway.generate_with(&json!({"model": "v"}), &headers).await.unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some("authorization")));
        assert_eq!(house.vault.requests().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn what_does_not_exist_is_named() {
    both_ways(async |mode| {
        let house = house(mode, YAML);
        let slug = json!({"provider": "@nosuch"}).to_string();
        for (headers, model, status, code) in [
            (vec![("x-portkey-config", "nosuch")], "a", 404, Some("config_not_found")),
            (vec![("x-portkey-virtual-key", "nosuch")], "a", 404, Some("virtual_key_not_found")),
            (vec![("x-portkey-provider", "nosuch")], "a", 400, None),
            (vec![], "@nosuch/a", 404, Some("virtual_key_not_found")),
            (vec![("x-portkey-config", slug.as_str())], "a", 400, Some("invalid_config")),
            (vec![("x-portkey-config", "{\"strategy\"")], "a", 400, Some("invalid_config")),
            (vec![("x-portkey-config", "null")], "a", 400, Some("invalid_config")),
            (vec![("x-portkey-provider", "vault")], "v", 400, None),
        ] {
            let error = house.gateway.generate_with(&json!({"model": model}), &headers).await.unwrap_err();
            assert_eq!((error.status, error.code.as_deref()), (status, code), "{headers:?}: {error:?}");
        }
        assert_eq!(house.paint.requests().len() + house.vault.requests().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn without_any_route_the_caller_is_told_what_to_send() {
    both_ways(async |mode| {
        let house = house(mode, "auth: open\n");
        let error = house.gateway.generate(&json!({})).await.unwrap_err();
        assert_eq!(error.status, 400);
        assert_eq!(error.message, "Either x-portkey-config or x-portkey-provider header is required");
    })
    .await;
}

#[tokio::test]
async fn a_stored_key_is_not_sent_to_a_callers_host() {
    both_ways(async |mode| {
        let inline = |host: &str| {
            json!({"virtual_key": "vk-one", "custom_host": host, "override_params": {"model": "v"}})
                .to_string()
        };
        let public = inline("https://collector.example/v1");
        for headers in [
            vec![
                ("x-portkey-virtual-key", "vk-one"),
                ("x-portkey-custom-host", "https://collector.example/v1"),
            ],
            vec![("x-portkey-config", "keyed"), ("x-portkey-custom-host", "https://collector.example/v1")],
            vec![("x-portkey-config", public.as_str())],
        ] {
            let house = house(mode, YAML);
            let error = house.gateway.generate_with(&json!({"model": "v"}), &headers).await.unwrap_err();
            assert_eq!((error.kind, error.status), (ErrorKind::PermissionDenied, 403), "{headers:?}");
            assert!(!error.message.contains("sk-stored"));
            assert_eq!(house.vault.requests().len(), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn a_stored_key_is_sent_to_a_host_that_the_operator_allows() {
    both_ways(async |mode| {
        let house = house(mode, &format!("{YAML}egress: {{allow: ['10.0.0.0/8']}}\n"));
        let headers =
            [("x-portkey-virtual-key", "vk-one"), ("x-portkey-custom-host", "http://10.1.2.3:8000/v1/")];
        house.gateway.generate_with(&json!({"model": "v"}), &headers).await.unwrap();
        let upstream = house.vault.only_request().upstream.unwrap();
        assert_eq!(upstream.base_url, "http://10.1.2.3:8000/v1");
        assert!(upstream.base_url_from_caller);
    })
    .await;
}

#[tokio::test]
async fn a_caller_may_send_its_own_key_to_a_public_host_only() {
    both_ways(async |mode| {
        let key = [("x-portkey-provider", "vault"), ("authorization", "Bearer sk-theirs")];
        for (host, allowed) in [
            ("https://collector.example/v1", true),
            ("http://169.254.169.254/latest", false),
            ("http://localhost:1/", false),
            ("http://10.1.2.3/", false),
        ] {
            let house = house(mode, YAML);
            let headers = [&key[..], &[("x-portkey-custom-host", host)]].concat();
            match house.gateway.generate_with(&json!({"model": "v"}), &headers).await {
                Ok(_) => assert!(allowed, "{host}"),
                Err(error) => {
                    assert!(!allowed, "{host}: {error:?}");
                    assert_eq!(error.param.as_deref(), Some("x-portkey-custom-host"));
                }
            }
            assert_eq!(house.vault.requests().len(), usize::from(allowed));
        }
    })
    .await;
}

#[tokio::test]
async fn the_operators_address_is_used_for_a_virtual_key() {
    both_ways(async |mode| {
        let house = house(mode, YAML);
        let headers = [("x-portkey-config", "keyed")];
        house.gateway.generate_with(&json!({}), &headers).await.unwrap();
        let upstream = house.vault.only_request().upstream.unwrap();
        assert_eq!(upstream.base_url, "https://vault.example/v1");
        assert!(!upstream.base_url_from_caller);
    })
    .await;
}

#[tokio::test]
async fn listed_headers_go_to_the_provider_and_the_nearest_list_counts() {
    both_ways(async |mode| {
        let config = json!({
            "strategy": {"mode": "fallback"},
            "forward_headers": ["X-Team", "x-other"],
            "targets": [
                {"provider": "paint", "override_params": {"model": "a"}},
                {"provider": "paint", "override_params": {"model": "b"}, "forward_headers": ["x-other"]},
            ],
        });
        let down = Outcome::fail(Error::new(ErrorKind::Unavailable, "down"));
        let sent = [("x-team", "red"), ("x-other", "blue"), ("x-third", "green")];
        for (header, expected) in [
            (None, vec![vec!["x-other", "x-team"], vec!["x-other"]]),
            (Some("x-third"), vec![vec!["x-third"], vec!["x-third"]]),
        ] {
            let worker = Worker::paint().script("a", down.clone());
            let gateway = Gateway::over(mode, &worker, &config);
            let header = header.map(|list| ("x-portkey-forward-headers", list));
            let headers = [&sent[..], header.as_slice()].concat();
            gateway.generate_with(&json!({}), &headers).await.unwrap();
            let forwarded: Vec<Vec<String>> = worker
                .requests()
                .into_iter()
                .map(|request| {
                    let mut names: Vec<_> = request.upstream.unwrap().headers.into_keys().collect();
                    names.sort_unstable();
                    names
                })
                .collect();
            assert_eq!(forwarded, expected);
        }
    })
    .await;
}

#[tokio::test]
async fn an_inline_config_routes_like_a_saved_one() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", Outcome::fail(Error::new(ErrorKind::RateLimited, "slow")));
        let gateway = Gateway::new(mode, "auth: open\n", &[&worker]);
        let config = crate::support::fallback(&["a", "b"]).to_string();
        let headers = [("x-portkey-config", config.as_str())];
        let result = gateway.generate_with(&json!({}), &headers).await.unwrap();
        assert_eq!(report(&result).target, "config.targets[1]");
    })
    .await;
}

#[tokio::test]
async fn strictness_can_be_switched_off_by_the_caller() {
    both_ways(async |mode| {
        let house = house(mode, YAML);
        for (value, strict) in [("false", false), ("true", true)] {
            let headers = [("x-portkey-strict-open-ai-compliance", value)];
            let result = house.gateway.generate_with(&json!({}), &headers).await.unwrap();
            assert_eq!(report(&result).strict_open_ai_compliance, strict);
        }
    })
    .await;
}

#[tokio::test]
async fn a_provider_that_quotes_key_and_prompt_is_not_quoted() {
    both_ways(async |mode| {
        let quoting = "the key sk-stored may not paint a very private thing, says sk-stored";
        let error = Error::new(ErrorKind::PermissionDenied, quoting);
        let paint = Worker::paint();
        let vault = Worker::locked("vault", vec![model("v")]).script("v", Outcome::fail(error));
        let gateway = Gateway::new(mode, YAML, &[&paint, &vault]);
        let fields = json!({"prompt": "a very private thing"});
        let error = gateway.generate_with(&fields, &[("x-portkey-config", "keyed")]).await.unwrap_err();
        assert_eq!(error.message, "the key [key] may not paint [prompt], says [key]");
        assert_eq!(error.report.as_ref().unwrap().attempts[0].message, error.message);
    })
    .await;
}

#[tokio::test]
async fn what_models_at_an_address_can_do_goes_before_the_providers_record() {
    both_ways(async |mode| {
        let yaml = "virtual_keys:\n  mine:\n    provider: vault\n    api_key: k\n    models:\n      \
                    - {ids: [v], operations: [generate], max_n: 1, sizes: {list: [512x512]}, formats: [png], \
                    prices: [{item: image, usd: 0.5}]}\n\
                    configs: {it: {virtual_key: mine, override_params: {model: v}}}\ndefault_config: it\n";
        let house = house(mode, yaml);
        let result = house.gateway.generate(&json!({"size": "1024x1024", "n": 2})).await.unwrap();
        assert_eq!(house.vault.requests().len(), 2);
        let sizes: Vec<_> =
            house.vault.images().iter().map(|image| image.dimensions().unwrap().width).collect();
        assert_eq!(sizes, [512, 512]);
        let costs: Vec<_> = report(&result).cost_lines.iter().map(|line| line.amount_usd).collect();
        assert_eq!(costs, [Some(0.5), Some(0.5)]);
    })
    .await;
}
