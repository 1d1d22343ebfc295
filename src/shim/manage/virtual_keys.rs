//! `/v1/virtual-keys`: stored credentials of providers. A credential is never shown.

use axum::Json;
use serde_json::{Value, json};

use super::{
    Asked, Page, RESET_USAGE, Refused, WORKSPACE, changed_expiry, disabled, done, expiry, flag,
    quota::{ChangedQuota, quota},
    required, same_as_path, shown, some, status_name, text, time_text, told,
};
use crate::{
    config::{quota::Quota, read::Object, spec::is_provider_option},
    error::Result,
    pb,
};

/// What the reference's Azure keys call the provider's settings.
const AZURE: [(&str, &str); 3] = [
    ("api_version", "azure_api_version"),
    ("resource_name", "azure_resource_name"),
    ("deployment_name", "azure_deployment_id"),
];

/// What neither a virtual key nor a provider can have.
pub const REFUSED: [Refused; 3] = [
    WORKSPACE,
    RESET_USAGE,
    (
        "secret_mappings",
        "secrets of an external vault are not available in this version; give the credential as key",
    ),
];

/// `GET /v1/virtual-keys`
pub async fn list(asked: Asked) -> Result<Json<Value>> {
    let page = asked.query(&[WORKSPACE], Page::read)?;
    let listed = told(asked.admin.list_virtual_keys(asked.to(pb::ListVirtualKeysRequest {})).await)?;
    Ok(page.listed(&listed.virtual_keys, describe))
}

/// `POST /v1/virtual-keys`
pub async fn create(asked: Asked) -> Result<Json<Value>> {
    let message = asked.body(&REFUSED, |body| {
        let provider = required(body, "provider");
        read_new(body, provider)
    })?;
    save(&asked, message).await
}

/// The fields that a new virtual key has under either of its names.
pub fn read_new(body: &mut Object<'_>, provider: String) -> pb::CreateVirtualKeyRequest {
    let mut message = pb::CreateVirtualKeyRequest {
        name: required(body, "name"),
        provider,
        key: text(body, "key"),
        note: text(body, "note"),
        base_url: text(body, "base_url"),
        expires_unix_ms: expiry(body),
        slug: text(body, "slug"),
        quota: quota(body),
        ..Default::default()
    };
    let deployment = body.list("deployment_config").unwrap_or_default();
    match deployment {
        [] => {}
        [_] => {
            let only = format!("{}.0", body.at("deployment_config"));
            if let Some(mut object) = Object::open(&deployment[0], only, body.problems()) {
                azure_options(&mut object, &mut message);
                // The only one is the default.
                flag(&mut object, "is_default");
                object.finish();
            }
        }
        _ => {
            body.problem("deployment_config", "a virtual key has one deployment; make a virtual key for each")
        }
    }
    azure_options(body, &mut message);
    message.options.extend(body.texts_where(is_provider_option));
    message
}

fn azure_options(object: &mut Object<'_>, message: &mut pb::CreateVirtualKeyRequest) {
    for (name, option) in AZURE {
        if let Some(value) = object.text(name).filter(|value| !value.is_empty()) {
            message.options.insert(option.into(), value.into());
        }
    }
}

/// Saves a new virtual key.
pub async fn save(asked: &Asked, message: pb::CreateVirtualKeyRequest) -> Result<Json<Value>> {
    let saved = told(asked.admin.create_virtual_key(asked.to(message)).await)?;
    Ok(shown(saved_as(&saved.virtual_key.unwrap_or_default())))
}

/// `GET /v1/virtual-keys/{slug}`
pub async fn get(asked: Asked) -> Result<Json<Value>> {
    let message = pb::GetVirtualKeyRequest { slug: asked.path("slug") };
    let got = told(asked.admin.get_virtual_key(asked.to(message)).await)?;
    Ok(shown(describe(&got.virtual_key.unwrap_or_default())))
}

/// `PUT /v1/virtual-keys/{slug}`
pub async fn update(asked: Asked) -> Result<Json<Value>> {
    let slug = asked.path("slug");
    let (mut message, changed) = asked.body(&REFUSED, |body| {
        same_as_path(body, "slug", &slug);
        let changed = ChangedQuota::read(body);
        let message = pb::UpdateVirtualKeyRequest {
            name: body.text("name").map(str::to_owned),
            key: body.text("key").map(str::to_owned),
            note: body.text("note").map(str::to_owned),
            disabled: disabled(body),
            expires_unix_ms: changed_expiry(body),
            slug: slug.clone(),
            quota: None,
        };
        (message, changed)
    })?;
    if !changed.is_empty() {
        let known = pb::GetVirtualKeyRequest { slug };
        let known = told(asked.admin.get_virtual_key(asked.to(known)).await)?.virtual_key;
        message.quota = Some(changed.over(known.and_then(|key| key.quota)));
    }
    let saved = told(asked.admin.update_virtual_key(asked.to(message)).await)?;
    Ok(shown(saved_as(&saved.virtual_key.unwrap_or_default())))
}

