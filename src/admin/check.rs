//! What may be saved, field by field.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::{
    config::{Problem, callers::Scope, file::is_config_id, quota::Quota, read::suggestion, spec::Secret},
    error::{Error, Result},
    pb::{self, CacheStatus, RequestFilter},
};

const LONGEST_NAME: usize = 255;
const LONGEST_SLUG: usize = 128;
const LONGEST_METADATA: usize = 16 << 10;

/// More than any image costs, and few enough billionths to be counted.
const MOST_USD: f64 = 1e9;

/// How the names of fields end that hold credentials, in lower case and without `_`.
const CREDENTIALS: &[&str] = &["apikey", "accesskey", "secret", "token", "serviceaccountjson", "password"];

/// Everything that is wrong with a config or a key.
pub fn refused(field: &str, problems: Vec<Problem>) -> Error {
    let violations =
        problems.into_iter().map(|problem| pb::Violation { path: problem.path, message: problem.message });
    let mut error = Error::config(&format!("{field}: not valid"), violations.collect());
    error.param = Some(field.to_owned());
    error
}

/// A config without credentials: everybody who manages configs reads what is saved, and it is not sealed.
pub fn no_credentials(config: &Value) -> Result<()> {
    let mut problems = Vec::new();
    find_credentials(config, "", &mut problems);
    if problems.is_empty() { Ok(()) } else { Err(refused("config", problems)) }
}

fn find_credentials(value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                find_credentials(item, &format!("{path}[{i}]"), problems);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                // What goes to a provider is the provider's business.
                if matches!(
                    name.as_str(),
                    "override_params" | "overrideParams" | "default_params" | "defaultParams"
                ) {
                    continue;
                }
                let plain = name.to_ascii_lowercase().replace('_', "");
                if field.is_string() && CREDENTIALS.iter().any(|end| plain.ends_with(end)) {
                    let message = "a credential is not saved in a config; make a virtual key and name it";
                    problems.push(Problem::new(at(name), message));
                } else {
                    find_credentials(field, &at(name), problems);
                }
            }
        }
        _ => {}
    }
}

/// A name for people.
pub fn name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::invalid("name", "name: Required"));
    }
    if name.chars().count() > LONGEST_NAME {
        return Err(Error::invalid("name", format!("name: too long; allowed: {LONGEST_NAME} characters")));
    }
    line("name", name)
}

/// A text without control characters: they do not belong into names, keys and addresses, and PostgreSQL keeps no NUL.
/// The text is not shown, because it may be a key.
pub fn line(field: &str, text: &str) -> Result<()> {
    no_controls(field, text, &[])
}

/// A text that may have several lines.
pub fn lines(field: &str, text: &str) -> Result<()> {
    no_controls(field, text, &['\n', '\r', '\t'])
}

fn no_controls(field: &str, text: &str, but: &[char]) -> Result<()> {
    match text.chars().find(|c| c.is_control() && !but.contains(c)) {
        None => Ok(()),
        Some(c) => {
            let message = format!("{field}: has the control character U+{:04X}; allowed: text", u32::from(c));
            Err(Error::invalid(field, message))
        }
    }
}

/// What an API key puts under the metadata of its requests.
pub fn metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut bytes = 0;
    for (name, value) in metadata {
        if name.is_empty() {
            return Err(Error::invalid("metadata", "metadata: a name is empty"));
        }
        line("metadata", name)?;
        lines("metadata", value)?;
        bytes += name.len() + value.len();
    }
    if bytes > LONGEST_METADATA {
        let message = format!("metadata: too long; allowed: {LONGEST_METADATA} bytes in all");
        return Err(Error::invalid("metadata", message));
    }
    Ok(())
}

