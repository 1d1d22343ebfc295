//! What was saved while the gateway runs, put beside what the file says: virtual keys, configs and callers of each tenant.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde_json::{Map, Value, json};

use super::{
    Problem, Settings,
    callers::{Caller, Scope},
    file::read_virtual_key,
    plan::{self, Credential, Known, Plan, Upstream},
    providers::Providers,
    quota::Quota,
    read::{Object, Problems},
    spec::Secret,
};
use crate::{pb::LogPolicy, quota::Metered};

/// The tenant of callers for whom nobody names another.
pub const DEFAULT_TENANT: &str = "default";

/// Everything that was saved, of all tenants.
#[derive(Debug, Default)]
pub struct Saved {
    /// Grows with every change.
    pub revision: i64,
    /// Credentials.
    pub virtual_keys: Vec<SavedKey>,
    /// Routing configs.
    pub configs: Vec<SavedConfig>,
    /// Callers, once for each key that works.
    pub callers: Vec<SavedCaller>,
}

/// A caller that was saved, with one of its keys.
#[derive(Debug)]
pub struct SavedCaller {
    /// Of the key.
    pub digest: [u8; 32],
    /// When the key stops working, in ms since 1970.
    pub expires_ms: Option<i64>,
    /// Whose it is.
    pub caller: Caller,
}

/// A credential that was saved.
#[derive(Debug)]
pub struct SavedKey {
    /// Whose it is.
    pub tenant: String,
    /// Its id in headers and configs.
    pub slug: String,
    /// Provider id.
    pub provider: String,
    /// Replaces the provider's address; empty: it does not.
    pub base_url: String,
    /// What is kept under seal; none: it cannot be opened with the keys there are.
    pub secrets: Option<KeySecrets>,
    /// It must not be used.
    pub is_disabled: bool,
    /// When it stops working, in ms since 1970.
    pub expires_ms: Option<i64>,
    /// How much may be asked with it.
    pub quota: Quota,
}

/// What is kept under seal.
#[derive(Clone, Debug)]
pub struct KeySecrets {
    /// The credential, for providers that want one.
    pub key: Option<Secret>,
    /// The provider's own settings.
    pub options: BTreeMap<String, Secret>,
}

/// A routing config that was saved.
pub struct SavedConfig {
    /// Whose it is.
    pub tenant: String,
    /// As `x-portkey-config` names it.
    pub slug: String,
    /// From 1.
    pub version: u32,
    /// JSON.
    pub content: String,
    /// For callers without a default of their own.
    pub is_default: bool,
}

/// What one tenant's callers can name.
#[derive(Clone, Debug, Default)]
pub struct Realm {
    /// The file's and the tenant's own, which win.
    pub virtual_keys: BTreeMap<String, Arc<Upstream>>,
    /// The tenant's own.
    pub configs: BTreeMap<String, Version>,
    /// For callers without a default of their own.
    pub default_config: Option<String>,
}

/// A config as it is in force.
#[derive(Clone, Debug)]
pub struct Version {
    /// From 1; 0: it stands in the file.
    pub number: u32,
    /// What is run, or why it cannot be.
    pub plan: Result<Arc<Plan>, String>,
}

// Without the content: a credential of its caller's own may be in it.
impl fmt::Debug for SavedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedConfig")
            .field("tenant", &self.tenant)
            .field("slug", &self.slug)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Saved {
    /// When something of it expires next.
    pub fn next_expiry(&self, now_ms: i64) -> Option<i64> {
        let keys = self.virtual_keys.iter().filter_map(|key| key.expires_ms);
        let callers = self.callers.iter().filter_map(|caller| caller.expires_ms);
        keys.chain(callers).filter(|at| *at > now_ms).min()
    }
}

impl Settings {
    /// These settings with what was saved and has not expired. Whoever holds them asks again at
    /// [`Saved::next_expiry`]: the store need not be there for that.
    #[must_use]
    pub fn joined(&self, saved: &Saved, providers: &Providers, now_ms: i64) -> Self {
        let mut joined = self.clone();
        joined.tenants = BTreeMap::new();
        for key in &saved.virtual_keys {
            let upstream = key.upstream(self, providers, now_ms);
            joined.realm_mut(&key.tenant).virtual_keys.insert(key.slug.clone(), Arc::new(upstream));
        }
        for config in &saved.configs {
            let plan = serde_json::from_str(&config.content).map_err(|error| error.to_string()).and_then(
                |content| {
                    joined.check_config(&config.tenant, &content, providers).map_err(|problems| {
                        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                    })
                },
            );
            let realm = joined.realm_mut(&config.tenant);
            if config.is_default {
                realm.default_config = Some(config.slug.clone());
            }
            let version = Version { number: config.version, plan: plan.map(Arc::new) };
            realm.configs.insert(config.slug.clone(), version);
        }
        for SavedCaller { digest, expires_ms, caller } in &saved.callers {
            if !has_passed(*expires_ms, now_ms) {
                joined.callers.insert(*digest, Arc::new(caller.clone()));
            }
        }
        joined
    }

