//! `/v1/configs`: saved routing configs and their versions.

use axum::Json;
use serde_json::{Value, json};

use super::{
    Asked, Page, WORKSPACE, done, flag, required, same_as_path, shown, some, text, time_text, told, whole,
};
use crate::{config::read::Object, error::Result, pb};

/// `GET /v1/configs`
pub async fn list(asked: Asked) -> Result<Json<Value>> {
    let page = asked.query(&[WORKSPACE], Page::read)?;
    let listed = told(asked.admin.list_configs(asked.to(pb::ListConfigsRequest {})).await)?;
    Ok(page.listed(&listed.configs, describe))
}

/// `POST /v1/configs`
pub async fn create(asked: Asked) -> Result<Json<Value>> {
    let message = asked.body(&[WORKSPACE], |body| {
        body.required("config");
        pb::CreateConfigRequest {
            name: required(body, "name"),
            config_json: config(body).unwrap_or_default(),
            is_default: flag(body, "is_default").unwrap_or_default(),
            slug: text(body, "slug"),
        }
    })?;
    let saved = told(asked.admin.create_config(asked.to(message)).await)?;
    Ok(shown(saved_as(&saved.config.unwrap_or_default())))
}

/// `GET /v1/configs/{slug}`: the version in force, or another one.
pub async fn get(asked: Asked) -> Result<Json<Value>> {
    let version = asked.query(&[WORKSPACE], |query| whole(query, "version", 1, u64::from(u32::MAX)))?;
    let version = version.and_then(|version| u32::try_from(version).ok()).unwrap_or_default();
    let message = pb::GetConfigRequest { slug: asked.path("slug"), version };
    let got = told(asked.admin.get_config(asked.to(message)).await)?;
    let saved = got.config.unwrap_or_default();
    let mut thing = describe(&saved);
    thing["config"] = parsed(&saved.config_json);
    Ok(shown(thing))
}

/// `PUT /v1/configs/{slug}`
pub async fn update(asked: Asked) -> Result<Json<Value>> {
    let slug = asked.path("slug");
    let message = asked.body(&[WORKSPACE], |body| {
        same_as_path(body, "slug", &slug);
        if body.text("status").is_some_and(|status| status != "active") {
            body.problem("status", "a config is active for as long as it exists; delete it to switch it off");
        }
        pb::UpdateConfigRequest {
            name: body.text("name").map(str::to_owned),
            config_json: config(body),
            is_default: flag(body, "is_default"),
            rollback_to: whole(body, "rollback_to", 1, u64::from(u32::MAX))
                .and_then(|version| version.try_into().ok()),
            slug: slug.clone(),
        }
    })?;
    let saved = told(asked.admin.update_config(asked.to(message)).await)?;
    Ok(shown(saved_as(&saved.config.unwrap_or_default())))
}

/// `DELETE /v1/configs/{slug}`
pub async fn delete(asked: Asked) -> Result<Json<Value>> {
    let message = pb::DeleteConfigRequest { slug: asked.path("slug") };
    told(asked.admin.delete_config(asked.to(message)).await)?;
    Ok(done())
}

/// `GET /v1/configs/{slug}/versions`
pub async fn versions(asked: Asked) -> Result<Json<Value>> {
    let page = asked.query(&[WORKSPACE], Page::read)?;
    let message = pb::ListConfigVersionsRequest { slug: asked.path("slug") };
    let listed = told(asked.admin.list_config_versions(asked.to(message)).await)?;
    Ok(page.listed(&listed.versions, |version| {
        json!({
            "object": "config-version",
            "version": version.version,
            "version_id": version.version_id,
            "config": parsed(&version.config_json),
            "created_at": time_text(version.created_unix_ms),
            "created_by": some(&version.created_by),
            "requests": version.requests,
            "first_request_at": version.first_request_unix_ms.map(time_text),
            "last_request_at": version.last_request_unix_ms.map(time_text),
        })
    }))
}

/// A config as an object, or as the text of one.
pub(super) fn config(body: &mut Object<'_>) -> Option<String> {
    match body.value("config")? {
        Value::String(text) => Some(text.clone()),
        object @ Value::Object(_) => Some(object.to_string()),
        _ => {
            body.problem("config", "Expected an object, or its JSON as a text");
            None
        }
    }
}

fn parsed(config_json: &str) -> Value {
    serde_json::from_str(config_json).unwrap_or_else(|_| config_json.into())
}

fn saved_as(config: &pb::SavedConfig) -> Value {
    json!({
        "object": "config",
        "id": config.id,
        "version_id": config.version_id,
        "slug": config.slug,
        "version": config.version,
    })
}

