//! Hints: a router that leaves a target alone tells the others, so that not each of them has to find out at the cost
//! of requests of its own. A hint that is lost costs just that.

use std::{collections::HashMap, time::Duration};

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::{Fleet, link::ASK_EVERY, millis};
use crate::{
    cache::key::Key,
    config::identity::Identity,
    health::{Health, Trouble},
};

/// How often a router looks for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long connecting may take, and an answer of the connection that only listens.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// A hint as it travels. Times are lengths: clocks differ.
#[derive(Serialize, Deserialize)]
struct Hint {
    from: String,
    target: String,
    provider: String,
    /// How long the target's breaker stays open, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open_ms: Option<u64>,
    /// How long the target has asked to be left alone, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_ms: Option<u64>,
}

impl Fleet {
    fn channel(&self) -> String {
        format!("{}:hints", self.prefix)
    }

    /// Tells what this router has found out.
    pub(super) async fn keep_telling(&self, health: &Health) {
        let mut told: HashMap<Identity, Trouble> = HashMap::new();
        loop {
            sleep(LOOK_EVERY).await;
            let troubles = health.troubles();
            for (id, provider, trouble) in &troubles {
                if told.get(id) != Some(trouble) {
                    self.tell(*id, provider, *trouble);
                }
            }
            told = troubles.into_iter().map(|(id, _, trouble)| (id, trouble)).collect();
        }
    }

    fn tell(&self, id: Identity, provider: &str, trouble: Trouble) {
        let now = Instant::now();
        let left = |until: Option<Instant>| Some(millis(until?.checked_duration_since(now)?));
        let hint = Hint {
            from: self.own_id.clone(),
            target: format!("{id:?}"),
            provider: provider.to_owned(),
            open_ms: left(trouble.open_until),
            paused_ms: left(trouble.paused_until),
        };
        if let Ok(text) = serde_json::to_string(&hint) {
            let mut command = redis::cmd("PUBLISH");
            command.arg(self.channel()).arg(text);
            self.later("hint", command, 0);
        }
    }

    /// Hears what the others have found out, and what they have made anew.
    pub(super) async fn keep_hearing(&self, health: &Health, forget: &(dyn Fn(&Key) + Sync)) {
        loop {
            _ = self.listen(health, forget).await;
            sleep(ASK_EVERY).await;
        }
    }

    /// Listens until the connection ends, or is found to have ended without a word.
    async fn listen(&self, health: &Health, forget: &(dyn Fn(&Key) + Sync)) -> Result<(), String> {
        let words = |error: redis::RedisError| error.to_string();
        let subscribing = async {
            let mut subscription = self.client.get_async_pubsub().await?;
            subscription.subscribe(self.channel()).await?;
            subscription.subscribe(self.renewals()).await?;
            Ok(subscription)
        };
        let subscription = timeout(CONNECT_WITHIN, subscribing).await.map_err(|error| error.to_string())?;
        let (mut sink, mut messages) = subscription.map_err(words)?.split();
        let hearing = async {
            while let Some(message) = messages.next().await {
                if message.get_channel_name() == self.channel() {
                    self.hear(message.get_payload_bytes(), health);
                } else {
                    self.drop_copy(message.get_payload_bytes(), forget);
                }
            }
        };
        let asking = async {
            loop {
                sleep(ASK_EVERY).await;
                match timeout(CONNECT_WITHIN, sink.ping::<redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => break words(error),
                    Err(late) => break late.to_string(),
                }
            }
        };
        tokio::select! {
            () = hearing => Ok(()),
            reason = asking => Err(reason),
        }
    }

    fn hear(&self, text: &[u8], health: &Health) {
        let Ok(hint) = serde_json::from_slice::<Hint>(text) else { return };
        let Some(id) = Identity::parse(&hint.target).filter(|_| hint.from != self.own_id) else { return };
        let now = Instant::now();
        let until = |ms: Option<u64>| now.checked_add(Duration::from_millis(ms?));
        let trouble = Trouble { open_until: until(hint.open_ms), paused_until: until(hint.paused_ms) };
        health.learn(id, &hint.provider, trouble);
    }

    fn drop_copy(&self, text: &[u8], forget: &(dyn Fn(&Key) + Sync)) {
        let Some((from, key)) = std::str::from_utf8(text).ok().and_then(|text| text.split_once(' ')) else {
            return;
        };
        if let Some(key) = Key::parse(key).filter(|_| from != self.own_id) {
            forget(&key);
        }
    }
}
