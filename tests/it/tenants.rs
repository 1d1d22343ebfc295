//! What was saved while the gateway runs: whose it is, who may use it, and what becomes of what is withdrawn.

use std::{collections::BTreeMap, sync::Arc};

use imagegate::{
    config::{
        callers::{Caller, Scope, digest},
        quota::Quota,
        saved::{KeySecrets, Saved, SavedCaller, SavedConfig, SavedKey},
        spec::Secret,
    },
    error::ErrorKind,
    pb::{self, credential::Credential},
};
use serde_json::json;

use crate::support::{Gateway, Mode, Worker, both_ways, model, report};

const YAML: &str = "
configs:
  common: {provider: paint, override_params: {model: a}}
default_config: common
virtual_keys:
  shared: {provider: vault, api_key: sk-shared}
api_keys:
  - {name: file-app, key: ig-file}
";

fn caller(tenant: &str, change: impl FnOnce(&mut Caller)) -> Caller {
    let mut caller = Caller { tenant: tenant.into(), scopes: [Scope::Generate].into(), ..Caller::anybody() };
    change(&mut caller);
    caller
}

fn saved_caller(key: &str, caller: Caller) -> SavedCaller {
    SavedCaller { digest: digest(key), expires_ms: None, caller }
}

fn key(tenant: &str, slug: &str) -> SavedKey {
    let secrets = KeySecrets { key: Some(Secret::new(&format!("sk-{tenant}"))), options: BTreeMap::new() };
    SavedKey {
        tenant: tenant.into(),
        slug: slug.into(),
        provider: "vault".into(),
        base_url: String::new(),
        secrets: Some(secrets),
        is_disabled: false,
        expires_ms: None,
        quota: Quota::default(),
    }
}

fn config(tenant: &str, slug: &str, content: &serde_json::Value) -> SavedConfig {
    SavedConfig {
        tenant: tenant.into(),
        slug: slug.into(),
        version: 3,
        content: content.to_string(),
        is_default: false,
    }
}

fn saved() -> Saved {
    let red = json!({"virtual_key": "vk", "override_params": {"model": "v"}});
    let callers = [
        ("ig-red", caller("red", |_| ())),
        ("ig-blue", caller("blue", |_| ())),
        (
            "ig-bound",
            caller("red", |one| {
                one.default_config = Some("hero".into());
                one.allow_config_override = false;
            }),
        ),
        (
            "ig-few",
            caller("red", |one| {
                one.configs = Some(["hero".to_owned()].into());
                one.virtual_keys = Some(["vk".to_owned()].into());
            }),
        ),
        ("ig-no-keys", caller("red", |one| one.virtual_keys = Some([].into()))),
    ];
    Saved {
        virtual_keys: vec![key("red", "vk"), key("blue", "vk"), key("blue", "shared")],
        configs: vec![
            config("red", "hero", &red),
            SavedConfig { is_default: true, ..config("blue", "main", &red) },
        ],
        callers: callers.map(|(key, caller)| saved_caller(key, caller)).into(),
        ..Saved::default()
    }
}

struct House {
    gateway: Gateway,
    vault: Arc<Worker>,
    _paint: Arc<Worker>,
}

fn house(mode: Mode, saved: &Saved) -> House {
    let paint = Worker::paint();
    let vault = Worker::locked("vault", vec![model("v")]);
    let gateway = Gateway::remembering(mode, YAML, &[&paint, &vault], saved);
    House { gateway, vault, _paint: paint }
}

