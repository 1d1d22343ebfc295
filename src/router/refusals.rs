//! Requests that were refused before their route was known: wrong parameters, no such config, a scope that is missing.
//!
//! They cost nothing and may come in floods, so they never stand in the way of others: of each caller so many are kept in
//! a time, and only while the log has room. Whoever has no valid key is nobody's caller: what it sends is counted, and
//! seen by no tenant.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::HeaderMap;
use tokio::time::Instant;

use super::{incoming, log, recorded, resolve, start::Ids};
use crate::{
    config::{Settings, callers::Caller, providers::Providers, saved::DEFAULT_TENANT},
    error::Error,
    issuers::Issuers,
    pb::{self, ImageRequest, RequestRecord},
    store::{Logged, journal::Journal},
    telemetry,
};

/// Refused requests of one caller that are kept: at once, and in the long run.
const AT_ONCE: u32 = 20;
const ONE_EVERY: Duration = Duration::from_millis(500);

/// Callers whose refused requests are counted; with more, all begin anew.
const CALLERS: usize = 10_000;

/// What is kept of an error's text, in characters: callers choose parts of it.
const MESSAGE_CHARS: usize = 500;

/// How many were kept of whom.
#[derive(Debug, Default)]
pub struct Refusals {
    /// When the room that a caller has used will be free again.
    free_at: Mutex<HashMap<String, Instant>>,
}

/// One of them.
pub struct Refusal<'a> {
    /// How it is known.
    pub ids: &'a Ids,
    /// What it said of itself.
    pub headers: &'a HeaderMap,
    /// What it asked for.
    pub image: &'a ImageRequest,
    /// Why it was refused.
    pub error: &'a Error,
    /// By what it was judged.
    pub settings: &'a Settings,
    /// The same.
    pub providers: &'a Providers,
    /// The same.
    pub issuers: &'a Issuers,
}

impl Refusals {
    /// Keeps one in the log, if there is room for it.
    pub fn note(&self, journal: &Journal, refusal: &Refusal<'_>) {
        let callers = &refusal.settings.callers;
        let caller = resolve::known_caller(refusal.headers, refusal.settings, refusal.issuers);
        let caller = caller.as_ref();
        if caller.is_none() && !callers.is_empty() && !callers.open {
            return;
        }
        let (id, tenant) = caller.map_or(("", DEFAULT_TENANT), |caller| (&caller.id, &caller.tenant));
        let is_kept = self.has_room(id)
            && journal.note_lesser(|| Logged { tenant: tenant.to_owned(), record: refusal.record(caller) });
        if !is_kept {
            telemetry::refusal_not_logged();
        }
    }

    fn has_room(&self, caller: &str) -> bool {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        if free_at.len() >= CALLERS && !free_at.contains_key(caller) {
            free_at.clear();
        }
        let now = Instant::now();
        let free = free_at.entry(caller.to_owned()).or_insert(now);
        let next = (*free).max(now) + ONE_EVERY;
        let has_room = next.duration_since(now) <= ONE_EVERY * AT_ONCE;
        if has_room {
            *free = next;
        }
        has_room
    }
}

impl Refusal<'_> {
    fn record(&self, caller: Option<&Arc<Caller>>) -> RequestRecord {
        let Self { ids, headers, image, error, settings, providers, issuers } = self;
        let keeps_nothing = resolve::keeps_nothing(headers);
        // What was wrong may have been found after the route.
        let resolved = resolve::resolve(headers, &image.model, settings, providers, issuers).ok();
        let metadata = resolve::with_own_metadata(caller, incoming::metadata(headers));
        let (config, config_version) =
            resolved.map(|resolved| (resolved.route.name, resolved.route.version)).unwrap_or_default();
        let keeps = caller.map_or(settings.memory.keeps, |caller| settings.memory.keeps.under(&caller.log));
        let waited = ids.arrived.elapsed();
        RequestRecord {
            id: ids.request_id.clone(),
            trace_id: ids.trace_id.clone(),
            created_unix_ms: pb::unix_now_ms() - i64::try_from(waited.as_millis()).unwrap_or_default(),
            duration_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            caller: caller.map_or_else(String::new, |caller| caller.id.clone()),
            config,
            config_version,
            operation: image.effective_operation().into(),
            outcome: error.kind.name().to_owned(),
            status: error.status.into(),
            error_message: match keeps_nothing {
                true => String::new(),
                false => error.message.chars().take(MESSAGE_CHARS).collect(),
            },
            cost_usd: Some(0.0),
            metadata: recorded::metadata(&metadata, if keeps_nothing { "" } else { &image.end_user }),
            prompt: match keeps.prompts && !keeps_nothing {
                true => image.prompt.clone(),
                false => String::new(),
            },
            asked: (!keeps_nothing).then(|| log::asked(image)),
            report: error.report.as_deref().cloned(),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_caller_leaves_room_for_others() {
        let refusals = Refusals::default();
        let kept = |caller: &str, of: usize| (0..of).filter(|_| refusals.has_room(caller)).count();
        assert_eq!((kept("a", 1000), kept("b", 3)), (20, 3));
        advance(Duration::from_secs(3)).await;
        assert_eq!((kept("a", 1000), kept("b", 1000)), (6, 20));
        advance(Duration::from_secs(3600)).await;
        assert_eq!(kept("a", 1000), 20);
    }
}
