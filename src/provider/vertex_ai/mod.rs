//! Vertex AI: Gemini's and Imagen's image models at the addresses of a Google Cloud project.
//!
//! Addresses are those of google-genai 3.4.0. A key is sent as the bearer token that it is taken for; a service
//! account logs in. Express mode, which has API keys and no project, is not served.

mod account;
mod imagen;

use std::sync::LazyLock;

use http::{Method, Request, header::AUTHORIZATION};
use serde_json::{Map, Value};

use super::{
    Answer, Job, Login, Provider, Step, catalog,
    google::{failure::failure, gemini},
    no_such_model,
};
use crate::{
    error::{Error, Result},
    images::Pieces,
    pb::{self, ImageFormat},
};
use account::Account;

const NAME: &str = "vertex-ai";

/// What no config can mean: every region has an address of its own.
const NO_REGION: &str = "https://{vertex_region}-aiplatform.googleapis.com/v1";

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("vertex_ai")));

/// The provider `vertex-ai`.
#[derive(Debug)]
pub struct VertexAi;

impl Provider for VertexAi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        NO_REGION
    }

    fn image_members(&self) -> &'static [&'static str] {
        // Gemini's and Imagen's.
        &["data", "bytesBase64Encoded"]
    }

    fn login(&self, job: &Job) -> Result<Option<Box<dyn Login>>> {
        let account = Account::of(job)?;
        Ok(account.map(|account| Box::new(account) as Box<dyn Login>))
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let model = model(job);
        if !is_model(model) {
            return Err(no_such_model(model, NAME));
        }
        let verb = if is_imagen(model) { "predict" } else { "generateContent" };
        let address = address(job, &format!("{model}:{verb}"))?;
        let call = job.request(Method::POST, &address, (AUTHORIZATION, "Bearer "))?;
        if is_imagen(model) {
            return imagen::start(job, call);
        }
        let options = output_options(&job.request).map(|options| ("imageOutputOptions".to_owned(), options));
        gemini::start(NAME, job, call, Map::from_iter(options))
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(NAME, &answer));
        }
        if is_imagen(model(job)) { imagen::advance(job, answer) } else { gemini::advance(NAME, job, answer) }
    }
}

/// A setting that says something.
/// The reference's configs may name the publisher in front of the model.
fn model(job: &Job) -> &str {
    let model = job.request.model.as_str();
    model.strip_prefix("google.").unwrap_or(model)
}

/// As `is_path_segment`, and with a version after an `@`.
fn is_model(model: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    model.starts_with(|c: char| c.is_ascii_alphanumeric()) && model.chars().all(plain)
}

fn is_imagen(model: &str) -> bool {
    model.starts_with("imagen") || model.starts_with("imagegeneration")
}

fn address(job: &Job, model_and_verb: &str) -> Result<String> {
    let region = region(job)?;
    let base = match region {
        _ if job.base_url != NO_REGION => job.base_url.clone(),
        "global" => "https://aiplatform.googleapis.com/v1".to_owned(),
        "eu" | "us" => format!("https://aiplatform.{region}.rep.googleapis.com/v1"),
        _ => NO_REGION.replace("{vertex_region}", region),
    };
    let project = project(job)?;
    Ok(format!("{base}/projects/{project}/locations/{region}/publishers/google/models/{model_and_verb}"))
}

/// It becomes part of the host: a dot or a slash in it would send the token elsewhere.
fn region(job: &Job) -> Result<&str> {
    let Some(region) = job.option("vertex_region") else {
        let message = format!("{NAME} needs a vertex_region, such as us-central1 or global");
        return Err(Error::invalid("vertex_region", message));
    };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !region.starts_with(|c: char| c.is_ascii_lowercase()) || !region.chars().all(plain) {
        let message = format!("vertex_region {region:?} is no region, such as us-central1 or global");
        return Err(Error::invalid("vertex_region", message));
    }
    Ok(region)
}

