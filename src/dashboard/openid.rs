//! Signing in at an issuer (OpenID Connect): the browser goes there, comes back with a code, and the token that the issuer
//! gives for it is the credential of the session, as an API key would be.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, header},
    response::{AppendHeaders, IntoResponse as _, Redirect, Response},
};
use maud::html;
use serde::{Deserialize, Serialize};

use super::{
    Dashboard, layout,
    session::{ATTEMPT, Visitor, is_secure},
    sign_in::{Wanted, address, within},
};
use crate::{
    config::{Settings, dashboard::SignInSettings},
    error::{Error, ErrorKind},
    issuers::{Attempt, Issuers},
    pb::unix_now,
    telemetry,
};

/// Where issuers send browsers back to; they want to know it before.
const CALLBACK: &str = "/sign-in/callback";

/// How long somebody may take to sign in at the issuer.
const LASTS: Duration = Duration::from_secs(10 * 60);

/// Longest explanation of an issuer that is shown.
const LONGEST_EXPLANATION: usize = 300;

/// What the browser keeps while it is at the issuer.
#[derive(Debug, Deserialize, Serialize)]
struct Begun {
    attempt: Attempt,
    /// Where to go then.
    to: String,
}

/// What the issuer says by the address that it sends the browser back to.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    code: String,
    state: String,
    /// RFC 9207; older issuers do not say it.
    iss: Option<String>,
    error: String,
    error_description: String,
}

/// Why somebody is not signed in, and what to do about it.
struct NotSignedIn {
    error: Error,
    advice: &'static str,
}

const AGAIN: &str = "Try it again. If it stays so, whoever manages this gateway finds the reason in its log.";
const LATER: &str = "Try it again in a moment, or sign in with an API key.";
const ANEW: &str = "Begin anew, in this browser: a sign-in has ten minutes, and one at a time.";
const ASK_ISSUER: &str = "Whoever manages the issuer says who may use this gateway.";
const ASK_GATEWAY: &str = "The issuer knows you. What you may do here, whoever manages this gateway says in jwt_issuers (scopes, scope_claim).";

/// `GET /sign-in/issuer`: sends the browser there.
pub async fn begin(
    State(dashboard): State<Dashboard>,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
) -> Response {
    match begun(&dashboard, &headers, &wanted.to).await {
        Ok((address, cookie)) => ([(header::SET_COOKIE, cookie)], Redirect::to(&address)).into_response(),
        Err(problem) => problem.page(&wanted.to),
    }
}

/// `GET /sign-in/callback`: the browser comes back.
pub async fn end(
    State(dashboard): State<Dashboard>,
    headers: HeaderMap,
    Query(answer): Query<Answer>,
) -> Response {
    let begun = dashboard.sessions.open(&ATTEMPT, &headers);
    let begun: Option<Begun> = begun.and_then(|begun| serde_json::from_slice(&begun).ok());
    let to = begun.as_ref().map_or("/", |begun| within(&begun.to)).to_owned();
    match ended(&dashboard, &headers, begun, &answer).await {
        Ok(session) => {
            let cookies = [(header::SET_COOKIE, session), (header::SET_COOKIE, ATTEMPT.removed())];
            (AppendHeaders(cookies), Redirect::to(&to)).into_response()
        }
        Err(problem) => problem.page(&to),
    }
}

async fn begun(
    dashboard: &Dashboard,
    headers: &HeaderMap,
    to: &str,
) -> Result<(String, HeaderValue), NotSignedIn> {
    let (settings, issuers) = dashboard.known();
    let sign_in = sign_in(&settings)?;
    let attempt = Attempt::new(callback(&settings, headers)?);
    let address = issuers.address(sign_in, &attempt).await.map_err(|error| said(sign_in, error))?;
    let begun = Begun { attempt, to: within(to).to_owned() };
    let text = serde_json::to_vec(&begun).expect("texts are JSON");
    let cookie = dashboard.sessions.seal(&ATTEMPT, &text, LASTS, is_secure(headers));
    let too_long =
        || NotSignedIn::because(ANEW)(Error::invalid("to", "the address to go to then is too long"));
    Ok((address, cookie.ok_or_else(too_long)?))
}

/// The cookie of the session.
async fn ended(
    dashboard: &Dashboard,
    headers: &HeaderMap,
    begun: Option<Begun>,
    answer: &Answer,
) -> Result<HeaderValue, NotSignedIn> {
    let (settings, issuers) = dashboard.known();
    let sign_in = sign_in(&settings)?;
    let strange = || {
        NotSignedIn::because(ANEW)(Error::invalid(
            "state",
            "this sign-in was not begun here, or too long ago",
        ))
    };
    let Begun { attempt, .. } =
        begun.filter(|begun| begun.attempt.state == answer.state).ok_or_else(strange)?;
    if answer.iss.as_ref().is_some_and(|issuer| *issuer != sign_in.issuer) {
        return Err(strange());
    }
    if !answer.error.is_empty() {
        let message = format!("{} has not let you in: {}", sign_in.issuer, answer.explanation());
        let error = Error::new(ErrorKind::PermissionDenied, message);
        return Err(noted(sign_in, NotSignedIn { error, advice: ASK_ISSUER }));
    }
    let token =
        issuers.redeem(sign_in, &attempt, &answer.code).await.map_err(|error| said(sign_in, error))?;
    let lasts = accepted(dashboard, &issuers, &settings, &attempt, &token).await?;
    let too_long = || {
        let message = "the issuer's token is too long for a browser to keep: dashboard.sign_in.scopes says what it tells";
        said(sign_in, Error::invalid("scopes", message))
    };
    dashboard.sessions.begin(&token, lasts, is_secure(headers)).ok_or_else(too_long)
}

