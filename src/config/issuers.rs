//! `jwt_issuers`: who vouches for callers that bring a token (JWT) instead of an API key.

use std::{collections::BTreeSet, path::PathBuf};

use url::{Host, Url};

use super::{
    callers::{Scope, check_config_id, read_log, read_scopes},
    file::is_config_id,
    quota::Quota,
    read::{Object, suggestion},
    saved::DEFAULT_TENANT,
};
use crate::pb::LogPolicy;

/// One issuer, and what a token of it makes of its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSettings {
    /// Exactly as tokens have it in `iss`.
    pub issuer: String,
    /// A token has to have one of these in `aud`.
    pub audience: Vec<String>,
    /// Where its public keys are.
    pub keys: KeySource,
    /// What its tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// Which claim tells callers apart.
    pub caller_claim: String,
    /// Whose configs, keys and log its callers see.
    pub tenant: TenantOf,
    /// What its callers may do.
    pub scopes: ScopesOf,
    /// For requests that name no route.
    pub default_config: Option<String>,
    /// False: requests may name no other route.
    pub allow_config_override: bool,
    /// Configs that may be used; none: all of the tenant.
    pub configs: Option<BTreeSet<String>>,
    /// Virtual keys that may be used; none: all of the tenant.
    pub virtual_keys: Option<BTreeSet<String>>,
    /// What the request log keeps of its callers' requests.
    pub log: LogPolicy,
    /// How much each of its callers may use.
    pub quota: Quota,
    /// Names in the metadata of requests, each with the claim that it is taken from.
    pub metadata_claims: Vec<(String, String)>,
}

/// Where an issuer's public keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// At the address that this document names (OpenID Connect Discovery).
    Discovery(String),
    /// At this address.
    Url(String),
    /// In this file.
    File(PathBuf),
}

/// Whose tenant a caller is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantOf {
    /// In this one.
    Fixed(String),
    /// In the one that this claim names.
    Claim(String),
}

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopesOf {
    /// This.
    Fixed(BTreeSet<Scope>),
    /// What this claim lists.
    Claim {
        /// Its name.
        name: String,
        /// What our scopes begin with in it. All else is for other services.
        prefix: String,
    },
}

/// How a token is signed: always by a private key. A shared secret (HS256) would be one that every gateway has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA, PKCS#1 v1.5.
    Rs256,
    /// RSA, PKCS#1 v1.5.
    Rs384,
    /// RSA, PKCS#1 v1.5.
    Rs512,
    /// RSA, PSS.
    Ps256,
    /// RSA, PSS.
    Ps384,
    /// RSA, PSS.
    Ps512,
    /// ECDSA over P-256.
    Es256,
    /// ECDSA over P-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("RS256", Algorithm::Rs256),
    ("RS384", Algorithm::Rs384),
    ("RS512", Algorithm::Rs512),
    ("PS256", Algorithm::Ps256),
    ("PS384", Algorithm::Ps384),
    ("PS512", Algorithm::Ps512),
    ("ES256", Algorithm::Es256),
    ("ES384", Algorithm::Es384),
    ("EdDSA", Algorithm::EdDsa),
];

const DISCOVERY: &str = "/.well-known/openid-configuration";

impl Algorithm {
    /// The algorithm of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        ALGORITHMS.iter().find(|(word, _)| *word == name).map(|(_, algorithm)| *algorithm)
    }

    /// As tokens name it.
    pub fn name(self) -> &'static str {
        ALGORITHMS.iter().find(|(_, algorithm)| *algorithm == self).map_or("", |(name, _)| name)
    }
}

impl IssuerSettings {
    /// The issuer as a part of its callers' ids: without `https://`, and without a colon.
    pub fn short_name(&self) -> String {
        let name = self.issuer.strip_prefix("https://").unwrap_or(&self.issuer);
        name.trim_end_matches('/').replace('%', "%25").replace(':', "%3A")
    }

    /// Where it describes itself, if it does.
    pub fn discovery(&self) -> String {
        discovery(&self.issuer)
    }

    /// Reads the file of its keys, if they are in one.
    ///
    /// # Errors
    /// It cannot be read, or is larger than `limit` bytes.
    pub async fn key_file(&self, limit: usize) -> Result<Vec<u8>, String> {
        let KeySource::File(path) = &self.keys else { return Err("there is no file of its keys".into()) };
        let shown = path.display();
        let content = tokio::fs::read(path).await.map_err(|error| format!("{shown}: {error}"))?;
        if content.len() > limit {
            return Err(format!("{shown} is larger than {} KiB", limit >> 10));
        }
        Ok(content)
    }

