//! `dashboard`: the pages for a browser, and who vouches for those who sign in to them.

use std::time::Duration;

use super::{
    issuers::{IssuerSettings, check_url},
    plan,
    read::{Object, suggestion},
    spec::Secret,
};

/// The pages for a browser.
#[derive(Clone, Debug)]
pub struct DashboardSettings {
    /// There are any.
    pub enabled: bool,
    /// How long somebody stays signed in.
    pub session: Duration,
    /// How browsers reach the pages; none: as the request says.
    pub public_url: Option<String>,
    /// Who vouches for those who sign in without an API key.
    pub sign_in: Option<SignInSettings>,
}

/// An issuer at which people sign in with a browser.
#[derive(Clone, Debug)]
pub struct SignInSettings {
    /// One of the issuers whose tokens are accepted.
    pub issuer: String,
    /// What the issuer calls this gateway.
    pub client_id: String,
    /// None: the gateway is a public client.
    pub client_secret: Option<Secret>,
    /// What the issuer is asked to tell.
    pub scopes: Vec<String>,
    /// What the button says.
    pub name: String,
}

/// A day's work.
const SESSION_S: u64 = 36_000;

/// Without it an issuer signs nobody in.
const OPENID: &str = "openid";

impl DashboardSettings {
    /// Reads `dashboard` of the file. `issuers` are those that there are.
    pub fn read(object: Option<Object<'_>>, issuers: &[IssuerSettings]) -> Self {
        let mut settings =
            Self { enabled: true, session: Duration::from_secs(SESSION_S), public_url: None, sign_in: None };
        let Some(mut object) = object else { return settings };
        settings.enabled = object.flag("enabled").unwrap_or(true);
        if let Some(seconds) = object.whole("session_s", 60, 2_592_000) {
            settings.session = Duration::from_secs(seconds);
        }
        settings.public_url = object.text("public_url").map(|url| url.trim_end_matches('/').to_owned());
        if let Some(Err(message)) = settings.public_url.as_deref().map(check_public_url) {
            object.problem("public_url", message);
        }
        settings.sign_in =
            object.object("sign_in").and_then(|sign_in| SignInSettings::read(sign_in, issuers));
        object.finish();
        settings
    }
}

impl SignInSettings {
    fn read(mut object: Object<'_>, issuers: &[IssuerSettings]) -> Option<Self> {
        object.required("issuer");
        object.required("client_id");
        let issuer = object.text("issuer").map(str::to_owned);
        let client_id = object.text("client_id").map(str::to_owned);
        if client_id.as_deref() == Some("") {
            object.problem("client_id", "not allowed; allowed: what the issuer calls this gateway");
        }
        if let Some(issuer) = issuer.as_deref() {
            match issuers.iter().find(|known| known.issuer == issuer) {
                Some(known) => check_client(&object, known, client_id.as_deref()),
                None => {
                    let known: Vec<&str> = issuers.iter().map(|issuer| issuer.issuer.as_str()).collect();
                    let hint = suggestion(issuer, &known);
                    object.problem("issuer", format!("\"{issuer}\" is not among jwt_issuers{hint}"));
                }
            }
        }
        let client_secret = object.text("client_secret").filter(|secret| !secret.is_empty()).map(Secret::new);
        let scopes = object.texts("scopes").unwrap_or_else(|| vec![OPENID, "profile", "email"]);
        if !scopes.contains(&OPENID) {
            object
                .problem("scopes", format!("\"{OPENID}\" is missing: without it an issuer signs nobody in"));
        }
        let scopes = scopes.into_iter().map(str::to_owned).collect();
        let name = object.text("name").map(str::to_owned);
        object.finish();
        let issuer = issuer?;
        let name = name.unwrap_or_else(|| format!("Sign in with {}", host(&issuer)));
        Some(Self { client_id: client_id?, client_secret, scopes, name, issuer })
    }
}

/// An address of the pages, which begin at the root of their host.
fn check_public_url(url: &str) -> Result<(), String> {
    plan::operator_host(url)?;
    let is_root = url::Url::parse(url).is_ok_and(|url| url.path() == "/" && url.query().is_none());
    if is_root {
        Ok(())
    } else {
        Err(format!("\"{url}\" has a path; allowed: a host alone, as in https://gateway.example.com"))
    }
}

