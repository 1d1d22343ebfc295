//! Who may call: `auth` and `api_keys`, and beside them `jwt_issuers`.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    issuers::IssuerSettings,
    memory::read_policy,
    quota::Quota,
    read::{Object, suggestion},
    saved::DEFAULT_TENANT,
};
use crate::pb::LogPolicy;

/// Who may call, by the digest of the key: a lookup that leaks no timing about the keys themselves.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    by_digest: HashMap<[u8; 32], Arc<Caller>>,
    /// Who vouches for callers without a key.
    pub issuers: Vec<IssuerSettings>,
    /// `auth: open` was written.
    pub open: bool,
}

/// One caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Tells it from all others, also of other tenants. Of the file's, the name.
    pub id: String,
    /// For logs.
    pub name: String,
    /// Whose configs, keys and log it sees.
    pub tenant: String,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// For its requests that name no route.
    pub default_config: Option<String>,
    /// False: its requests may name no other route.
    pub allow_config_override: bool,
    /// Over the metadata of its requests.
    pub metadata: Map<String, Value>,
    /// Configs it may use; none: all of its tenant.
    pub configs: Option<BTreeSet<String>>,
    /// Virtual keys it may use, also through configs; none: all of its tenant.
    pub virtual_keys: Option<BTreeSet<String>>,
    /// How much it may use.
    pub quota: Quota,
    /// What the request log keeps of its requests.
    pub log: LogPolicy,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Make images.
    Generate,
    /// Manage saved configs.
    Configs,
    /// Manage credentials.
    Keys,
    /// Read the request log.
    Logs,
    /// See all that can be managed, and change nothing of it.
    Read,
    /// Everything else.
    Admin,
}

const SCOPES: &[(&str, Scope)] = &[
    ("generate", Scope::Generate),
    ("configs", Scope::Configs),
    ("keys", Scope::Keys),
    ("logs", Scope::Logs),
    ("read", Scope::Read),
    ("admin", Scope::Admin),
];

/// What the ids of callers begin with for whom an issuer vouches, and no other's.
pub const ISSUED: &str = "jwt:";

impl Callers {
    /// Nobody has a key, and nobody vouches for anybody: everybody may call.
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty() && self.issuers.is_empty()
    }

    /// Nobody has a key, and nobody has said that this is meant: everybody may do everything, on this machine.
    pub fn are_everybody(&self) -> bool {
        self.is_empty() && !self.open
    }

    /// How many have a key.
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Adds one, by the digest of its key.
    pub fn insert(&mut self, digest: [u8; 32], caller: Arc<Caller>) {
        // Who stands in the file stays who they are.
        self.by_digest.entry(digest).or_insert(caller);
    }

    /// Everybody, once for each key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Caller>> {
        self.by_digest.values()
    }

    /// The one of this id, by one of its keys.
    pub fn of_id(&self, id: &str) -> Option<&Arc<Caller>> {
        self.by_digest.values().find(|caller| caller.id == id)
    }

    /// Whose key this is.
    pub fn find(&self, key: &str) -> Option<&Arc<Caller>> {
        self.by_digest.get(&digest(key))
    }
}

impl Caller {
    /// By what it is known, for messages: `the API key of "team-a"`.
    pub fn credential(&self) -> String {
        let kind = if self.id.starts_with(ISSUED) { "the token" } else { "the API key" };
        format!("{kind} of \"{}\"", self.name)
    }
}

impl Scope {
    /// All names, for messages.
    pub fn names() -> Vec<&'static str> {
        SCOPES.iter().map(|(word, _)| *word).collect()
    }

    /// Every scope.
    pub fn all() -> Vec<Self> {
        SCOPES.iter().map(|(_, scope)| *scope).collect()
    }

    /// The scope of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        SCOPES.iter().find(|(word, _)| *word == name).map(|(_, scope)| *scope)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SCOPES.iter().find(|(_, scope)| scope == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// Reads `auth` and `api_keys`. `configs` are the ids that there are.
pub fn read_callers(file: &mut Object<'_>, configs: &[&str]) -> Callers {
    let mut callers = Callers::default();
    match file.text("auth") {
        None => {}
        Some("open") => callers.open = true,
        Some(other) => file.problem("auth", format!("'{other}' is not allowed; allowed: open")),
    }
    for (i, value) in file.list("api_keys").unwrap_or_default().iter().enumerate() {
        let Some(mut object) = Object::open(value, file.at(&format!("api_keys.{i}")), file.problems()) else {
            continue;
        };
        object.required("name");
        object.required("key");
        let key = object.text("key").filter(|key| !key.is_empty());
        if object.text("key") == Some("") {
            object.problem("key", "the key is empty");
        }
        let default_config = object.text("default_config").map(str::to_owned);
        check_config_id(&object, "default_config", default_config.as_deref(), configs);
        let scopes = read_scopes(&mut object);
        let quota = Quota::read(&mut object);
        let log = read_log(&mut object);
        let name = object.text("name").unwrap_or_default().to_owned();
        if name.starts_with(ISSUED) {
            let message = format!("\"{name}\" is not allowed: callers with a token are called {ISSUED}...");
            object.problem("name", message);
        }
        let tenant = object.text("tenant").unwrap_or(DEFAULT_TENANT).to_owned();
        if let Some(key) = key {
            let caller = Arc::new(Caller {
                id: name.clone(),
                name,
                tenant,
                scopes,
                default_config,
                allow_config_override: true,
                metadata: Map::new(),
                configs: None,
                virtual_keys: None,
                quota,
                log,
            });
            if callers.by_digest.insert(digest(key), caller).is_some() {
                object.problem("key", "another entry has the same key");
            }
        }
        object.finish();
    }
    callers.issuers = IssuerSettings::read_all(file, configs);
    callers
}

/// Reads `log`: what is kept of a caller's requests.
pub fn read_log(object: &mut Object<'_>) -> LogPolicy {
    let Some(mut log) = object.object("log") else { return LogPolicy::default() };
    let policy = read_policy(&mut log);
    log.finish();
    policy
}

/// Reads `scopes`; who says nothing may make images.
pub fn read_scopes(object: &mut Object<'_>) -> BTreeSet<Scope> {
    let names = object.texts("scopes").unwrap_or_else(|| vec!["generate"]);
    let scope = |(i, name): (usize, &str)| {
        let found = Scope::from_name(name);
        if found.is_none() {
            let hint = suggestion(name, &Scope::names());
            object.problem(&format!("scopes.{i}"), format!("unknown scope \"{name}\"{hint}"));
        }
        found
    };
    names.into_iter().enumerate().filter_map(scope).collect()
}

/// Reports the id of a config that there is none of.
pub fn check_config_id(object: &Object<'_>, field: &str, id: Option<&str>, configs: &[&str]) {
    if let Some(id) = id.filter(|id| !configs.contains(id)) {
        object.problem(field, format!("config \"{id}\" does not exist{}", suggestion(id, configs)));
    }
}

/// By what a key is known: nobody can turn it back.
pub fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}