    /// Reads `jwt_issuers` of the file. `configs` are the ids that there are.
    pub fn read_all(file: &mut Object<'_>, configs: &[&str]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (i, value) in file.list("jwt_issuers").unwrap_or_default().iter().enumerate() {
            let Some(object) = Object::open(value, file.at(&format!("jwt_issuers.{i}")), file.problems())
            else {
                continue;
            };
            let Some(issuer) = Self::read(object, configs) else { continue };
            if all.iter().any(|other| other.short_name() == issuer.short_name()) {
                // Their callers could not be told apart.
                let at = file.at(&format!("jwt_issuers.{i}.issuer"));
                file.problems().add(at, "another entry has the same issuer");
            }
            all.push(issuer);
        }
        all
    }

    fn read(mut object: Object<'_>, configs: &[&str]) -> Option<Self> {
        object.required("issuer");
        let issuer = object.text("issuer").map(str::to_owned);
        if issuer.as_deref().is_some_and(|text| text.trim().is_empty()) {
            object.problem("issuer", "not allowed; allowed: what tokens have in `iss`");
        }
        let audience = read_audience(&mut object);
        let keys = read_keys(&mut object, issuer.as_deref());
        let algorithms = read_algorithms(&mut object);
        let claim = |object: &mut Object<'_>, name: &str| {
            let claim = object.text(name).map(str::to_owned);
            if claim.as_deref() == Some("") {
                object.problem(name, "not allowed; allowed: the name of a claim");
            }
            claim
        };
        let caller_claim = claim(&mut object, "caller_claim").unwrap_or_else(|| "sub".to_owned());
        let tenant = object.text("tenant").map(str::to_owned);
        if let Some(tenant) = tenant.as_deref().filter(|tenant| !is_config_id(tenant)) {
            let allowed = "a letter, then letters, digits, `-`, `_` and `.`";
            object.problem("tenant", format!("\"{tenant}\" is not allowed; allowed: {allowed}"));
        }
        let tenant = match (tenant, claim(&mut object, "tenant_claim")) {
            (Some(_), Some(_)) => {
                object.problem("tenant_claim", "not together with `tenant`; allowed: one of them");
                return None;
            }
            (None, Some(name)) => TenantOf::Claim(name),
            (tenant, None) => TenantOf::Fixed(tenant.unwrap_or_else(|| DEFAULT_TENANT.to_owned())),
        };
        let said = object.has("scopes");
        let scopes = read_scopes(&mut object);
        let prefix = object.text("scope_prefix").map(str::to_owned);
        let scopes = match claim(&mut object, "scope_claim") {
            Some(_) if said => {
                object.problem("scope_claim", "not together with `scopes`; allowed: one of them");
                return None;
            }
            Some(name) => ScopesOf::Claim { name, prefix: prefix.unwrap_or_else(|| "imagegate:".to_owned()) },
            None => {
                if prefix.is_some() {
                    object.problem("scope_prefix", "only together with `scope_claim`");
                }
                ScopesOf::Fixed(scopes)
            }
        };
        let default_config = object.text("default_config").map(str::to_owned);
        check_config_id(&object, "default_config", default_config.as_deref(), configs);
        let allow_config_override = object.flag("allow_config_override").unwrap_or(true);
        let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
        let granted = object.texts("configs").map(names);
        let virtual_keys = object.texts("virtual_keys").map(names);
        let log = read_log(&mut object);
        let quota = Quota::read(&mut object);
        let metadata_claims = read_metadata_claims(&mut object);
        object.finish();
        Some(Self {
            issuer: issuer?,
            audience,
            keys: keys?,
            algorithms,
            caller_claim,
            tenant,
            scopes,
            default_config,
            allow_config_override,
            configs: granted,
            virtual_keys,
            log,
            quota,
            metadata_claims,
        })
    }
}

fn discovery(issuer: &str) -> String {
    format!("{}{DISCOVERY}", issuer.trim_end_matches('/'))
}

fn read_audience(object: &mut Object<'_>) -> Vec<String> {
    let audience = match object.required("audience") {
        Some(value) if value.is_string() => object.text("audience").into_iter().collect(),
        Some(_) => object.texts("audience").unwrap_or_default(),
        None => return Vec::new(),
    };
    if audience.is_empty() || audience.contains(&"") {
        object.problem(
            "audience",
            "not allowed; allowed: what tokens for this gateway have in `aud`, or a list",
        );
    }
    audience.into_iter().map(str::to_owned).collect()
}

fn read_keys(object: &mut Object<'_>, issuer: Option<&str>) -> Option<KeySource> {
    let file = object.text("jwks_file").map(PathBuf::from);
    let url = object.text("jwks_url").map(str::to_owned);
    match (url, file) {
        (Some(_), Some(_)) => {
            object.problem("jwks_file", "not together with `jwks_url`; allowed: one of them");
            None
        }
        (None, Some(file)) => Some(KeySource::File(file)),
        (Some(url), None) => match check_url(&url) {
            Ok(()) => Some(KeySource::Url(url)),
            Err(message) => {
                object.problem("jwks_url", message);
                None
            }
        },
        (None, None) => {
            let issuer = issuer?;
            if check_url(issuer).is_err() {
                let message = format!(
                    "\"{issuer}\" is no https URL, so its keys cannot be found by it; write `jwks_url` or `jwks_file`"
                );
                object.problem("issuer", message);
                return None;
            }
            Some(KeySource::Discovery(discovery(issuer)))
        }
    }
}

