//! `/v1/api-keys`: callers of this gateway. A key is shown when it is made, and never again.

use std::collections::BTreeMap;

use axum::Json;
use serde_json::{Map, Value, json};

use super::{
    Asked, Page, RESET_USAGE, Refused, changed_expiry, disabled, done, expiry, flag,
    quota::{ChangedQuota, quota},
    required, same_as_path, shown, status_name, text, time_text, told, whole,
};
use crate::{
    config::{memory::read_policy, quota::Quota, read::Object},
    error::{Error, ErrorKind, Result},
    pb,
};

/// The reference's scope for calls to providers.
const COMPLETIONS: &str = "completions.write";

const REFUSED: [Refused; 4] = [
    RESET_USAGE,
    ("user_id", "this gateway has no users; a key is a caller of its own"),
    ("description", "a key has a name and no description"),
    (
        "rotation_policy",
        "keys are not rotated by themselves in this version; POST /v1/api-keys/{id}/rotate does it",
    ),
];

/// `GET /v1/api-keys`
pub async fn list(asked: Asked) -> Result<Json<Value>> {
    let page = asked.query(&[super::WORKSPACE], Page::read)?;
    let listed = told(asked.admin.list_api_keys(asked.to(pb::ListApiKeysRequest {})).await)?;
    Ok(page.listed(&listed.api_keys, describe))
}

