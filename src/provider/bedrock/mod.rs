//! AWS Bedrock's `InvokeModel`: one operation, and in its body the dialect of whoever made the model.
//!
//! Operation, errors and statuses are those of botocore 1.43.11's `bedrock-runtime`. Sizes, limits and prices are
//! data (`bedrock.yaml`): the router has fitted the request before it comes here.

mod amazon;
mod sigv4;
mod stability;
mod sts;

use std::sync::LazyLock;

use http::{
    Method, Request,
    header::{ACCEPT, AUTHORIZATION},
};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Answer, Job, Login, Output, Provider, Step, authorized, catalog, json_request, no_such_model,
    stability::v1,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass},
};
use sigv4::{Keys, Scope, signed};

const NAME: &str = "bedrock";

/// The address of a region's endpoint.
const REGIONAL: &str = "https://bedrock-runtime.{aws_region}.amazonaws.com";

const DEFAULT_REGION: &str = "us-east-1";

static RECORD: LazyLock<pb::Provider> = LazyLock::new(|| catalog::embedded(data!("bedrock")));

/// The provider `bedrock`.
#[derive(Debug)]
pub struct Bedrock;

/// How to speak to a model.
enum Dialect<'a> {
    Amazon,
    /// A model of Stability's `v1`.
    StableDiffusionXl,
    /// Another of Stability's models, without its maker's name.
    Stability(&'a str),
}

/// What a request is sent with.
enum Auth {
    ApiKey,
    Keys(Keys),
}

/// What an error says. Where the request does not get as far as the service, the names are others.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorAnswer {
    #[serde(alias = "Message")]
    message: String,
    #[serde(rename = "__type")]
    class: String,
}

impl Provider for Bedrock {
    fn record(&self) -> &pb::Provider {
        &RECORD
    }

    fn default_base_url(&self) -> &'static str {
        REGIONAL
    }

    fn image_members(&self) -> &'static [&'static str] {
        &["images", "base64"]
    }

    fn login(&self, job: &Job) -> Result<Option<Box<dyn Login>>> {
        if job.option("aws_auth_type") != Some("assumedRole") {
            return Ok(None);
        }
        let Some(role_arn) = job.option("aws_role_arn") else {
            let message = "aws_auth_type \"assumedRole\" needs an aws_role_arn";
            return Err(Error::invalid("aws_role_arn", message));
        };
        Ok(Some(Box::new(sts::AssumedRole {
            keys: configured_keys(job)?,
            region: region(job)?.to_owned(),
            role_arn: role_arn.to_owned(),
            external_id: job.option("aws_external_id").map(str::to_owned),
        })))
    }

    fn start(&self, job: &Job) -> Result<Request<Pieces>> {
        let address = address(job)?;
        let body = match dialect(&job.request.model)? {
            Dialect::Amazon => amazon::body(job)?,
            Dialect::StableDiffusionXl => stability::xl_body(job)?,
            Dialect::Stability(model) => stability::body(job, model)?,
        };
        let auth = auth(job)?;
        let key = job.api_key.as_ref().filter(|_| matches!(auth, Auth::ApiKey));
        let request = authorized(Method::POST, &address, (AUTHORIZATION, "Bearer "), key)?;
        let request = json_request(request.header(ACCEPT, "application/json"), &body)?;
        match auth {
            Auth::ApiKey => Ok(request),
            Auth::Keys(keys) => {
                signed(request, &keys, &Scope { region: region(job)?, service: NAME, now: job.now })
            }
        }
    }

    fn advance(&self, job: &Job, mut answer: Answer) -> Result<Step> {
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        let dialect = dialect(&job.request.model)?;
        let images = match dialect {
            Dialect::Amazon => amazon::images(job, &mut answer),
            Dialect::StableDiffusionXl => v1::images(&mut answer),
            Dialect::Stability(_) => stability::images(&mut answer),
        };
        let warnings = match dialect {
            Dialect::Amazon => amazon::warnings(job)?,
            Dialect::StableDiffusionXl => v1::fields_of(NAME, job)?.warnings,
            Dialect::Stability(model) => stability::fields(job, model)?.warnings,
        };
        Ok(Step::Done(Output {
            images: images.map_err(|error| answer.own(NAME, error))?,
            upstream_request_id: answer.request_id(),
            warnings,
            ..Default::default()
        }))
    }
}

/// By the model's own id: behind the region of an inference profile, and behind an ARN's last slash.
fn dialect(model: &str) -> Result<Dialect<'_>> {
    let id = model.rsplit('/').next().unwrap_or(model);
    let made_by = |maker: &str| {
        let at = id.find(maker)?;
        let region = &id[..at];
        let is_region = region.is_empty() || region.ends_with('.') && !region.starts_with('.');
        is_region.then(|| &id[at + maker.len()..])
    };
    match (made_by("amazon."), made_by("stability.")) {
        (Some(_), _) => Ok(Dialect::Amazon),
        (_, Some(name)) if name.starts_with("stable-diffusion-xl") => Ok(Dialect::StableDiffusionXl),
        (_, Some(name)) => Ok(Dialect::Stability(name)),
        (None, None) => Err(no_such_model(model, NAME)),
    }
}