/// The project's id or number; old ids begin with a domain (`example.com:art`).
fn project(job: &Job) -> Result<String> {
    let project = match job.option("vertex_project_id") {
        Some(project) => project.to_owned(),
        None => Account::of(job)?.map(|account| account.project_id).unwrap_or_default(),
    };
    if project.is_empty() {
        let message =
            format!("{NAME} needs a vertex_project_id, or a {} with a project_id", account::SETTING);
        return Err(Error::invalid("vertex_project_id", message));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    if !project.starts_with(|c: char| c.is_ascii_alphanumeric()) || !project.chars().all(plain) {
        let message = format!("vertex_project_id {project:?} is no id of a project");
        return Err(Error::invalid("vertex_project_id", message));
    }
    Ok(project)
}

/// Format and compression, as both dialects spell them.
fn output_options(request: &pb::ImageRequest) -> Option<Value> {
    let mut options = Map::new();
    if let format @ (ImageFormat::Png | ImageFormat::Jpeg) = request.wanted_format() {
        options.insert("mimeType".into(), format.mime_type().into());
    }
    if let Some(compression) = request.output.and_then(|output| output.compression) {
        options.insert("compressionQuality".into(), compression.into());
    }
    (!options.is_empty()).then(|| options.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(model: &str, options: &[(&str, &str)]) -> Result<Request<Pieces>> {
        VertexAi.start(&Job {
            token: Some("ya29.token".into()),
            options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Job::new(
                pb::ImageRequest { model: model.into(), prompt: "a fox".into(), ..Default::default() },
                VertexAi.default_base_url(),
            )
        })
    }

    #[test]
    fn a_region_has_its_own_host() {
        for (region, host) in [
            ("us-central1", "us-central1-aiplatform.googleapis.com"),
            ("global", "aiplatform.googleapis.com"),
            ("eu", "aiplatform.eu.rep.googleapis.com"),
            ("us", "aiplatform.us.rep.googleapis.com"),
        ] {
            let options = [("vertex_region", region), ("vertex_project_id", "art-1")];
            let request = started("gemini-3-pro-image", &options).unwrap();
            let path = format!(
                "/v1/projects/art-1/locations/{region}/publishers/google/models/gemini-3-pro-image:generateContent"
            );
            assert_eq!(request.uri().to_string(), format!("https://{host}{path}"));
            assert_eq!(request.headers()["authorization"], "Bearer ya29.token");
            assert!(request.headers()["authorization"].is_sensitive());
        }
    }

    #[test]
    fn imagen_is_asked_for_predictions() {
        let options = [("vertex_region", "us-central1"), ("vertex_project_id", "example.com:art")];
        for model in ["imagen-4.0-generate-001", "google.imagen-4.0-generate-001", "imagegeneration@006"] {
            let uri = started(model, &options).unwrap().uri().to_string();
            let name = model.trim_start_matches("google.");
            assert!(
                uri.ends_with(&format!(
                    "/projects/example.com:art/locations/us-central1/publishers/google/models/{name}:predict"
                )),
                "{uri}"
            );
        }
    }

    #[test]
    fn the_token_goes_to_no_other_host_or_path() {
        for region in ["evil.example/", "evil.example#", "a@b", "", "a.b", "../x", "US", "-a", "1"] {
            let options = [("vertex_region", region), ("vertex_project_id", "art-1")];
            let error = started("gemini-3-pro-image", &options).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("vertex_region"), "{region}");
        }
        for project in ["", "..", ".", "a/b", "a?b", "a%2fb", "-a", "a b"] {
            let options = [("vertex_region", "us-central1"), ("vertex_project_id", project)];
            let error = started("gemini-3-pro-image", &options).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("vertex_project_id"), "{project}");
        }
        for model in ["", "..", "a/b", "a?b", "google.", "@a"] {
            let options = [("vertex_region", "us-central1"), ("vertex_project_id", "art-1")];
            assert_eq!(started(model, &options).unwrap_err().param.as_deref(), Some("model"), "{model}");
        }
    }

    #[test]
    fn a_region_is_wanted_even_where_the_host_is_said() {
        let job = Job::new(
            pb::ImageRequest { model: "gemini-3-pro-image".into(), ..Default::default() },
            "http://127.0.0.1:9/v1",
        );
        assert_eq!(VertexAi.start(&job).unwrap_err().param.as_deref(), Some("vertex_region"));
    }
}