/// How long somebody with this token may stay signed in.
async fn accepted(
    dashboard: &Dashboard,
    issuers: &Arc<Issuers>,
    settings: &Settings,
    attempt: &Attempt,
    token: &str,
) -> Result<Duration, NotSignedIn> {
    let sign_in = sign_in(settings)?;
    let refused = |_| Error::bad_answer("the issuer's token is none that a request could carry");
    let credential = HeaderValue::from_str(token).map_err(refused).map_err(|error| said(sign_in, error))?;
    // Signature, audience and times as of any caller's token; then what only a sign-in has.
    let visitor = Visitor::of(dashboard, Some(credential)).await;
    visitor.map_err(|failure| said(sign_in, failure.error().clone()))?;
    let until = issuers.check_made_for(sign_in, attempt, token).map_err(|error| said(sign_in, error))?;
    let left = Duration::from_secs(u64::try_from(until.saturating_sub(unix_now())).unwrap_or_default());
    if left.is_zero() {
        let message = "the token has expired already: the clocks of the issuer and of this gateway differ";
        return Err(said(sign_in, Error::new(ErrorKind::Unauthenticated, message)));
    }
    Ok(left.min(settings.dashboard.session))
}

fn sign_in(settings: &Settings) -> Result<&SignInSettings, NotSignedIn> {
    let none = || {
        Error::new(ErrorKind::NotFound, "nobody signs in at an issuer here: there is no dashboard.sign_in")
    };
    settings
        .dashboard
        .sign_in
        .as_ref()
        .ok_or_else(none)
        .map_err(NotSignedIn::because("Sign in with an API key."))
}

/// Where the browser comes back to.
fn callback(settings: &Settings, headers: &HeaderMap) -> Result<String, NotSignedIn> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match (&settings.dashboard.public_url, host) {
        (Some(url), _) => Ok(format!("{url}{CALLBACK}")),
        (None, Some(host)) => {
            let scheme = if is_secure(headers) { "https" } else { "http" };
            Ok(format!("{scheme}://{host}{CALLBACK}"))
        }
        (None, None) => {
            let message = "the request does not say its host: write dashboard.public_url";
            Err(NotSignedIn::because(AGAIN)(Error::invalid("host", message)))
        }
    }
}

/// The advice for what went wrong, which the log has as well.
fn said(sign_in: &SignInSettings, error: Error) -> NotSignedIn {
    let advice = match error.kind {
        ErrorKind::PermissionDenied => ASK_GATEWAY,
        ErrorKind::Unavailable | ErrorKind::Timeout => LATER,
        _ => AGAIN,
    };
    noted(sign_in, NotSignedIn { error, advice })
}

fn noted(sign_in: &SignInSettings, problem: NotSignedIn) -> NotSignedIn {
    telemetry::sign_in_failed(&sign_in.issuer, &problem.error.message);
    problem
}

impl Answer {
    /// In the issuer's words.
    fn explanation(&self) -> String {
        let more = if self.error_description.is_empty() { "" } else { ": " };
        let text = format!("{}{more}{}", self.error, self.error_description);
        text.chars().filter(|c| !c.is_control()).take(LONGEST_EXPLANATION).collect()
    }
}

impl NotSignedIn {
    fn because(advice: &'static str) -> impl Fn(Error) -> Self {
        move |error| Self { error, advice }
    }

    fn page(&self, to: &str) -> Response {
        let status = self.error.status_code();
        let body = html! {
            div class="sign-in" {
                h1 { "You are not signed in" }
                (layout::problem(&self.error))
                p { (self.advice) }
                a class="button" href=(address("/sign-in/issuer", to)) { "Try again" }
                a href=(address("/sign-in", to)) { "Sign in with an API key" }
            }
        };
        (status, layout::page(None, None, "Not signed in", &body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_issuer_explains_is_short_and_on_one_line() {
        let answer = Answer {
            error: "access_denied".into(),
            error_description: format!("no\n{}", "x".repeat(1000)),
            ..Default::default()
        };
        let explanation = answer.explanation();
        assert!(explanation.starts_with("access_denied: nox") && explanation.len() == LONGEST_EXPLANATION);
        let short = Answer { error: "server_error".into(), ..Default::default() };
        assert_eq!(short.explanation(), "server_error");
    }
}
