//! Callers that bring a token (JWT) instead of an API key: who has signed it, whom it names, what that one may do.
//!
//! `keys` and `token` are pure; `fetch` keeps an issuer's keys; `sign_in` is for people with a browser. A token that has
//! been verified is known by its digest until it expires or its issuer's keys change, so a request with it costs a look
//! into a table.

mod fetch;
mod keys;
mod sign_in;
mod token;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use futures::future::join_all;
use moka::sync::Cache;

pub use self::sign_in::Attempt;
use self::{
    fetch::Issuer,
    token::{LEEWAY_S, Token, refused},
};
use crate::{
    config::{
        callers::{Caller, digest},
        issuers::IssuerSettings,
    },
    error::{Error, ErrorKind, Result},
    pb,
    worker::http::Http,
};

/// Verified tokens that are known. One more costs the least used one, which is verified again when it comes.
const TOKENS: u64 = 10_000;

/// The issuers that the configuration names.
pub struct Issuers {
    all: Vec<Arc<Issuer>>,
    verified: Cache<[u8; 32], Verified>,
}

#[derive(Clone)]
struct Verified {
    caller: Arc<Caller>,
    issuer: Arc<Issuer>,
    /// Of the issuer's keys.
    generation: u64,
    /// In seconds since 1970.
    until_s: i64,
}

impl Issuers {
    /// Issuers whose keys come over these connections. What `before` knows of the same ones is kept.
    pub fn new(settings: &[IssuerSettings], http: Option<&Arc<Http>>, before: Option<&Self>) -> Self {
        let kept = |settings: &IssuerSettings| {
            let mut known = before.into_iter().flat_map(|before| &before.all);
            known.find(|issuer| issuer.settings == *settings).cloned()
        };
        let made = |settings: &IssuerSettings| Arc::new(Issuer::new(settings.clone(), http.cloned()));
        let all = settings.iter().map(|settings| kept(settings).unwrap_or_else(|| made(settings)));
        Self { all: all.collect(), verified: Cache::new(TOKENS) }
    }

    /// Whether these are the issuers.
    pub fn are(&self, settings: &[IssuerSettings]) -> bool {
        self.all.iter().map(|issuer| &issuer.settings).eq(settings)
    }

    /// Fetches the keys of those for which it is time.
    pub async fn look(&self) {
        join_all(self.all.iter().map(|issuer| issuer.look())).await;
    }

    /// Has the keys fetched that one of these credentials needs and that are not known, unless that has just been tried.
    /// What comes of it, [`Issuers::caller`] says.
    pub async fn prepare(&self, given: &[Option<&str>]) {
        if self.all.is_empty() {
            return;
        }
        for text in given.iter().flatten() {
            if self.known(&digest(text)).is_some() {
                return;
            }
            let Some(token) = Token::read(text) else { continue };
            let Some(issuer) = self.issuer_of(&token) else { continue };
            if !token.has_key_among(&issuer.known().keys, &issuer.settings) {
                issuer.look_for_more().await;
            }
        }
    }

    /// Who brings this. None: it is no token.
    ///
    /// # Errors
    /// 401 with what is wrong with the token, 503 if that cannot be found out now.
    pub fn caller(&self, text: &str) -> Option<Result<Arc<Caller>>> {
        if self.all.is_empty() {
            return None;
        }
        let digest = digest(text);
        if let Some(caller) = self.known(&digest) {
            return Some(Ok(caller));
        }
        let token = Token::read(text)?;
        let Some(issuer) = self.issuer_of(&token) else {
            return Some(Err(refused("is from an issuer (iss) that this gateway does not know")));
        };
        Some(self.verify(&token, issuer, digest))
    }

    /// Whether this is a token of one of the issuers, good or bad: nobody else's business.
    pub fn vouch_for(&self, text: &str) -> bool {
        !self.all.is_empty() && Token::read(text).is_some_and(|token| self.issuer_of(&token).is_some())
    }

    fn verify(&self, token: &Token<'_>, issuer: &Arc<Issuer>, digest: [u8; 32]) -> Result<Arc<Caller>> {
        let known = issuer.known();
        if known.is_away && !token.has_key_among(&known.keys, &issuer.settings) {
            let message = format!("the keys of {} cannot be had now", issuer.settings.issuer);
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        let (until_s, caller) = token.verify(&known.keys, &issuer.settings, pb::unix_now())?;
        let caller = Arc::new(caller);
        let verified = Verified {
            caller: Arc::clone(&caller),
            issuer: Arc::clone(issuer),
            generation: known.generation,
            until_s,
        };
        self.verified.insert(digest, verified);
        Ok(caller)
    }

    fn known(&self, digest: &[u8; 32]) -> Option<Arc<Caller>> {
        let verified = self.verified.get(digest)?;
        let is_fresh = verified.until_s.saturating_add(LEEWAY_S) > pb::unix_now();
        (is_fresh && verified.generation == verified.issuer.known().generation).then_some(verified.caller)
    }

    fn issuer_of(&self, token: &Token<'_>) -> Option<&Arc<Issuer>> {
        let issuer = token.issuer()?;
        self.all.iter().find(|known| known.settings.issuer == issuer)
    }
}

impl Default for Issuers {
    fn default() -> Self {
        Self::new(&[], None, None)
    }
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|issuer| &issuer.settings.issuer)).finish()
    }
}
