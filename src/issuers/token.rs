//! A signed token (JWT, RFC 7519, in its compact form): read, checked, and turned into a caller. No IO and no clock.

use serde_json::{Map, Value};

use super::keys::{Key, decode};
use crate::{
    config::{
        callers::{Caller, ISSUED, Scope},
        file::is_config_id,
        issuers::{Algorithm, IssuerSettings, ScopesOf, TenantOf},
    },
    error::{Error, ErrorKind, Result},
    moment,
};

/// Clocks of issuers and gateways differ by so much, in seconds.
pub const LEEWAY_S: i64 = 60;

/// No issuer's tokens are longer: what is, is not read.
const LONGEST: usize = 16 << 10;

/// Longest id of a caller in a token.
const LONGEST_CALLER: usize = 255;

/// A token that has been read, and not yet believed.
#[derive(Debug)]
pub struct Token<'a> {
    /// What the signature is for.
    signed: &'a str,
    signature: &'a str,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    /// Reads what looks like a token: three parts in base64url, of which two are JSON objects and the first names an
    /// algorithm. None: it is something else, such as a key.
    pub fn read(text: &'a str) -> Option<Self> {
        if text.len() > LONGEST || !text.starts_with("ey") {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let object = |part: &str| serde_json::from_slice::<Map<String, Value>>(&decode(part)?).ok();
        let header = object(header)?;
        header.get("alg")?.as_str()?;
        Some(Self { signed, signature, header, claims: object(claims)? })
    }

    /// Who says that it has issued it.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Whether it is for somebody of this name.
    pub fn is_for(&self, audience: &str) -> bool {
        match self.claims.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(|known| known == audience),
            Some(known) => known == audience,
            None => false,
        }
    }

    /// For which sign-in it was made.
    pub fn nonce(&self) -> Option<&str> {
        self.claims.get("nonce")?.as_str()
    }

    /// Until when it holds, in seconds since 1970.
    ///
    /// # Errors
    /// It has no such time.
    pub fn until(&self) -> Result<i64> {
        self.time("exp")?.ok_or_else(|| refused("never expires: it has no exp"))
    }

    /// Whether one of these keys may have signed it.
    pub fn has_key_among(&self, keys: &[Key], settings: &IssuerSettings) -> bool {
        // One that is refused in any case needs no key.
        self.algorithm(settings).is_err() || self.keys(keys, settings).next().is_some()
    }

    fn keys<'k>(&self, keys: &'k [Key], settings: &IssuerSettings) -> impl Iterator<Item = &'k Key> {
        let algorithm = self.algorithm(settings).ok();
        let id = self.header.get("kid").and_then(Value::as_str).map(str::to_owned);
        keys.iter().filter(move |key| algorithm.is_some_and(|algorithm| key.fits(id.as_deref(), algorithm)))
    }

    fn algorithm(&self, settings: &IssuerSettings) -> Result<Algorithm> {
        let named = self.header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let found = match named {
            "Ed25519" => Some(Algorithm::EdDsa),
            name => Algorithm::from_name(name),
        };
        found.filter(|algorithm| settings.algorithms.contains(algorithm)).ok_or_else(|| {
            let allowed: Vec<_> = settings.algorithms.iter().map(|algorithm| algorithm.name()).collect();
            refused(format!("is not signed as its issuer's have to be; allowed: {}", allowed.join(", ")))
        })
    }

    /// Checks everything about it, and says until when it holds (in seconds since 1970) and who brings it.
    ///
    /// # Errors
    /// 401 with what is wrong, and nothing of the token but its times.
    pub fn verify(&self, keys: &[Key], settings: &IssuerSettings, now_s: i64) -> Result<(i64, Caller)> {
        let algorithm = self.algorithm(settings)?;
        // Whoever does not understand what is critical has to refuse it (RFC 7515, 4.1.11).
        if self.header.contains_key("crit") {
            return Err(refused("has critical headers (crit), which this gateway does not know"));
        }
        let mut fitting = self.keys(keys, settings).peekable();
        if fitting.peek().is_none() {
            return Err(refused(format!("is signed with a key that {} does not publish", settings.issuer)));
        }
        let signature = decode(self.signature).unwrap_or_default();
        if !fitting.any(|key| key.has_signed(algorithm, self.signed.as_bytes(), &signature)) {
            return Err(refused("has a wrong signature"));
        }
        let until = self.check_claims(settings, now_s)?;
        Ok((until, self.caller(settings)?))
    }

    fn check_claims(&self, settings: &IssuerSettings, now_s: i64) -> Result<i64> {
        if self.issuer() != Some(&settings.issuer) {
            return Err(refused("has another issuer (iss)"));
        }
        if !settings.audience.iter().any(|ours| self.is_for(ours)) {
            let ours = settings.audience.join(", ");
            return Err(refused(format!("is for another audience (aud); allowed: {ours}")));
        }
        let until = self.until()?;
        if until.saturating_add(LEEWAY_S) <= now_s {
            return Err(refused(format!("expired at {}", shown(until))));
        }
        if let Some(from) = self.time("nbf")?.filter(|from| from.saturating_sub(LEEWAY_S) > now_s) {
            return Err(refused(format!("is not valid before {} (nbf)", shown(from))));
        }
        Ok(until)
    }

    fn time(&self, name: &str) -> Result<Option<i64>> {
        match self.claims.get(name) {
            None => Ok(None),
            // A fraction of a second makes no difference.
            Some(Value::Number(seconds)) if seconds.as_f64().is_some() => {
                Ok(seconds.as_f64().map(|seconds| seconds as i64))
            }
            Some(_) => Err(refused(format!("has no time in {name}; allowed: seconds since 1970"))),
        }
    }

    fn caller(&self, settings: &IssuerSettings) -> Result<Caller> {
        let name = self.word(&settings.caller_claim)?;
        let issuer = settings.short_name();
        let (tenant, id) = match &settings.tenant {
            TenantOf::Fixed(tenant) => (tenant.clone(), format!("{ISSUED}{issuer}:{name}")),
            TenantOf::Claim(claim) => {
                let tenant = self.word(claim)?;
                if !is_config_id(tenant) {
                    let allowed = "a letter, then letters, digits, `-`, `_` and `.`";
                    return Err(refused(format!("names no tenant in {claim}; allowed: {allowed}")));
                }
                // The same bearer in another tenant is another caller.
                (tenant.to_owned(), format!("{ISSUED}{issuer}:{tenant}/{name}"))
            }
        };
        let scopes = match &settings.scopes {
            ScopesOf::Fixed(scopes) => scopes.clone(),
            ScopesOf::Claim { name, prefix } => self
                .list(name)
                .filter_map(|scope| scope.strip_prefix(prefix.as_str()).and_then(Scope::from_name))
                .collect(),
        };
        let metadata = settings.metadata_claims.iter().filter_map(|(name, claim)| {
            let text = match self.claim(claim)? {
                Value::String(text) => text.clone(),
                value @ (Value::Number(_) | Value::Bool(_)) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => return None,
            };
            Some((name.clone(), Value::String(text)))
        });
        Ok(Caller {
            id,
            name: name.to_owned(),
            tenant,
            scopes,
            default_config: settings.default_config.clone(),
            allow_config_override: settings.allow_config_override,
            metadata: metadata.collect(),
            configs: settings.configs.clone(),
            virtual_keys: settings.virtual_keys.clone(),
            quota: settings.quota.clone(),
            log: settings.log,
        })
    }

    /// A claim that has to be a short text.
    fn word(&self, claim: &str) -> Result<&str> {
        let word = self.claim(claim).and_then(Value::as_str).unwrap_or_default();
        if word.is_empty() || word.len() > LONGEST_CALLER || word.chars().any(char::is_control) {
            return Err(refused(format!(
                "has no {claim} that can be used; allowed: a text of 1 to {LONGEST_CALLER} characters"
            )));
        }
        Ok(word)
    }

    /// A claim that is a list, or a text of words.
    fn list(&self, claim: &str) -> impl Iterator<Item = &str> {
        let value = self.claim(claim);
        let words = value.and_then(Value::as_str).unwrap_or_default().split_ascii_whitespace();
        words.chain(value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str))
    }

    /// A claim by its name; `realm_access.roles` is also one inside another.
    fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name).or_else(|| {
            let mut parts = name.split('.');
            let first = self.claims.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part))
        })
    }
}

/// A token that is not accepted. `why` continues "the token ...".
pub fn refused(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unauthenticated, format!("the token {}", why.into()))
}

fn shown(seconds: i64) -> String {
    moment::text(seconds.saturating_mul(1000))
}
