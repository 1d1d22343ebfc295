//! `redis`: where several routers keep what they share.

use std::time::Duration;

use super::{read::Object, spec::Secret};

/// A Redis, or a server that speaks its protocol.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// `redis://` or `rediss://`; a password may be in it.
    pub url: Secret,
    /// Begins every key, so that several deployments can share a Redis.
    pub prefix: String,
    /// A request waits no longer for an answer.
    pub timeout: Duration,
}

impl RedisSettings {
    /// Reads `redis` of the file.
    pub fn read(mut object: Object<'_>) -> Option<Self> {
        object.required("url");
        let url = object.text("url").filter(|url| !url.is_empty());
        let is_known = |url: &str| url.starts_with("redis://") || url.starts_with("rediss://");
        if url.is_some_and(|url| !is_known(url)) {
            // The value may hold a password.
            object.problem("url", "not allowed; allowed: redis://HOST:PORT/DB or rediss://HOST:PORT/DB");
        }
        let prefix = object.text("prefix").unwrap_or("imagegate").to_owned();
        if prefix.is_empty() || prefix.contains(char::is_whitespace) {
            object.problem("prefix", "not allowed; allowed: a text without spaces");
        }
        let timeout = object.millis("timeout_ms").unwrap_or(Duration::from_millis(100));
        if timeout.is_zero() {
            object.problem("timeout_ms", "0 is not allowed; allowed: 1 or more milliseconds");
        }
        object.finish();
        Some(Self { url: Secret::new(url?), prefix, timeout })
    }
}
