//! Tokens and keys, made here; only RSA's are written down, because they cannot be made with what there is.

use std::{fs, time::Duration};

use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
    },
};
use serde_json::{Value, json};

use super::{
    keys::{self, Key},
    token::Token,
    *,
};
use crate::config::{self, callers::Scope, providers::Providers};

const NOW: i64 = 1_800_000_000;

// By a key of 2048 bits that was made for this: {"iss": "https://idp.example", "aud": "imagegate", "sub": "alice"}.
const RSA_N: &str = "\
    3K81LNGA2gySqWx8rnqFACH9AqmkXjfUHhBi1Ug5ucQAujP93aSDikqHsZGWYLwhDrxuGwpThkSbiKhLncAwB5jav_hejZvg\
    uY1FsC0Hn5r6B5gkiCxxFVErUzsWdphIZYvGzLlMlS0fi-lTIfMJH7U22hmZGJh6EBmT4Ykm4Qj60JBAn-\
    7W2zzF3XIpBc5SZvOBfQprSgvF1HD6XlV-Z0mC_dtsB4T2dDwte2FaTM7M9idwF3YEMIojeHavsIyqV-ep6i2MoB6lb-\
    Mu26KeSym9WmeofOWd4oVzzPRJuB3AZ8RMzmg_jj3CQ72Xsfm3kjp_35Dqg5NnEqLdz0n7fw";
const RS256: &str = "\
    eyJhbGciOiAiUlMyNTYiLCAia2lkIjogInJzYSJ9.eyJpc3MiOiAiaHR0cHM6Ly9pZHAuZXhhbXBsZSIsICJhdWQiOiAiaW1\
    hZ2VnYXRlIiwgInN1YiI6ICJhbGljZSIsICJleHAiOiAxOTAwMDAwMDAwfQ.dFabM7jPttrjJRXj1jkpyih7bANsH0K2QNVq\
    F9J8L_cVwFNp58eonLae6cV2bTBtu12vHpNu4mWqm6sIitGLJPGjHz_dUSqDI8wyuBeKhHfNM4zGli252zJdiBZwcKspKocK\
    pqklPocJ3jgA1E3vs6zZ9viBSppKX-\
    r8Pa426Gl_eHsnb5QJLR7vbHC8Ivv3sSjsm8oPHPe1bF1QfI3o3FwAO4Ze9U5m04pB5O55WisUMsKW4C0R1RgNDo4bGDUG75\
    dozIVFjvqgXft4ebdGpaUb-gYp72Q_As-O07JTuWJmvE0GEBrY4BeUxFXHZ9jff1b2MdGPXW0EbSJsLphBuQ";
const PS256: &str = "\
    eyJhbGciOiAiUFMyNTYiLCAia2lkIjogInJzYSJ9.eyJpc3MiOiAiaHR0cHM6Ly9pZHAuZXhhbXBsZSIsICJhdWQiOiAiaW1\
    hZ2VnYXRlIiwgInN1YiI6ICJhbGljZSIsICJleHAiOiAxOTAwMDAwMDAwfQ.gTPgQ1UFx7U4Y9MUnbD6WfK82R4oioiM1UkD\
    t9zkjePq0kxtVoGIa8VbhijLR-EirbmGjhSCEOWy1gfzpEBymq8PHxDrfj35qck25zJHLE4hhMxzp0lwj7VGfO2x3kq3HMJM\
    5YdNUKlom_di8YwHz4gCyltzw3B3xSY4qapKLRIBnoGOmE84k1lmL3lNC8jtOoNt0ERE0p9TiIYufJlDPNHJeX6mxozUcXCB\
    0apwPY6W22A7muJb7b6f8NzMtKHPO390BCcD4QKLf4RkEPfzBjBkVE71F3oUAlnlcpPTH73Y91KT7-\
    _QjbM9iHoJzxxF46N142C-dwrKUCGNuqm5KQ";

/// Who signs.
enum Signer {
    Ecdsa(EcdsaKeyPair, &'static str, usize),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    fn es256() -> Self {
        Self::ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32)
    }

    fn ecdsa(how: &'static EcdsaSigningAlgorithm, curve: &'static str, length: usize) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        Self::Ecdsa(EcdsaKeyPair::from_pkcs8(how, pkcs8.as_ref(), &random).unwrap(), curve, length)
    }

    fn ed25519() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Ecdsa(pair, curve, length) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(*length);
                json!({"kty": "EC", "crv": curve, "kid": id, "use": "sig", "x": encode(x), "y": encode(y)})
            }
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": encode(pair.public_key().as_ref())})
            }
        }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = match self {
            Self::Ecdsa(pair, ..) => {
                pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", encode(&signature))
    }
}

