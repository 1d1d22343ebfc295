//! Asks an embeddings endpoint in OpenAI's format what a prompt means.
//!
//! The operator names the endpoint, and prompts are sent to it. Nothing of its answers, of the prompt or of the
//! key is ever shown; a failure is a reason of our own.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Request, header};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::Vector;
use crate::{
    config::file::Embeddings,
    images::Pieces,
    provider::AnswerBody,
    telemetry,
    worker::http::{Http, Trust},
};

/// The endpoint that a configuration names.
pub struct Embedder {
    endpoint: Embeddings,
    model: Arc<str>,
    http: Arc<Http>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    embedding: Vec<f32>,
}

impl Embedder {
    /// Asks this endpoint over these connections.
    pub fn new(endpoint: Embeddings, http: Arc<Http>) -> Self {
        let model = endpoint.model.as_str().into();
        Self { endpoint, model, http }
    }

    /// What a prompt means. None, with a line in the log, if that cannot be found out before its time limit
    /// and `deadline`: whoever asks can do without.
    pub async fn embed(&self, prompt: &str, deadline: Instant) -> Option<Vector> {
        let limit = deadline.min(Instant::now() + self.endpoint.timeout);
        let outcome = timeout_at(limit, self.ask(prompt)).await;
        match outcome.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(vector) => Some(vector),
            Err(reason) => {
                telemetry::embeddings_failed(&reason);
                None
            }
        }
    }

    async fn ask(&self, prompt: &str) -> Result<Vector, String> {
        let body = serde_json::json!({
            "model": self.endpoint.model, "input": prompt, "encoding_format": "float",
        });
        let mut request =
            Request::post(&self.endpoint.url.url).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.endpoint.api_key {
            let bearer = format!("Bearer {}", key.0.expose_secret());
            let mut bearer = HeaderValue::try_from(bearer).map_err(|_| "the API key cannot be sent")?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let body = Pieces::from(body.to_string().into_bytes());
        let request = request.body(body).map_err(|_| "the URL cannot be called")?;
        let text = |error: crate::error::Error| error.message.clone();
        let incoming = self.http.send(request, Trust::Operator).await.map_err(text)?;
        if !incoming.status.is_success() {
            return Err(format!("HTTP {}", incoming.status.as_u16()));
        }
        let AnswerBody::Json { skeleton, .. } = incoming.answer(&[]).await.map_err(text)?.body else {
            return Err("the answer is not JSON".into());
        };
        let answer: Answer = serde_json::from_slice(&skeleton).map_err(|_| "the answer has no embedding")?;
        let embedding = answer.data.into_iter().next().ok_or("the answer has no embedding")?;
        let vector = Vector::try_new(Arc::clone(&self.model), embedding.embedding);
        vector.ok_or_else(|| "the answer's embedding has no direction".into())
    }
}

impl fmt::Debug for Embedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedder").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
