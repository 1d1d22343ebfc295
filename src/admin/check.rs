//! What may be saved, field by field.

use secrecy::ExposeSecret as _;

use crate::{
    config::{Problem, callers::Scope, file::is_config_id, read::suggestion, spec::Secret},
    error::{Error, Result},
    pb,
};

const LONGEST_NAME: usize = 255;
const LONGEST_SLUG: usize = 128;
const LONGEST_METADATA: usize = 16 << 10;

/// Everything that is wrong with a config or a key.
pub fn refused(field: &str, problems: Vec<Problem>) -> Error {
    let violations =
        problems.into_iter().map(|problem| pb::Violation { path: problem.path, message: problem.message });
    let mut error = Error::config(&format!("{field}: not valid"), violations.collect());
    error.param = Some(field.to_owned());
    error
}

/// A name for people.
pub fn name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::invalid("name", "name: Required"));
    }
    if name.chars().count() > LONGEST_NAME {
        return Err(Error::invalid("name", format!("name: too long; allowed: {LONGEST_NAME} characters")));
    }
    Ok(())
}

/// A slug that somebody chose; empty: nobody did.
pub fn slug(slug: &str) -> Result<()> {
    if slug.is_empty() || (is_config_id(slug) && slug.len() <= LONGEST_SLUG) {
        return Ok(());
    }
    let message = format!(
        "\"{slug}\" is not allowed; allowed: a letter, then letters, digits, `-`, `_` and `.`, {LONGEST_SLUG} in all"
    );
    Err(Error::invalid("slug", message))
}

/// A time that is still to come.
pub fn expiry(ms: Option<i64>) -> Result<Option<i64>> {
    match ms {
        Some(ms) if ms <= pb::unix_now_ms() => {
            Err(Error::invalid("expires_at", format!("expires_at: {ms} (ms since 1970) has passed")))
        }
        ms => Ok(ms),
    }
}

/// Names of scopes.
pub fn scopes(names: &[String]) -> Result<()> {
    match names.iter().find(|name| Scope::from_name(name).is_none()) {
        None => Ok(()),
        Some(name) => {
            let hint = suggestion(name, &Scope::names());
            Err(Error::invalid("scopes", format!("scopes: unknown scope \"{name}\"{hint}")))
        }
    }
}

/// An opinion.
pub fn feedback(value: Option<i32>, weight: Option<f64>, metadata: Option<&str>) -> Result<()> {
    if let Some(value) = value.filter(|value| !(-10..=10).contains(value)) {
        return Err(Error::invalid("value", format!("value: {value} is not allowed; allowed: -10 to 10")));
    }
    if let Some(weight) = weight.filter(|weight| !(0.0..=1.0).contains(weight)) {
        return Err(Error::invalid("weight", format!("weight: {weight} is not allowed; allowed: 0 to 1")));
    }
    let metadata = metadata.filter(|text| !text.is_empty());
    let is_object =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| value.is_object());
    if metadata.is_some_and(|text| text.len() > LONGEST_METADATA || !is_object(text)) {
        let message =
            format!("metadata: not allowed; allowed: a JSON object of up to {LONGEST_METADATA} bytes");
        return Err(Error::invalid("metadata", message));
    }
    Ok(())
}

/// What the log keeps of a key's requests.
pub fn log(policy: Option<pb::LogPolicy>) -> Result<Option<pb::LogPolicy>> {
    match policy {
        Some(policy) if pb::KeptImages::try_from(policy.images).is_err() => {
            let message =
                format!("log.images: {} is not allowed; allowed: none, thumbnails, full", policy.images);
            Err(Error::invalid("log.images", message))
        }
        policy => Ok(policy),
    }
}

/// A key for the one who made it.
pub fn shown_once(key: &Secret) -> String {
    key.0.expose_secret().to_owned()
}
