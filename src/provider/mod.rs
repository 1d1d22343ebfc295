//! What an upstream API is to us: a capability record, and two pure functions over requests and answers.
//!
//! Nothing here opens a socket, reads a clock or sleeps; `worker::drive` does. Strategy, retries and
//! negotiation happen in the router: a provider sends what the job says.

pub mod automatic1111;
pub mod azure_openai;
pub mod bedrock;
pub mod black_forest_labs;
pub mod catalog;
pub mod comfyui;
pub mod fal;
pub mod fireworks;
#[cfg(test)]
mod fixtures;
pub mod google;
pub mod ideogram;
pub mod multipart;
mod names;
mod oauth;
pub mod openai;
pub mod openai_compatible;
mod poll;
#[cfg(test)]
mod promises;
pub mod recraft;
pub mod replicate;
pub mod sandbox;
pub mod shown;
pub mod stability;
pub mod together;
pub mod vertex_ai;
pub mod workers_ai;
pub mod xai;

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;

use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass},
};

/// An upstream API.
pub trait Provider: Send + Sync + 'static {
    /// Capabilities, model data and prices; `name` in it is the provider's id in configs, logs and metrics.
    fn record(&self) -> &pb::Provider;

    /// Where the public API lives, for a job that names no other address.
    fn default_base_url(&self) -> &'static str;

    /// JSON members whose string values are images in base64. The driver decodes them while it reads, and
    /// leaves an [`ImageRef`] in their place.
    fn image_members(&self) -> &'static [&'static str];

    /// How to get the token that this job is sent with, where the configured credential is not sent itself. The
    /// driver logs in when it must, and then sets [`Job::token`].
    fn login(&self, _job: &Job) -> Result<Option<Box<dyn Login>>> {
        Ok(None)
    }

    /// The first upstream request of a job.
    fn start(&self, job: &Job) -> Result<http::Request<Pieces>>;

    /// What to do with a complete answer, whatever its status.
    fn advance(&self, job: &Job, answer: Answer) -> Result<Step>;

    /// What one server-sent event means, where the provider streams. `answer.body` is the event's data.
    fn event(&self, _job: &Job, _event: Answer) -> Result<Event> {
        Err(Error::bad_answer("an event stream, which this provider does not send"))
    }

    /// What to ask, every second or so, while the first request waits for an answer that comes only when the image
    /// is done.
    fn watch(&self, _job: &Job) -> Option<http::Request<Pieces>> {
        None
    }

    /// What an answer to [`Provider::watch`] tells.
    fn watched(&self, _job: &Job, _answer: Answer) -> Watched {
        Watched::default()
    }
}

/// A way from a configured credential to a token that is good for a while.
pub trait Login: Send + Sync {
    /// Who logs in, where, and what for: whatever is the same in this shares a token.
    fn account(&self) -> [u8; 32];

    /// The request for a token.
    fn request(&self, job: &Job) -> Result<http::Request<Pieces>>;

    /// The token in the answer to it.
    fn token(&self, answer: Answer) -> Result<Token>;
}

/// A token that a provider gave.
#[derive(Debug)]
pub struct Token {
    /// Whatever [`Provider::start`] makes a header of.
    pub secret: SecretString,
    /// How long it is good for, from now on.
    pub lifetime: Duration,
}

/// What is known of a job while it runs.
#[derive(Debug, Default)]
pub struct Watched {
    /// How far the provider says it is.
    pub progress: Option<pb::Progress>,
    /// What to send if the caller goes away now.
    pub cancel: Vec<http::Request<Pieces>>,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// The job is finished.
    Done(Output),
    /// Ask again after a pause: poll or download.
    Next(Box<Next>),
    /// The result lies at these addresses, which are not the API's own: fetched without credentials.
    Fetch {
        /// One address for each image of `output` whose `data` is empty and that is not withheld, in order.
        urls: Vec<String>,
        /// The rest of the answer.
        output: Output,
    },
}

/// The next request of a job.
#[derive(Debug)]
pub struct Next {
    /// How long to wait first. The driver adds a little, so that jobs that began together are not asked for
    /// together.
    pub after: Duration,
    /// What to send then.
    pub request: http::Request<Pieces>,
    /// How far the provider says it is.
    pub progress: Option<pb::Progress>,
    /// What to send if the caller goes away from now on, where the provider can give a job up.
    pub cancel: Vec<http::Request<Pieces>>,
    /// Whatever the provider wants to know again when the answer comes: see [`Answer::note`].
    pub note: String,
}

