//! The one error type, and every mapping of it: to gRPC, to HTTP, to OpenAI's error object, to decisions.
//!
//! All maps are exhaustive matches over [`ErrorKind`], so that they cannot drift apart.

use std::{borrow::Cow, fmt, ops, time::Duration};

use http::StatusCode;
use prost::Message as _;
use tonic::{Code, Status};

use crate::{
    health::ejected::Ejected,
    pb::{self, BillingClass},
};

/// The type of our own detail in a status.
pub const ERROR_DETAIL: &str = "type.googleapis.com/imagegate.v1.ErrorDetail";
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// Bounds of an error that crosses a connection, see [`Error::within_metadata_limits`].
const DETAIL_BYTES: usize = 3072;
const MESSAGE_BYTES: usize = 1024;
const SENTENCE_BYTES: usize = 100;
const ATTEMPTS_SHOWN: usize = 6;
const VIOLATIONS_SHOWN: usize = 6;

/// What went wrong, by what a caller or a strategy does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong. Nobody should repeat it.
    InvalidRequest,
    /// The caller's own credential is missing or wrong.
    Unauthenticated,
    /// The caller may not do this, or a provider refused our credential.
    PermissionDenied,
    /// A model, config, key or file that does not exist.
    NotFound,
    /// A safety filter refused the prompt, an input or the result.
    ContentRejected,
    /// The target cannot serve this request; nothing was sent.
    Unsupported,
    /// Too many requests, for now.
    RateLimited,
    /// Out of credit, until somebody pays.
    QuotaExhausted,
    /// Down, overloaded or unreachable.
    Unavailable,
    /// It took longer than somebody was willing to wait.
    Timeout,
    /// An answer that is not what the provider promises: HTML, half a body, no image.
    BadAnswer,
    /// The caller went away.
    Cancelled,
    /// Our own defect.
    Internal,
}

impl ErrorKind {
    const ALL: [Self; 13] = [
        Self::InvalidRequest,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::ContentRejected,
        Self::Unsupported,
        Self::RateLimited,
        Self::QuotaExhausted,
        Self::Unavailable,
        Self::Timeout,
        Self::BadAnswer,
        Self::Cancelled,
        Self::Internal,
    ];

    /// As logs, metrics and `ErrorDetail.kind` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::ContentRejected => "content_rejected",
            Self::Unsupported => "unsupported",
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::BadAnswer => "bad_answer",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// The kind that `ErrorDetail.kind` names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The gRPC code for a caller.
    pub fn code(self) -> Code {
        match self {
            Self::InvalidRequest => Code::InvalidArgument,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::ContentRejected => Code::FailedPrecondition,
            Self::Unsupported => Code::Unimplemented,
            Self::RateLimited | Self::QuotaExhausted => Code::ResourceExhausted,
            Self::Unavailable => Code::Unavailable,
            Self::Timeout => Code::DeadlineExceeded,
            Self::BadAnswer | Self::Internal => Code::Internal,
            Self::Cancelled => Code::Cancelled,
        }
    }

