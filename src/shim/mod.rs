//! The HTTP shim: OpenAI's Images API in front of a router, and the reference's management API beside it.
//!
//! Translates to `RouterService` and `AdminService` and back, and keeps images that were asked for as `url`. It knows nothing of
//! routing: headers travel to the router as metadata, and what routing did comes back as a report.

mod admit;
mod answer;
mod deliver;
pub mod encode;
mod events;
mod explain;
mod files;
mod here;
mod images;
mod jobs;
mod manage;
mod request;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::json;
use tonic::{Request, metadata::MetadataMap};

pub use self::{files::Files, here::only_from_here};
use crate::{
    admin::SharedAdmin,
    admission::Admission,
    error::{Error, ErrorKind},
    pb,
    provider::shown,
    router::SharedRouter,
};

/// What the handlers share.
#[derive(Clone)]
pub struct Shim {
    router: SharedRouter,
    admin: SharedAdmin,
    files: Arc<Files>,
    /// How clients reach us; else the request's own host.
    public_url: Option<Arc<str>>,
    max_body_bytes: usize,
    admission: Admission,
}

impl Shim {
    /// A shim in front of a router and its memory.
    /// Larger request bodies than `max_body_bytes` are refused, and requests that find no place.
    pub fn new(
        router: SharedRouter,
        admin: SharedAdmin,
        files: Arc<Files>,
        public_url: Option<&str>,
        max_body_bytes: usize,
        admission: Admission,
    ) -> Self {
        Self { router, admin, files, public_url: public_url.map(Into::into), max_body_bytes, admission }
    }

    /// All routes.
    pub fn routes(self) -> Router {
        // Not nested: a route below a prefix makes a copy of each request's address and extensions.
        let images = |prefix: &str| {
            Router::new()
                .route(&format!("{prefix}/images/generations"), post(images::generations))
                .route(&format!("{prefix}/images/edits"), post(images::edits))
                .route(&format!("{prefix}/images/variations"), post(images::variations))
        };
        Router::new()
            .route("/", get(|| async { "imagegate: OpenAI Images API under /v1\n" }))
            .merge(images("/v1"))
            .nest("/v1", manage::routes())
            // Azure's clients, with a deployment in the path or, since its v1, without.
            .merge(images("/openai/v1"))
            .route(
                "/openai/deployments/{deployment}/images/generations",
                post(images::deployment_generations),
            )
            .route("/openai/deployments/{deployment}/images/edits", post(images::deployment_edits))
            .route("/v1/images/explain", post(explain::explain))
            .route("/v1/images/jobs", post(jobs::submit))
            .route("/v1/images/jobs/{id}", get(jobs::get))
            .route("/v1/images/jobs/{id}/cancel", post(jobs::cancel))
            .route("/v1/models", get(models))
            .route("/v1/images/files/{id}", get(files::get))
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(middleware::from_fn_with_state(self.clone(), admit::admitted))
            .with_state(self)
    }

    fn image_url(&self, headers: &HeaderMap, name: &str) -> String {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        match &self.public_url {
            Some(url) => format!("{url}/v1/images/files/{name}"),
            None => {
                let scheme = text("x-forwarded-proto").filter(|scheme| *scheme == "https").unwrap_or("http");
                let host = text("host").unwrap_or("localhost");
                format!("{scheme}://{host}/v1/images/files/{name}")
            }
        }
    }
}

/// A message for the router with the client's headers as metadata.
fn to_router<T>(message: T, headers: &HeaderMap) -> Request<T> {
    let mut request = Request::new(message);
    let mut metadata = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !belongs_to_connection(name.as_str()) {
            metadata.append(name, value.clone());
        }
    }
    *request.metadata_mut() = MetadataMap::from_headers(metadata);
    if let Some(patience) = patience(headers) {
        request.set_timeout(patience);
    }
    request
}

/// How long OpenAI's Python client waits itself; nobody reads an answer that comes later.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get("x-stainless-read-timeout")?.to_str().ok()?.parse().ok()?;
    (seconds > 0.0 && seconds < 86_400.0).then(|| Duration::from_secs_f64(seconds))
}

/// Headers that describe the client's connection or body, which gRPC has of its own.
fn belongs_to_connection(name: &str) -> bool {
    name.starts_with("grpc-")
        || name.starts_with("proxy-")
        || name.ends_with("-bin")
        || matches!(
            name,
            "host"
                | "connection"
                | "keep-alive"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "expect"
                | "content-length"
                | "content-type"
                | "content-encoding"
                | "accept"
                | "accept-encoding"
        )
}

async fn models(State(shim): State<Shim>, headers: HeaderMap) -> Response {
    let listed = shim.router.list_models(to_router(pb::ListModelsRequest {}, &headers)).await;
    let models = match listed {
        Ok(listed) => listed.into_inner().models,
        Err(status) => return answer::error(&Error::from_status(&status), &headers),
    };
    let data: Vec<_> = models
        .into_iter()
        .map(|model| {
            let mut entry =
                json!({"id": model.id, "object": "model", "created": 0, "owned_by": model.provider});
            if let Some(capability) = &model.capability {
                entry["capabilities"] = shown::to_json(capability);
            }
            entry
        })
        .collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let error = Error::new(ErrorKind::NotFound, format!("there is no route {}", uri.path()));
    answer::error(&error, &headers)
}

async fn method_not_allowed(uri: Uri, headers: HeaderMap) -> Response {
    let error = Error::new(ErrorKind::InvalidRequest, format!("{} has no such method", uri.path()));
    answer::error(&error.with_status(StatusCode::METHOD_NOT_ALLOWED.as_u16()), &headers)
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").field("public_url", &self.public_url).finish_non_exhaustive()
    }
}