fn describe(config: &pb::SavedConfig) -> Value {
    json!({
        "object": "config",
        "id": config.id,
        "name": config.name,
        "slug": config.slug,
        "is_default": u8::from(config.is_default),
        "status": "active",
        "problem": some(&config.problem),
        "version": config.version,
        "version_id": config.version_id,
        "owner_id": some(&config.created_by),
        "updated_by": some(&config.updated_by),
        "created_at": time_text(config.created_unix_ms),
        "last_updated_at": time_text(config.updated_unix_ms),
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

    fn saved() -> pb::SavedConfig {
        pb::SavedConfig {
            id: "id-1".into(),
            slug: "pc-hero-0a1b2c".into(),
            name: "hero".into(),
            config_json: r#"{"virtual_key":"openai"}"#.into(),
            version: 2,
            version_id: "v-2".into(),
            is_default: true,
            created_unix_ms: 1000,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_config_is_an_object_or_its_text() {
        let memory = Arc::new(Fake::default());
        for (config, default) in
            [(json!({"a": 1}), json!({"isDefault": 1})), (json!(r#"{"a":1}"#), json!({"is_default": true}))]
        {
            memory.answers("create_config", pb::CreateConfigResponse { config: Some(saved()) });
            let mut body = json!({"name": "hero", "config": config, "workspace_id": null});
            body.as_object_mut().unwrap().extend(default.as_object().unwrap().clone());
            let (status, body) = json(&memory, "POST", "/v1/configs", Some(body)).await;
            assert_eq!(status, 200, "{body}");
            assert_eq!(body["data"]["slug"], "pc-hero-0a1b2c");
            assert_eq!((&body["success"], &body["version_id"]), (&json!(true), &json!("v-2")));
            let message: pb::CreateConfigRequest = memory.asked();
            assert_eq!((message.name.as_str(), message.config_json.as_str()), ("hero", r#"{"a":1}"#));
            assert!(message.is_default);
        }
    }

    #[tokio::test]
    async fn one_is_shown_with_its_config_and_a_list_without() {
        let memory = Arc::new(Fake::default());
        memory.answers("get_config", pb::GetConfigResponse { config: Some(saved()) });
        let (_, body) = json(&memory, "GET", "/v1/configs/pc-hero?version=2", None).await;
        assert_eq!(body["data"]["config"], json!({"virtual_key": "openai"}));
        assert_eq!(body["created_at"], "1970-01-01T00:00:01Z");
        let message: pb::GetConfigRequest = memory.asked();
        assert_eq!((message.slug.as_str(), message.version), ("pc-hero", 2));

        memory.answers("list_configs", pb::ListConfigsResponse { configs: vec![saved()] });
        let (_, body) = json(&memory, "GET", "/v1/configs?", None).await;
        assert_eq!((&body["total"], &body["data"][0]["is_default"]), (&json!(1), &json!(1)));
        assert_eq!(body["data"][0].get("config"), None);
    }

    #[tokio::test]
    async fn an_update_says_what_changes() {
        let memory = Arc::new(Fake::default());
        memory.answers("update_config", pb::UpdateConfigResponse { config: Some(saved()) });
        let body = json!({"slug": "pc-a", "name": null, "rollback_to": 1, "status": "active"});
        let (status, body) = json(&memory, "PUT", "/v1/configs/pc-a", Some(body)).await;
        assert_eq!((status, &body["data"]["version_id"]), (200, &json!("v-2")));
        let message: pb::UpdateConfigRequest = memory.asked();
        let expected =
            pb::UpdateConfigRequest { slug: "pc-a".into(), rollback_to: Some(1), ..Default::default() };
        assert_eq!(message, expected);

        for body in [json!({"slug": "pc-b"}), json!({"status": "archived"}), json!({"config": 3})] {
            assert_eq!(json(&memory, "PUT", "/v1/configs/pc-a", Some(body)).await.0, 400);
        }
        assert!(memory.was_not_asked());
    }

    #[tokio::test]
    async fn versions_are_listed_and_a_config_goes() {
        let memory = Arc::new(Fake::default());
        let version = pb::ConfigVersion {
            version: 1,
            config_json: "{}".into(),
            requests: 3,
            first_request_unix_ms: Some(1000),
            ..Default::default()
        };
        memory.answers("list_config_versions", pb::ListConfigVersionsResponse { versions: vec![version] });
        let (_, body) = json(&memory, "GET", "/v1/configs/pc-a/versions", None).await;
        assert_eq!((&body["data"][0]["version"], &body["data"][0]["config"]), (&json!(1), &json!({})));
        assert_eq!(
            (&body["data"][0]["requests"], &body["data"][0]["first_request_at"]),
            (&json!(3), &json!("1970-01-01T00:00:01Z"))
        );
        assert_eq!(body["data"][0]["last_request_at"], json!(null));
        assert_eq!(memory.asked::<pb::ListConfigVersionsRequest>().slug, "pc-a");

        memory.answers("delete_config", pb::DeleteConfigResponse {});
        let (status, body) = json(&memory, "DELETE", "/v1/configs/pc-a", None).await;
        assert_eq!((status, body), (200, json!({"success": true})));
        assert_eq!(memory.asked::<pb::DeleteConfigRequest>().slug, "pc-a");
    }
}