    /// The HTTP status where no provider said one.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContentRejected | Self::Unsupported => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::RateLimited | Self::QuotaExhausted => 429,
            Self::Unavailable => 503,
            // The reference's gateway timeout, which configs list in `on_status_codes`.
            Self::Timeout => 408,
            Self::BadAnswer => 502,
            Self::Cancelled => 499,
            Self::Internal => 500,
        }
    }

    /// `error.type` of OpenAI's error object.
    pub fn openai_type(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::NotFound | Self::Unsupported => "invalid_request_error",
            Self::Unauthenticated => "authentication_error",
            Self::PermissionDenied => "permission_error",
            Self::ContentRejected => "image_generation_user_error",
            Self::RateLimited => "rate_limit_error",
            Self::QuotaExhausted => "insufficient_quota",
            Self::Timeout => "timeout_error",
            Self::Unavailable | Self::BadAnswer | Self::Internal => "server_error",
            Self::Cancelled => "cancelled",
        }
    }

    /// `error.code` of OpenAI's error object where no provider said one.
    pub fn openai_code(self) -> Option<&'static str> {
        match self {
            Self::ContentRejected => Some("moderation_blocked"),
            Self::Unauthenticated => Some("invalid_api_key"),
            Self::RateLimited => Some("rate_limit_exceeded"),
            Self::QuotaExhausted => Some("insufficient_quota"),
            Self::Unsupported => Some("unsupported"),
            Self::InvalidRequest
            | Self::PermissionDenied
            | Self::NotFound
            | Self::Unavailable
            | Self::Timeout
            | Self::BadAnswer
            | Self::Cancelled
            | Self::Internal => None,
        }
    }

    /// Whether another target may still succeed. A caller that is gone is the only hopeless case: even a
    /// request that one provider calls invalid may suit the next.
    pub fn may_fall_back(self) -> bool {
        match self {
            Self::Cancelled => false,
            Self::InvalidRequest
            | Self::Unauthenticated
            | Self::PermissionDenied
            | Self::NotFound
            | Self::ContentRejected
            | Self::Unsupported
            | Self::RateLimited
            | Self::QuotaExhausted
            | Self::Unavailable
            | Self::Timeout
            | Self::BadAnswer
            | Self::Internal => true,
        }
    }

    fn from_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::InvalidRequest,
            Code::Unauthenticated | Code::PermissionDenied => Self::PermissionDenied,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition => Self::ContentRejected,
            Code::Unimplemented => Self::Unsupported,
            Code::ResourceExhausted => Self::RateLimited,
            Code::Unavailable | Code::Aborted => Self::Unavailable,
            Code::DeadlineExceeded => Self::Timeout,
            Code::Cancelled => Self::Cancelled,
            Code::Ok | Code::AlreadyExists | Code::DataLoss | Code::Internal | Code::Unknown => {
                Self::BadAnswer
            }
        }
    }

    /// The kind that an upstream's HTTP status means when its body tells nothing better.
    pub fn from_http_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::PermissionDenied,
            402 => Self::QuotaExhausted,
            404 | 410 => Self::NotFound,
            408 | 504 | 524 => Self::Timeout,
            429 => Self::RateLimited,
            400..=499 => Self::InvalidRequest,
            500..=599 => Self::Unavailable,
            _ => Self::BadAnswer,
        }
    }
}

/// A failed request or attempt. `message` is for the caller: it names the field and the value, and never a
/// secret or an internal.
#[derive(Clone)]
pub struct Error(Box<Fields>);

/// Public fields of an [`Error`], reached through `Deref`.
#[derive(Clone, Debug)]
pub struct Fields {
    /// Decides everything.
    pub kind: ErrorKind,
    /// Lower case, no full stop.
    pub message: String,
    /// Provider that caused it; empty for our own.
    pub provider: String,
    /// HTTP status, as the caller and `on_status_codes` see it.
    pub status: u16,
    /// `error.type`, where the provider said one.
    pub error_type: Option<String>,
    /// `error.code`, where somebody said one.
    pub code: Option<String>,
    /// The request field at fault.
    pub param: Option<String>,
    /// How long to leave the provider alone.
    pub retry_after: Option<Duration>,
    /// Whether the failed attempt cost money.
    pub billing: BillingClass,
    /// The provider's id of the failed call.
    pub upstream_request_id: String,
    /// Everything that is wrong with a config.
    pub violations: Vec<pb::Violation>,
    /// What routing did before it gave up.
    pub report: Option<Box<pb::RouteReport>>,
    /// The failure was in reaching or reading the provider, not an answer of its own.
    pub transport: bool,
    /// The target was not called because of its health. Of no interest to a peer.
    pub ejected: Option<Ejected>,
}