impl House {
    /// The credential that the provider saw, or how it failed.
    async fn ask(&self, headers: &[(&'static str, &str)]) -> Result<String, (ErrorKind, String)> {
        let answer = self.gateway.generate_with(&json!({}), headers).await;
        let result = answer.map_err(|error| (error.kind, error.message.clone()))?;
        if report(&result).provider == "paint" {
            return Ok("common".to_owned());
        }
        let upstream = self.vault.requests().last().unwrap().upstream.clone().unwrap();
        match upstream.credential.and_then(|credential| credential.credential) {
            Some(Credential::ApiKey(key)) => Ok(key),
            _ => panic!("another credential"),
        }
    }
}

#[tokio::test]
async fn tenants_use_what_is_theirs_and_what_the_file_says() {
    both_ways(async |mode| {
        let house = house(mode, &saved());
        let red = ("x-portkey-api-key", "ig-red");
        let blue = ("x-portkey-api-key", "ig-blue");
        let file = ("x-portkey-api-key", "ig-file");
        let route = |name| ("x-portkey-config", name);
        let virtual_key = |name| ("x-portkey-virtual-key", name);
        let good = async |headers: &[(&'static str, &str)]| house.ask(headers).await.unwrap();
        assert_eq!(good(&[red, route("hero")]).await, "sk-red");
        assert_eq!(good(&[red]).await, "common");
        assert_eq!(good(&[blue]).await, "sk-blue");
        assert_eq!(good(&[blue, route("common")]).await, "common");
        assert_eq!(good(&[file]).await, "common");
        for config in ["hero", "main"] {
            let (kind, message) = house.ask(&[file, route(config)]).await.unwrap_err();
            assert_eq!((kind, message), (ErrorKind::NotFound, format!("config \"{config}\" does not exist")));
        }
        assert_eq!(house.ask(&[red, route("main")]).await.unwrap_err().0, ErrorKind::NotFound);
        assert_eq!(house.ask(&[file, virtual_key("vk")]).await.unwrap_err().0, ErrorKind::NotFound);
        // A tenant's own goes before the file's of the same name; others still have the file's.
        let model = "{\"virtual_key\": \"shared\", \"override_params\": {\"model\": \"v\"}}";
        assert_eq!(good(&[blue, route(model)]).await, "sk-blue");
        assert_eq!(good(&[red, route(model)]).await, "sk-shared");
    })
    .await;
}

#[tokio::test]
async fn a_caller_uses_only_what_it_was_granted() {
    both_ways(async |mode| {
        let house = house(mode, &saved());
        let refused = async |headers: &[(&'static str, &str)]| {
            let (kind, message) = house.ask(headers).await.unwrap_err();
            assert_eq!(kind, ErrorKind::PermissionDenied, "{headers:?}: {message}");
            message
        };
        let few = ("x-portkey-api-key", "ig-few");
        assert_eq!(house.ask(&[few, ("x-portkey-config", "hero")]).await.unwrap(), "sk-red");
        assert!(refused(&[few]).await.contains("may not use config \"common\""));
        assert!(
            refused(&[few, ("x-portkey-virtual-key", "shared")]).await.contains("virtual key \"shared\"")
        );
        let inline = "{\"virtual_key\": \"shared\"}";
        assert!(refused(&[few, ("x-portkey-config", inline)]).await.contains("virtual key \"shared\""));
        let none = ("x-portkey-api-key", "ig-no-keys");
        assert!(refused(&[none, ("x-portkey-config", "hero")]).await.contains("virtual key \"vk\""));
        assert_eq!(house.ask(&[none]).await.unwrap(), "common");
        let bound = ("x-portkey-api-key", "ig-bound");
        assert_eq!(house.ask(&[bound]).await.unwrap(), "sk-red");
        assert_eq!(house.ask(&[bound, ("x-portkey-config", "hero")]).await.unwrap(), "sk-red");
        assert!(refused(&[bound, ("x-portkey-config", "common")]).await.contains("no other route"));
        assert!(refused(&[bound, ("x-portkey-virtual-key", "vk")]).await.contains("no other route"));
    })
    .await;
}

#[tokio::test]
async fn a_key_that_was_withdrawn_fails_its_own_target_only() {
    both_ways(async |mode| {
        let targets =
            json!([{"virtual_key": "vk"}, {"provider": "paint", "override_params": {"model": "a"}}]);
        let mut saved = saved();
        let content = json!({"strategy": {"mode": "fallback"}, "targets": targets});
        saved.configs.push(config("red", "both", &content));
        let secrets = saved.virtual_keys[0].secrets.clone();
        for (is_disabled, expires_ms, secrets, said) in [
            (true, None, secrets.clone(), "virtual key \"vk\" is disabled"),
            (false, Some(0), secrets, "virtual key \"vk\" has expired"),
            (false, None, None, "virtual key \"vk\" cannot be opened"),
        ] {
            let key = &mut saved.virtual_keys[0];
            (key.is_disabled, key.expires_ms, key.secrets) = (is_disabled, expires_ms, secrets);
            let house = house(mode, &saved);
            let red = ("x-portkey-api-key", "ig-red");
            let result = house.gateway.generate_with(&json!({}), &[red, ("x-portkey-config", "both")]).await;
            let result = result.unwrap();
            let skipped = &report(&result).attempts[0];
            assert_eq!(skipped.outcome, pb::Attempt::SKIPPED);
            assert!(skipped.message.contains(said), "{}", skipped.message);
            let (kind, message) = house.ask(&[red, ("x-portkey-config", "hero")]).await.unwrap_err();
            assert_eq!(kind, ErrorKind::PermissionDenied);
            assert!(message.contains(said), "{message}");
            assert!(house.vault.requests().is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn a_config_that_is_no_longer_valid_says_why() {
    both_ways(async |mode| {
        let mut saved = saved();
        saved.configs.push(config("red", "lost", &json!({"virtual_key": "gone"})));
        let house = house(mode, &saved);
        let headers = [("x-portkey-api-key", "ig-red"), ("x-portkey-config", "lost")];
        let (kind, message) = house.ask(&headers).await.unwrap_err();
        assert_eq!(kind, ErrorKind::InvalidRequest);
        assert!(message.contains("was valid when it was saved") && message.contains("gone"), "{message}");
    })
    .await;
}

#[tokio::test]
async fn the_metadata_of_a_key_goes_over_that_of_a_request() {
    both_ways(async |mode| {
        let case = json!({"query": {"metadata.team": {"$eq": "red"}}, "then": "ours"});
        let ours = json!({"name": "ours", "provider": "paint", "override_params": {"model": "b"}});
        let other = json!({"name": "other", "provider": "paint", "override_params": {"model": "a"}});
        let strategy = json!({"mode": "conditional", "conditions": [case], "default": "other"});
        let content = json!({"strategy": strategy, "targets": [ours, other]});
        let mut saved = saved();
        saved.configs.push(config("red", "by-team", &content));
        let caller = caller("red", |one| _ = one.metadata.insert("team".into(), json!("red")));
        saved.callers.push(saved_caller("ig-team", caller));
        let house = house(mode, &saved);
        let ask = async |key, said| {
            let headers =
                [("x-portkey-api-key", key), ("x-portkey-config", "by-team"), ("x-portkey-metadata", said)];
            report(&house.gateway.generate_with(&json!({}), &headers).await.unwrap()).model.clone()
        };
        assert_eq!(ask("ig-team", "{\"team\": \"blue\"}").await, "b");
        assert_eq!(ask("ig-red", "{\"team\": \"blue\"}").await, "a");
        assert_eq!(ask("ig-red", "{\"team\": \"red\"}").await, "b");
    })
    .await;
}

#[tokio::test]
async fn a_key_that_has_expired_is_nobodys() {
    both_ways(async |mode| {
        let mut saved = saved();
        // The clock of these tests stands at 0.
        (saved.callers[0].expires_ms, saved.callers[1].expires_ms) = (Some(0), Some(1));
        assert_eq!((saved.next_expiry(0), saved.next_expiry(1)), (Some(1), None));
        let house = house(mode, &saved);
        let (kind, _) = house.ask(&[("x-portkey-api-key", "ig-red")]).await.unwrap_err();
        assert_eq!(kind, ErrorKind::Unauthenticated);
        assert_eq!(house.ask(&[("x-portkey-api-key", "ig-blue")]).await.unwrap(), "sk-blue");
    })
    .await;
}
