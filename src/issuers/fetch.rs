//! The keys of one issuer, as they are now: fetched, kept while the issuer is away, and fetched again when a token names
//! one that is not known.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::keys::{self, Key};
use crate::{
    config::issuers::{IssuerSettings, KeySource, check_url},
    images::Pieces,
    telemetry,
    worker::http::{Http, Trust},
};

/// Keys are looked at so often, and so soon again where they could not be had.
const REFRESH_EVERY: Duration = Duration::from_secs(300);
const RETRY_EVERY: Duration = Duration::from_secs(15);

/// A file costs nothing to look at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Tokens with unknown keys, which anybody can make, cause no more fetches than this.
const UNKNOWN_EVERY: Duration = Duration::from_secs(5);

/// All of a fetch; a request may wait for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest document of an issuer.
const MOST_BYTES: usize = 1 << 20;

/// One issuer.
#[derive(Debug)]
pub struct Issuer {
    /// What the file says of it.
    pub settings: IssuerSettings,
    known: ArcSwap<Known>,
    fetching: tokio::sync::Mutex<Fetching>,
    http: Option<Arc<Http>>,
}

/// Keys of an issuer.
#[derive(Debug, Default)]
pub struct Known {
    /// Empty until they could be had once.
    pub keys: Vec<Key>,
    /// Grows with every change of the keys: what was checked with others has to be checked again.
    pub generation: u64,
    /// They could not be had the last time.
    pub is_away: bool,
}

#[derive(Debug, Default)]
struct Fetching {
    /// Also of one that nobody waited for to its end.
    begun: Option<Instant>,
    ended: Option<Instant>,
    /// What the keys were read from.
    seen: Option<[u8; 32]>,
}

impl Issuer {
    /// An issuer whose keys are not known yet.
    pub fn new(settings: IssuerSettings, http: Option<Arc<Http>>) -> Self {
        Self { settings, known: ArcSwap::default(), fetching: tokio::sync::Mutex::default(), http }
    }

    /// What is known of its keys.
    pub fn known(&self) -> arc_swap::Guard<Arc<Known>> {
        self.known.load()
    }

    /// Fetches the keys if it is time.
    pub async fn look(&self) {
        let mut fetching = self.fetching.lock().await;
        let every = match (&self.settings.keys, self.known.load().is_away) {
            (KeySource::File(_), _) => LOOK_EVERY,
            (_, false) => REFRESH_EVERY,
            (_, true) => RETRY_EVERY,
        };
        if fetching.ended.is_none_or(|ended| ended.elapsed() >= every) {
            self.fetch(&mut fetching).await;
        }
    }

    /// Fetches the keys because a token needs one that is not known, unless that has just been done.
    pub async fn look_for_more(&self) {
        let mut fetching = self.fetching.lock().await;
        if fetching.begun.is_none_or(|begun| begun.elapsed() >= UNKNOWN_EVERY) {
            self.fetch(&mut fetching).await;
        }
    }

    async fn fetch(&self, fetching: &mut Fetching) {
        fetching.begun = Some(Instant::now());
        let document = timeout(FETCH_TIMEOUT, self.document()).await;
        let document =
            document.unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_TIMEOUT.as_secs())));
        fetching.ended = Some(Instant::now());
        let before = self.known.load_full();
        let read = document.and_then(|document| {
            let seen = digest_of(&document);
            if fetching.seen == Some(seen) && !before.keys.is_empty() {
                return Ok((seen, before.keys.clone()));
            }
            Ok((seen, keys::read(&document)?))
        });
        let issuer = &self.settings.issuer;
        telemetry::issuer_asked(issuer, read.is_ok());
        match &read {
            Err(reason) if !before.is_away => telemetry::issuer_away(issuer, reason),
            Ok(_) if before.is_away => telemetry::issuer_back(issuer),
            _ => {}
        }
        let is_away = read.is_err();
        let keys = match read {
            Ok((seen, keys)) => {
                fetching.seen = Some(seen);
                keys
            }
            // Who was trusted before it went away still is.
            Err(_) => before.keys.clone(),
        };
        let generation = before.generation + u64::from(keys != before.keys);
        self.known.store(Arc::new(Known { keys, generation, is_away }));
    }

    async fn document(&self) -> Result<Bytes, String> {
        match &self.settings.keys {
            KeySource::File(_) => self.settings.key_file(MOST_BYTES).await.map(Bytes::from),
            KeySource::Url(url) => self.get(url).await,
            KeySource::Discovery(url) => {
                let document = self.discovered(url).await?;
                let keys = document.get("jwks_uri").and_then(Value::as_str).unwrap_or_default();
                check_url(keys).map_err(|message| format!("jwks_uri of {url}: {message}"))?;
                self.get(keys).await
            }
        }
    }

    /// What the issuer says of itself.
    pub async fn discovered(&self, url: &str) -> Result<Value, String> {
        let document: Value =
            serde_json::from_slice(&self.get(url).await?).map_err(|_| format!("{url} answers no JSON"))?;
        // OpenID Connect Discovery 1.0, 4.3: somebody else's document is not this issuer's.
        if document.get("issuer").and_then(Value::as_str) != Some(&self.settings.issuer) {
            return Err(format!("{url} is about another issuer"));
        }
        Ok(document)
    }

    /// Sends a request, and gives what is answered, good or bad.
    pub async fn ask(&self, request: Request<Pieces>) -> Result<(StatusCode, Bytes), String> {
        let http = self.http.as_ref().ok_or("this process calls nobody")?;
        let url = request.uri().to_string();
        let text = |error: crate::error::Error| format!("{url}: {}", error.message);
        let answer = async {
            let incoming = http.send(request, Trust::Operator).await.map_err(text)?;
            Ok((incoming.status, incoming.document(MOST_BYTES).await.map_err(text)?))
        };
        let late = |_| Err(format!("{url}: no answer within {} s", FETCH_TIMEOUT.as_secs()));
        timeout(FETCH_TIMEOUT, answer).await.unwrap_or_else(late)
    }

    async fn get(&self, url: &str) -> Result<Bytes, String> {
        let request = Request::get(url).header(http::header::ACCEPT, "application/json");
        let request = request.body(Pieces::default()).map_err(|_| format!("{url} cannot be called"))?;
        let (status, document) = self.ask(request).await?;
        if !status.is_success() {
            return Err(format!("{url}: HTTP {}", status.as_u16()));
        }
        Ok(document)
    }
}

fn digest_of(document: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(document).into()
}