/// A result with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with the kind's defaults.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Fields {
            kind,
            message: message.into(),
            provider: String::new(),
            status: kind.http_status(),
            error_type: None,
            code: kind.openai_code().map(str::to_owned),
            param: None,
            retry_after: None,
            billing: BillingClass::NotSent,
            upstream_request_id: String::new(),
            violations: Vec::new(),
            report: None,
            transport: false,
            ejected: None,
        }))
    }

    /// The caller's request is wrong at `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorKind::InvalidRequest, message);
        error.param = Some(param.into());
        error
    }

    /// Something that the caller names does not exist: `what` is a `config`, whose code is `config_not_found`.
    pub fn missing(what: &str, name: &str) -> Self {
        let code = format!("{}_not_found", what.to_ascii_lowercase().replace(' ', "_"));
        Self::new(ErrorKind::NotFound, format!("{what} \"{name}\" does not exist")).with_code(&code)
    }

    /// The target cannot serve the request.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorKind::Unsupported, message);
        error.param = Some(param.into());
        error
    }

    /// The provider answered something that it does not promise. It may have charged for it.
    pub fn bad_answer(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadAnswer, message).billed(BillingClass::Billed)
    }

    /// The provider could not be reached or its answer could not be read.
    pub fn transport(kind: ErrorKind, billing: BillingClass, message: impl Into<String>) -> Self {
        let mut error = Self::new(kind, message).billed(billing);
        error.transport = true;
        error
    }

    /// The target is left alone for now.
    pub fn ejected(ejected: Ejected) -> Self {
        let (kind, left) = match ejected {
            Ejected::Paused(left) => (ErrorKind::RateLimited, Some(left)),
            Ejected::Open(left) => (ErrorKind::Unavailable, Some(left)),
            Ejected::Probing | Ejected::Warming => (ErrorKind::Unavailable, None),
        };
        let mut error = Self::new(kind, ejected.to_string());
        error.retry_after = left;
        error.ejected = Some(ejected);
        error
    }

    /// Some budget of ours does not allow the call. Another request may come under others.
    pub fn is_over_budget(&self) -> bool {
        self.kind == ErrorKind::QuotaExhausted && self.status == 412
    }

    /// Why the target was passed over without a call, for machines; empty if it was called.
    pub fn skipped_for(&self) -> &'static str {
        match (self.ejected, self.kind) {
            (Some(ejected), _) => ejected.name(),
            (None, ErrorKind::Unsupported) => "unsupported",
            (None, ErrorKind::Unavailable) => "worker_unavailable",
            (None, _) => "not_allowed",
        }
    }

    /// The provider refused the content. `stage` is `prompt`, `input` or `output`.
    pub fn refused(stage: &str, message: impl Into<String>) -> Self {
        let billing = if stage == "output" { BillingClass::Unknown } else { BillingClass::RejectedUnbilled };
        Self::new(ErrorKind::ContentRejected, message).billed(billing)
    }

    /// A config with these problems.
    pub fn config(summary: &str, violations: Vec<pb::Violation>) -> Self {
        let mut message = summary.to_owned();
        for (i, violation) in violations.iter().enumerate() {
            let separator = if i == 0 { ": " } else { "; " };
            message.push_str(separator);
            if violation.path.is_empty() {
                message.push_str(&violation.message);
            } else {
                message.push_str(&format!("path: {}, message: {}", violation.path, violation.message));
            }
        }
        let mut error = Self::invalid("x-portkey-config", message);
        error.code = Some("invalid_config".into());
        error.violations = violations;
        error
    }

    /// The same error with another HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Its status as HTTP has it; 500 where it is none.
    pub fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The same error with `error.code`.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// The same error with a billing class.
    #[must_use]
    pub fn billed(mut self, billing: BillingClass) -> Self {
        self.billing = billing;
        self
    }

    /// Whether a routing config's `on_status_codes` entry means this failure.
    ///
    /// A failure to reach the provider has no status of its own. The reference shows a refused connection as
    /// 500 and a connect timeout as 503, so configs list those; any 5xx that means "not reachable" matches.
    pub fn matches_status(&self, code: u16) -> bool {
        code == self.status
            || match self.kind {
                ErrorKind::Unavailable if self.transport => matches!(code, 500 | 502 | 503),
                ErrorKind::BadAnswer => matches!(code, 500 | 502),
                ErrorKind::Timeout if self.transport => matches!(code, 408 | 504),
                _ => false,
            }
    }

    /// The gRPC status, with everything a peer needs to rebuild the error.
    pub fn to_status(&self) -> Status {
        let mut details = vec![any(ERROR_DETAIL, &self.to_detail())];
        details.push(any(
            "type.googleapis.com/google.rpc.ErrorInfo",
            &tonic_types::pb::ErrorInfo {
                reason: self.kind.name().to_uppercase(),
                domain: "imagegate".into(),
                metadata: [("provider", self.provider.clone()), ("http_status", self.status.to_string())]
                    .into_iter()
                    .filter(|(_, value)| !value.is_empty())
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect(),
            },
        ));
        if let Some(retry_after) = self.retry_after {
            let delay = prost_types::Duration::try_from(retry_after).unwrap_or_default();
            details.push(any(RETRY_INFO, &tonic_types::pb::RetryInfo { retry_delay: Some(delay) }));
        }
        if self.kind == ErrorKind::InvalidRequest {
            let field_violations = self.field_violations();
            details.push(any(
                "type.googleapis.com/google.rpc.BadRequest",
                &tonic_types::pb::BadRequest { field_violations },
            ));
        }
        let code = self.kind.code();
        let status = tonic_types::pb::Status { code: code as i32, message: self.message.clone(), details };
        Status::with_details(code, self.message.clone(), status.encode_to_vec().into())
    }

    /// The error a peer meant, from its gRPC status. A peer without `ErrorDetail` is taken by its code.
    pub fn from_status(status: &Status) -> Self {
        if let Some(error) = Self::from_details(status) {
            return error;
        }
        let kind = ErrorKind::from_code(status.code());
        let mut error = Self::new(kind, status.message());
        error.billing = match kind {
            ErrorKind::BadAnswer => BillingClass::Billed,
            ErrorKind::Timeout | ErrorKind::Cancelled | ErrorKind::Unavailable | ErrorKind::Internal => {
                BillingClass::Unknown
            }
            _ => BillingClass::RejectedUnbilled,
        };
        if status.code() == Code::Unauthenticated {
            // A worker that says so means the provider's credential, see worker.proto.
            error.status = 401;
        }
        let google = tonic_types::pb::Status::decode(status.details()).unwrap_or_default();
        if let Some(detail) = google.details.iter().find(|any| any.type_url == RETRY_INFO) {
            error.retry_after = tonic_types::pb::RetryInfo::decode(detail.value.as_slice())
                .ok()
                .and_then(|info| info.retry_delay)
                .and_then(|delay| Duration::try_from(delay).ok());
        } else if kind == ErrorKind::RateLimited && !google.details.is_empty() {
            error.kind = ErrorKind::QuotaExhausted;
        }
        error
    }

    fn from_details(status: &Status) -> Option<Self> {
        if status.details().is_empty() {
            return None;
        }
        let google = tonic_types::pb::Status::decode(status.details()).ok()?;
        let any = google.details.iter().find(|any| any.type_url == ERROR_DETAIL)?;
        let detail = pb::ErrorDetail::decode(any.value.as_slice()).ok()?;
        let kind = ErrorKind::from_name(&detail.kind).unwrap_or(ErrorKind::from_code(status.code()));
        Some(Self::read(kind, status.message(), detail))
    }

    /// The error that a detail is about.
    pub fn from_detail(message: &str, detail: pb::ErrorDetail) -> Self {
        Self::read(ErrorKind::from_name(&detail.kind).unwrap_or(ErrorKind::Internal), message, detail)
    }

    fn read(kind: ErrorKind, message: &str, detail: pb::ErrorDetail) -> Self {
        let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        Self(Box::new(Fields {
            kind,
            message: message.to_owned(),
            status: u16::try_from(detail.status)
                .ok()
                .filter(|status| (100..=599).contains(status))
                .unwrap_or(kind.http_status()),
            error_type: text(&detail.r#type),
            code: text(&detail.code),
            param: text(&detail.param),
            retry_after: detail.retry_after_ms.map(Duration::from_millis),
            billing: detail.billing(),
            transport: detail.transport,
            ejected: None,
            provider: detail.provider,
            upstream_request_id: detail.upstream_request_id,
            violations: detail.violations,
            report: detail.report.map(Box::new),
        }))
    }

    /// All of the error but its message.
    pub fn to_detail(&self) -> pb::ErrorDetail {
        pb::ErrorDetail {
            kind: self.kind.name().into(),
            provider: self.provider.clone(),
            status: self.status.into(),
            r#type: self.error_type.clone().unwrap_or_default(),
            code: self.code.clone().unwrap_or_default(),
            param: self.param.clone().unwrap_or_default(),
            retry_after_ms: self.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            billing: self.billing.into(),
            upstream_request_id: self.upstream_request_id.clone(),
            violations: self.violations.clone(),
            report: self.report.as_deref().cloned(),
            transport: self.transport,
        }
    }

    /// The error as OpenAI's API spells it.
    pub fn to_openai(&self) -> serde_json::Value {
        serde_json::json!({
            "message": self.message,
            "type": self.openai_type(),
            "param": self.param,
            "code": self.openai_code(),
        })
    }

    /// The same error within the bounds of gRPC metadata: C-core's clients refuse more than 8 KiB of it. What
    /// an error of many targets or problems says at length is cut; kind, status and the last target stay.
    #[must_use]
    pub fn within_metadata_limits(mut self) -> Self {
        if self.to_detail().encoded_len() <= DETAIL_BYTES && self.message.len() <= MESSAGE_BYTES {
            return self;
        }
        cut(&mut self.message, MESSAGE_BYTES);
        let more = self.violations.len().saturating_sub(VIOLATIONS_SHOWN);
        self.violations.truncate(VIOLATIONS_SHOWN);
        if more > 0 {
            self.violations.push(pb::Violation { path: String::new(), message: format!("and {more} more") });
        }
        self.violations.iter_mut().for_each(|violation| cut(&mut violation.message, SENTENCE_BYTES));
        if let Some(report) = &mut self.report {
            let earlier = report.attempts.len().saturating_sub(ATTEMPTS_SHOWN);
            report.attempts.drain(..earlier);
            report.attempts.iter_mut().for_each(|attempt| cut(&mut attempt.message, SENTENCE_BYTES));
            report.refused_by.truncate(ATTEMPTS_SHOWN);
            report.warnings.clear();
            report.cost_lines.clear();
        }
        self
    }

    fn field_violations(&self) -> Vec<tonic_types::pb::bad_request::FieldViolation> {
        let violation = |field: &str, description: &str| tonic_types::pb::bad_request::FieldViolation {
            field: field.into(),
            description: description.into(),
            ..Default::default()
        };
        if self.violations.is_empty() {
            return vec![violation(self.param.as_deref().unwrap_or_default(), &self.message)];
        }
        self.violations.iter().map(|v| violation(&v.path, &v.message)).collect()
    }

    /// `error.code` for OpenAI's error object. A refusal always says so, whatever its provider's dialect.
    pub fn openai_code(&self) -> Option<&str> {
        let always = matches!(self.kind, ErrorKind::ContentRejected | ErrorKind::QuotaExhausted);
        self.code.as_deref().or_else(|| self.kind.openai_code().filter(|_| always))
    }

    /// `error.type` for OpenAI's error object.
    pub fn openai_type(&self) -> Cow<'_, str> {
        self.error_type.as_deref().map_or(Cow::Borrowed(self.kind.openai_type()), Cow::Borrowed)
    }
}

