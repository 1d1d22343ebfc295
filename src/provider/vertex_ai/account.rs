//! A service account of Google Cloud: from its key file to an access token, by an assertion that its key signs
//! (RFC 7523; Google's page "Using OAuth 2.0 for Server to Server Applications").

use std::time::SystemTime;

use http::Request;
use ring::{rand::SystemRandom, rsa, signature::RSA_PKCS1_SHA256};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use super::NAME;
use crate::{
    digest::Framed,
    error::{Error, ErrorKind, Result},
    images::Pieces,
    provider::{Answer, Job, Login, Token, oauth},
};

pub(super) const SETTING: &str = "vertex_service_account_json";

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Where accounts log in whose file does not say.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// As long as Google lets an assertion live.
const LIFETIME_S: u64 = 3600;

/// What of the file is needed here.
pub(super) struct Account {
    pub(super) project_id: String,
    client_email: String,
    private_key: SecretString,
    private_key_id: String,
    token_uri: String,
}

impl Account {
    /// The account among the job's settings.
    ///
    /// # Errors
    /// It is no service account, with the field that is wrong.
    pub(super) fn of(job: &Job) -> Result<Option<Self>> {
        job.option(SETTING).map(Self::read).transpose()
    }

    fn read(text: &str) -> Result<Self> {
        // What serde has to say quotes what it read.
        let fields: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| oauth::unusable(SETTING, "is no JSON object"))?;
        let field = |name: &str| match fields.get(name) {
            None => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(wrong(name, "has to be text")),
        };
        let required = |name: &str| match field(name)? {
            "" => Err(wrong(name, "is required")),
            text => Ok(text.to_owned()),
        };
        if !matches!(field("type")?, "" | "service_account") {
            return Err(wrong("type", "has to be service_account"));
        }
        let token_uri = Some(field("token_uri")?).filter(|uri| !uri.is_empty()).unwrap_or(TOKEN_URI);
        Ok(Self {
            project_id: field("project_id")?.to_owned(),
            client_email: required("client_email")?,
            private_key: required("private_key")?.into(),
            private_key_id: field("private_key_id")?.to_owned(),
            token_uri: token_uri.to_owned(),
        })
    }

    fn assertion(&self, now: SystemTime) -> Result<String> {
        let encode = |data: &[u8]| base64_simd::URL_SAFE_NO_PAD.encode_to_string(data);
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut header = json!({"alg": "RS256", "typ": "JWT"});
        if !self.private_key_id.is_empty() {
            header["kid"] = self.private_key_id.as_str().into();
        }
        let claims = json!({
            "iss": self.client_email,
            "scope": SCOPE,
            "aud": self.token_uri,
            "iat": since_1970,
            "exp": since_1970 + LIFETIME_S,
        });
        let signed =
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let key = self.key()?;
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| Error::new(ErrorKind::Internal, "the login cannot be signed"))?;
        Ok(format!("{signed}.{}", encode(&signature)))
    }

    fn key(&self) -> Result<rsa::KeyPair> {
        let pem = self.private_key.expose_secret().as_bytes();
        PrivatePkcs8KeyDer::from_pem_slice(pem)
            .ok()
            .and_then(|der| rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok())
            .ok_or_else(|| wrong("private_key", "has to be an RSA key in PKCS#8, as PEM"))
    }
}

impl Login for Account {
    fn account(&self) -> [u8; 32] {
        // With the key itself: who only knows an account's name has no part in its token.
        let parts = [NAME, SCOPE, &self.token_uri, &self.client_email, self.private_key.expose_secret()];
        parts.into_iter().collect::<Framed>().finish()
    }

    fn request(&self, job: &Job) -> Result<Request<Pieces>> {
        let endpoint = oauth::endpoint(&path("token_uri"), &self.token_uri)?;
        oauth::request(endpoint, &[("grant_type", GRANT), ("assertion", &self.assertion(job.now)?)])
    }

    fn token(&self, answer: Answer) -> Result<Token> {
        oauth::token(NAME, &answer, self.private_key.expose_secret())
    }
}

fn path(field: &str) -> String {
    format!("{SETTING}.{field}")
}