fn address(job: &Job) -> Result<String> {
    // Profiles and provisioned models have ids that do not tell which model it is.
    let model = job.option("aws_model_arn").unwrap_or(&job.request.model);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '/');
    if !model.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !model.chars().all(allowed)
        || model.contains("..")
        || model.contains('/') && !model.starts_with("arn:")
    {
        return Err(no_such_model(model, NAME));
    }
    let encoded = model.replace(':', "%3A").replace('/', "%2F");
    let base = if job.base_url == REGIONAL {
        REGIONAL.replace("{aws_region}", region(job)?)
    } else {
        job.base_url.clone()
    };
    Ok(format!("{base}/model/{encoded}/invoke"))
}

fn base64(data: &[u8]) -> Value {
    base64_simd::STANDARD.encode_to_string(data).into()
}

fn region(job: &Job) -> Result<&str> {
    let region = job.option("aws_region").unwrap_or(DEFAULT_REGION);
    // It becomes part of the host: a dot or a slash in it would send the request elsewhere.
    if !region.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        return Err(Error::invalid("aws_region", format!("aws_region {region:?} is no region's name")));
    }
    Ok(region)
}

fn auth(job: &Job) -> Result<Auth> {
    match job.option("aws_auth_type") {
        None if job.option("aws_access_key_id").is_none() && job.api_key.is_some() => Ok(Auth::ApiKey),
        None | Some("accessKey") => configured_keys(job).map(Auth::Keys),
        Some("apiKey") if job.api_key.is_some() => Ok(Auth::ApiKey),
        Some("apiKey") => Err(Error::invalid("api_key", "aws_auth_type \"apiKey\" needs an api_key")),
        Some("assumedRole") => {
            let keys = job.token.as_ref().and_then(|token| sts::keys(token.expose_secret()));
            keys.map(Auth::Keys)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "the role's keys are not there"))
        }
        Some(other) => {
            let message =
                format!("aws_auth_type {other:?} is not allowed; allowed: accessKey, apiKey, assumedRole");
            Err(Error::invalid("aws_auth_type", message))
        }
    }
}

fn configured_keys(job: &Job) -> Result<Keys> {
    let (Some(id), Some(secret)) = (job.option("aws_access_key_id"), job.option("aws_secret_access_key"))
    else {
        let message =
            format!("{NAME} needs aws_access_key_id and aws_secret_access_key, or an api_key of {NAME}");
        return Err(Error::invalid("aws_access_key_id", message));
    };
    let session = job.option("aws_session_token").map(Into::into);
    Ok(Keys { id: id.to_owned(), secret: secret.into(), session })
}

fn failure(answer: &Answer) -> Error {
    let body: ErrorAnswer = answer.json().unwrap_or_default();
    let text = if body.message.is_empty() { answer.plain_text() } else { body.message };
    // That of a wrong signature goes on with all that should have been signed, the session token among it.
    let text = text.lines().next().unwrap_or_default();
    // `ValidationException:http://...` in a header, a name behind `#` in a body.
    let class = answer.header("x-amzn-errortype").unwrap_or(&body.class);
    let class = class.split(':').next().unwrap_or_default();
    let class = class.rsplit('#').next().unwrap_or_default();
    let mut error = answer.default_error(NAME, format!("{NAME} error: {text}"));
    match class {
        "ValidationException" if is_refusal(text) => {
            error.kind = ErrorKind::ContentRejected;
            // What was looked at had been made.
            if text.contains("generated image") {
                error.billing = BillingClass::Unknown;
            }
        }
        "ValidationException" if text.contains("model identifier is invalid") => {
            error.kind = ErrorKind::NotFound;
        }
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "MissingAuthenticationTokenException"
        | "ExpiredTokenException" => error.kind = ErrorKind::PermissionDenied,
        // AWS says of both that the request may be sent again later.
        "ServiceQuotaExceededException" | "ThrottlingException" => error.kind = ErrorKind::RateLimited,
        "ModelNotReadyException" => error.kind = ErrorKind::Unavailable,
        // The model had begun.
        "ModelErrorException" => {
            error.kind = ErrorKind::Unavailable;
            error.billing = BillingClass::Unknown;
        }
        "ModelTimeoutException" => {
            error.kind = ErrorKind::Timeout;
            error.billing = BillingClass::Unknown;
        }
        _ => {}
    }
    error.error_type = Some(class).filter(|class| !class.is_empty()).map(str::to_owned);
    error
}

