//! What may be saved, field by field.

use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::{
    config::{Problem, callers::Scope, file::is_config_id, read::suggestion, spec::Secret},
    error::{Error, Result},
    pb,
};

const LONGEST_NAME: usize = 255;
const LONGEST_SLUG: usize = 128;
const LONGEST_METADATA: usize = 16 << 10;

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

/// A key for the one who made it.
pub fn shown_once(key: &Secret) -> String {
    key.0.expose_secret().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
