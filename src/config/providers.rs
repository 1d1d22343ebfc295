//! Which providers a config can name, and what each wants to see.

use std::collections::BTreeMap;

use crate::pb;

/// Providers by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Providers(BTreeMap<String, Wants>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wants {
    credentials: Credentials,
    /// Which settings it knows. None: that is its own business.
    settings: Option<Vec<String>>,
}

/// What a provider takes in place of an API key: settings of these names together, for each way there is.
/// Without any, it needs nothing.
type Credentials = Vec<Vec<String>>;

impl Providers {
    /// Adds a provider by its record.
    #[must_use]
    pub fn with(mut self, record: &pb::Provider) -> Self {
        let mut ways: Credentials = record.credentials.iter().map(|way| way.options.clone()).collect();
        if record.keyless {
            ways.push(Vec::new());
        }
        let wants = Wants { credentials: ways, settings: Some(record.settings.clone()) };
        self.0.insert(record.name.clone(), wants);
        self
    }

    /// Adds the worker of an operator's own, unless it stands in for a provider that is known: whether it wants a
    /// credential is between the two of them.
    #[must_use]
    pub fn with_own(mut self, name: &str) -> Self {
        let keyless = || Wants { credentials: vec![Vec::new()], settings: None };
        self.0.entry(name.to_owned()).or_insert_with(keyless);
        self
    }

    /// The same with several.
    #[must_use]
    pub fn with_all_own(self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        names.into_iter().fold(self, |all, name| all.with_own(name.as_ref()))
    }

    /// Whether there is this provider.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// In alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// Whether a provider can be called without an API key, given the settings that there are.
    pub fn does_without_key(&self, name: &str, has: impl Fn(&str) -> bool) -> bool {
        self.ways(name).any(|way| way.iter().all(|option| has(option)))
    }

    /// Whether a provider needs nothing at all.
    pub fn is_keyless(&self, name: &str) -> bool {
        self.does_without_key(name, |_| false)
    }

    /// What to write instead of an API key, for messages: `aws_access_key_id and aws_secret_access_key`.
    pub fn instead_of_key(&self, name: &str) -> String {
        self.ways(name).map(|way| way.join(" and ")).collect::<Vec<_>>().join(", or ")
    }

    fn ways(&self, name: &str) -> impl Iterator<Item = &Vec<String>> {
        self.0.get(name).into_iter().flat_map(|wants| &wants.credentials)
    }

    /// The settings that a provider knows, if there are no others.
    pub fn settings(&self, name: &str) -> Option<Vec<&str>> {
        let settings = self.0.get(name)?.settings.as_ref()?;
        Some(settings.iter().map(String::as_str).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_can_stand_for_a_key() {
        let way = |options: &[&str]| pb::CredentialOptions {
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let record = pb::Provider {
            name: "cloud".into(),
            credentials: vec![way(&["id", "secret"]), way(&["role"])],
            ..Default::default()
        };
        let providers = Providers::default().with(&record).with_own("mine").with_own("cloud");
        let does = |options: &[&str]| providers.does_without_key("cloud", |name| options.contains(&name));
        assert!(does(&["id", "secret"]) && does(&["role"]));
        assert!(!does(&["id"]) && !does(&[]) && !providers.is_keyless("cloud"));
        assert!(providers.is_keyless("mine"));
        assert!(!providers.is_keyless("nobody"));
        assert_eq!(providers.instead_of_key("cloud"), "id and secret, or role");
    }
}