/// Whether keys may come from there: whoever can change them on their way can be anybody.
///
/// # Errors
/// What is allowed.
pub fn check_url(text: &str) -> Result<(), String> {
    let url = Url::parse(text).map_err(|error| format!("\"{text}\" is not a URL: {error}"))?;
    let is_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if url.scheme() == "https" || (url.scheme() == "http" && is_loopback) {
        return Ok(());
    }
    Err(format!(
        "\"{text}\" is not allowed; allowed: an https URL, or http on this machine (127.0.0.1, localhost)"
    ))
}

fn read_algorithms(object: &mut Object<'_>) -> Vec<Algorithm> {
    let Some(names) = object.texts("algorithms") else {
        return ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect();
    };
    let known: Vec<&str> = ALGORITHMS.iter().map(|(name, _)| *name).collect();
    if names.is_empty() {
        object.problem("algorithms", format!("the list is empty; allowed: {}", known.join(", ")));
    }
    let mut algorithms = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        match Algorithm::from_name(name) {
            Some(algorithm) => algorithms.push(algorithm),
            None => object.problem(
                &format!("algorithms.{i}"),
                format!("\"{name}\" is not allowed{}", suggestion(name, &known)),
            ),
        }
    }
    algorithms
}

/// A list of claims, or for each name in the metadata a claim.
fn read_metadata_claims(object: &mut Object<'_>) -> Vec<(String, String)> {
    const FIELD: &str = "metadata_claims";
    if object.value(FIELD).is_some_and(serde_json::Value::is_array) {
        let claims = object.texts(FIELD).unwrap_or_default().into_iter();
        return claims.map(|claim| (claim.to_owned(), claim.to_owned())).collect();
    }
    let mut claims = Vec::new();
    for (name, claim) in object.map(FIELD).into_iter().flatten() {
        match claim.as_str().filter(|claim| !claim.is_empty()) {
            Some(claim) => claims.push((name.clone(), claim.to_owned())),
            None => object.problem(&format!("{FIELD}.{name}"), "not allowed; allowed: the name of a claim"),
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use crate::config::{self, Settings, providers::Providers};

    fn read(yaml: &str) -> Result<Settings, Vec<String>> {
        config::read(yaml, &Providers::default(), &|_| None)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn everything_that_is_wrong_with_an_issuer_is_said() {
        let problems = read(
            "
jwt_issuers:
  - {issuer: 'http://idp.example', audience: [], tenant: a, tenant_claim: org}
  - {issuer: idp, audience: x, jwks_url: 'http://idp.example/keys', algorithms: [HS256, RS265]}
  - {issuer: 'https://idp.example', audience: x, jwks_url: 'https://a.example', jwks_file: /keys}
  - {issuer: 'https://idp.example', audience: x, scopes: [generat], scope_prefix: p}
  - {issuer: 'https://idp.example/', audience: x, audiance: x, default_config: hero}
  - {jwks_file: /keys}
",
        )
        .unwrap_err();
        let expected = [
            "jwt_issuers.0.audience: not allowed; allowed: what tokens for this gateway have in `aud`, or a list",
            "jwt_issuers.0.issuer: \"http://idp.example\" is no https URL, so its keys cannot be found by it",
            "jwt_issuers.0.tenant_claim: not together with `tenant`; allowed: one of them",
            "jwt_issuers.1.jwks_url: \"http://idp.example/keys\" is not allowed; allowed: an https URL",
            "jwt_issuers.1.algorithms.0: \"HS256\" is not allowed; did you mean",
            "jwt_issuers.1.algorithms.1: \"RS265\" is not allowed; did you mean \"RS256\"?",
            "jwt_issuers.2.jwks_file: not together with `jwks_url`; allowed: one of them",
            "jwt_issuers.3.scopes.0: unknown scope \"generat\"; did you mean \"generate\"?",
            "jwt_issuers.3.scope_prefix: only together with `scope_claim`",
            "jwt_issuers.4.issuer: another entry has the same issuer",
            "jwt_issuers.4.default_config: config \"hero\" does not exist",
            "jwt_issuers.4.audiance: unknown field; did you mean \"audience\"?",
            "jwt_issuers.5.issuer: Required",
            "jwt_issuers.5.audience: Required",
        ];
        for line in expected {
            assert!(problems.iter().any(|problem| problem.contains(line)), "{line}\n{problems:#?}");
        }
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    }

    #[test]
    fn an_api_key_cannot_be_named_like_the_caller_of_an_issuer() {
        let problems = read("api_keys: [{name: 'jwt:idp.example:alice', key: k}]").unwrap_err();
        assert!(problems[0].contains("api_keys.0.name"), "{problems:?}");
    }

    #[test]
    fn a_gateway_with_issuers_is_not_open() {
        let settings = read("jwt_issuers: [{issuer: 'https://idp.example', audience: imagegate}]").unwrap();
        assert!(!settings.callers.is_empty());
        let everywhere = config::file::Listen { http: "0.0.0.0:8787".parse().ok(), ..Default::default() };
        assert_eq!(settings.check_exposure(everywhere), Ok(()));
    }
}
