//! Signs requests for AWS with Signature Version 4.
//!
//! Whoever signs says when: nothing here reads a clock.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use http::{HeaderName, HeaderValue, Request, header::AUTHORIZATION};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    digest::{hex, sha256},
    error::{Error, ErrorKind, Result},
    images::Pieces,
};

const SESSION_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Who signs.
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: SecretString,
    /// Of keys that are good for a while only.
    pub(super) session: Option<SecretString>,
}

/// What a signature is good for, besides the request itself.
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    pub(super) now: SystemTime,
}

/// The same request, signed: all its headers, the host that it goes to, and the body.
pub(super) fn signed(
    mut request: Request<Pieces>,
    keys: &Keys,
    scope: &Scope<'_>,
) -> Result<Request<Pieces>> {
    let mut credentials = Credentials::builder()
        .access_key_id(&keys.id)
        .secret_access_key(keys.secret.expose_secret())
        .provider_name("imagegate");
    if let Some(session) = &keys.session {
        credentials = credentials.session_token(session.expose_secret());
    }
    let identity = credentials.build().into();
    // The default settings encode the path a second time, as every service but S3 expects.
    let params = SigningParams::builder()
        .identity(&identity)
        .region(scope.region)
        .name(scope.service)
        .time(scope.now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|_| unsignable())?
        .into();
    let address = request.uri().to_string();
    let headers =
        request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let body = SignableBody::Precomputed(hex(sha256(request.body()).as_ref()));
    let signable =
        SignableRequest::new(request.method().as_str(), address, headers, body).map_err(|_| unsignable())?;
    let (instructions, _) = sign(signable, &params).map_err(|_| unsignable())?.into_parts();
    // Not by the crate's own function: it panics at an access key that no header can carry.
    let made: Vec<(HeaderName, HeaderValue)> = instructions
        .headers()
        .map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
        .collect::<Option<_>>()
        .ok_or_else(unsignable)?;
    for (name, mut value) in made {
        value.set_sensitive(name == AUTHORIZATION || name == SESSION_TOKEN);
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

fn unsignable() -> Error {
    let message = "the aws keys or their session token have characters that no header can carry";
    Error::new(ErrorKind::PermissionDenied, message).with_status(401)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use sha2::{Digest as _, Sha256};

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn keys(session: Option<&str>) -> Keys {
        Keys { id: "AKIDEXAMPLE".into(), secret: SECRET.into(), session: session.map(Into::into) }
    }

    /// 2015-08-30T12:36:00Z, the moment of AWS's own examples.
    fn moment() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160)
    }

    fn hmac(key: &[u8], text: &str) -> Vec<u8> {
        let mut padded = [0; 64];
        padded[..key.len()].copy_from_slice(key);
        let inner = Sha256::new().chain_update(padded.map(|byte| byte ^ 0x36)).chain_update(text).finalize();
        Sha256::new().chain_update(padded.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().to_vec()
    }

    /// The signature as AWS's documents describe it, step by step, without the crate that makes it.
    fn by_hand(canonical_request: &str, region: &str, service: &str) -> String {
        let scope = format!("20150830/{region}/{service}/aws4_request");
        let hash = hex(&Sha256::digest(canonical_request));
        let mut key = format!("AWS4{SECRET}").into_bytes();
        for part in scope.split('/') {
            key = hmac(&key, part);
        }
        hex(&hmac(&key, &format!("AWS4-HMAC-SHA256\n20150830T123600Z\n{scope}\n{hash}")))
    }

    /// From the test suite that AWS publishes for this signature: `get-vanilla`.
    #[test]
    fn the_signature_is_that_of_the_published_example() {
        let request = Request::get("https://example.amazonaws.com/").body(Pieces::default()).unwrap();
        let scope = Scope { region: "us-east-1", service: "service", now: moment() };
        let signed = signed(request, &keys(None), &scope).unwrap();
        assert_eq!(
            signed.headers()[AUTHORIZATION],
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    #[test]
    fn the_path_is_encoded_twice_and_the_body_counts_in_its_pieces() {
        let body: Pieces = [&b"{\"a\""[..], b":1}"].into_iter().map(Bytes::from_static).collect();
        let request = Request::post("http://127.0.0.1:8000/model/stability.core-v1%3A1/invoke")
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        let scope = Scope { region: "eu-west-1", service: "bedrock", now: moment() };
        let signed = signed(request, &keys(Some("session/+=")), &scope).unwrap();
        let canonical = format!(
            "POST\n/model/stability.core-v1%253A1/invoke\n\ncontent-type:application/json\nhost:127.0.0.1:8000\n\
             x-amz-date:20150830T123600Z\nx-amz-security-token:session/+=\n\n\
             content-type;host;x-amz-date;x-amz-security-token\n{}",
            hex(&Sha256::digest("{\"a\":1}"))
        );
        let authorization = signed.headers()[AUTHORIZATION].to_str().unwrap();
        assert!(authorization.ends_with(&by_hand(&canonical, "eu-west-1", "bedrock")), "{authorization}");
        assert_eq!(signed.headers()["x-amz-date"], "20150830T123600Z");
        assert_eq!(signed.headers()[SESSION_TOKEN], "session/+=");
        assert!(
            signed.headers()[AUTHORIZATION].is_sensitive() && signed.headers()[SESSION_TOKEN].is_sensitive()
        );
    }

    #[test]
    fn keys_that_fit_no_header_are_refused_without_being_shown() {
        for (id, session) in [("AKID\nEXAMPLE", None), ("AKIDEXAMPLE", Some("session\n"))] {
            let request = Request::get("https://example.amazonaws.com/").body(Pieces::default()).unwrap();
            let keys = Keys { id: id.into(), ..keys(session) };
            let scope = Scope { region: "us-east-1", service: "service", now: moment() };
            let error = signed(request, &keys, &scope).unwrap_err();
            assert!(!error.message.contains("AKID") && !error.message.contains("session\n"), "{error:?}");
            assert_eq!(error.kind, ErrorKind::PermissionDenied);
        }
    }
}