/// `DELETE /v1/virtual-keys/{slug}`
pub async fn delete(asked: Asked) -> Result<Json<Value>> {
    let message = pb::DeleteVirtualKeyRequest { slug: asked.path("slug") };
    told(asked.admin.delete_virtual_key(asked.to(message)).await)?;
    Ok(done())
}

fn saved_as(key: &pb::VirtualKey) -> Value {
    json!({"object": "virtual-key", "id": key.id, "slug": key.slug})
}

fn describe(key: &pb::VirtualKey) -> Value {
    let [rate_limits, usage_limits] = Quota::shown(key.quota.as_ref(), pb::unix_now_ms());
    json!({
        "object": "virtual-key",
        "id": key.id,
        "slug": key.slug,
        "name": key.name,
        "provider": key.provider,
        "ai_provider_id": key.provider,
        "note": some(&key.note),
        "status": status_name(key.status()),
        "base_url": some(&key.base_url),
        "options": key.options,
        "usage_limits": usage_limits,
        "rate_limits": rate_limits,
        "expires_at": key.expires_unix_ms.map(time_text),
        "created_at": time_text(key.created_unix_ms),
        "last_updated_at": time_text(key.updated_unix_ms),
        "created_by": some(&key.created_by),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::{
        pb,
        shim::manage::fake::{Fake, json},
    };

    async fn create(memory: &Arc<Fake>, path: &str, body: Value) -> (u16, Value) {
        let key = pb::VirtualKey { id: "id-1".into(), slug: "azure-1".into(), ..Default::default() };
        memory.answers("create_virtual_key", pb::CreateVirtualKeyResponse { virtual_key: Some(key) });
        json(memory, "POST", path, Some(body)).await
    }

    #[tokio::test]
    async fn the_settings_of_azure_have_the_names_of_the_reference_or_ours() {
        let memory = Arc::new(Fake::default());
        let fields = [
            json!({"apiVersion": "2025-04-01", "resourceName": "r", "deploymentName": "d"}),
            json!({"azure_api_version": "2025-04-01", "azure_resource_name": "r", "azure_deployment_id": "d"}),
            json!({
                "resourceName": "r",
                "deploymentConfig": [{"apiVersion": "2025-04-01", "deploymentName": "d", "is_default": true}],
            }),
        ];
        for more in fields {
            let mut body =
                json!({"name": "Azure", "provider": "azure-openai", "key": "k", "usage_limits": null});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let (status, body) = create(&memory, "/v1/virtual-keys", body).await;
            assert_eq!(
                (status, &body["data"]["slug"], &body["slug"]),
                (200, &json!("azure-1"), &json!("azure-1"))
            );
            let message: pb::CreateVirtualKeyRequest = memory.asked();
            assert_eq!((message.name.as_str(), message.key.as_str()), ("Azure", "k"));
            let options = [
                ("azure_api_version", "2025-04-01"),
                ("azure_deployment_id", "d"),
                ("azure_resource_name", "r"),
            ];
            assert_eq!(message.options, options.map(|(name, value)| (name.into(), value.into())).into());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_honoured_is_refused_by_name() {
        let memory = Arc::new(Fake::default());
        for (name, value) in [
            ("usage_limits", json!({"credit_limit": 10, "type": "tokens"})),
            ("rate_limits", json!([{"type": "tokens", "unit": "rpm", "value": 10}])),
            ("reset_usage", json!(true)),
            ("secret_mappings", json!([{"a": 1}])),
            ("workspace_id", json!("w")),
            ("deploymentConfig", json!([{}, {}])),
            ("deploymentConfig", json!([{"alias": "x"}])),
            ("expires_at", json!("soon")),
            ("provider", json!(null)),
        ] {
            let mut body = json!({"name": "n", "provider": "openai", "key": "k"});
            body[name] = value;
            let (status, body) = create(&memory, "/v1/virtual-keys", body).await;
            let message = body["error"]["message"].as_str().unwrap();
            let snake = if name == "deploymentConfig" { "deployment_config" } else { name };
            assert!(status == 400 && message.starts_with(snake), "{status} {message}");
        }
        assert!(memory.was_not_asked());
    }

    #[tokio::test]
    async fn limits_come_and_go_in_the_words_of_the_reference() {
        let memory = Arc::new(Fake::default());
        let body = json!({
            "name": "n", "provider": "openai", "key": "k",
            "usage_limits": {"type": "cost", "credit_limit": 10, "alert_threshold": 9, "periodic_reset": "weekly"},
            "rate_limits": [{"type": "requests", "unit": "rpm", "value": 60}],
        });
        assert_eq!(create(&memory, "/v1/virtual-keys", body).await.0, 200);
        let message: pb::CreateVirtualKeyRequest = memory.asked();
        let quota = pb::Quota {
            rates: vec![pb::RateLimit { unit: pb::RateUnit::Minute.into(), requests: 60 }],
            budgets: vec![pb::Budget {
                usd: 10.0,
                reset: pb::BudgetReset::Weekly.into(),
                alert_usd: Some(9.0),
            }],
        };
        assert_eq!(message.quota.as_ref(), Some(&quota));

        let status = pb::KeyStatus::Exhausted.into();
        let key = pb::VirtualKey { quota: Some(quota), status, ..Default::default() };
        memory.answers("get_virtual_key", pb::GetVirtualKeyResponse { virtual_key: Some(key) });
        let (_, body) = json(&memory, "GET", "/v1/virtual-keys/s", None).await;
        let (limits, rates) = (&body["data"]["usage_limits"], &body["data"]["rate_limits"]);
        assert_eq!((&body["data"]["status"], &limits["credit_limit"]), (&json!("exhausted"), &json!(10.0)));
        assert_eq!(*rates, json!([{"type": "requests", "unit": "rpm", "value": 60}]));
        let resets = limits["next_usage_reset_at"].as_str().unwrap();
        assert!(resets.ends_with("T00:00:00Z"), "{resets}");
    }

    #[tokio::test]
    async fn a_provider_is_a_virtual_key() {
        let memory = Arc::new(Fake::default());
        let body = json!({
            "name": "n", "slug": "s", "ai_provider_id": "openai", "key": "k", "expires_at": "1970-01-01T00:00:05Z",
            "integration_id": null,
        });
        let (status, body) = create(&memory, "/v1/providers", body).await;
        assert_eq!((status, &body["slug"]), (200, &json!("azure-1")));
        let message: pb::CreateVirtualKeyRequest = memory.asked();
        assert_eq!((message.provider.as_str(), message.slug.as_str()), ("openai", "s"));
        assert_eq!(message.expires_unix_ms, Some(5000));

        let body = json!({"name": "n", "integration_id": "i"});
        let (status, body) = create(&memory, "/v1/providers", body).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.starts_with("integration_id: integrations are not"), "{message}");
    }

    #[tokio::test]
    async fn a_key_is_listed_without_its_credential_and_switched_off() {
        let memory = Arc::new(Fake::default());
        let key = pb::VirtualKey {
            slug: "s".into(),
            status: pb::KeyStatus::Expired.into(),
            options: vec!["azure_resource_name".into()],
            ..Default::default()
        };
        memory.answers(
            "list_virtual_keys",
            pb::ListVirtualKeysResponse { virtual_keys: vec![key.clone(), key] },
        );
        let (_, body) = json(&memory, "GET", "/v1/virtual-keys?current_page=1&page_size=1", None).await;
        assert_eq!((&body["total"], body["data"].as_array().unwrap().len()), (&json!(2), 1));
        assert_eq!(body["data"][0]["status"], "expired");
        _ = memory.asked::<pb::ListVirtualKeysRequest>();

        let rates = vec![pb::RateLimit { unit: pb::RateUnit::Minute.into(), requests: 60 }];
        let budgets = vec![pb::Budget { usd: 5.0, ..Default::default() }];
        let quota = Some(pb::Quota { rates, budgets: budgets.clone() });
        let known = Some(pb::VirtualKey { quota, ..Default::default() });
        memory.answers("get_virtual_key", pb::GetVirtualKeyResponse { virtual_key: known });
        memory.answers("update_virtual_key", pb::UpdateVirtualKeyResponse::default());
        let body = json!({"key": "new", "status": "disabled", "expires_at": "never", "rate_limits": []});
        assert_eq!(json(&memory, "PUT", "/v1/virtual-keys/s", Some(body)).await.0, 200);
        _ = memory.asked::<pb::GetVirtualKeyRequest>();
        let message: pb::UpdateVirtualKeyRequest = memory.asked();
        // What the body does not name stays.
        assert_eq!(message.quota, Some(pb::Quota { rates: Vec::new(), budgets }));
        assert_eq!((message.key.as_deref(), message.disabled), (Some("new"), Some(true)));
        assert_eq!((message.expires_unix_ms, message.name), (Some(0), None));
    }
}