/// What a server-sent event means.
#[derive(Debug)]
pub enum Event {
    /// A preview of the image.
    Partial {
        /// Counts previews from 0.
        index: u32,
        /// The preview's bytes.
        data: Bytes,
    },
    /// The finished image.
    Done(Output),
    /// Nothing for us.
    Ignored,
}

/// A finished job.
#[derive(Debug, Default)]
pub struct Output {
    /// In order. Without data and with a `finish_reason`: withheld by the provider.
    pub images: Vec<pb::Image>,
    /// What the provider counted.
    pub usage: Option<pb::Usage>,
    /// What the provider says it charged.
    pub reported_cost_usd: Option<f64>,
    /// The provider's own id of the call.
    pub upstream_request_id: String,
    /// What the provider did otherwise than asked.
    pub warnings: Vec<pb::Warning>,
}

/// One call of a provider.
pub struct Job {
    /// Fitted to the model by the router. `inputs` and `mask` hold bytes unless the model accepts URLs.
    pub request: pb::ImageRequest,
    /// Everything before the operation's own path, without a trailing slash.
    pub base_url: String,
    /// The provider's credential.
    pub api_key: Option<SecretString>,
    /// What [`Provider::login`] led to.
    pub token: Option<SecretString>,
    /// The provider's own settings, as the config spells them. Credentials may be among them.
    pub options: HashMap<String, String>,
    /// When it began, for signatures.
    pub now: SystemTime,
}

/// An upstream's answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// HTTP headers.
    pub headers: HeaderMap,
    /// HTTP body.
    pub body: AnswerBody,
    /// The address that was asked: what a job's later answers often do not repeat.
    pub address: String,
    /// What was noted when the request was made, see [`Next::note`]; nothing for the first.
    pub note: String,
}

/// An upstream's body.
pub enum AnswerBody {
    /// JSON, with its images taken out.
    Json {
        /// The document with an [`ImageRef`] in place of each image.
        skeleton: Bytes,
        /// The images, decoded; or why they could not be.
        images: Vec<Result<Bytes, BadBase64>>,
    },
    /// Anything else.
    Raw(Bytes),
}

/// A string that should have been base64 and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBase64;

/// The place of an image that was taken out of a JSON document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef(Option<usize>);

/// The tail end of an [`ImageRef`] in a skeleton; a leading NUL cannot be in base64.
pub const IMAGE_REF_PREFIX: &str = "\u{0}@";

impl Next {
    /// Sends a request after a pause.
    pub fn new(after: Duration, request: http::Request<Pieces>) -> Self {
        Self { after, request, progress: None, cancel: Vec::new(), note: String::new() }
    }

    /// The same, with how far the provider says it is.
    #[must_use]
    pub fn at(mut self, state: &str, fraction: Option<f64>) -> Self {
        self.progress = Some(pb::Progress { fraction, state: state.to_owned() });
        self
    }

    /// The same, with what gives the job up.
    #[must_use]
    pub fn or_cancel(mut self, cancel: impl IntoIterator<Item = http::Request<Pieces>>) -> Self {
        self.cancel.extend(cancel);
        self
    }
}

impl From<Next> for Step {
    fn from(next: Next) -> Self {
        Self::Next(Box::new(next))
    }
}

impl Job {
    /// One of the provider's settings, unless it is empty.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// A job at this address, without credential or settings, that begins now.
    pub fn new(request: pb::ImageRequest, base_url: impl Into<String>) -> Self {
        Self {
            request,
            base_url: base_url.into(),
            api_key: None,
            token: None,
            options: HashMap::new(),
            now: SystemTime::now(),
        }
    }

    /// Extra fields for this provider: its own, over those for any provider.
    pub fn extras(&self, provider: &str) -> serde_json::Map<String, serde_json::Value> {
        let mut extras = serde_json::Map::new();
        for key in ["*", provider] {
            if let Some(fields) = self.request.provider_extras.get(key) {
                for (name, value) in &fields.fields {
                    extras.insert(name.clone(), crate::params::to_json(value));
                }
            }
        }
        extras
    }