fn encode(bytes: &[u8]) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes)
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()))
}

fn key_set(keys: &[Value]) -> Vec<Key> {
    keys::read(json!({"keys": keys}).to_string().as_bytes()).unwrap()
}

/// The claims of a good token, with some others.
fn claims(more: Value) -> Value {
    let mut claims = json!({
        "iss": "https://idp.example", "aud": "imagegate", "sub": "alice", "exp": NOW + 600, "iat": NOW,
    });
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

/// One issuer, as the file has it.
fn settings(more: &str) -> Vec<IssuerSettings> {
    let yaml =
        format!("jwt_issuers: [{{issuer: 'https://idp.example', audience: [imagegate, images]{more}}}]");
    config::read(&yaml, &Providers::default(), &|_| None).unwrap().callers.issuers
}

fn verify(token: &str, keys: &[Key], more: &str) -> std::result::Result<Caller, String> {
    let settings = settings(more);
    let token = Token::read(token).expect("looks like a token");
    token.verify(keys, &settings[0], NOW).map(|(_, caller)| caller).map_err(|error| {
        assert_eq!(error.status, 401);
        error.message.clone()
    })
}

#[test]
fn every_algorithm_is_verified_with_its_own_kind_of_key() {
    let rsa = json!({"kty": "RSA", "kid": "rsa", "n": RSA_N, "e": "AQAB"});
    let p256 = Signer::es256();
    let p384 = Signer::ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48);
    let ed25519 = Signer::ed25519();
    let of_no_use = [
        json!({"kty": "oct", "kid": "p256", "k": "c2VjcmV0"}),
        json!({"kty": "EC", "crv": "P-521", "kid": "p521", "x": "AA", "y": "AA"}),
        json!({"kty": "RSA", "kid": "enc", "use": "enc", "n": RSA_N, "e": "AQAB"}),
        json!("no key"),
    ];
    let mut all = vec![rsa, p256.jwk("p256"), p384.jwk("p384"), ed25519.jwk("ed")];
    all.extend(of_no_use);
    let keys = key_set(&all);
    assert_eq!(keys.len(), 4);
    let tokens = [
        RS256.to_owned(),
        PS256.to_owned(),
        p256.sign(&json!({"alg": "ES256", "kid": "p256"}), &claims(json!({}))),
        p384.sign(&json!({"alg": "ES384", "kid": "p384", "typ": "at+jwt"}), &claims(json!({}))),
        ed25519.sign(&json!({"alg": "EdDSA", "kid": "ed"}), &claims(json!({}))),
        ed25519.sign(&json!({"alg": "Ed25519"}), &claims(json!({}))),
    ];
    for token in &tokens {
        assert_eq!(verify(token, &keys, "").unwrap().id, "jwt:idp.example:alice", "{token}");
        // The last bits of the last letter may mean nothing.
        let at = token.len() - 10;
        let other = if &token[at..=at] == "A" { "B" } else { "A" };
        let tampered = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        assert_eq!(verify(&tampered, &keys, "").unwrap_err(), "the token has a wrong signature");
    }
    let other = verify(RS256, &keys, ", algorithms: [ES256]").unwrap_err();
    assert_eq!(other, "the token is not signed as its issuer's have to be; allowed: ES256");
}

#[test]
fn a_key_takes_only_the_algorithm_that_its_issuer_says() {
    let rsa = json!({"kty": "RSA", "kid": "rsa", "alg": "PS256", "n": RSA_N, "e": "AQAB"});
    assert!(verify(PS256, &key_set(std::slice::from_ref(&rsa)), "").is_ok());
    let why = verify(RS256, &key_set(&[rsa]), "").unwrap_err();
    assert_eq!(why, "the token is signed with a key that https://idp.example does not publish");
}

#[test]
fn tokens_that_nobody_has_signed_are_refused() {
    let signer = Signer::es256();
    let keys = key_set(&[signer.jwk("k")]);
    let good = claims(json!({}));
    let unsigned_one = format!("{}.", unsigned(&json!({"alg": "none"}), &good));
    // The public key, which everybody knows, as if it were a shared secret.
    let shared = unsigned(&json!({"alg": "HS256", "kid": "k"}), &good);
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, signer.jwk("k").to_string().as_bytes());
    let with_public_key =
        format!("{shared}.{}", encode(ring::hmac::sign(&secret, shared.as_bytes()).as_ref()));
    let signed = signer.sign(&json!({"alg": "ES256", "kid": "k"}), &good);
    let (head, signature) = signed.rsplit_once('.').unwrap();
    let (header, _) = head.split_once('.').unwrap();
    let other_claims = encode(claims(json!({"sub": "root"})).to_string().as_bytes());
    for (token, why) in [
        (unsigned_one, "is not signed as its issuer's have to be"),
        (with_public_key, "is not signed as its issuer's have to be"),
        (format!("{header}.{other_claims}.{signature}"), "has a wrong signature"),
        (format!("{head}."), "has a wrong signature"),
        (Signer::es256().sign(&json!({"alg": "ES256", "kid": "k"}), &good), "has a wrong signature"),
        (signer.sign(&json!({"alg": "ES256", "kid": "x"}), &good), "is signed with a key that"),
        (signer.sign(&json!({"alg": "ES256", "crit": ["b64"], "b64": false}), &good), "has critical headers"),
    ] {
        let refused = verify(&token, &keys, "").unwrap_err();
        assert!(refused.starts_with(&format!("the token {why}")), "{refused}");
    }
}