/// Which requests are meant. What can hold for none is a mistake, not a search that finds nothing.
pub fn filter(filter: &RequestFilter) -> Result<()> {
    let status = filter.cache_status.as_str();
    let known = CacheStatus::names();
    if !status.is_empty() && !known.contains(&status) {
        let hint = suggestion(status, &known);
        return Err(Error::invalid(
            "cache_status",
            format!("cache_status: \"{status}\" is not allowed{hint}"),
        ));
    }
    for (field, usd) in [("min_cost_usd", filter.min_cost_usd), ("max_cost_usd", filter.max_cost_usd)] {
        if let Some(usd) = usd.filter(|usd| !(0.0..=MOST_USD).contains(usd)) {
            let message = format!("{field}: {usd} is not allowed; allowed: 0 to {MOST_USD} dollars");
            return Err(Error::invalid(field, message));
        }
    }
    if let Some(status) = filter.statuses.iter().find(|status| !(100..=599).contains(*status)) {
        let message = format!("statuses: {status} is not an HTTP status; allowed: 100 to 599");
        return Err(Error::invalid("statuses", message));
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

/// Names of scopes. A key that may do nothing is disabled rather than kept so.
pub fn scopes(names: &[String]) -> Result<()> {
    if names.is_empty() {
        let message = format!("scopes: Required; allowed: one or several of {}", Scope::names().join(", "));
        return Err(Error::invalid("scopes", message));
    }
    match names.iter().find(|name| Scope::from_name(name).is_none()) {
        None => Ok(()),
        Some(name) => {
            let hint = suggestion(name, &Scope::names());
            Err(Error::invalid("scopes", format!("scopes: unknown scope \"{name}\"{hint}")))
        }
    }
}

/// Limits; none where nothing is limited.
pub fn quota(message: Option<pb::Quota>) -> Result<Option<pb::Quota>> {
    let Some(message) = message else { return Ok(None) };
    match Quota::try_from(&message) {
        Ok(quota) => Ok(quota.message()),
        Err(problems) => Err(refused("quota", problems)),
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
    lines("metadata", metadata.unwrap_or_default())?;
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
                format!("log.images: {} is not allowed; {}", policy.images, pb::KeptImages::allowed());
            Err(Error::invalid("log.images", message))
        }
        policy => Ok(policy),
    }
}

/// A key for the one who made it.
pub fn shown_once(key: &Secret) -> String {
    key.0.expose_secret().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_characters_are_refused_with_the_field_and_not_the_text() {
        for check in
            [line("key", "sk-secret\0"), line("key", "sk-secret\n"), lines("key", "sk-secret\u{1b}[2J")]
        {
            let error = check.unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("key")));
            assert!(error.message.starts_with("key: has the control character U+0"), "{}", error.message);
            assert!(!error.message.contains("secret"));
        }
        assert!(line("name", "Überraschung \u{1f3a8}").is_ok() && lines("note", "a\n\tb\r\n").is_ok());
        assert!(name("a\u{7f}").is_err());
        let metadata_of = |name: &str, value: &str| metadata(&[(name.to_owned(), value.to_owned())].into());
        assert!(metadata_of("team", "a\nb").is_ok());
        for (name, value) in [("te\0am", "a"), ("team", "\0"), ("", "a"), ("team", &*"x".repeat(17 << 10))] {
            assert_eq!(metadata_of(name, value).unwrap_err().param.as_deref(), Some("metadata"));
        }
        assert!(feedback(None, None, Some("{}\0")).unwrap_err().message.contains("U+0000"));
    }

    #[test]
    fn a_filter_that_nothing_can_match_is_a_mistake() {
        let base = RequestFilter::default;
        for (wrong, field) in [
            (RequestFilter { cache_status: "hits".into(), ..base() }, "cache_status"),
            (RequestFilter { min_cost_usd: Some(f64::NAN), ..base() }, "min_cost_usd"),
            (RequestFilter { max_cost_usd: Some(-0.5), ..base() }, "max_cost_usd"),
            (RequestFilter { max_cost_usd: Some(f64::INFINITY), ..base() }, "max_cost_usd"),
            (RequestFilter { statuses: vec![200, 20], ..base() }, "statuses"),
        ] {
            let error = filter(&wrong).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(field)));
            assert!(error.message.contains("allowed") || error.message.contains("did you mean"), "{error:?}");
        }
        let good = RequestFilter { cache_status: "semantic_hit".into(), min_cost_usd: Some(0.0), ..base() };
        assert!(filter(&good).is_ok() && filter(&base()).is_ok());
    }

    #[test]
    fn a_config_with_a_credential_anywhere_is_not_saved() {
        let clean =
            json!({"targets": [{"virtual_key": "v", "override_params": {"token": "red", "api_key": "x"}}]});
        assert!(no_credentials(&clean).is_ok());
        for (config, path) in [
            (json!({"provider": "openai", "api_key": "sk"}), "api_key"),
            (json!({"targets": [{}, {"provider": "openai", "apiKey": "sk"}]}), "targets[1].apiKey"),
            (
                json!({"targets": [{"targets": [{"aws_secret_access_key": "s"}]}]}),
                "targets[0].targets[0].aws_secret_access_key",
            ),
            (json!({"azure_ad_token": "t"}), "azure_ad_token"),
            (json!({"vertex_service_account_json": "{}"}), "vertex_service_account_json"),
        ] {
            let error = no_credentials(&config).unwrap_err();
            let paths: Vec<_> = error.violations.iter().map(|violation| violation.path.as_str()).collect();
            assert_eq!(paths, [path]);
        }
    }
}
