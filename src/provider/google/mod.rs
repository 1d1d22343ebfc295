//! Google's Gemini API: models that answer `generateContent` with images.
//!
//! Imagen's `:predict` is not here: Google has switched those models off. A wrong key is a 400. Sizes, limits and
//! prices are data (`google.yaml`): the router has fitted the request before it comes here. What Vertex AI shares
//! with this API is in the modules below.

pub(super) mod failure;
pub(super) mod gemini;
pub(super) mod shape;

use std::sync::LazyLock;

use http::{HeaderName, Method, Request};
use serde_json::Map;

use super::{Answer, Job, Provider, Step, catalog, is_path_segment, no_such_model};
use crate::{error::Result, images::Pieces, pb};

const NAME: &str = "google";

const KEY_HEADER: HeaderName = HeaderName::from_static("x-goog-api-key");

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("google")));

/// The provider `google`.
#[derive(Debug)]
pub struct Google;

impl Provider for Google {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        "https://generativelanguage.googleapis.com/v1beta"
    }

    fn image_members(&self) -> &'static [&'static str] {
        gemini::IMAGE_MEMBERS
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let model = &job.request.model;
        if !is_path_segment(model) {
            return Err(no_such_model(model, NAME));
        }
        let call =
            job.call_as(Method::POST, &format!("/models/{model}:generateContent"), (KEY_HEADER, ""))?;
        gemini::start(NAME, job, call, Map::new())
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure::failure(NAME, &answer));
        }
        gemini::advance(NAME, job, answer)
    }
}
