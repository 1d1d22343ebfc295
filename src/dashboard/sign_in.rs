//! Signing in with an API key, and out.

use axum::{
    Form,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded;

use super::{
    Dashboard, layout,
    session::{Sessions, Visitor, is_secure},
};
use crate::error::Error;

/// Where to go then.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    pub to: String,
}

/// What the form sends.
#[derive(Deserialize)]
pub struct Credential {
    key: String,
    #[serde(default)]
    to: String,
}

/// `GET /sign-in`
pub async fn form(State(dashboard): State<Dashboard>, Query(wanted): Query<Wanted>) -> Markup {
    shown(&dashboard, &wanted.to, None)
}

/// `POST /sign-in`
pub async fn sign_in(
    State(dashboard): State<Dashboard>,
    headers: HeaderMap,
    Form(Credential { key, to }): Form<Credential>,
) -> Response {
    let refused =
        |status: StatusCode, error: &Error| (status, shown(&dashboard, &to, Some(error))).into_response();
    let Ok(credential) = HeaderValue::from_str(key.trim()) else {
        let error = Error::invalid("key", "an API key has letters, digits and signs only");
        return refused(StatusCode::BAD_REQUEST, &error);
    };
    match Visitor::of(&dashboard, Some(credential)).await {
        Ok(_) => begin(&dashboard, key.trim(), &headers, &to),
        Err(failure) => refused(failure.error().status_code(), failure.error()),
    }
}

/// `POST /sign-out`
pub async fn sign_out() -> Response {
    ([(header::SET_COOKIE, Sessions::end())], Redirect::to("/sign-in")).into_response()
}

fn begin(dashboard: &Dashboard, credential: &str, headers: &HeaderMap, to: &str) -> Response {
    let lasts = dashboard.known().0.dashboard.session;
    match dashboard.sessions.begin(credential, lasts, is_secure(headers)) {
        Some(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to(within(to))).into_response(),
        None => {
            let error = Error::invalid(
                "key",
                "this credential is too long for a browser to keep: sign in with an API key",
            );
            (StatusCode::BAD_REQUEST, shown(dashboard, to, Some(&error))).into_response()
        }
    }
}

/// A page of the sign-in that leads to another page.
pub fn address(page: &str, to: &str) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("to", to).finish();
    format!("{page}?{query}")
}

/// A page of ours, whatever the address says: a link may not send who signs in to another site.
pub fn within(to: &str) -> &str {
    let is_path = to.starts_with('/') && !to.starts_with("//") && !to.contains(['\\', '\r', '\n', '\t']);
    if is_path { to } else { "/" }
}

fn shown(dashboard: &Dashboard, to: &str, error: Option<&Error>) -> Markup {
    let (settings, _) = dashboard.known();
    let body = html! {
        form method="post" action="/sign-in" class="sign-in" {
            h1 { "Sign in" }
            @if let Some(error) = error { (layout::problem(error)) }
            @if let Some(issuer) = &settings.dashboard.sign_in {
                a class="button" href=(address("/sign-in/issuer", to)) { (issuer.name) }
                p class="hint" { "Or with a key:" }
            }
            input type="hidden" name="to" value=(to);
            label for="key" { "API key" }
            input id="key" name="key" type="password" required autocomplete="current-password" autofocus;
            button { "Sign in" }
            p class="hint" { "A key with the scope " code { "read" } " sees everything and changes nothing." }
        }
    };
    layout::page(None, None, "Sign in", &body)
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn signing_in_leads_to_a_page_of_ours() {
        assert_eq!(within("/logs?fallback=true"), "/logs?fallback=true");
        for elsewhere in
            ["", "//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "logs"]
        {
            assert_eq!(within(elsewhere), "/", "{elsewhere}");
        }
    }
}
