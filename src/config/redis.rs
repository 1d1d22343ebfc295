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
    /// Larger answers are not shared.
    pub max_answer_bytes: usize,
    /// A request waits no longer for an answer.
    pub timeout: Duration,
}

impl RedisSettings {
    /// Without the value, which may hold a password.
    pub const WRONG_URL: &str = "not allowed; allowed: redis://HOST:PORT/DB or rediss://HOST:PORT/DB";

    /// Reads `redis` of the file.
    pub fn read(mut object: Object<'_>) -> Option<Self> {
        object.required("url");
        let url = object.text("url").filter(|url| !url.is_empty());
        let is_known = |url: &str| {
            (url.starts_with("redis://") || url.starts_with("rediss://")) && redis::Client::open(url).is_ok()
        };
        if url.is_some_and(|url| !is_known(url)) {
            object.problem("url", Self::WRONG_URL);
        }
        let prefix = object.text("prefix").unwrap_or("imagegate").to_owned();
        if prefix.is_empty() || prefix.contains(char::is_whitespace) {
            object.problem("prefix", "not allowed; allowed: a text without spaces");
        }
        let timeout = Duration::from_millis(object.whole("timeout_ms", 1, 86_400_000).unwrap_or(100));
        // A value of Redis' own cannot be larger than the upper limit.
        let largest = object.whole("max_answer_bytes", 0, 512 << 20).unwrap_or(32 << 20);
        object.finish();
        let max_answer_bytes = usize::try_from(largest).unwrap_or(usize::MAX);
        Some(Self { url: Secret::new(url?), prefix, max_answer_bytes, timeout })
    }
}
