//! `store`, `vault` and `log`: what the gateway remembers, where, and for how long.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{read::Object, spec::Secret};

/// What the gateway remembers.
#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// Where.
    pub store: StoreChoice,
    /// What credentials are sealed with.
    pub vault: Option<VaultKeys>,
    /// Prompts are kept in the request log.
    pub prompts: bool,
    /// How long the request log is kept.
    pub retention: Duration,
    /// How often it is written.
    pub flush_every: Duration,
}

/// Where the gateway remembers.
#[derive(Clone, Debug)]
pub enum StoreChoice {
    /// It does not.
    Off,
    /// A SQLite file in `data_dir`.
    File,
    /// A PostgreSQL; a password may be in its address.
    Postgres(Secret),
}

/// Keys of 32 bytes, which are not shown.
#[derive(Clone)]
pub struct VaultKeys {
    /// Seals.
    pub current: Arc<[u8; 32]>,
    /// Open what was sealed before.
    pub previous: Vec<Arc<[u8; 32]>>,
}

impl std::fmt::Debug for VaultKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VaultKeys({})", 1 + self.previous.len())
    }
}

const WRONG_URL: &str = "not allowed; allowed: postgres://USER:PASSWORD@HOST:PORT/DATABASE";

impl MemorySettings {
    /// Reads the file's `store`, `vault` and `log`.
    pub fn read(file: &mut Object<'_>) -> Self {
        let store = match file.value("store") {
            None => StoreChoice::File,
            // YAML's older versions read `off` as false.
            Some(Value::Bool(false)) => StoreChoice::Off,
            Some(Value::String(text)) if text == "off" => StoreChoice::Off,
            Some(Value::Object(_)) => {
                file.object("store").and_then(read_url).map_or(StoreChoice::File, StoreChoice::Postgres)
            }
            Some(_) => {
                file.problem("store", "not allowed; allowed: off, or url");
                StoreChoice::File
            }
        };
        let vault = file.object("vault").and_then(|mut vault| {
            let current = vault.required("key").and(vault.text("key")).map(decode);
            let previous = vault.texts("previous_keys").unwrap_or_default();
            let previous: Vec<_> = previous.into_iter().map(decode).collect();
            for (i, _) in previous.iter().enumerate().filter(|(_, key)| key.is_none()) {
                vault.problem(&format!("previous_keys.{i}"), WRONG_KEY);
            }
            if matches!(current, Some(None)) {
                vault.problem("key", WRONG_KEY);
            }
            vault.finish();
            Some(VaultKeys { current: current??, previous: previous.into_iter().flatten().collect() })
        });
        if matches!(store, StoreChoice::Postgres(_)) && !file.has("vault") {
            file.problem("vault", "Required with store.url: routers that share a store share its key");
        }
        let (mut prompts, mut retention_days, mut flush_ms) = (false, 30, 500);
        if let Some(mut log) = file.object("log") {
            prompts = log.flag("prompts").unwrap_or(prompts);
            retention_days = log.whole("retention_days", 1, 36_500).unwrap_or(retention_days);
            flush_ms = log.whole("flush_ms", 10, 60_000).unwrap_or(flush_ms);
            log.finish();
        }
        Self {
            store,
            vault,
            prompts,
            retention: Duration::from_secs(retention_days * 86_400),
            flush_every: Duration::from_millis(flush_ms),
        }
    }
}

fn read_url(mut store: Object<'_>) -> Option<Secret> {
    let url = store.required("url").and(store.text("url")).filter(|url| !url.is_empty());
    let is_known = |url: &str| {
        url::Url::parse(url)
            .is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql") && url.host().is_some())
    };
    if url.is_some_and(|url| !is_known(url)) {
        // Without the value, which may hold a password.
        store.problem("url", WRONG_URL);
    }
    store.finish();
    url.map(Secret::new)
}

const WRONG_KEY: &str =
    "not a key; allowed: 32 random bytes in base64, as `openssl rand -base64 32` prints them";

/// A key as it is written.
pub fn decode(text: &str) -> Option<Arc<[u8; 32]>> {
    let bytes = base64_simd::STANDARD.decode_to_vec(text.trim()).ok()?;
    Some(Arc::new(bytes.try_into().ok()?))
}
