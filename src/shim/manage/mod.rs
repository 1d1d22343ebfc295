//! The reference's management API: saved configs, virtual keys, API keys, the request log and what it all cost.
//!
//! Translates to `AdminService` and back, and knows nothing else. What cannot be honoured is refused by name.

mod analytics;
mod api_keys;
mod configs;
mod dry_run;
#[cfg(test)]
mod fake;
mod feedback;
mod fields;
mod filter;
mod graphs;
mod logs;
mod providers;
mod quota;
mod record;
mod virtual_keys;

use std::{collections::HashMap, future::Future};

use axum::{
    Json, RequestExt as _, Router,
    extract::{Path, Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use futures::future::BoxFuture;
use http::HeaderMap;
use serde_json::{Map, Value, json};
use tonic::Status;

use self::fields::{
    changed_expiry, disabled, expiry, flag, moment_of as moment, read_fields, read_query, required,
    same_as_path, text, whole,
};
use super::{Shim, answer, request, to_router};
use crate::{
    admin::SharedAdmin,
    config::read::Object,
    error::{Error, Result},
    moment::text as time_text,
    pb,
};

/// A field of the reference's that this gateway cannot honour, and why.
type Refused = (&'static str, &'static str);

const WORKSPACE: Refused = (
    "workspace_id",
    "an API key manages its own tenant only; leave this out, and use a key of the tenant that is meant",
);
const RESET_USAGE: Refused =
    ("reset_usage", "what has been used counts until its period ends; a higher credit_limit leaves more");

/// Most entries of one page.
const PAGE_AT_MOST: u64 = 1000;

/// All routes below `/v1`.
pub fn routes() -> Router<Shim> {
    Router::new()
        .route("/configs", get(search(configs::list)).post(call(configs::create)))
        .route(
            "/configs/{slug}",
            get(search(configs::get))
                .post(search(dry_run::of_body))
                .put(call(configs::update))
                .delete(call(configs::delete)),
        )
        .route("/configs/{slug}/versions", get(search(configs::versions)))
        .route("/configs/{slug}/dry-run", post(search(dry_run::of_saved)))
        .route("/virtual-keys", get(search(virtual_keys::list)).post(call(virtual_keys::create)))
        .route(
            "/virtual-keys/{slug}",
            get(call(virtual_keys::get)).put(call(virtual_keys::update)).delete(call(virtual_keys::delete)),
        )
        .route("/providers", get(search(virtual_keys::list)).post(call(providers::create)))
        .route(
            "/providers/{slug}",
            get(call(virtual_keys::get)).put(call(virtual_keys::update)).delete(call(virtual_keys::delete)),
        )
        .route("/api-keys", get(search(api_keys::list)).post(call(api_keys::create)))
        .route(
            "/api-keys/{id}",
            get(call(api_keys::get)).put(call(api_keys::update)).delete(call(api_keys::delete)),
        )
        .route("/api-keys/{id}/rotate", post(call(api_keys::rotate)))
        .route("/api-keys/organisation/{kind}", post(call(api_keys::create_of_kind)))
        .route("/api-keys/workspace/{kind}", post(call(api_keys::create_of_kind)))
        .route("/logs", get(search(logs::list)))
        .route("/logs/export", get(search(logs::export)))
        .route("/logs/exports", get(search(logs::no_export_jobs)).post(search(logs::no_export_jobs)))
        .route("/logs/{id}", get(call(logs::get)))
        .route("/logs/{id}/images/{index}", get(search(logs::image)))
        .route("/feedback", post(call(feedback::create)))
        .route("/feedback/{id}", put(call(feedback::update)))
        .route("/analytics/groups/{*group}", get(search(analytics::group)))
        .route("/analytics/graphs/{*graph}", get(search(graphs::graph)))
        .route("/analytics/summary/cache", get(search(analytics::cache)))
}

/// A call to this API, read.
struct Asked {
    admin: SharedAdmin,
    headers: HeaderMap,
    path: HashMap<String, String>,
    query: Map<String, Value>,
    /// None where the request had none.
    body: Option<Value>,
}

impl Asked {
    async fn read(shim: Shim, mut request: Request) -> Result<Self> {
        let Path(path) = request
            .extract_parts::<Path<HashMap<String, String>>>()
            .await
            .map_err(|rejection| Error::invalid("path", rejection.body_text()))?;
        let headers = request.headers().clone();
        let query = read_query(request.uri().query().unwrap_or_default());
        let bytes = request::read_bytes(request, shim.max_body_bytes).await?;
        let body = if bytes.is_empty() { None } else { Some(read_json(&headers, &bytes)?) };
        Ok(Self { admin: shim.admin, headers, path, query, body })
    }

    /// What a part of the path says.
    fn path(&self, name: &str) -> String {
        self.path.get(name).cloned().unwrap_or_default()
    }

    /// A message for the memory with the client's headers as metadata.
    fn to<T>(&self, message: T) -> tonic::Request<T> {
        to_router(message, &self.headers)
    }

    /// Reads the fields of the body.
    fn body<T>(&self, refused: &[Refused], read: impl FnOnce(&mut Object<'_>) -> T) -> Result<T> {
        match &self.body {
            None => read_fields(&Map::new(), refused, read),
            Some(Value::Object(fields)) => read_fields(fields, refused, read),
            Some(_) => {
                Err(Error::invalid("body", "the request body is not a JSON object").with_code("invalid_json"))
            }
        }
    }

    /// Reads the parameters in the address.
    fn query<T>(&self, refused: &[Refused], read: impl FnOnce(&mut Object<'_>) -> T) -> Result<T> {
        read_fields(&self.query, refused, read)
    }
}

/// The handler of a call whose address has no parameters.
fn call<A, F>(
    answer: fn(Asked) -> F,
) -> impl Fn(State<Shim>, Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static
where
    A: IntoResponse + 'static,
    F: Future<Output = Result<A>> + Send + 'static,
{
    move |State(shim), request| {
        Box::pin(respond(shim, request, move |asked| async move {
            asked.query(&[WORKSPACE], |_| ())?;
            answer(asked).await
        }))
    }
}

/// The handler of a call that reads the parameters in its address.
fn search<A, F>(
    answer: fn(Asked) -> F,
) -> impl Fn(State<Shim>, Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static
where
    A: IntoResponse + 'static,
    F: Future<Output = Result<A>> + Send + 'static,
{
    move |State(shim), request| Box::pin(respond(shim, request, answer))
}

async fn respond<A, F>(shim: Shim, request: Request, answer: impl FnOnce(Asked) -> F) -> Response
where
    A: IntoResponse,
    F: Future<Output = Result<A>>,
{
    let headers = request.headers().clone();
    let answered = match Asked::read(shim, request).await {
        Ok(asked) => answer(asked).await,
        Err(error) => Err(error),
    };
    let mut response = match answered {
        Ok(answer) => answer.into_response(),
        Err(error) => failed(&error, &headers),
    };
    // Some answers hold a key that is shown once.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The error in OpenAI's shape and, beside it, in the one that the reference's management API has.
fn failed(error: &Error, request: &HeaderMap) -> Response {
    let mut body = answer::error_body(error);
    body["success"] = false.into();
    body["data"] = json!({"message": error.message});
    answer::error_with(error, body, request)
}

/// What was answered, or the error that its status means.
fn told<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T> {
    answer.map(tonic::Response::into_inner).map_err(|status| Error::from_status(&status))
}

/// One thing. The reference's answers have it under `data`, its Python client reads it from the top.
fn shown(thing: Value) -> Json<Value> {
    let mut body = thing.clone();
    body["success"] = true.into();
    body["data"] = thing;
    Json(body)
}

/// It is done, and there is nothing to say about it.
fn done() -> Json<Value> {
    Json(json!({"success": true}))
}

/// Part of a list that is here as a whole.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// From 0.
    current: u64,
    /// None: all.
    size: Option<u64>,
}

impl Page {
    fn read(query: &mut Object<'_>) -> Self {
        let current = whole(query, "current_page", 0, u64::from(u32::MAX)).unwrap_or_default();
        Self { current, size: whole(query, "page_size", 1, PAGE_AT_MOST) }
    }

    fn listed<T>(self, things: &[T], show: impl Fn(&T) -> Value) -> Json<Value> {
        let size = self.size.unwrap_or(u64::MAX);
        let skipped = usize::try_from(self.current.saturating_mul(size)).unwrap_or(usize::MAX);
        let shown = usize::try_from(size).unwrap_or(usize::MAX);
        let data: Vec<_> = things.iter().skip(skipped).take(shown).map(show).collect();
        Json(json!({"success": true, "object": "list", "total": things.len(), "data": data}))
    }
}

/// The body as JSON. Browsers ask before they send that type to another site, so that a page somewhere cannot manage
/// a gateway on its reader's machine.
fn read_json(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Error::invalid("content-type", "content-type: the body has to be application/json"));
    }
    serde_json::from_slice(body).map_err(|error| {
        // The error says where, not what: there may be a credential.
        let place = format!("line {}, column {}", error.line(), error.column());
        Error::invalid("body", format!("the request body is not JSON: {place}")).with_code("invalid_json")
    })
}

/// A text, or null.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A key's state in the reference's words.
fn status_name(status: pb::KeyStatus) -> &'static str {
    status.name().unwrap_or("active")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{body::Body, http::Request};
    use serde_json::json;

    use super::{
        fake::{Fake, answer, json},
        *,
    };
    use crate::error::ErrorKind;

    #[tokio::test]
    async fn an_unknown_field_is_named_with_the_one_that_was_meant() {
        let memory = Arc::new(Fake::default());
        let body = json!({"nam": "x", "config": {}, "whatever": 1});
        let (status, body) = json(&memory, "POST", "/v1/configs", Some(body)).await;
        assert_eq!(status, 400);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("nam: unknown field; did you mean \"name\"?"), "{message}");
        assert!(message.contains("name: Required"), "{message}");
        assert!(
            message.contains("whatever: unknown field; allowed: config, is_default, name, slug"),
            "{message}"
        );
        assert_eq!(body["success"], false);
        assert_eq!(body["data"]["message"], message);
        assert!(memory.was_not_asked());
    }

    #[tokio::test]
    async fn parameters_that_a_call_does_not_know_are_refused() {
        let memory = Arc::new(Fake::default());
        for path in ["/v1/configs?pagesize=3", "/v1/virtual-keys/a?version=1", "/v1/configs?workspace_id=w"] {
            let (status, body) = json(&memory, "GET", path, None).await;
            assert_eq!(status, 400, "{path}: {body}");
        }
        memory.answers("list_configs", pb::ListConfigsResponse::default());
        assert_eq!(json(&memory, "GET", "/v1/configs?workspace_id=", None).await.0, 200);
    }

    #[tokio::test]
    async fn only_json_that_says_so_is_read() {
        let memory = Arc::new(Fake::default());
        for (content_type, is_read) in
            [(None, false), (Some("text/plain"), false), (Some("application/json"), true)]
        {
            let mut request = Request::post("/v1/virtual-keys");
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            let body = Body::from(r#"{"name":"n","provider":"openai","key":"k"}"#);
            memory.answers("create_virtual_key", pb::CreateVirtualKeyResponse::default());
            let (status, body) = answer(&memory, request.body(body).unwrap()).await;
            assert_eq!(
                (status == 200, body.contains("content-type")),
                (is_read, !is_read),
                "{status} {body}"
            );
        }
        let request = Request::post("/v1/configs").header("content-type", "application/json");
        let (status, body) = answer(&memory, request.body(Body::from("{\"key\": secret")).unwrap()).await;
        assert_eq!(status, 400);
        assert!(body.contains("line 1, column 9") && !body.contains("secret"), "{body}");
    }

    #[tokio::test]
    async fn an_error_of_the_memory_keeps_its_status_and_problems() {
        let memory = Arc::new(Fake::default());
        let violation = pb::Violation { path: "targets.0".into(), message: "no".into() };
        let error = Error::config("invalid config", vec![violation]);
        memory.fails("create_config", error.to_status());
        let body = json!({"name": "x", "config": {}});
        let (status, body) = json(&memory, "POST", "/v1/configs", Some(body)).await;
        assert_eq!((status, &body["errors"][0]), (400, &json!("path: targets,0, message: no")));

        let error = Error::new(ErrorKind::NotFound, "there is no config 'a'").with_code("config_not_found");
        memory.fails("get_config", error.to_status());
        let (status, body) = json(&memory, "GET", "/v1/configs/a", None).await;
        assert_eq!((status, &body["error"]["code"]), (404, &json!("config_not_found")));

        let error = Error::new(ErrorKind::Unauthenticated, "an API key is required");
        memory.fails("list_configs", error.to_status());
        let (status, body) = json(&memory, "GET", "/v1/configs", None).await;
        assert_eq!((status, &body["data"]["message"]), (401, &json!("an API key is required")));
    }

    #[test]
    fn pages_are_counted_from_zero() {
        let things = [1, 2, 3, 4, 5];
        let page = |current, size| Page { current, size }.listed(&things, |thing| (*thing).into()).0;
        assert_eq!(page(0, None)["data"], json!([1, 2, 3, 4, 5]));
        assert_eq!(page(1, Some(2))["data"], json!([3, 4]));
        assert_eq!(page(2, Some(2))["data"], json!([5]));
        assert_eq!(page(9, Some(2))["data"], json!([]));
        assert_eq!(page(9, Some(2))["total"], 5);
        assert_eq!(page(u64::from(u32::MAX), None)["data"], json!([]));
    }
}
