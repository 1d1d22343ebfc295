//! Tells somebody that a job is over: one signed POST, repeated until it is taken.
//!
//! Signed as the Standard Webhooks specification says, which OpenAI's SDKs verify with `webhooks.unwrap`.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, Request, header::CONTENT_TYPE};
use ring::hmac;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    config::file::SigningKey,
    error::{Error, Result},
    images::Pieces,
    pb::unix_now,
    telemetry,
    worker::http::{Http, Trust},
};

/// The header that names the address.
const HEADER: &str = "x-imagegate-webhook-url";

/// Pauses between tries.
const PAUSES: &[Duration] = &[
    Duration::ZERO,
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(3600),
];

/// How long somebody may take to take it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who wants to be told.
pub struct Webhook {
    url: Url,
    key: SigningKey,
    http: Arc<Http>,
}

impl Webhook {
    /// Reads who wants to be told from a request's headers.
    ///
    /// # Errors
    /// The address is none, or nothing is there to sign with.
    pub fn read(
        headers: &HeaderMap,
        key: Option<&SigningKey>,
        http: Option<&Arc<Http>>,
    ) -> Result<Option<Self>> {
        let Some(value) = headers.get(HEADER) else { return Ok(None) };
        let url = value.to_str().ok().and_then(|text| Url::parse(text.trim()).ok());
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| {
            Error::invalid(
                HEADER,
                format!("{HEADER}: not an address; allowed: http:// or https:// and a host"),
            )
        })?;
        let (Some(key), Some(http)) = (key, http) else {
            let message =
                format!("{HEADER}: this gateway has no key to sign with; set webhooks.secret in its file");
            return Err(Error::unsupported(HEADER, message));
        };
        Ok(Some(Self { url, key: key.clone(), http: Arc::clone(http) }))
    }

    /// Tells that a job is over. When the process is about to end, it tries no more.
    pub async fn tell(&self, draining: &CancellationToken, kind: &str, job: Value) {
        let id = format!("evt_{}", uuid::Uuid::new_v4().simple());
        let event = json!({"id": id, "object": "event", "type": kind, "created_at": unix_now(), "data": job});
        let body = event.to_string();
        for pause in PAUSES {
            if !pause.is_zero() && draining.run_until_cancelled(sleep(*pause)).await.is_none() {
                break;
            }
            match self.send(&id, &body).await {
                Ok(()) => return telemetry::webhook(true),
                Err(reason) => tracing::warn!(event = id, reason, "a webhook was not taken"),
            }
        }
        telemetry::webhook(false);
    }

    async fn send(&self, id: &str, body: &str) -> std::result::Result<(), String> {
        let at = unix_now();
        let request = Request::post(self.url.as_str())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", sign(&self.key, id, at, body))
            .body(Pieces::from(body.as_bytes().to_vec()))
            .map_err(|error| error.to_string())?;
        match timeout(PATIENCE, self.http.send(request, Trust::Stranger)).await {
            Ok(Ok(answer)) if answer.status.is_success() => Ok(()),
            Ok(Ok(answer)) => Err(format!("HTTP {}", answer.status.as_u16())),
            Ok(Err(error)) => Err(error.message.clone()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }
}

// A password or a token may be in the address.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

fn sign(key: &SigningKey, id: &str, at: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key.0);
    let tag = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
    format!("v1,{}", base64_simd::STANDARD.encode_to_string(tag.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{egress::Egress, error::ErrorKind};

    /// The example of the specification's own libraries.
    #[test]
    fn signatures_are_those_of_standard_webhooks() {
        let key = base64_simd::STANDARD.decode_to_vec("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(
            &SigningKey(key.into()),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_bad_address_is_refused_and_so_is_one_without_a_key() {
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = Arc::new(Http::try_new(Egress::default()).unwrap());
        let key = SigningKey(Arc::new([0; 32]));
        let read = |text: &str, key| {
            let headers = [(HEADER.parse().unwrap(), text.parse().unwrap())].into_iter().collect();
            Webhook::read(&headers, key, Some(&http))
        };
        assert!(read("https://example.com/hook", Some(&key)).unwrap().is_some());
        for bad in ["ftp://example.com", "example.com/hook", "", "http://"] {
            assert_eq!(read(bad, Some(&key)).unwrap_err().param.as_deref(), Some(HEADER), "{bad}");
        }
        assert_eq!(read("https://example.com", None).unwrap_err().kind, ErrorKind::Unsupported);
        assert!(Webhook::read(&HeaderMap::new(), None, None).unwrap().is_none());
    }
}