/// Whether it was a filter's doing. No code says so: AWS's texts name its content filters, or its policies.
fn is_refusal(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["content filter", "content polic", "responsible ai", "moderation", "moderated"]
        .iter()
        .any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "stability.stable-image-core-v1:1";

    fn job(model: &str, options: &[(&str, &str)]) -> Job {
        Job {
            options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Job::new(
                pb::ImageRequest { model: model.into(), prompt: "x".into(), ..Default::default() },
                REGIONAL,
            )
        }
    }

    fn with_keys(model: &str, options: &[(&str, &str)]) -> Job {
        let keys = [("aws_access_key_id", "AKID"), ("aws_secret_access_key", "secret")];
        job(model, &[&keys, options].concat())
    }

    #[test]
    fn a_region_has_its_own_host_and_signature() {
        let request = Bedrock.start(&with_keys(MODEL, &[("aws_region", "eu-west-1")])).unwrap();
        assert_eq!(
            request.uri(),
            "https://bedrock-runtime.eu-west-1.amazonaws.com/model/stability.stable-image-core-v1%3A1/invoke"
        );
        let authorization = request.headers()[AUTHORIZATION].to_str().unwrap();
        assert!(authorization.contains("/eu-west-1/bedrock/aws4_request, "), "{authorization}");
    }

    #[test]
    fn a_region_cannot_lead_to_another_host() {
        for region in ["evil.example/", "us-east-1.evil.example#", "a@b", "US-EAST-1", "eu_west"] {
            let error = Bedrock.start(&with_keys(MODEL, &[("aws_region", region)])).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("aws_region"), "{region}");
        }
    }

    #[test]
    fn a_model_is_one_step_of_the_path_whatever_its_form() {
        for (model, path) in [
            ("us.stability.stable-image-core-v1:1", "us.stability.stable-image-core-v1%3A1"),
            (
                "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-canvas-v1:0",
                "arn%3Aaws%3Abedrock%3Aus-east-1%3A%3Afoundation-model%2Famazon.nova-canvas-v1%3A0",
            ),
        ] {
            let request = Bedrock.start(&with_keys(model, &[])).unwrap();
            assert_eq!(request.uri().path(), format!("/model/{path}/invoke"));
        }
        for model in [
            "stability.x/../../other",
            "../stability.stable-image-core-v1:1",
            "arn:aws/../stability.stable-image-core-v1:1",
            "stability.stable-image-core-v1:1?x=y",
            "stability.stable-image-core-v1%2F..",
            "/stability.stable-image-core-v1:1",
            "x/stability.stable-image-core-v1:1",
            "xstability.stable-image-core-v1:1",
            "meta.llama",
            "",
        ] {
            let error = Bedrock.start(&with_keys(model, &[])).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("model"), "{model}");
        }
    }

    #[test]
    fn a_profile_is_called_by_the_rules_of_the_model_that_is_named() {
        let arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123";
        let request = Bedrock.start(&with_keys(MODEL, &[("aws_model_arn", arn)])).unwrap();
        assert!(request.uri().path().ends_with("application-inference-profile%2Fabc123/invoke"));
    }

    #[test]
    fn who_calls_is_settled_by_what_there_is_or_by_what_is_said() {
        let sent = |job: &Job| {
            let request = Bedrock.start(job)?;
            let text = request.headers()[AUTHORIZATION].to_str().unwrap();
            Ok::<_, Error>(text.split(' ').next().unwrap().to_owned())
        };
        let key = |job: Job| Job { api_key: Some("key".into()), ..job };
        assert_eq!(sent(&with_keys(MODEL, &[])).unwrap(), "AWS4-HMAC-SHA256");
        assert_eq!(sent(&key(job(MODEL, &[]))).unwrap(), "Bearer");
        assert_eq!(sent(&key(with_keys(MODEL, &[]))).unwrap(), "AWS4-HMAC-SHA256");
        assert_eq!(sent(&key(with_keys(MODEL, &[("aws_auth_type", "apiKey")]))).unwrap(), "Bearer");
        for (wrong, param) in [
            (job(MODEL, &[]), "aws_access_key_id"),
            (job(MODEL, &[("aws_access_key_id", "AKID")]), "aws_access_key_id"),
            (with_keys(MODEL, &[("aws_auth_type", "apiKey")]), "api_key"),
            (with_keys(MODEL, &[("aws_auth_type", "serviceRole")]), "aws_auth_type"),
        ] {
            assert_eq!(sent(&wrong).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn a_role_is_logged_in_for_and_its_keys_sign() {
        let role = [("aws_auth_type", "assumedRole"), ("aws_role_arn", "arn:aws:iam::1:role/art")];
        assert!(Bedrock.login(&with_keys(MODEL, &role)).unwrap().is_some());
        assert!(Bedrock.login(&with_keys(MODEL, &[])).unwrap().is_none());
        let nameless = Bedrock.login(&with_keys(MODEL, &role[..1])).err().unwrap();
        assert_eq!(nameless.param.as_deref(), Some("aws_role_arn"));
        let job = Job { token: Some("ASIA\nsecret\nsession".into()), ..with_keys(MODEL, &role) };
        let request = Bedrock.start(&job).unwrap();
        assert!(request.headers()[AUTHORIZATION].to_str().unwrap().contains("Credential=ASIA/"));
        assert_eq!(request.headers()["x-amz-security-token"], "session");
    }
}