#[test]
fn a_token_without_the_name_of_a_key_may_be_signed_by_any() {
    let (first, second) = (Signer::es256(), Signer::es256());
    let keys = key_set(&[first.jwk("first"), second.jwk("second")]);
    let token = second.sign(&json!({"alg": "ES256"}), &claims(json!({})));
    assert_eq!(verify(&token, &keys, "").unwrap().name, "alice");
    let stranger = Signer::es256().sign(&json!({"alg": "ES256"}), &claims(json!({})));
    assert_eq!(verify(&stranger, &keys, "").unwrap_err(), "the token has a wrong signature");
}

#[test]
fn claims_that_do_not_hold_are_said() {
    let signer = Signer::es256();
    let keys = key_set(&[signer.jwk("k")]);
    let without = |name: &str| {
        let mut claims = claims(json!({}));
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let audience = "is for another audience (aud); allowed: imagegate, images";
    let caller = "has no sub that can be used; allowed: a text of 1 to 255 characters";
    for (claims, why) in [
        (claims(json!({"exp": NOW - 60})), "expired at 2027-01-15T07:59:00Z"),
        (claims(json!({"exp": NOW - 59})), ""),
        (claims(json!({"exp": 1.8e9 + 0.5})), ""),
        (claims(json!({"exp": "soon"})), "has no time in exp; allowed: seconds since 1970"),
        (without("exp"), "never expires: it has no exp"),
        (claims(json!({"nbf": NOW + 61})), "is not valid before 2027-01-15T08:01:01Z (nbf)"),
        (claims(json!({"nbf": NOW + 60})), ""),
        (claims(json!({"iss": "https://idp.example/"})), "has another issuer (iss)"),
        (claims(json!({"aud": "imagegate-2"})), audience),
        (claims(json!({"aud": ["other", "images"]})), ""),
        (claims(json!({"aud": []})), audience),
        (without("aud"), audience),
        (without("sub"), caller),
        (claims(json!({"sub": 7})), caller),
        (claims(json!({"sub": "a\u{0}b"})), caller),
        (claims(json!({"sub": "a".repeat(256)})), caller),
    ] {
        let token = signer.sign(&json!({"alg": "ES256", "kid": "k"}), &claims);
        match verify(&token, &keys, "") {
            Ok(_) => assert_eq!(why, "", "{claims}"),
            Err(refused) => assert_eq!(refused, format!("the token {why}"), "{claims}"),
        }
    }
}

#[test]
fn claims_say_who_calls_and_what_it_may_do() {
    let signer = Signer::es256();
    let keys = key_set(&[signer.jwk("k")]);
    let token = signer.sign(
        &json!({"alg": "ES256"}),
        &claims(json!({
            "org": "acme", "azp": "batch", "team": "blue", "level": 3, "list": ["a"],
            "scope": "openid imagegate:generate admin imagegate:unknown imagegate:logs",
            "realm_access": {"roles": ["keys", "offline"]},
        })),
    );
    let plain = verify(&token, &keys, "").unwrap();
    assert_eq!((plain.tenant.as_str(), &plain.scopes), ("default", &[Scope::Generate].into()));
    let fixed = verify(&token, &keys, ", tenant: acme, scopes: [configs], virtual_keys: [v]").unwrap();
    assert_eq!((fixed.tenant.as_str(), fixed.scopes), ("acme", [Scope::Configs].into()));
    assert_eq!(fixed.virtual_keys, Some(["v".to_owned()].into()));
    let said = verify(
        &token,
        &keys,
        ", tenant_claim: org, scope_claim: scope, caller_claim: azp, allow_config_override: false, \
         metadata_claims: {_user: sub, team: team, level: level, list: list, none: none}",
    )
    .unwrap();
    assert_eq!(said.id, "jwt:idp.example:acme/batch");
    assert_eq!((said.tenant.as_str(), said.scopes), ("acme", [Scope::Generate, Scope::Logs].into()));
    assert!(!said.allow_config_override);
    assert_eq!(Value::Object(said.metadata), json!({"_user": "alice", "team": "blue", "level": "3"}));
    let nested = ", scope_claim: realm_access.roles, scope_prefix: '', metadata_claims: [team]";
    let nested = verify(&token, &keys, nested).unwrap();
    assert_eq!((nested.scopes, nested.metadata.len()), ([Scope::Keys].into(), 1));
    let no_tenant = verify(&token, &keys, ", tenant_claim: realm_access").unwrap_err();
    assert!(no_tenant.starts_with("the token has no realm_access that can be used"), "{no_tenant}");
}

#[test]
fn callers_of_different_issuers_are_never_the_same() {
    let name = |issuer: &str| {
        let yaml = format!("jwt_issuers: [{{issuer: '{issuer}', audience: x, jwks_file: /k}}]");
        config::read(&yaml, &Providers::default(), &|_| None).unwrap().callers.issuers[0].short_name()
    };
    let issuers =
        ["https://a.example", "https://a.example:8443", "http://a.example", "https://a.example/realms/x"];
    let names: std::collections::BTreeSet<_> = issuers.iter().map(|issuer| name(issuer)).collect();
    assert_eq!(names.len(), issuers.len());
    assert!(names.iter().all(|name| !name.contains(':')), "{names:?}");
}

#[test]
fn what_is_no_token_is_none() {
    for text in
        ["", "ig_0123", "sk-proj.a.b", "ey.ey.ey", "eyJhIjoxfQ.eyJhIjoxfQ.x", "a.b", "ey..", "eyJ.eyJ.a.b.c"]
    {
        assert!(Token::read(text).is_none(), "{text}");
    }
    let long = Signer::es256().sign(&json!({"alg": "ES256"}), &claims(json!({"x": "x".repeat(20_000)})));
    assert!(Token::read(&long).is_none());
}

/// What a gateway is told of a token, and whether it takes it for its own.
fn told(issuers: &Issuers, token: &str) -> std::result::Result<String, u16> {
    assert!(issuers.vouch_for(token));
    issuers.caller(token).unwrap().map(|caller| caller.id.clone()).map_err(|error| error.status)
}

#[tokio::test(start_paused = true)]
async fn keys_are_kept_while_they_are_away_and_changed_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    let named = settings(&format!(", jwks_file: '{}'", file.display()));
    let issuers = Issuers::new(&named, None, None);
    let look = async || {
        tokio::time::advance(Duration::from_secs(1)).await;
        issuers.look().await;
    };
    let (old, new) = (Signer::es256(), Signer::es256());
    let token = |signer: &Signer, id: &str| {
        let claims = claims(json!({"exp": pb::unix_now() + 600}));
        signer.sign(&json!({"alg": "ES256", "kid": id}), &claims)
    };
    let (first, second) = (token(&old, "old"), token(&new, "new"));
    look().await;
    assert_eq!(told(&issuers, &first), Err(503));
    let write = |keys: &[Value]| fs::write(&file, json!({"keys": keys}).to_string()).unwrap();
    write(&[old.jwk("old")]);
    look().await;
    assert_eq!(told(&issuers, &first).unwrap(), "jwt:idp.example:alice");
    assert_eq!(told(&issuers, &second), Err(401));
    fs::remove_file(&file).unwrap();
    look().await;
    assert!(told(&issuers, &first).is_ok());
    // Perhaps it would be known if the keys could be had.
    assert_eq!(told(&issuers, &second), Err(503));
    fs::write(&file, "<html>").unwrap();
    look().await;
    assert!(told(&issuers, &first).is_ok());
    write(&[new.jwk("new")]);
    look().await;
    assert!(told(&issuers, &second).is_ok());
    assert_eq!(told(&issuers, &first), Err(401), "it was verified with a key that is gone");
    // A change of something else in the configuration forgets nothing.
    let others = settings(&format!(", jwks_file: '{}', scopes: [logs]", file.display()));
    let again = Issuers::new(&[named, others].concat(), None, Some(&issuers));
    assert!(told(&again, &second).is_ok());
}

#[test]
fn a_token_of_another_issuer_is_nobodys_here() {
    let issuers = Issuers::new(&settings(", jwks_file: /k"), None, None);
    let stranger = claims(json!({"iss": "https://other.example"}));
    let token = Signer::es256().sign(&json!({"alg": "ES256"}), &stranger);
    assert!(!issuers.vouch_for(&token));
    let error = issuers.caller(&token).unwrap().unwrap_err();
    assert_eq!(error.message, "the token is from an issuer (iss) that this gateway does not know");
    assert!(issuers.caller("ig_0123").is_none());
    assert!(Issuers::default().caller(&token).is_none());
}