    /// Starts a request to `path` below the base URL, with the credential as a bearer token where there is one:
    /// self-hosted servers of a dialect often want none.
    pub fn call(&self, method: http::Method, path: &str) -> Result<http::request::Builder> {
        self.call_as(method, path, (AUTHORIZATION, "Bearer "))
    }

    /// As [`Job::call`], with the credential in this header, after this prefix.
    pub fn call_as(
        &self,
        method: http::Method,
        path: &str,
        credential: (HeaderName, &str),
    ) -> Result<http::request::Builder> {
        self.request(method, &format!("{}{path}", self.base_url), credential)
    }

    /// A request to an address that the provider itself gave for this job, with the credential.
    ///
    /// # Errors
    /// The address is neither at the base URL's host nor at a sibling of it (`api.eu1.example.com` beside
    /// `api.example.com`): a credential goes nowhere else.
    pub fn follow(
        &self,
        method: http::Method,
        address: &str,
        credential: (HeaderName, &str),
    ) -> Result<http::request::Builder> {
        let elsewhere = || Error::bad_answer("the provider names an address for its job that is not its own");
        let url = url::Url::parse(address).map_err(|_| elsewhere())?;
        let base = url::Url::parse(&self.base_url).map_err(|_| elsewhere())?;
        let both_encrypted = url.scheme() == "https" && base.scheme() == "https";
        if url.origin() == base.origin() || both_encrypted && are_siblings(&url, &base) {
            return self.request(method, address, credential);
        }
        Err(elsewhere())
    }

    fn request(
        &self,
        method: http::Method,
        address: &str,
        credential: (HeaderName, &str),
    ) -> Result<http::request::Builder> {
        authorized(method, address, credential, self.token.as_ref().or(self.api_key.as_ref()))
    }
}

/// A request with a secret in this header, after this prefix.
fn authorized(
    method: http::Method,
    address: &str,
    (header, prefix): (HeaderName, &str),
    secret: Option<&SecretString>,
) -> Result<http::request::Builder> {
    let uri: http::Uri = address.parse().map_err(|_| {
        // Without the value: it may carry a password.
        Error::invalid("base_url", "the provider's base url makes no valid address")
    })?;
    let mut request = http::Request::builder().method(method).uri(uri);
    if let Some(secret) = secret {
        let text = format!("{prefix}{}", secret.expose_secret());
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            Error::new(ErrorKind::PermissionDenied, "the api key has characters that no header can carry")
                .with_status(401)
        })?;
        value.set_sensitive(true);
        request = request.header(header, value);
    }
    Ok(request)
}

/// Whether two hosts share the domain below the public suffix, taken to be their last two labels. Providers that
/// name hosts of their own have domains of that form.
fn are_siblings(a: &url::Url, b: &url::Url) -> bool {
    let domain = |url: &url::Url| {
        let host = url.domain()?;
        let start = host.rmatch_indices('.').nth(1).map_or(0, |(dot, _)| dot + 1);
        host[start..].contains('.').then(|| host[start..].to_owned())
    };
    domain(a).is_some_and(|domain_of_a| domain(b).as_ref() == Some(&domain_of_a))
}

/// A number as a person wrote it: the nearest `f64` of an `f32` reads 0.3499999940395355 for 0.35.
fn decimal(value: f32) -> f64 {
    (f64::from(value) * 1e4).round() / 1e4
}

/// The bytes of an input, for an API that takes no addresses.
fn bytes_of(input: &pb::InputImage) -> Result<Bytes> {
    match &input.source {
        Some(pb::input_image::Source::Data(data)) => Ok(data.clone()),
        _ => Err(Error::unsupported("image", "this provider takes images as bytes only")),
    }
}

/// The address of an input, which for bytes is a data URL, for an API that takes images in its JSON.
fn address_of(input: &pb::InputImage) -> Result<String> {
    match &input.source {
        Some(pb::input_image::Source::Url(url)) => Ok(url.clone()),
        _ => Ok(data_url(&bytes_of(input)?)),
    }
}

/// An image as a data URL.
fn data_url(data: &Bytes) -> String {
    // What is no image we know is left to the server to judge.
    let format = crate::images::probe::sniff(data).unwrap_or(pb::ImageFormat::Png);
    let base64 = base64_simd::STANDARD.encode_to_string(data);
    format!("data:{};base64,{base64}", format.mime_type())
}

