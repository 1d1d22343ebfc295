//! Azure OpenAI: OpenAI's dialect at the addresses of a resource, with deployments in place of models.
//!
//! Which address, and whether a deployment stands in it or in the body, is from the providers of vercel/ai and
//! litellm 1.109.1 and Microsoft's page "How to use image generation models". A token of Entra ID is sent as it is
//! given, or an application logs in. Identities that a machine lends are not served: they are the worker's own.

mod entra;

use std::sync::LazyLock;

use http::{HeaderName, Method, Request, header::AUTHORIZATION};
use serde_json::{Map, Value};
use url::form_urlencoded::byte_serialize;

use super::{Answer, Event, Job, Login, Provider, Step, authorized, catalog, json_request, openai};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, Operation},
};
use entra::Entra;

const NAME: &str = "azure-openai";

/// What no config can mean: every resource has an address of its own.
const NO_RESOURCE: &str = "https://{resource_name}.openai.azure.com/openai";

/// A key in `authorization` fails behind API Management.
const API_KEY: HeaderName = HeaderName::from_static("api-key");

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("azure_openai")));

/// The provider `azure-openai`.
#[derive(Debug)]
pub struct AzureOpenAi;

/// What a request is sent with.
enum Credential<'a> {
    Key,
    Token(&'a str),
    /// What a login led to.
    Entra,
}

impl Provider for AzureOpenAi {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        NO_RESOURCE
    }

    fn image_members(&self) -> &'static [&'static str] {
        openai::OpenAi.image_members()
    }

    fn login(&self, job: &Job) -> Result<Option<Box<dyn Login>>> {
        match credential(job)? {
            Credential::Key | Credential::Token(_) => Ok(None),
            Credential::Entra => Ok(Some(Box::new(Entra::of(job)?))),
        }
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        match job.request.effective_operation() {
            Operation::Generate => json_request(call(job, "generations")?, &fields(job)),
            Operation::Edit | Operation::Inpaint => {
                openai::edit_form(job, &fields(job))?.into_request(call(job, "edits")?)
            }
            other => {
                Err(Error::unsupported("operation", format!("{NAME} has no operation {:?}", other.name())))
            }
        }
    }

    fn advance(&self, job: &Job, answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        openai::read_answer(NAME, job, answer)
    }

    fn event(&self, job: &Job, event: Answer) -> Result<Event> {
        openai::read_event(NAME, job, event)
    }
}

/// A setting as configs spell it, or as the reference's headers do.
fn option<'a>(job: &'a Job, name: &str) -> Option<&'a str> {
    let text = job.options.get(name).or_else(|| job.options.get(&format!("azure_{name}")))?;
    Some(text.as_str()).filter(|text| !text.is_empty())
}

/// The deployment, which has the model's name unless somebody says otherwise.
fn deployment(job: &Job) -> &str {
    option(job, "deployment_id").unwrap_or(&job.request.model)
}

/// The version of the API in which the address names the deployment; none is the present one.
fn dated_version(job: &Job) -> Option<&str> {
    option(job, "api_version").filter(|version| !matches!(*version, "v1" | "preview" | "latest"))
}

fn call(job: &Job, operation: &str) -> Result<http::request::Builder> {
    let address = address(job, operation)?;
    let bearer = match credential(job)? {
        Credential::Key => return job.request(Method::POST, &address, (API_KEY, "")),
        Credential::Token(token) => Some(token.into()),
        Credential::Entra => job.token.clone(),
    };
    authorized(Method::POST, &address, (AUTHORIZATION, "Bearer "), bearer.as_ref())
}

/// In the reference's order.
fn credential(job: &Job) -> Result<Credential<'_>> {
    if let Some(token) = option(job, "azure_ad_token") {
        return Ok(Credential::Token(token.strip_prefix("Bearer ").unwrap_or(token)));
    }
    match option(job, "azure_auth_mode") {
        None => Ok(Credential::Key),
        Some("entra") => Ok(Credential::Entra),
        Some(other) => {
            let message = format!(
                "azure_auth_mode {other:?} is not available; allowed: entra, or nothing for a key or a token of your own"
            );
            Err(Error::invalid("azure_auth_mode", message))
        }
    }
}

fn address(job: &Job, operation: &str) -> Result<String> {
    let base = base(job)?;
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    if let Some(version) = dated_version(job) {
        let deployment = deployment(job);
        // Dots alone would lead the key to another path.
        if deployment.chars().all(|c| c == '.') {
            return Err(Error::invalid("deployment_id", format!("deployment_id {deployment:?} is no name")));
        }
        // A plus is a space in a query, but not in a path.
        let deployment = encoded(deployment).replace('+', "%20");
        let version = encoded(version);
        return Ok(format!("{base}/deployments/{deployment}/images/{operation}?api-version={version}"));
    }
    let query = match option(job, "api_version") {
        Some(version @ ("preview" | "latest")) => format!("?api-version={version}"),
        _ => String::new(),
    };
    Ok(format!("{base}/v1/images/{operation}{query}"))
}

fn base(job: &Job) -> Result<String> {
    if job.base_url != NO_RESOURCE {
        return Ok(job.base_url.clone());
    }
    let Some(resource) = option(job, "resource_name") else {
        return Err(Error::invalid("resource_name", format!("{NAME} needs a resource_name, or a base_url")));
    };
    // It becomes part of the host: a dot or a slash in it would send the key elsewhere.
    if !resource.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(Error::invalid("resource_name", format!("resource_name {resource:?} is no name")));
    }
    Ok(NO_RESOURCE.replace("{resource_name}", resource))
}

/// OpenAI's fields. Where the address names the deployment, a model beside it is refused for gpt-image-2 (issue
/// 26316 of litellm).
fn fields(job: &Job) -> Map<String, Value> {
    let mut fields = openai::fields(NAME, job);
    if dated_version(job).is_some() {
        fields.remove("model");
    } else {
        fields.insert("model".into(), deployment(job).into());
    }
    fields
}

/// What OpenAI's dialect does not say of an error. A resource that is blocked as a whole has 403: no refusal of
/// this request.
fn failure(answer: &Answer) -> Error {
    let mut error = openai::failure(NAME, answer);
    let refused =
        error.code.as_deref() == Some("content_safety_violation") || error.message.contains("safety system");
    if error.status == 400 && refused {
        error.kind = ErrorKind::ContentRejected;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(options: &[(&str, &str)]) -> Result<Request<Pieces>> {
        AzureOpenAi.start(&Job {
            api_key: Some("key".into()),
            options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Job::new(
                pb::ImageRequest { model: "gpt-image-2".into(), ..Default::default() },
                AzureOpenAi.default_base_url().to_owned(),
            )
        })
    }

    #[test]
    fn a_resource_has_its_own_host() {
        for options in [[("resource_name", "art-1")], [("azure_resource_name", "art-1")]] {
            let request = started(&options).unwrap();
            assert_eq!(request.uri(), "https://art-1.openai.azure.com/openai/v1/images/generations");
            assert_eq!(request.headers()["api-key"], "key");
            assert!(request.headers()["api-key"].is_sensitive());
        }
    }

    #[test]
    fn a_resource_cannot_lead_to_another_host() {
        for name in ["evil.example/", "evil.example#", "a@b", "", "a.b"] {
            let error = started(&[("resource_name", name)]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("resource_name"), "{name}");
        }
    }
}
