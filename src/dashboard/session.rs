//! Who looks at the pages.
//!
//! A session is a cookie with the credential that somebody has signed in with, sealed so that only the gateway can open it. The
//! gateway keeps nothing: routers with the same vault key share sessions, and a revoked key ends them at once.

use std::{fmt, time::Duration};

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Redirect, Response},
};
use base64_simd::URL_SAFE_NO_PAD;
use tonic::{Code, metadata::MetadataMap};
use zeroize::Zeroizing;

use super::{Dashboard, failure::Failure, sign_in::address};
use crate::{
    config::{callers::Scope, memory::VaultKeys},
    error::{Error, ErrorKind},
    pb::{self, unix_now_ms},
    store::vault::Vault,
};

/// A cookie that only the gateway can open.
#[derive(Debug)]
pub struct Cookie {
    name: &'static str,
    /// What it is sealed for, so that nothing else that the vault has sealed can be one.
    place: &'static str,
    /// The addresses that get it begin so.
    path: &'static str,
}

/// Who is signed in.
const SESSION: Cookie = Cookie { name: "imagegate_session", place: "dashboard session", path: "/" };

/// An attempt to sign in at an issuer.
pub const ATTEMPT: Cookie =
    Cookie { name: "imagegate_sign_in", place: "dashboard sign-in", path: "/sign-in" };

/// Longest cookie that every browser keeps, in bytes, with its attributes.
const LONGEST_COOKIE: usize = 4000;

/// Where calls carry the credential.
const CREDENTIAL: HeaderName = HeaderName::from_static("x-portkey-api-key");

/// Seals and opens sessions.
#[derive(Debug)]
pub struct Sessions {
    vault: Vault,
}

impl Sessions {
    /// With the vault's keys from the file. Without them, sessions end with the process.
    pub fn new(keys: Option<&VaultKeys>) -> Self {
        Self { vault: keys.map_or_else(Vault::of_this_process, Vault::with) }
    }

    /// The header that begins a session. None: the credential is too long for a cookie.
    pub fn begin(&self, credential: &str, lasts: Duration, is_secure: bool) -> Option<HeaderValue> {
        self.seal(&SESSION, credential.as_bytes(), lasts, is_secure)
    }

    /// The header that ends a session.
    pub fn end() -> HeaderValue {
        SESSION.removed()
    }

    /// The credential of a session that has not expired.
    fn credential(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut credential = HeaderValue::from_bytes(&self.open(&SESSION, headers)?).ok()?;
        credential.set_sensitive(true);
        Some(credential)
    }

    /// The header with a cookie. None: the text is too long for one.
    pub fn seal(
        &self,
        cookie: &Cookie,
        text: &[u8],
        lasts: Duration,
        is_secure: bool,
    ) -> Option<HeaderValue> {
        let until = unix_now_ms().saturating_add(i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX));
        let sealed = self.vault.seal(&[&until.to_le_bytes(), text].concat(), cookie.place);
        cookie.header(&URL_SAFE_NO_PAD.encode_to_string(sealed), lasts, is_secure)
    }

    /// What is in a cookie that has not expired.
    pub fn open(&self, cookie: &Cookie, headers: &HeaderMap) -> Option<Zeroizing<Vec<u8>>> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs =
            cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, sealed) = pairs.find(|(name, _)| *name == cookie.name)?;
        let opened = self.vault.unseal(&URL_SAFE_NO_PAD.decode_to_vec(sealed).ok()?, cookie.place)?;
        let (until, text) = opened.text.split_first_chunk()?;
        (i64::from_le_bytes(*until) > unix_now_ms()).then(|| text.to_vec().into())
    }
}

impl Cookie {
    fn header(&self, value: &str, lasts: Duration, is_secure: bool) -> Option<HeaderValue> {
        let Self { name, path, .. } = self;
        let (secure, lasts) = (if is_secure { "; Secure" } else { "" }, lasts.as_secs());
        let text = format!("{name}={value}; Path={path}; HttpOnly; SameSite=Lax; Max-Age={lasts}{secure}");
        (text.len() <= LONGEST_COOKIE).then(|| HeaderValue::try_from(text).expect("it is ASCII"))
    }

    /// The header that takes it away.
    pub fn removed(&self) -> HeaderValue {
        self.header("", Duration::ZERO, false).expect("it is short")
    }
}

/// Whether a request came over TLS, as the proxy in front tells.
pub fn is_secure(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https")
}

/// Who looks at a page.
#[derive(Clone)]
pub struct Visitor {
    credential: Option<HeaderValue>,
    caller: pb::GetCallerResponse,
}

