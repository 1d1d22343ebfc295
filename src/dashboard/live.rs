//! Pages that go on by themselves: server-sent events with pieces of a page.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::{future::BoxFuture, stream};
use maud::{Markup, html};

use super::failure::Failure;
use crate::pb::RequestRecord;

/// How often is looked.
const EVERY: Duration = Duration::from_secs(1);

/// A look at what a page shows; none: nothing is new.
pub type Look<'a> = BoxFuture<'a, Result<Option<Markup>, Failure>>;

/// What `look` finds, whenever it finds something, until the reader goes. A look that fails is told to the page, and the next one
/// comes.
pub fn events<S, F>(state: S, look: F) -> Response
where
    S: Send + 'static,
    F: FnMut(&mut S) -> Look<'_> + Send + 'static,
{
    let events = stream::unfold((state, look, false), async |(mut state, mut look, is_later)| {
        if is_later {
            tokio::time::sleep(EVERY).await;
        }
        let event = match look(&mut state).await {
            Ok(Some(piece)) => Event::default().event("piece").data(piece.0),
            // Tells the page that all is well.
            Ok(None) => Event::default().event("nothing").data(""),
            Err(failure) => Event::default().event("failure").data(&failure.error().message),
        };
        Some((Ok::<_, Infallible>(event), (state, look, true)))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// Says whether the page goes on, and lets it be held.
pub fn switch() -> Markup {
    html! {
        span class="live" {
            span data-live-state role="status" { "not live" }
            button type="button" class="quiet" data-live-switch aria-pressed="false" { "Pause" }
        }
    }
}

/// The requests that a page shows.
#[derive(Debug, Default)]
pub struct Shown(HashSet<String>);

impl Shown {
    /// Those of the newest requests that were not among them the last time.
    pub fn update<'a>(&mut self, newest: &'a [RequestRecord]) -> Vec<&'a RequestRecord> {
        let fresh = newest.iter().filter(|record| !self.0.contains(&record.id)).collect();
        self.0 = newest.iter().map(|record| record.id.clone()).collect();
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_new_once() {
        let record = |id: &str| RequestRecord { id: id.into(), ..Default::default() };
        let mut shown = Shown::default();
        assert_eq!(shown.update(&[record("b"), record("a")]).len(), 2);
        assert!(shown.update(&[record("b"), record("a")]).is_empty());
        let newest = [record("c"), record("b")];
        let fresh: Vec<_> = shown.update(&newest).iter().map(|record| record.id.as_str()).collect();
        assert_eq!(fresh, ["c"]);
        assert_eq!(shown.0.len(), 2);
    }
}