/// The bytes of an image that an answer holds in place of its address; none if it is one.
fn inlined(address: &str) -> Result<Option<Bytes>> {
    if !address.starts_with("data:") {
        return Ok(None);
    }
    address
        .split_once(";base64,")
        .and_then(|(_, base64)| base64_simd::STANDARD.decode_to_vec(base64).ok())
        .map(|data| Some(data.into()))
        .ok_or_else(|| Error::bad_answer("the answer's data url is not valid base64"))
}

/// Whether a text can be one step of a path and nothing else: models become part of an address that the credential
/// is sent to.
fn is_path_segment(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && !text.starts_with('.') && text.chars().all(plain)
}

/// The model cannot be one of this provider's.
fn no_such_model(model: &str, provider: &str) -> Error {
    Error::invalid("model", format!("model {model:?} is no model of {provider}"))
}

/// A request with this body. What callers pass has been checked when the builder was filled.
fn finish(request: http::request::Builder, body: Pieces) -> Result<http::Request<Pieces>> {
    request
        .body(body)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("the request cannot be built: {error}")))
}

/// A request with these fields as its JSON body.
fn json_request(
    request: http::request::Builder,
    fields: &serde_json::Map<String, serde_json::Value>,
) -> Result<http::Request<Pieces>> {
    let body = serde_json::to_vec(fields)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("the request is no json: {error}")))?;
    finish(request.header(CONTENT_TYPE, "application/json"), body.into())
}

/// The mask's image with `wanted` as its polarity.
fn mask_as(mask: &pb::Mask, wanted: pb::MaskPolarity) -> Result<Bytes> {
    let polarity = |polarity| match polarity {
        pb::MaskPolarity::Unspecified => pb::MaskPolarity::WhiteEdits,
        said => said,
    };
    if polarity(mask.polarity()) == polarity(wanted) {
        return Ok(mask.data.clone());
    }
    crate::images::mask::convert(&mask.data, polarity(mask.polarity()), polarity(wanted))
        .map_err(|problem| Error::unsupported("mask", problem))
}

impl Answer {
    /// The body as JSON. Anything else is an answer that the provider does not promise.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        match &self.body {
            AnswerBody::Json { skeleton, .. } => serde_json::from_slice(skeleton).map_err(|error| {
                Error::bad_answer(format!("the answer's JSON is not what this provider sends: {error}"))
            }),
            AnswerBody::Raw(_) => {
                Err(Error::bad_answer(format!("the answer is {}, not JSON", self.content_type())))
            }
        }
    }

    /// Moves an image out of the answer.
    pub fn take_image(&mut self, place: &ImageRef) -> Result<Bytes> {
        // Some servers send an empty text beside an address.
        let Some(index) = place.0 else { return Ok(Bytes::new()) };
        let AnswerBody::Json { images, .. } = &mut self.body else {
            return Err(Error::bad_answer("the answer carries no image"));
        };
        match images.get_mut(index) {
            Some(Ok(data)) => Ok(std::mem::take(data)),
            Some(Err(BadBase64)) => Err(Error::bad_answer("the answer's image is not valid base64")),
            None => Err(Error::bad_answer("the answer carries no image")),
        }
    }

    /// The error that this answer is, when it is one and the provider's body told nothing better.
    pub fn default_error(&self, provider: &str, message: impl Into<String>) -> Error {
        let status = self.status.as_u16();
        let kind = ErrorKind::from_http_status(status);
        let mut error =
            Error::new(kind, message).with_status(if self.status.is_success() { 502 } else { status });
        error.provider = provider.to_owned();
        error.code = None;
        error.retry_after = crate::worker::retry_after::read(&self.headers);
        error.upstream_request_id = self.request_id();
        error.billing = match status {
            400..=499 => BillingClass::RejectedUnbilled,
            200..=299 => BillingClass::Billed,
            _ => BillingClass::Unknown,
        };
        error
    }

    /// What is wrong with this answer, as its provider's error.
    pub fn own(&self, provider: &str, mut error: Error) -> Error {
        error.provider = provider.to_owned();
        error.upstream_request_id = self.request_id();
        error.message = format!("{provider} error: {}", error.message);
        error
    }

    /// What a body that is not the provider's JSON says, fit for a message: a short line of plain text as it
    /// is; of a proxy's HTML page only that it was one.
    pub fn plain_text(&self) -> String {
        const LONGEST: usize = 300;
        if let AnswerBody::Raw(body) = &self.body
            && let Ok(text) = std::str::from_utf8(body)
        {
            let text = text.trim();
            let html = text.contains('<') || self.content_type() == "text/html";
            if !text.is_empty() && !html && text.len() <= LONGEST && !text.contains(char::is_control) {
                return text.to_owned();
            }
        }
        format!("status {} with {}", self.status.as_u16(), self.content_type())
    }

    /// The provider's own id of the call.
    pub fn request_id(&self) -> String {
        ["x-request-id", "request-id", "x-amzn-requestid", "apim-request-id"]
            .into_iter()
            .find_map(|name| self.header(name))
            .unwrap_or_default()
            .to_owned()
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The media type without parameters; `no content type` if there is none.
    pub fn content_type(&self) -> &str {
        let whole = self.header("content-type").unwrap_or("no content type");
        whole.split(';').next().unwrap_or(whole).trim()
    }
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { skeleton, images } => {
                write!(f, "Json({} bytes, {} images)", skeleton.len(), images.len())
            }
            Self::Raw(bytes) => write!(f, "Raw({} bytes)", bytes.len()),
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("request", &self.request)
            .field("base_url", &self.base_url)
            .finish_non_exhaustive()
    }
}

