//! People who sign in at an issuer with a browser: the authorization code flow of OpenID Connect, with PKCE (RFC 7636).
//! Says what the issuer is asked; who asks, and what becomes of the token, is the dashboard's business.

use base64_simd::{STANDARD, URL_SAFE_NO_PAD};
use http::{Request, header};
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};

use super::{
    Issuers,
    fetch::Issuer,
    token::{Token, refused},
};
use crate::{
    config::{dashboard::SignInSettings, issuers::check_url},
    error::{Error, ErrorKind, Result},
    images::Pieces,
};

/// Random bytes in what nobody may guess.
const RANDOM_BYTES: usize = 32;

/// An attempt to sign in: what was sent to the issuer, and has to fit to what comes back.
#[derive(Deserialize, Serialize)]
pub struct Attempt {
    /// Comes back with the code: it was this browser that began.
    pub state: String,
    /// Comes back in the token: it was made for this attempt.
    pub nonce: String,
    /// Only who has it can redeem the code.
    pub verifier: String,
    /// Where the browser comes back to.
    pub redirect_uri: String,
}

/// Where an issuer lets people sign in, and gives tokens for codes.
#[derive(Debug)]
struct Endpoints {
    authorization: Url,
    token: String,
    /// The secret is wanted in the form, not in the header.
    takes_secret_in_form: bool,
}

impl Attempt {
    /// Another one.
    pub fn new(redirect_uri: String) -> Self {
        Self { state: random(), nonce: random(), verifier: random(), redirect_uri }
    }

    fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode_to_string(Sha256::digest(&self.verifier))
    }
}

/// There are secrets in it.
impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attempt").field("redirect_uri", &self.redirect_uri).finish_non_exhaustive()
    }
}

impl Issuers {
    /// Where the browser goes to sign in.
    ///
    /// # Errors
    /// The issuer cannot be asked where, with the reason.
    pub async fn address(&self, settings: &SignInSettings, attempt: &Attempt) -> Result<String> {
        let mut address = self.of(settings)?.endpoints().await?.authorization;
        address
            .query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &settings.client_id)
            .append_pair("redirect_uri", &attempt.redirect_uri)
            .append_pair("scope", &settings.scopes.join(" "))
            .append_pair("state", &attempt.state)
            .append_pair("nonce", &attempt.nonce)
            .append_pair("code_challenge", &attempt.challenge())
            .append_pair("code_challenge_method", "S256");
        Ok(address.into())
    }

    /// The ID token that the issuer gives for a code. Its signature is not checked yet.
    ///
    /// # Errors
    /// The issuer cannot be asked, or has none for this code.
    pub async fn redeem(&self, settings: &SignInSettings, attempt: &Attempt, code: &str) -> Result<String> {
        let issuer = self.of(settings)?;
        let endpoints = issuer.endpoints().await?;
        let request = token_request(settings, attempt, code, &endpoints);
        let (status, document) = issuer.ask(request).await.map_err(away)?;
        let document: Value = serde_json::from_slice(&document).unwrap_or_default();
        let field = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
        if !status.is_success() {
            // Its name alone: a description may quote what was sent.
            let name: String = field("error").chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
            let message = format!("{} gives no token for this sign-in: {name}", settings.issuer);
            return Err(Error::new(ErrorKind::Unauthenticated, message));
        }
        match field("id_token") {
            "" => Err(Error::bad_answer(format!("{} has answered without an ID token", settings.issuer))),
            token => Ok(token.to_owned()),
        }
    }

    /// Until when a token holds (in seconds since 1970), if it was made for this attempt. That its issuer has signed it for
    /// this gateway is known already.
    ///
    /// # Errors
    /// 401: it was made for something else.
    pub fn check_made_for(&self, settings: &SignInSettings, attempt: &Attempt, token: &str) -> Result<i64> {
        let token = Token::read(token).ok_or_else(|| refused("is no token that can be read"))?;
        if token.issuer() != Some(&settings.issuer) {
            return Err(refused("has another issuer (iss)"));
        }
        if !token.is_for(&settings.client_id) {
            return Err(refused(format!("is for another audience (aud); allowed: {}", settings.client_id)));
        }
        if token.nonce() != Some(&attempt.nonce) {
            return Err(refused("was made for another sign-in (nonce)"));
        }
        token.until()
    }

    fn of(&self, settings: &SignInSettings) -> Result<&Issuer> {
        let known = self.all.iter().find(|issuer| issuer.settings.issuer == settings.issuer);
        known.map(|issuer| &**issuer).ok_or_else(|| Error::missing("issuer", &settings.issuer))
    }
}