impl Visitor {
    /// Whose credential this is; without one, everybody where nobody has a key.
    pub async fn of(dashboard: &Dashboard, credential: Option<HeaderValue>) -> Result<Self, Failure> {
        let mut visitor = Self { credential, caller: pb::GetCallerResponse::default() };
        let request = visitor.ask(pb::GetCallerRequest {});
        visitor.caller = dashboard.admin.get_caller(request).await?.into_inner();
        if visitor.caller.everybody && dashboard.is_exposed {
            let message = "listen.admin can be reached from other machines and there are no api_keys: the dashboard is closed \
                           until there are some, or jwt_issuers";
            return Err(Error::new(ErrorKind::PermissionDenied, message).into());
        }
        Ok(visitor)
    }

    /// A call in the visitor's name.
    pub fn ask<T>(&self, message: T) -> tonic::Request<T> {
        self.ask_with(message, HeaderMap::new())
    }

    /// The same with further metadata.
    pub fn ask_with<T>(&self, message: T, mut headers: HeaderMap) -> tonic::Request<T> {
        if let Some(credential) = &self.credential {
            headers.insert(CREDENTIAL, credential.clone());
        }
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        request
    }

    /// Whether calls that need this scope are worth a try.
    pub fn may(&self, scope: Scope) -> bool {
        self.has(scope) || self.has(Scope::Admin)
    }

    /// The same for calls that change nothing.
    pub fn may_see(&self, scope: Scope) -> bool {
        self.may(scope) || self.has(Scope::Read)
    }

    /// By what name the visitor is known. None: by none, as everybody may do everything.
    pub fn name(&self) -> Option<&str> {
        (!self.caller.everybody).then_some(&self.caller.name)
    }

    fn has(&self, scope: Scope) -> bool {
        self.caller.scopes.iter().any(|name| Scope::from_name(name) == Some(scope))
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitor").field("id", &self.caller.id).finish_non_exhaustive()
    }
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or(StatusCode::UNAUTHORIZED)
    }
}

/// Lets visitors in, and sends everybody else to the sign-in.
pub async fn enter(State(dashboard): State<Dashboard>, mut request: Request, next: Next) -> Response {
    let credential = dashboard.sessions.credential(request.headers());
    let visitor = match Visitor::of(&dashboard, credential).await {
        Ok(visitor) => visitor,
        Err(failure) if failure.code() == Code::Unauthenticated && request.method() == Method::GET => {
            let wanted = request.uri().path_and_query().map_or("/", |wanted| wanted.as_str());
            return Redirect::to(&address("/sign-in", wanted)).into_response();
        }
        Err(failure) => return failure.page(None),
    };
    request.extensions_mut().insert(visitor.clone());
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Failure>() {
        Some(failure) => failure.page(Some(&visitor)),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(sessions: &Sessions, cookies: &str) -> Option<HeaderValue> {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, cookies.parse().unwrap());
        sessions.credential(&headers)
    }

    const LASTS: Duration = Duration::from_secs(60);

    #[test]
    fn a_session_gives_back_its_credential_and_shows_it_to_nobody() {
        let sessions = Sessions::new(None);
        let begun = sessions.begin("ig-secret", LASTS, true).unwrap();
        let begun = begun.to_str().unwrap();
        assert!(begun.contains("HttpOnly") && begun.contains("SameSite=Lax") && begun.contains("Secure"));
        assert!(!begun.contains("ig-secret"));
        let (pair, _) = begun.split_once(';').unwrap();
        let found = credential(&sessions, &format!("other=1; {pair}; more=2")).unwrap();
        assert_eq!(found, "ig-secret");
        assert!(!format!("{found:?}{sessions:?}").contains("ig-secret"));
        assert_eq!(credential(&Sessions::new(None), pair), None, "of another process");
        for wrong in ["imagegate_session=", "imagegate_session=AAAA", "imagegate_session=é", "other=1"] {
            assert_eq!(
                HeaderValue::from_str(wrong).ok().and_then(|_| credential(&sessions, wrong)),
                None,
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_session_expires() {
        let sessions = Sessions::new(None);
        let begun = |lasts| {
            let header = sessions.begin("ig-secret", lasts, false).unwrap();
            header.to_str().unwrap().split(';').next().unwrap().to_owned()
        };
        assert!(credential(&sessions, &begun(LASTS)).is_some());
        assert!(credential(&sessions, &begun(Duration::ZERO)).is_none());
    }

    #[test]
    fn one_cookie_is_not_another() {
        let sessions = Sessions::new(None);
        let sealed = sessions.seal(&ATTEMPT, b"ig-secret", LASTS, false).unwrap();
        let pair = sealed.to_str().unwrap().split(';').next().unwrap().to_owned();
        assert!(pair.starts_with("imagegate_sign_in="));
        assert!(credential(&sessions, &pair.replace("imagegate_sign_in", "imagegate_session")).is_none());
    }

    #[test]
    fn a_credential_that_no_browser_would_keep_is_told() {
        assert!(Sessions::new(None).begin(&"x".repeat(2800), LASTS, true).is_some());
        assert!(Sessions::new(None).begin(&"x".repeat(4000), LASTS, false).is_none());
    }
}
