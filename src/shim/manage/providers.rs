//! `/v1/providers`: virtual keys under the name that the reference gave their successors.

use axum::Json;
use serde_json::Value;

use super::{
    Asked, Refused, text,
    virtual_keys::{REFUSED, read_new, save},
};
use crate::error::Result;

const INTEGRATION: Refused = (
    "integration_id",
    "integrations are not available in this version; give the provider and its key instead: \
     {\"name\": \"...\", \"provider\": \"openai\", \"key\": \"...\"}",
);

/// `POST /v1/providers`
pub async fn create(asked: Asked) -> Result<Json<Value>> {
    let refused: Vec<_> = REFUSED.into_iter().chain([INTEGRATION]).collect();
    let message = asked.body(&refused, |body| {
        let id = text(body, "ai_provider_id");
        let mut provider = text(body, "provider");
        if provider.is_empty() {
            provider = id;
        } else if !id.is_empty() && id != provider {
            body.problem("ai_provider_id", format!("'{id}' is not '{provider}', which provider names"));
        }
        if provider.is_empty() {
            body.problem("provider", "Required");
        }
        read_new(body, provider)
    })?;
    save(&asked, message).await
}