/// `POST /v1/api-keys/{organisation|workspace}/{user|service}`
pub async fn create_of_kind(asked: Asked) -> Result<Json<Value>> {
    let kind = asked.path("kind");
    if !matches!(kind.as_str(), "user" | "service") {
        let message = format!("there are no API keys of the kind '{kind}'; allowed: user, service");
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    create(asked).await
}

/// `POST /v1/api-keys`
pub async fn create(asked: Asked) -> Result<Json<Value>> {
    let message = asked.body(&REFUSED, |body| {
        let mut message = pb::CreateApiKeyRequest {
            name: required(body, "name"),
            tenant: tenant(body),
            scopes: scopes(body).unwrap_or_default(),
            configs: names(body, "configs"),
            virtual_keys: names(body, "virtual_keys"),
            expires_unix_ms: expiry(body),
            quota: quota(body),
            log: log(body),
            ..Default::default()
        };
        // The SDK repeats what the path says.
        for (name, allowed) in [("type", ["organisation", "workspace"]), ("sub-type", ["user", "service"])] {
            body.choice(name, &allowed.map(|word| (word, ())));
        }
        if let Some(mut defaults) = body.object("defaults") {
            message.default_config = text(&mut defaults, "config_id");
            message.allow_config_override = flag(&mut defaults, "allow_config_override");
            message.metadata = metadata(&mut defaults);
            defaults.finish();
        }
        message
    })?;
    let made = told(asked.admin.create_api_key(asked.to(message)).await)?;
    let id = made.api_key.unwrap_or_default().id;
    Ok(shown(json!({"object": "api-key", "id": id, "key": made.key})))
}

/// `GET /v1/api-keys/{id}`
pub async fn get(asked: Asked) -> Result<Json<Value>> {
    let message = pb::GetApiKeyRequest { id: asked.path("id") };
    let got = told(asked.admin.get_api_key(asked.to(message)).await)?;
    Ok(shown(describe(&got.api_key.unwrap_or_default())))
}

/// `PUT /v1/api-keys/{id}`
pub async fn update(asked: Asked) -> Result<Json<Value>> {
    let id = asked.path("id");
    let (mut message, changed) = asked.body(&REFUSED, |body| {
        same_as_path(body, "id", &id);
        let changed = ChangedQuota::read(body);
        let mut message = pb::UpdateApiKeyRequest {
            name: body.text("name").map(str::to_owned),
            scopes: scopes(body).map(|names| pb::Names { names }),
            disabled: disabled(body),
            expires_unix_ms: changed_expiry(body),
            configs: grant(body, "configs"),
            virtual_keys: grant(body, "virtual_keys"),
            log: log(body),
            id: id.clone(),
            ..Default::default()
        };
        if let Some(mut defaults) = body.object("defaults") {
            message.default_config = defaults.text("config_id").map(str::to_owned);
            message.allow_config_override = flag(&mut defaults, "allow_config_override");
            message.metadata =
                defaults.has("metadata").then(|| pb::Metadata { values: metadata(&mut defaults) });
            defaults.finish();
        }
        (message, changed)
    })?;
    if !changed.is_empty() {
        let known = told(asked.admin.get_api_key(asked.to(pb::GetApiKeyRequest { id })).await)?.api_key;
        message.quota = Some(changed.over(known.and_then(|key| key.quota)));
    }
    let saved = told(asked.admin.update_api_key(asked.to(message)).await)?;
    Ok(shown(describe(&saved.api_key.unwrap_or_default())))
}

/// `DELETE /v1/api-keys/{id}`
pub async fn delete(asked: Asked) -> Result<Json<Value>> {
    let message = pb::DeleteApiKeyRequest { id: asked.path("id") };
    told(asked.admin.delete_api_key(asked.to(message)).await)?;
    Ok(done())
}

/// `POST /v1/api-keys/{id}/rotate`
pub async fn rotate(asked: Asked) -> Result<Json<Value>> {
    let overlap_s = asked.body(&[], |body| {
        let millis = whole(body, "key_transition_period_ms", 0, u64::from(u32::MAX) * 1000);
        let seconds = whole(body, "overlap_s", 0, u64::from(u32::MAX));
        if millis.is_some() && seconds.is_some() {
            body.problem("overlap_s", "says the same as key_transition_period_ms; give one of them");
        }
        seconds.or(millis.map(|millis| millis.div_ceil(1000)))
    })?;
    let message = pb::RotateApiKeyRequest { id: asked.path("id"), overlap_s };
    let made = told(asked.admin.rotate_api_key(asked.to(message)).await)?;
    Ok(shown(json!({
        "object": "api-key",
        "id": made.api_key.unwrap_or_default().id,
        "key": made.key,
        "key_transition_expires_at": time_text(made.old_key_expires_unix_ms),
    })))
}

/// The reference's workspace is our tenant.
fn tenant(body: &mut Object<'_>) -> String {
    let (workspace, tenant) = (text(body, "workspace_id"), text(body, "tenant"));
    if !workspace.is_empty() && !tenant.is_empty() && workspace != tenant {
        body.problem("workspace_id", format!("'{workspace}' is not '{tenant}', which tenant names"));
    }
    if tenant.is_empty() { workspace } else { tenant }
}

fn scopes(body: &mut Object<'_>) -> Option<Vec<String>> {
    let ours = |scope: &str| if scope == COMPLETIONS { "generate".to_owned() } else { scope.to_owned() };
    Some(body.texts("scopes")?.into_iter().map(ours).collect())
}

fn names(body: &mut Object<'_>, name: &str) -> Option<pb::Names> {
    let names = body.texts(name)?.into_iter().map(str::to_owned).collect();
    Some(pb::Names { names })
}

/// What may be used from now on: a list, or `all`.
fn grant(body: &mut Object<'_>, name: &str) -> Option<pb::Grant> {
    if body.value(name)?.as_str() == Some("all") {
        return Some(pb::Grant { all: true, names: Vec::new() });
    }
    let names = body.texts(name)?.into_iter().map(str::to_owned).collect();
    Some(pb::Grant { all: false, names })
}

fn log(body: &mut Object<'_>) -> Option<pb::LogPolicy> {
    let mut log = body.object("log")?;
    let policy = read_policy(&mut log);
    log.finish();
    Some(policy)
}

fn metadata(defaults: &mut Object<'_>) -> BTreeMap<String, String> {
    let nothing = Map::new();
    let fields = defaults.map("metadata").unwrap_or(&nothing);
    let mut metadata = BTreeMap::new();
    for (name, value) in fields {
        match value {
            Value::String(text) => _ = metadata.insert(name.clone(), text.clone()),
            _ => defaults.problem(&format!("metadata.{name}"), "Expected string"),
        }
    }
    metadata
}

fn describe(key: &pb::ApiKey) -> Value {
    let [rate_limits, usage_limits] = Quota::shown(key.quota.as_ref(), pb::unix_now_ms());
    json!({
        "object": "api-key",
        "id": key.id,
        "name": key.name,
        "workspace_id": key.tenant,
        "hint": key.hint,
        "status": status_name(key.status()),
        "scopes": key.scopes,
        "defaults": {
            "config_id": super::some(&key.default_config),
            "allow_config_override": key.allow_config_override,
            "metadata": key.metadata,
        },
        "configs": key.configs.as_ref().map(|names| &names.names),
        "virtual_keys": key.virtual_keys.as_ref().map(|names| &names.names),
        "log": {
            "prompts": key.log.and_then(|log| log.prompts),
            "images": key.log.and_then(|log| log.images().name()),
        },
        "usage_limits": usage_limits,
        "rate_limits": rate_limits,
        "expires_at": key.expires_unix_ms.map(time_text),
        "created_at": time_text(key.created_unix_ms),
        "last_updated_at": time_text(key.updated_unix_ms),
        "created_by": super::some(&key.created_by),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use crate::{
        pb,
        shim::manage::fake::{Fake, json},
    };

    #[tokio::test]
    async fn a_key_is_made_with_what_the_sdk_sends_and_shown_once() {
        let memory = Arc::new(Fake::default());
        let api_key = Some(pb::ApiKey { id: "id-1".into(), ..Default::default() });
        memory.answers("create_api_key", pb::CreateApiKeyResponse { api_key, key: "ig_x".into() });
        let body = json!({
            "type": "workspace", "sub-type": "service", "name": "batch", "workspace_id": "acme",
            "scopes": ["completions.write", "logs"], "rate_limits": [],
            "defaults": {"config_id": "pc-a", "allow_config_override": false, "metadata": {"team": "a"}},
            "virtual_keys": ["openai"],
            "log": {"prompts": true, "images": "thumbnails"},
        });
        let (status, body) = json(&memory, "POST", "/v1/api-keys/workspace/service", Some(body)).await;
        assert_eq!(
            (status, &body["key"], &body["data"]["id"]),
            (200, &json!("ig_x"), &json!("id-1")),
            "{body}"
        );
        let message: pb::CreateApiKeyRequest = memory.asked();
        let expected = pb::CreateApiKeyRequest {
            name: "batch".into(),
            tenant: "acme".into(),
            scopes: vec!["generate".into(), "logs".into()],
            default_config: "pc-a".into(),
            allow_config_override: Some(false),
            metadata: [("team".into(), "a".into())].into(),
            virtual_keys: Some(pb::Names { names: vec!["openai".into()] }),
            log: Some(pb::LogPolicy { prompts: Some(true), images: pb::KeptImages::Thumbnails.into() }),
            ..Default::default()
        };
        assert_eq!(message, expected);
    }

    #[tokio::test]
    async fn what_cannot_be_honoured_is_refused_by_name() {
        let memory = Arc::new(Fake::default());
        for (name, value) in [
            ("user_id", json!("u")),
            ("description", json!("d")),
            ("usage_limits", json!({"credit_limit": -1})),
            ("rotation_policy", json!({"rotation_period": "weekly"})),
            ("scopes", json!("generate")),
            ("log", json!({"images": "all"})),
            ("log", json!({"answers": true})),
            ("defaults", json!({"metadata": {"a": 1}})),
        ] {
            let mut body = json!({"name": "n"});
            body[name] = value;
            let (status, body) = json(&memory, "POST", "/v1/api-keys", Some(body)).await;
            let message = body["error"]["message"].as_str().unwrap();
            assert!(status == 400 && message.starts_with(name), "{status} {message}");
        }
        let (status, _) =
            json(&memory, "POST", "/v1/api-keys/workspace/robot", Some(json!({"name": "n"}))).await;
        assert_eq!(status, 404);
        assert!(memory.was_not_asked());
    }

    #[tokio::test]
    async fn a_key_is_changed_and_rotated() {
        let memory = Arc::new(Fake::default());
        memory.answers("update_api_key", pb::UpdateApiKeyResponse::default());
        let body = json!({"id": "id-1", "scopes": [], "defaults": {"config_id": "pc-b"}});
        assert_eq!(json(&memory, "PUT", "/v1/api-keys/id-1", Some(body)).await.0, 200);
        let message: pb::UpdateApiKeyRequest = memory.asked();
        assert_eq!(
            (message.scopes, message.default_config),
            (Some(pb::Names::default()), Some("pc-b".into()))
        );
        assert_eq!((message.metadata, message.configs, message.virtual_keys), (None, None, None));

        memory.answers("update_api_key", pb::UpdateApiKeyResponse::default());
        let body = json!({
            "defaults": {"metadata": {"team": "blue"}}, "configs": "all", "virtual_keys": ["openai"],
        });
        assert_eq!(json(&memory, "PUT", "/v1/api-keys/id-1", Some(body)).await.0, 200);
        let message: pb::UpdateApiKeyRequest = memory.asked();
        assert_eq!(message.metadata.unwrap().values, [("team".to_owned(), "blue".to_owned())].into());
        assert_eq!(message.configs, Some(pb::Grant { all: true, names: Vec::new() }));
        assert_eq!(message.virtual_keys, Some(pb::Grant { all: false, names: vec!["openai".into()] }));

        for (body, overlap_s) in [
            (None, None),
            (Some(json!({"overlap_s": 0})), Some(0)),
            (Some(json!({"key_transition_period_ms": 1_800_500})), Some(1801)),
        ] {
            let made = pb::RotateApiKeyResponse { old_key_expires_unix_ms: 2000, ..Default::default() };
            memory.answers("rotate_api_key", made);
            let (status, body) = json(&memory, "POST", "/v1/api-keys/id-1/rotate", body).await;
            assert_eq!((status, &body["key_transition_expires_at"]), (200, &json!("1970-01-01T00:00:02Z")));
            assert_eq!(memory.asked::<pb::RotateApiKeyRequest>().overlap_s, overlap_s);
        }
    }
}
