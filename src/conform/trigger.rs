//! Models that a worker lists so that it can be tested: `<provider>-refuse`, `<provider>-slow-<ms>` and so on.
//!
//! The sandbox has them always, other workers where somebody asks them to. A worker that does not list one is
//! not asked for it, so that no prompt means anything special.

use std::time::Duration;

use crate::pb;

/// Something that no worker does unasked. docs/writing-a-worker.md tells authors of workers about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// `-refuse`: the prompt is refused.
    Refuse,
    /// `-filter`: images are made, then withheld.
    Filter,
    /// `-fail-429`: a rate limit.
    RateLimit,
    /// `-slow-<ms>`: a good answer after that long.
    Slow(Duration),
    /// `-large`: a good answer whose image has 64 MB.
    Large,
    /// `-idle`: a good answer, unless the worker is working at another call.
    Idle,
}

/// What model ids of this kind end in. `*`: something follows.
const ENDINGS: [&str; 11] =
    ["refuse", "filter", "fail-*", "slow-*", "large", "idle", "truncate", "empty", "html", "short", "stall"];

impl Trigger {
    /// The entry that a record has if the worker offers it.
    pub fn entry(self, provider: &str) -> String {
        let ending = match self {
            Self::Refuse => "refuse",
            Self::Filter => "filter",
            Self::RateLimit => "fail-*",
            Self::Slow(_) => "slow-*",
            Self::Large => "large",
            Self::Idle => "idle",
        };
        format!("{provider}-{ending}")
    }

    /// The model to ask for, if the worker offers it.
    pub fn model(self, record: &pb::Provider) -> Option<String> {
        let entry = self.entry(&record.name);
        let listed = record.models.iter().any(|model| model.model == entry);
        let start = entry.trim_end_matches('*');
        listed.then(|| match self {
            Self::Slow(delay) => format!("{start}{}", delay.as_millis()),
            Self::RateLimit => format!("{start}429"),
            _ => start.to_owned(),
        })
    }

    /// What to say of a worker that does not offer it.
    pub fn missing(self, record: &pb::Provider) -> String {
        format!("{} does not list the model {}", record.name, self.entry(&record.name))
    }
}

/// Whether a model is there to be tested with, and so need not do what its entry declares.
pub fn is_one(provider: &str, model: &str) -> bool {
    let Some(ending) = model.strip_prefix(provider).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    ENDINGS.iter().any(|known| match known.strip_suffix('*') {
        Some(start) => ending.starts_with(start),
        None => ending == *known,
    })
}

#[cfg(test)]
mod tests {
    use tonic::Request;

    use super::*;
    use crate::{pb::worker_service_server::WorkerService as _, provider::sandbox::Sandbox};

    #[tokio::test]
    async fn the_sandbox_offers_all_of_them() {
        let described = Sandbox::new().describe(Request::new(pb::DescribeRequest {})).await.unwrap();
        let record = &described.into_inner().providers[0];
        let all = [
            (Trigger::Refuse, "sandbox-refuse"),
            (Trigger::Filter, "sandbox-filter"),
            (Trigger::RateLimit, "sandbox-fail-429"),
            (Trigger::Slow(Duration::from_secs(4)), "sandbox-slow-4000"),
            (Trigger::Large, "sandbox-large"),
            (Trigger::Idle, "sandbox-idle"),
        ];
        for (trigger, model) in all {
            assert_eq!(trigger.model(record).as_deref(), Some(model));
        }
        let ordinary: Vec<_> = record
            .models
            .iter()
            .map(|model| model.model.as_str())
            .filter(|model| !is_one("sandbox", model))
            .collect();
        assert_eq!(ordinary, ["sandbox-1", "*"]);
    }
}