impl Issuer {
    async fn endpoints(&self) -> Result<Endpoints> {
        let url = self.settings.discovery();
        let document = self.discovered(&url).await.map_err(away)?;
        let field = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
        let checked = |name: &str| {
            let wrong = |reason: String| away(format!("{name} of {url}: {reason}"));
            check_url(field(name))
                .map_err(wrong)
                .and(Url::parse(field(name)).map_err(|error| wrong(error.to_string())))
        };
        let methods = document.get("token_endpoint_auth_methods_supported").and_then(Value::as_array);
        let takes = |name: &str| methods.is_some_and(|methods| methods.iter().any(|method| method == name));
        Ok(Endpoints {
            authorization: checked("authorization_endpoint")?,
            token: checked("token_endpoint")?.into(),
            // The header is what an issuer takes that says nothing.
            takes_secret_in_form: takes("client_secret_post") && !takes("client_secret_basic"),
        })
    }
}

fn token_request(
    settings: &SignInSettings,
    attempt: &Attempt,
    code: &str,
    endpoints: &Endpoints,
) -> Request<Pieces> {
    let secret = settings.client_secret.as_ref().map(|secret| secret.0.expose_secret());
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "authorization_code")
        .append_pair("code", code)
        .append_pair("redirect_uri", &attempt.redirect_uri)
        .append_pair("client_id", &settings.client_id)
        .append_pair("code_verifier", &attempt.verifier);
    let mut request = Request::post(&endpoints.token)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::ACCEPT, "application/json");
    match secret {
        Some(secret) if endpoints.takes_secret_in_form => _ = form.append_pair("client_secret", secret),
        Some(secret) => {
            // RFC 6749, 2.3.1: both are encoded as in a form first.
            let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encoded(&settings.client_id), encoded(secret));
            let basic = format!("Basic {}", STANDARD.encode_to_string(pair));
            request = request.header(header::AUTHORIZATION, basic);
        }
        None => {}
    }
    request.body(Pieces::from(form.finish().into_bytes())).expect("the address was checked")
}

fn away(reason: String) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the issuer cannot be asked now: {reason}"))
}

/// 43 characters that nobody guesses.
fn random() -> String {
    let mut bytes = [0; RANDOM_BYTES];
    SystemRandom::new().fill(&mut bytes).expect("the system has random numbers");
    URL_SAFE_NO_PAD.encode_to_string(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::spec::Secret;

    fn settings(client_secret: Option<&str>) -> SignInSettings {
        SignInSettings {
            issuer: "https://idp.example".into(),
            client_id: "web app".into(),
            client_secret: client_secret.map(Secret::new),
            scopes: vec!["openid".into()],
            name: String::new(),
        }
    }

    fn sent(client_secret: Option<&str>, takes_secret_in_form: bool) -> (Option<String>, String) {
        let (authorization, token) =
            (Url::parse("https://idp.example/a").unwrap(), "https://idp.example/t".into());
        let endpoints = Endpoints { authorization, token, takes_secret_in_form };
        let attempt = Attempt::new("https://gw.example/sign-in/callback".into());
        let request = token_request(&settings(client_secret), &attempt, "c&d", &endpoints);
        let header =
            request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        (header, String::from_utf8(request.into_body().into_bytes().to_vec()).unwrap())
    }

    #[test]
    fn a_code_is_redeemed_by_who_has_begun_with_the_secret_where_the_issuer_wants_it() {
        let (header, form) = sent(Some("s:ö"), false);
        assert_eq!(header.unwrap(), format!("Basic {}", STANDARD.encode_to_string("web+app:s%3A%C3%B6")));
        assert!(
            form.contains("code=c%26d") && form.contains("code_verifier=") && !form.contains("client_secret")
        );
        let (header, form) = sent(Some("s:ö"), true);
        assert!(header.is_none() && form.ends_with("client_secret=s%3A%C3%B6"), "{form}");
        let (header, form) = sent(None, true);
        assert!(header.is_none() && form.contains("client_id=web+app") && !form.contains("client_secret"));
    }

    #[test]
    fn a_challenge_is_the_digest_of_its_verifier() {
        // RFC 7636, appendix B.
        let attempt = Attempt {
            verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into(),
            ..Attempt::new(String::new())
        };
        assert_eq!(attempt.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        let (one, other) = (Attempt::new(String::new()), Attempt::new(String::new()));
        assert!(one.state != other.state && one.nonce != one.state && one.verifier.len() == 43);
        assert!(!format!("{one:?}").contains(&one.verifier));
    }
}