fn wrong(field: &str, problem: &str) -> Error {
    oauth::unusable(&path(field), problem)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use url::form_urlencoded;

    use super::*;
    use crate::pb;

    /// Made for these tests; no account has it.
    const KEY: &str = include_str!("../../../tests/fixtures/keys/rsa-2048.pem");

    fn file() -> Value {
        json!({
            "type": "service_account", "project_id": "art-1", "private_key_id": "k1", "private_key": KEY,
            "client_email": "painter@art-1.iam.gserviceaccount.com", "token_uri": "https://token.example/token",
        })
    }

    fn account(changes: Value) -> Result<Account> {
        let mut file = file();
        for (name, value) in changes.as_object().unwrap() {
            file[name] = value.clone();
        }
        Account::read(&file.to_string())
    }

    fn job() -> Job {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Job { now, ..Job::new(pb::ImageRequest::default(), "https://unused.example") }
    }

    fn decoded(part: &str) -> Value {
        serde_json::from_slice(&base64_simd::URL_SAFE_NO_PAD.decode_to_vec(part).unwrap()).unwrap()
    }

    #[test]
    fn an_assertion_says_who_asks_for_what_and_is_signed() {
        let account = account(json!({})).unwrap();
        let request = account.request(&job()).unwrap();
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri(), "https://token.example/token");
        assert_eq!(request.headers()["content-type"], "application/x-www-form-urlencoded");
        let body = request.into_body().into_bytes();
        let form: Vec<(String, String)> = form_urlencoded::parse(&body).into_owned().collect();
        let [(grant_type, grant), (name, assertion)] = &form[..] else { panic!("{form:?}") };
        assert_eq!((grant_type.as_str(), grant.as_str(), name.as_str()), ("grant_type", GRANT, "assertion"));
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        assert_eq!(decoded(header), json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
        assert_eq!(
            decoded(claims),
            json!({
                "iss": "painter@art-1.iam.gserviceaccount.com",
                "scope": "https://www.googleapis.com/auth/cloud-platform",
                "aud": "https://token.example/token",
                "iat": 1_800_000_000, "exp": 1_800_003_600,
            })
        );
        let key = account.key().unwrap();
        let signature = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(signature).unwrap();
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public().as_ref());
        public.verify(signed.as_bytes(), &signature).unwrap();
        assert!(public.verify(b"another", &signature).is_err());
    }

    #[test]
    fn a_token_is_shared_by_those_who_have_the_same_key_only() {
        let of = |changes| account(changes).unwrap().account();
        let same = of(json!({}));
        assert_eq!(of(json!({})), same);
        // Neither says who it is.
        assert_eq!(of(json!({"project_id": "art-2", "private_key_id": "k2"})), same);
        for changes in [
            json!({"client_email": "other@art-1.iam.gserviceaccount.com"}),
            json!({"private_key": "guessed"}),
            json!({"token_uri": "https://other.example/token"}),
        ] {
            assert_ne!(of(changes.clone()), same, "{changes}");
        }
    }

    #[test]
    fn a_malformed_account_is_named_by_its_field_and_not_quoted() {
        let secret = "s3cret";
        let at_once = [
            (Account::read(secret), SETTING),
            (Account::read("\"s3cret\""), SETTING),
            (account(json!({"type": "authorized_user"})), "vertex_service_account_json.type"),
            (account(json!({"client_email": ""})), "vertex_service_account_json.client_email"),
            (account(json!({"private_key": null})), "vertex_service_account_json.private_key"),
            (account(json!({"private_key": [secret]})), "vertex_service_account_json.private_key"),
        ];
        let later = [
            (json!({"private_key": secret}), "vertex_service_account_json.private_key"),
            (
                json!({"private_key": "-----BEGIN PRIVATE KEY-----\ns3cret==\n-----END PRIVATE KEY-----\n"}),
                "vertex_service_account_json.private_key",
            ),
            (json!({"token_uri": "s3cret"}), "vertex_service_account_json.token_uri"),
        ];
        let later = later.map(|(changes, field)| {
            (account(changes).and_then(|account| account.request(&job()).map(|_| account)), field)
        });
        for (read, field) in at_once.into_iter().chain(later) {
            let error = read.err().unwrap();
            assert_eq!(error.param.as_deref(), Some(field));
            assert_eq!((error.kind, error.status), (ErrorKind::PermissionDenied, 401), "{field}");
            assert!(!format!("{error:?}").contains(secret), "{error:?}");
        }
    }

    #[test]
    fn an_account_without_an_address_logs_in_at_google() {
        let account = account(json!({"token_uri": ""})).unwrap();
        assert_eq!(account.request(&job()).unwrap().uri(), TOKEN_URI);
    }
}