/// Shortens a text at the end of a character.
fn cut(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
        text.push_str("...");
    }
}

fn any(type_url: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any { type_url: type_url.into(), value: message.encode_to_vec() }
}

impl ops::Deref for Error {
    type Target = Fields;
    fn deref(&self) -> &Fields {
        &self.0
    }
}

impl ops::DerefMut for Error {
    fn deref_mut(&mut self) -> &mut Fields {
        &mut self.0
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.to_status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let mut error = Error::new(kind, "size \"9x9\" is not allowed").with_status(418).with_code("c");
            error.provider = "openai".into();
            error.param = Some("size".into());
            error.retry_after = Some(Duration::from_millis(1500));
            error.billing = BillingClass::Billed;
            let back = Error::from_status(&error.to_status());
            assert_eq!(format!("{error:?}"), format!("{back:?}"));
        }
    }

    #[test]
    fn an_error_of_many_targets_fits_into_metadata() {
        let attempt = pb::Attempt {
            target: "config.targets[7].targets[3]".into(),
            provider: "stability-ai".into(),
            model: "stable-diffusion-xl-1024-v1-0".into(),
            outcome: "unavailable".into(),
            message: "ü".repeat(500),
            ..Default::default()
        };
        let violation = pb::Violation { path: "targets.0.provider".into(), message: "long ".repeat(200) };
        let mut error = Error::config("Invalid config passed", vec![violation; 40]);
        error.report = Some(Box::new(pb::RouteReport { attempts: vec![attempt; 60], ..Default::default() }));
        let status = error.within_metadata_limits().to_status();
        // Details travel in base64.
        assert!(status.details().len() * 4 / 3 + status.message().len() < 8000, "{}", status.details().len());
        let back = Error::from_status(&status);
        assert_eq!((back.kind, back.violations.len()), (ErrorKind::InvalidRequest, VIOLATIONS_SHOWN + 1));
        assert_eq!(back.report.as_ref().unwrap().attempts.len(), ATTEMPTS_SHOWN);
    }

    #[test]
    fn a_peer_without_details_is_taken_by_its_code() {
        let error = Error::from_status(&Status::unauthenticated("bad key"));
        assert_eq!((error.kind, error.status), (ErrorKind::PermissionDenied, 401));
        let error = Error::from_status(&Status::failed_precondition("no"));
        assert_eq!(error.kind, ErrorKind::ContentRejected);
    }

    #[test]
    fn an_unreachable_provider_counts_as_any_status_that_configs_list_for_it() {
        let refused = Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, "connection refused");
        assert!(refused.matches_status(500) && refused.matches_status(503));
        assert!(!refused.matches_status(429));
    }
}