impl<'de> serde::Deserialize<'de> for ImageRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.strip_prefix(IMAGE_REF_PREFIX)
            .and_then(|index| index.parse().ok())
            .map(|index| Self(Some(index)))
            .ok_or_else(|| serde::de::Error::custom("expected an image in base64"))
    }
}

/// Providers that speak HTTP, by id.
pub fn all() -> Vec<Arc<dyn Provider>> {
    vec![
        Arc::new(automatic1111::Automatic1111),
        Arc::new(azure_openai::AzureOpenAi),
        Arc::new(bedrock::Bedrock),
        Arc::new(black_forest_labs::BlackForestLabs),
        Arc::new(comfyui::ComfyUi),
        Arc::new(fal::Fal),
        Arc::new(fireworks::FireworksAi),
        Arc::new(google::Google),
        Arc::new(ideogram::Ideogram),
        Arc::new(openai::OpenAi),
        Arc::new(openai_compatible::OpenAiCompatible),
        Arc::new(recraft::RecraftAi),
        Arc::new(replicate::Replicate),
        Arc::new(stability::StabilityAi),
        Arc::new(together::Together),
        Arc::new(vertex_ai::VertexAi),
        Arc::new(workers_ai::WorkersAi),
        Arc::new(xai::Xai),
    ]
}

/// The id that a config's provider name means: itself, or the id it is an alias of.
pub fn canonical_name(name: &str) -> &str {
    match name {
        "fireworks" => "fireworks-ai",
        "gemini" => "google",
        "recraft" => "recraft-ai",
        "bfl" => "black-forest-labs",
        // The reference's own guide spells it so.
        "stabilityai" => "stability-ai",
        "together-ai" => "together",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(base_url: &str) -> Job {
        Job { api_key: Some("sk-1".into()), ..Job::new(pb::ImageRequest::default(), base_url) }
    }

    #[test]
    fn a_credential_follows_only_to_the_providers_own_hosts() {
        for (base, address, allowed) in [
            ("https://api.bfl.ai", "https://api.eu1.bfl.ai/v1/get_result?id=1", true),
            ("https://api.bfl.ai", "https://api.bfl.ai/v1/get_result?id=1", true),
            ("http://127.0.0.1:9", "http://127.0.0.1:9/poll", true),
            ("http://127.0.0.1:9", "http://127.0.0.1:10/poll", false),
            ("https://api.bfl.ai", "https://bfl.ai.evil.example/x", false),
            ("https://api.bfl.ai", "https://other.ai/x", false),
            ("https://api.bfl.ai", "http://api.bfl.ai/x", false),
            ("https://localhost", "https://other/x", false),
            ("https://10.0.0.1", "https://10.1.0.1/x", false),
            ("https://api.bfl.ai", "not a url", false),
        ] {
            let followed = job(base).follow(http::Method::GET, address, (AUTHORIZATION, "Key "));
            assert_eq!(followed.is_ok(), allowed, "{base} {address}");
        }
    }
}
