//! OAuth 2.0's token endpoint (RFC 6749, 4.4 and 5): what logins of providers have in common.
//!
//! Nothing of a request or of a granted token is repeated in an error, even where the endpoint repeats it.

use std::time::Duration;

use http::{Request, Uri, header::CONTENT_TYPE};
use serde::Deserialize;
use url::form_urlencoded::Serializer;

use super::{Answer, Token, finish};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
};

/// A token is not taken to be good for longer, whatever is said of it.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest description of an error that is shown, and longest word in it: assertions and tokens are longer.
const MAX_DESCRIPTION: usize = 400;
const MAX_WORD: usize = 80;

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// Seconds. Without it, the token is used once.
    #[serde(default)]
    expires_in: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refused {
    error: String,
    error_description: String,
}

/// A credential that cannot be used, because of this setting. The value is not shown.
pub(super) fn unusable(setting: &str, problem: &str) -> Error {
    let mut error = Error::new(ErrorKind::PermissionDenied, format!("{setting} {problem}")).with_status(401);
    error.param = Some(setting.to_owned());
    error
}

/// The address of a token endpoint, out of this setting.
pub(super) fn endpoint(setting: &str, address: &str) -> Result<Uri> {
    let uri = address.parse::<Uri>().ok().filter(|uri| {
        let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        plain && matches!(uri.scheme_str(), Some("https" | "http"))
    });
    uri.ok_or_else(|| unusable(setting, "has to be an http or https address"))
}

/// A request for a token.
pub(super) fn request(endpoint: Uri, fields: &[(&str, &str)]) -> Result<Request<Pieces>> {
    let form = Serializer::new(String::new()).extend_pairs(fields).finish();
    let request = Request::post(endpoint).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    finish(request, form.into_bytes().into())
}

/// The token that was granted. `sent` is the secret that the request had in clear.
pub(super) fn token(provider: &str, answer: &Answer, sent: &str) -> Result<Token> {
    if !answer.status.is_success() {
        return Err(refusal(provider, answer, sent));
    }
    // What serde has to say of a bad answer quotes it.
    let granted = answer.json::<Granted>().ok().filter(|granted| !granted.access_token.is_empty());
    let granted = granted.ok_or_else(|| {
        Error::bad_answer(format!("{provider} login error: the answer has no access_token"))
    })?;
    Ok(Token {
        secret: granted.access_token.into(),
        lifetime: Duration::from_secs(granted.expires_in).min(MAX_LIFETIME),
    })
}

fn refusal(provider: &str, answer: &Answer, sent: &str) -> Error {
    let status = answer.status.as_u16();
    let said = answer.json::<Refused>().unwrap_or_default();
    let shown = |text: &str| {
        let line = text.lines().next().unwrap_or_default().trim();
        let harmless = line.len() <= MAX_DESCRIPTION
            && !line.contains(char::is_control)
            && !line.contains(sent)
            && line.split_whitespace().all(|word| word.len() <= MAX_WORD);
        Some(line).filter(|line| harmless && !line.is_empty()).map(str::to_owned)
    };
    let texts: Vec<String> =
        [&said.error, &said.error_description].into_iter().filter_map(|text| shown(text)).collect();
    let text = if texts.is_empty() {
        format!("status {status} with {}", answer.content_type())
    } else {
        texts.join(": ")
    };
    let mut error = answer.default_error(provider, format!("{provider} login error: {text}"));
    // Whatever else the endpoint calls wrong is wrong with the credential, not with the caller's request.
    if matches!(status, 400..=499) && !matches!(status, 408 | 429) {
        error.kind = ErrorKind::PermissionDenied;
        error.status = 401;
    }
    error.code = shown(&said.error);
    error
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use secrecy::ExposeSecret as _;
    use serde_json::{Value, json};

    use super::{super::AnswerBody, *};

    fn answer(status: u16, body: Value) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: AnswerBody::Json { skeleton: body.to_string().into(), images: Vec::new() },
            address: String::new(),
            note: String::new(),
        }
    }

    #[test]
    fn a_token_is_good_for_as_long_as_is_said_within_reason() {
        for (body, seconds) in [
            (json!({"access_token": "t", "expires_in": 3599, "token_type": "Bearer"}), 3599),
            (json!({"access_token": "t"}), 0),
            (json!({"access_token": "t", "expires_in": u64::MAX}), 86_400),
        ] {
            let token = token("p", &answer(200, body), "s3cret").unwrap();
            assert_eq!((token.secret.expose_secret(), token.lifetime.as_secs()), ("t", seconds));
        }
    }

    #[test]
    fn a_success_without_a_token_is_a_bad_answer_that_quotes_nothing() {
        for body in [json!({}), json!({"access_token": ""}), json!("s3cret"), json!({"access_token": 12345})]
        {
            let error = token("p", &answer(200, body), "s3cret").unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadAnswer);
            assert_eq!(error.message, "p login error: the answer has no access_token");
        }
    }

    #[test]
    fn a_refused_login_tells_why_and_nothing_secret() {
        let refused = |status, code: &str, description: &str| {
            let body = json!({"error": code, "error_description": description});
            token("p", &answer(status, body), "s3cret").unwrap_err()
        };
        let error = refused(401, "invalid_client", "AADSTS7000215: Invalid client secret.\r\nTrace ID: 1");
        assert_eq!(error.message, "p login error: invalid_client: AADSTS7000215: Invalid client secret.");
        assert_eq!((error.kind, error.status), (ErrorKind::PermissionDenied, 401));
        assert_eq!(error.code.as_deref(), Some("invalid_client"));
        let error = refused(400, "invalid_grant", "no client has the secret s3cret");
        assert_eq!(error.message, "p login error: invalid_grant");
        assert_eq!((error.kind, error.status), (ErrorKind::PermissionDenied, 401));
        let error = refused(400, &"e".repeat(200), &format!("bad assertion {}", "e".repeat(200)));
        assert_eq!(error.message, "p login error: status 400 with no content type");
        assert_eq!(refused(429, "slow_down", "").kind, ErrorKind::RateLimited);
        assert_eq!(refused(503, "", "").kind, ErrorKind::Unavailable);
    }

    #[test]
    fn a_token_endpoint_is_an_address_without_a_password() {
        for good in ["https://oauth2.googleapis.com/token", "http://127.0.0.1:9/token"] {
            assert_eq!(endpoint("where", good).unwrap().to_string(), good);
        }
        for bad in ["", "/token", "ftp://a/token", "https://user:s3cret@a/token", "https://a b/"] {
            let error = endpoint("where", bad).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("where"), "{bad}");
            assert!(!error.message.contains("s3cret"));
        }
    }

    #[test]
    fn a_form_has_its_fields_encoded() {
        let uri = endpoint("where", "https://a/token").unwrap();
        let request = request(uri, &[("grant_type", "urn:x"), ("secret", "a+b &c=d")]).unwrap();
        let body = request.into_body().into_bytes();
        assert_eq!(body, "grant_type=urn%3Ax&secret=a%2Bb+%26c%3Dd");
    }
}