    /// Checks a routing config that a tenant wants to save.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check_config(
        &self,
        tenant: &str,
        config: &Value,
        providers: &Providers,
    ) -> Result<Plan, Vec<Problem>> {
        let known = Known {
            providers,
            virtual_keys: self.virtual_keys_of(tenant),
            egress: &self.egress,
            // Whoever saves configs is not the operator: their hosts are guarded like those of a request.
            from_caller: true,
        };
        Plan::try_new(config, "", known)
    }

    /// Every virtual key that a tenant's callers can name.
    pub fn virtual_keys_of(&self, tenant: &str) -> &BTreeMap<String, Arc<Upstream>> {
        self.tenants.get(tenant).map_or(&self.virtual_keys, |realm| &realm.virtual_keys)
    }

    /// A config that a tenant's callers can name.
    pub fn config_of(&self, tenant: &str, id: &str) -> Option<Version> {
        let own = self.tenants.get(tenant).and_then(|realm| realm.configs.get(id));
        own.cloned().or_else(|| Some(Version { number: 0, plan: Ok(Arc::clone(self.configs.get(id)?)) }))
    }

    /// The config of a tenant's requests that name no route.
    pub fn default_config_of(&self, tenant: &str) -> Option<&String> {
        let own = self.tenants.get(tenant).and_then(|realm| realm.default_config.as_ref());
        own.or(self.default_config.as_ref())
    }

    fn realm_mut(&mut self, tenant: &str) -> &mut Realm {
        let virtual_keys = &self.virtual_keys;
        self.tenants
            .entry(tenant.to_owned())
            .or_insert_with(|| Realm { virtual_keys: virtual_keys.clone(), ..Realm::default() })
    }
}

fn has_passed(expires_ms: Option<i64>, now_ms: i64) -> bool {
    expires_ms.is_some_and(|at| at <= now_ms)
}

impl SavedKey {
    /// As it is called. One that cannot be used stays known, so that configs with it keep their other targets.
    fn upstream(&self, settings: &Settings, providers: &Providers, now_ms: i64) -> Upstream {
        let withdrawn = |reason: &str| Upstream {
            provider: self.provider.clone(),
            virtual_key: Some(self.slug.clone()),
            credential: Credential::Withdrawn(reason.to_owned()),
            base_url: None,
            options: BTreeMap::new(),
            from_caller: false,
            models: Arc::default(),
            metered: None,
        };
        match &self.secrets {
            _ if self.is_disabled => withdrawn("is disabled"),
            _ if has_passed(self.expires_ms, now_ms) => withdrawn("has expired"),
            None => withdrawn("cannot be opened: the vault's key is another one"),
            Some(secrets) => {
                let metered = Metered::of_key(&self.tenant, &self.slug, self.quota.clone());
                check_key(&self.slug, &self.provider, &self.base_url, secrets, settings, providers)
                    .map(|upstream| Upstream { metered, ..upstream })
                    .unwrap_or_else(|_| withdrawn("is not valid any more"))
            }
        }
    }
}

/// Checks a credential that somebody wants to save, by the rules of the file.
///
/// # Errors
/// Everything that is wrong with it, by the names of its fields.
pub fn check_key(
    slug: &str,
    provider: &str,
    base_url: &str,
    secrets: &KeySecrets,
    settings: &Settings,
    providers: &Providers,
) -> Result<Upstream, Vec<Problem>> {
    use secrecy::ExposeSecret as _;
    let mut fields = Map::new();
    fields.insert("provider".into(), json!(provider));
    if let Some(key) = &secrets.key {
        fields.insert("api_key".into(), json!(key.0.expose_secret()));
    }
    for (name, value) in &secrets.options {
        fields.insert(name.clone(), json!(value.0.expose_secret()));
    }
    let problems = Problems::default();
    if plan::MODEL_NAMESPACES.contains(&slug) {
        problems.add("slug", format!("models called \"@{slug}/...\" are Cloudflare's own: choose another"));
    }
    for reserved in ["held_by", "base_url", "models"] {
        if secrets.options.contains_key(reserved) {
            problems.add(format!("options.{reserved}"), "this is no setting of a provider");
        }
    }
    // Whoever saves keys is not the operator: the host is guarded like one of a request.
    let host = (!base_url.is_empty()).then(|| plan::caller_host(base_url, &settings.egress)).transpose();
    let host = host.unwrap_or_else(|message| {
        problems.add("base_url", message);
        None
    });
    let is_key_missing = secrets.key.is_none()
        && providers.contains(provider)
        && !providers.does_without_key(provider, |option| secrets.options.contains_key(option));
    if is_key_missing {
        let instead = providers.instead_of_key(provider);
        let instead = if instead.is_empty() { instead } else { format!(", or the settings {instead}") };
        problems.add("key", format!("Required: the key that {provider} has given you{instead}"));
    }
    let value = Value::Object(fields);
    let upstream = Object::open(&value, "", &problems)
        .and_then(|object| read_virtual_key(slug, object, providers, &settings.workers));
    let mut found = problems.into_vec();
    // What a file would say is of no use to others.
    found.retain(|problem| !(is_key_missing && problem.path == "api_key"));
    match upstream {
        Some(upstream) if found.is_empty() => Ok(Upstream { base_url: host, ..upstream }),
        _ => Err(found),
    }
}

impl Caller {
    /// Somebody who may do everything: whoever reaches a gateway without any API key, on the same machine.
    pub fn anybody() -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            tenant: DEFAULT_TENANT.to_owned(),
            scopes: BTreeSet::from([Scope::Admin]),
            default_config: None,
            allow_config_override: true,
            metadata: Map::new(),
            configs: None,
            virtual_keys: None,
            quota: Quota::default(),
            log: LogPolicy::default(),
        }
    }
}
