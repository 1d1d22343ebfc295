//! `store`, `vault` and `log`: what the gateway remembers, where, and for how long.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{read::Object, spec::Secret};
use crate::pb::{KeptImages, LogPolicy};

/// What the gateway remembers.
#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// Where.
    pub store: StoreChoice,
    /// What credentials are sealed with.
    pub vault: Option<VaultKeys>,
    /// What is kept in the request log of those for whom nobody says otherwise.
    pub keeps: Keeps,
    /// How long the request log is kept.
    pub retention: Duration,
    /// How often it is written.
    pub flush_every: Duration,
}

/// What the request log keeps of the content of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeps {
    /// Its prompt.
    pub prompts: bool,
    /// The images that it was answered with.
    pub images: KeptImages,
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
        let (mut retention_days, mut flush_ms, mut keeps) = (30, 500, Keeps::default());
        if let Some(mut log) = file.object("log") {
            keeps = keeps.under(&read_policy(&mut log));
            retention_days = log.whole("retention_days", 1, 36_500).unwrap_or(retention_days);
            flush_ms = log.whole("flush_ms", 10, 60_000).unwrap_or(flush_ms);
            log.finish();
        }
        Self {
            store,
            vault,
            keeps,
            retention: Duration::from_secs(retention_days * 86_400),
            flush_every: Duration::from_millis(flush_ms),
        }
    }
}

impl Keeps {
    /// The same where a policy says nothing else.
    #[must_use]
    pub fn under(self, policy: &LogPolicy) -> Self {
        let images = match policy.images() {
            KeptImages::Unspecified => self.images,
            said => said,
        };
        Self { prompts: policy.prompts.unwrap_or(self.prompts), images }
    }
}

/// Reads `prompts` and `images`.
pub fn read_policy(log: &mut Object<'_>) -> LogPolicy {
    let images = log.choice("images", KeptImages::NAMES).unwrap_or_default();
    LogPolicy { prompts: log.flag("prompts"), images: images.into() }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::read::Problems;

    fn keeps(value: &Value) -> Result<Keeps, Vec<String>> {
        let problems = Problems::default();
        let settings = Object::open(value, "", &problems).map(|mut file| MemorySettings::read(&mut file));
        let problems: Vec<_> = problems.into_vec().iter().map(ToString::to_string).collect();
        if problems.is_empty() { Ok(settings.unwrap().keeps) } else { Err(problems) }
    }

    #[test]
    fn nothing_is_kept_unless_it_is_said() {
        assert_eq!(keeps(&json!({})), Ok(Keeps::default()));
        let all = Keeps { prompts: true, images: KeptImages::Full };
        assert_eq!(keeps(&json!({"log": {"prompts": true, "images": "full"}})), Ok(all));
        let problem = "log.images: 'all' is not allowed; allowed: none, digests, thumbnails, full";
        assert_eq!(keeps(&json!({"log": {"images": "all"}})), Err(vec![problem.to_owned()]));
    }

    #[test]
    fn a_policy_wins_in_what_it_says() {
        let file = Keeps { prompts: true, images: KeptImages::Thumbnails };
        let under = |prompts, images: KeptImages| file.under(&LogPolicy { prompts, images: images.into() });
        assert_eq!(under(None, KeptImages::Unspecified), file);
        assert_eq!(under(Some(false), KeptImages::Unspecified), Keeps { prompts: false, ..file });
        assert_eq!(under(None, KeptImages::None), Keeps { images: KeptImages::None, ..file });
        assert_eq!(under(Some(false), KeptImages::Full), Keeps { prompts: false, images: KeptImages::Full });
    }
}