/// Whether people can sign in at an issuer, and the tokens that they come back with are accepted.
fn check_client(object: &Object<'_>, issuer: &IssuerSettings, client_id: Option<&str>) {
    if let Err(message) = check_url(&issuer.issuer) {
        object.problem("issuer", message);
    }
    if let Some(client_id) = client_id.filter(|id| !issuer.audience.iter().any(|audience| audience == id)) {
        let message = format!(
            "\"{client_id}\" is not in the audience of that issuer in jwt_issuers, so the tokens would be refused: add it there"
        );
        object.problem("client_id", message);
    }
}

fn host(issuer: &str) -> String {
    let url = url::Url::parse(issuer).ok();
    url.as_ref().and_then(url::Url::host_str).unwrap_or(issuer).to_owned()
}

#[cfg(test)]
mod tests {
    use crate::config::{self, Settings, providers::Providers};

    const ISSUER: &str = "jwt_issuers: [{issuer: 'https://idp.example/x', audience: [api, web], jwks_file: /k}, \
                          {issuer: idp, audience: web, jwks_file: /k}]";

    fn read(dashboard: &str) -> Result<Settings, Vec<String>> {
        let yaml = format!("{ISSUER}\ndashboard: {dashboard}");
        config::read(&yaml, &Providers::default(), &|_| None)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn pages_are_there_unless_they_are_switched_off() {
        let usual = read("null").unwrap().dashboard;
        assert!(usual.enabled && usual.sign_in.is_none() && usual.public_url.is_none());
        assert_eq!(usual.session.as_secs(), 36_000);
        let other =
            read("{enabled: false, session_s: 600, public_url: 'https://gw.example/'}").unwrap().dashboard;
        assert_eq!((other.enabled, other.session.as_secs()), (false, 600));
        assert_eq!(other.public_url.as_deref(), Some("https://gw.example"));
    }

    #[test]
    fn people_sign_in_at_an_issuer_that_is_trusted() {
        let settings =
            read("{sign_in: {issuer: 'https://idp.example/x', client_id: web, client_secret: s3cret}}");
        let settings = settings.unwrap().dashboard;
        assert!(!format!("{settings:?}").contains("s3cret"));
        let sign_in = settings.sign_in.unwrap();
        assert_eq!((sign_in.name.as_str(), sign_in.client_id.as_str()), ("Sign in with idp.example", "web"));
        assert_eq!(sign_in.scopes, ["openid", "profile", "email"]);
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        for (wrong, problems) in [
            ("{session_s: 5}", &["session_s: 5 is not allowed; allowed: a whole number from 60"][..]),
            ("{public_url: gw}", &["public_url: \"gw\" is not a URL"]),
            (
                "{public_url: 'https://gw.example/pages'}",
                &["public_url: \"https://gw.example/pages\" has a path"],
            ),
            ("{sign_in: {}}", &["sign_in.issuer: Required", "sign_in.client_id: Required"]),
            (
                "{sign_in: {issuer: 'https://idp.example/y', client_id: web}}",
                &[
                    "sign_in.issuer: \"https://idp.example/y\" is not among jwt_issuers; did you mean \"https://idp.example/x\"?",
                ],
            ),
            (
                "{sign_in: {issuer: 'https://idp.example/x', client_id: wob, scopes: [email]}}",
                &[
                    "sign_in.client_id: \"wob\" is not in the audience of that issuer",
                    "sign_in.scopes: \"openid\" is missing",
                ],
            ),
            ("{sign_in: {issuer: idp, client_id: web}}", &["sign_in.issuer: \"idp\" is not a URL"]),
            ("{sign_in: {issuer: idp, client_id: ''}, enable: true}", &["", "", "", "enable: unknown field"]),
        ] {
            let found = read(wrong).unwrap_err();
            assert_eq!(found.len(), problems.len(), "{found:?}");
            for problem in problems.iter() {
                assert!(found.iter().any(|found| found.contains(problem)), "{problem} not in {found:?}");
            }
        }
    }
}
