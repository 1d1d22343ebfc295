//! Changes of what was saved: what is given replaces what was there.

use super::check;
use crate::{
    error::{Error, Result},
    pb::{ApiKey, Grant, KeyStatus, Names, UpdateApiKeyRequest},
};

/// An API key as it will be.
///
/// # Errors
/// What is wrong with the change, whatever the key.
pub fn of_api_key(mut record: ApiKey, change: UpdateApiKeyRequest) -> Result<ApiKey> {
    if let Some(name) = change.name {
        check::name(&name)?;
        record.name = name;
    }
    if let Some(scopes) = change.scopes {
        check::scopes(&scopes.names)?;
        record.scopes = scopes.names;
    }
    if let Some(config) = change.default_config {
        record.default_config = config;
    }
    if let Some(metadata) = change.metadata {
        check::metadata(&metadata.values)?;
        record.metadata = metadata.values;
    }
    if let Some(grant) = change.configs {
        record.configs = granted("configs", grant)?;
    }
    if let Some(grant) = change.virtual_keys {
        record.virtual_keys = granted("virtual_keys", grant)?;
    }
    record.allow_config_override = change.allow_config_override.unwrap_or(record.allow_config_override);
    record.expires_unix_ms = match change.expires_unix_ms {
        None => record.expires_unix_ms,
        Some(0) => None,
        given => check::expiry(given)?,
    };
    if change.log.is_some() {
        record.log = check::log(change.log)?;
    }
    if change.quota.is_some() {
        record.quota = check::quota(change.quota)?;
    }
    match change.disabled {
        Some(true) => record.status = KeyStatus::Disabled.into(),
        Some(false) => record.status = KeyStatus::Active.into(),
        None => {}
    }
    Ok(record)
}

fn granted(field: &str, grant: Grant) -> Result<Option<Names>> {
    match grant {
        Grant { all: true, names } if names.is_empty() => Ok(None),
        Grant { all: true, .. } => {
            let message = format!("{field}: all and names are not allowed together; allowed: one of them");
            Err(Error::invalid(field, message))
        }
        Grant { all: false, names } => Ok(Some(Names { names })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::Metadata;

    fn change() -> UpdateApiKeyRequest {
        UpdateApiKeyRequest::default()
    }

    fn record() -> ApiKey {
        ApiKey {
            name: "batch".into(),
            scopes: vec!["generate".into()],
            metadata: [("team".to_owned(), "red".to_owned())].into(),
            configs: Some(Names { names: vec!["a".into()] }),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        assert_eq!(of_api_key(record(), change()).unwrap(), record());
    }

    #[test]
    fn metadata_and_grants_are_replaced_as_a_whole() {
        let changed = of_api_key(
            record(),
            UpdateApiKeyRequest {
                metadata: Some(Metadata { values: [("env".to_owned(), "prod".to_owned())].into() }),
                configs: Some(Grant { all: true, names: Vec::new() }),
                virtual_keys: Some(Grant { all: false, names: vec!["v".into()] }),
                ..change()
            },
        )
        .unwrap();
        assert_eq!(changed.metadata.keys().collect::<Vec<_>>(), ["env"]);
        assert_eq!(changed.configs, None);
        assert_eq!(changed.virtual_keys, Some(Names { names: vec!["v".into()] }));
        let emptied = UpdateApiKeyRequest {
            metadata: Some(Metadata::default()),
            configs: Some(Grant::default()),
            ..change()
        };
        let emptied = of_api_key(record(), emptied).unwrap();
        assert!(emptied.metadata.is_empty() && emptied.configs == Some(Names::default()));
    }

    #[test]
    fn a_change_that_cannot_be_is_refused_by_its_field() {
        let both = Grant { all: true, names: vec!["a".into()] };
        for (change, field) in [
            (UpdateApiKeyRequest { configs: Some(both.clone()), ..change() }, "configs"),
            (UpdateApiKeyRequest { virtual_keys: Some(both), ..change() }, "virtual_keys"),
            (UpdateApiKeyRequest { scopes: Some(Names::default()), ..change() }, "scopes"),
            (UpdateApiKeyRequest { name: Some("a\0".into()), ..change() }, "name"),
        ] {
            assert_eq!(of_api_key(record(), change).unwrap_err().param.as_deref(), Some(field));
        }
    }
}
