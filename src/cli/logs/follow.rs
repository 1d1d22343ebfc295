//! `imagegate logs -f`: requests as they end, also across a restart of the router.

use std::{
    collections::HashMap,
    io::{Write as _, stderr},
    time::Duration,
};

use anyhow::Result;
use serde_json::json;

use super::{Logs, PAGE, page};
use crate::{
    cli::connect::{Memory, Unreachable},
    pb::RequestRecord,
};

/// How often `-f` looks.
const POLL: Duration = Duration::from_secs(1);

/// How long a request may have taken for `-f` to show it, in milliseconds: the log has it once it is over, under the
/// time when it came.
const LONGEST_MS: i64 = 15 * 60 * 1000;

/// How late the log may have a request that is over: routers write in batches, and their clocks differ.
const LATE_MS: i64 = 10_000;

impl Logs {
    /// Prints what comes, as long as it runs.
    pub(super) async fn follow(&self, memory: &Memory<'_>, mut seen: Seen) -> Result<()> {
        let mut is_away = false;
        loop {
            tokio::time::sleep(POLL).await;
            let fresh = match self.fresh(memory, &mut seen).await {
                Ok(fresh) => fresh,
                // It may be starting again; what it remembers is shown then.
                Err(error) if error.is::<Unreachable>() => {
                    if !is_away {
                        self.say("the router does not answer: trying again until it does")?;
                    }
                    is_away = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if is_away {
                self.say("the router answers again")?;
            }
            is_away = false;
            for record in fresh.iter().rev() {
                self.print(record)?;
            }
            seen.forget();
        }
    }

    /// Says what is no request and no failure.
    fn say(&self, notice: &str) -> Result<()> {
        if self.json {
            writeln!(stderr(), "{}", json!({ "notice": notice }))?;
        } else {
            writeln!(stderr(), "{notice}")?;
        }
        Ok(())
    }

    /// What was not there before, the newest first.
    async fn fresh(&self, memory: &Memory<'_>, seen: &mut Seen) -> Result<Vec<RequestRecord>> {
        let mut filter = self.filter.to_message();
        let from = seen.began_ms.saturating_sub(LONGEST_MS);
        filter.from_unix_ms = Some(filter.from_unix_ms.map_or(from, |wanted| wanted.max(from)));
        let mut fresh = Vec::new();
        let mut page_token = String::new();
        loop {
            let page = page(memory, &filter, PAGE, page_token).await?;
            let before = fresh.len();
            fresh.extend(page.requests.into_iter().filter(|record| seen.add(record)));
            // What ends now began lately: behind a page that was all there before lies nothing new.
            if fresh.len() == before || page.next_page_token.is_empty() {
                return Ok(fresh);
            }
            page_token = page.next_page_token;
        }
    }
}

/// What the log has told.
#[derive(Debug)]
pub struct Seen {
    /// When they came.
    requests: HashMap<String, i64>,
    /// The end of the last request that was there at first: what ended long before it is no news.
    began_ms: i64,
}

impl Seen {
    /// What was there at first.
    pub fn new(records: &[RequestRecord]) -> Self {
        let requests = records.iter().map(|record| (record.id.clone(), record.created_unix_ms)).collect();
        Self { requests, began_ms: records.iter().map(RequestRecord::ended_unix_ms).max().unwrap_or(0) }
    }

    /// Whether it is new.
    fn add(&mut self, record: &RequestRecord) -> bool {
        let is_unknown = self.requests.insert(record.id.clone(), record.created_unix_ms).is_none();
        is_unknown && record.ended_unix_ms() >= self.began_ms.saturating_sub(LATE_MS)
    }

    /// Forgets what came so long ago that it is not asked for again.
    fn forget(&mut self) {
        let Some(newest) = self.requests.values().max().copied() else { return };
        self.began_ms = self.began_ms.max(newest.saturating_sub(LONGEST_MS));
        let oldest = self.began_ms.saturating_sub(LONGEST_MS);
        self.requests.retain(|_, came| *came >= oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_followed_once_and_only_if_it_is_news() {
        let at = |id: &str, created_unix_ms, duration_ms| RequestRecord {
            id: id.into(),
            created_unix_ms,
            duration_ms,
            ..Default::default()
        };
        let mut seen = Seen::new(&[at("there", 100_000, 1000)]);
        assert!(!seen.add(&at("there", 100_000, 1000)));
        assert!(!seen.add(&at("long over", 50_000, 1000)));
        assert!(seen.add(&at("slow", 50_000, 60_000)) && !seen.add(&at("slow", 50_000, 60_000)));
        assert!(seen.add(&at("written late", 95_000, 1000)));
        seen.add(&at("much later", 100_000 + 3 * LONGEST_MS, 0));
        seen.forget();
        assert_eq!(seen.requests.len(), 1);
    }
}
