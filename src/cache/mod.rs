//! Answers that are given again, and requests that wait for the one call that makes theirs.
//!
//! Belongs to a router and outlives its configuration. Knows nothing of targets or plans: `route::cached` asks
//! it. Spawns nothing: the first request of several makes the call on its own behalf, and if it goes away
//! another one of them does.

mod embeddings;
pub mod key;
mod semantic;
mod store;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use self::store::Store;
pub use self::{embeddings::Embedder, key::Key, semantic::Vector, store::Answer};
use crate::{
    error::Error,
    fleet::{Fleet, Found},
    health::ejected::Elsewhere,
    images::made::Made,
    telemetry,
};

/// Answers of past requests, and the calls that are under way.
pub struct Cache {
    inner: Mutex<Inner>,
    /// Where other routers' answers are.
    fleet: Option<Arc<Fleet>>,
}

struct Inner {
    store: Store,
    flights: HashMap<Terms, Flying>,
    /// Of flights so far.
    count: u64,
}

/// What requests have to have in common to wait for the same call: under other terms it might be given up
/// sooner, or go on for longer, than they would have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// What is made.
    pub key: Key,
    /// Limit of one attempt.
    pub limit: Option<Duration>,
    /// Limit of the silence before an answer.
    pub first_byte_limit: Option<Duration>,
    /// How often it is tried again.
    pub retries: u32,
    /// What somebody else can take over.
    pub elsewhere: Elsewhere,
}

/// A call that is under way.
struct Flying {
    number: u64,
    request_id: String,
    landing: watch::Receiver<Option<Landed>>,
}

/// What a request comes to.
#[derive(Debug)]
pub enum Boarding {
    /// The answer is there.
    Found(Made),
    /// Somebody is getting it.
    Join(Landing),
    /// This request gets it, for itself and for all that come after it.
    Lead(Flight),
}

/// How a call ended, for those who waited.
#[derive(Clone, Debug)]
pub enum Landed {
    /// It was made.
    Made(Made),
    /// It was not: the answer to a prompt like this one does.
    Near(Made),
    /// It failed.
    Failed(Error),
}

/// The wait for somebody else's call.
#[derive(Debug)]
pub struct Landing(watch::Receiver<Option<Landed>>);

/// The duty to tell those who wait how the call ended. Dropped untold, one of them makes the call.
pub struct Flight {
    cache: Arc<Cache>,
    terms: Terms,
    number: u64,
    /// Whatever was made before does not do any more.
    is_anew: bool,
    sender: watch::Sender<Option<Landed>>,
}

impl Cache {
    /// A cache that takes at most `capacity` bytes; with 0 it is off.
    pub fn new(capacity: usize) -> Self {
        let inner = Inner { store: Store::new(capacity), flights: HashMap::new(), count: 0 };
        Self { inner: Mutex::new(inner), fleet: None }
    }

    /// The same, sharing its answers with other routers.
    #[must_use]
    pub fn shared(self, fleet: Option<Arc<Fleet>>) -> Self {
        Self { fleet, ..self }
    }

    /// Whether it keeps anything at all.
    pub fn is_on(&self) -> bool {
        self.lock().store.capacity() > 0
    }

    /// Changes its size.
    pub fn resize(&self, capacity: usize) {
        let mut inner = self.lock();
        inner.store.resize(capacity);
        telemetry::cache_bytes(inner.store.bytes());
    }

    /// Whether an answer not older than `max_age` is there, as far as can be told without fetching it. Does not count
    /// as its use.
    pub async fn has(&self, key: &Key, max_age: Duration) -> bool {
        if self.lock().store.has(key, max_age) {
            return true;
        }
        match &self.fleet {
            Some(fleet) => fleet.has_cached(key).await,
            None => false,
        }
    }

    /// Drops an answer: another router has a newer one.
    pub fn forget(&self, key: &Key) {
        let mut inner = self.lock();
        inner.store.forget(key);
        telemetry::cache_bytes(inner.store.bytes());
    }

    /// The answer that another router made.
    pub async fn of_another_router(&self, key: &Key, max_age: Duration) -> Option<Found> {
        self.fleet.as_ref()?.cached(key, max_age).await
    }

    /// What a request comes to that takes answers not older than `max_age`.
    pub fn board(self: &Arc<Self>, terms: &Terms, max_age: Duration, request_id: &str) -> Boarding {
        // One lock for both, so that an answer that has just come is seen in one place or the other.
        let mut inner = self.lock();
        if let Some(made) = inner.store.get(&terms.key, max_age) {
            return Boarding::Found(made);
        }
        match inner.flights.get(terms) {
            // A request that waits for itself has called its target twice on purpose: it hedges.
            Some(flying) if flying.request_id != request_id => {
                Boarding::Join(Landing(flying.landing.clone()))
            }
            _ => Boarding::Lead(self.depart(&mut inner, terms, request_id, false)),
        }
    }

    /// A call of its own for a request that wants nothing made before.
    pub fn board_anew(self: &Arc<Self>, terms: &Terms, request_id: &str) -> Flight {
        self.depart(&mut self.lock(), terms, request_id, true)
    }

    /// The answer to the nearest prompt of a bucket, if it is near enough.
    pub fn nearest(&self, bucket: &Key, prompt: &Vector, threshold: f64, max_age: Duration) -> Option<Made> {
        let candidates = self.lock().store.vectors(bucket, max_age);
        // Not under the lock: this takes as long as a thousand vectors do.
        let found = semantic::nearest(prompt, candidates, threshold)?;
        self.lock().store.get(&found, max_age)
    }

    fn depart(self: &Arc<Self>, inner: &mut Inner, terms: &Terms, request_id: &str, is_anew: bool) -> Flight {
        inner.count += 1;
        let number = inner.count;
        let (sender, landing) = watch::channel(None);
        let flying = Flying { number, request_id: request_id.to_owned(), landing };
        inner.flights.insert(terms.clone(), flying);
        Flight { cache: Arc::clone(self), terms: terms.clone(), number, is_anew, sender }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds this lock can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Landing {
    /// How the call ended; none if whoever made it went away.
    pub async fn wait(mut self) -> Option<Landed> {
        let landed = self.0.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

impl Flight {
    /// The call's number among all: a later one's answer is newer.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// It was made, and is kept, here and for other routers.
    pub fn made(self, answer: Answer) {
        if let Some(fleet) = &self.cache.fleet {
            fleet.keep_cached(&self.terms.key, &answer.made, answer.max_age, self.is_anew);
        }
        self.found(answer);
    }

    /// It was found, and is kept here.
    pub fn found(self, answer: Answer) {
        self.sender.send_replace(Some(Landed::Made(answer.made.clone())));
        let mut inner = self.cache.lock();
        inner.store.put(self.terms.key, answer);
        telemetry::cache_bytes(inner.store.bytes());
        // Under the same lock, see `board`.
        inner.end(&self.terms, self.number);
    }

    /// An answer to a prompt like this one was found.
    pub fn near(self, made: Made) {
        self.sender.send_replace(Some(Landed::Near(made)));
    }

    /// It failed, as it would have for those who wait.
    pub fn failed(self, error: Error) {
        self.sender.send_replace(Some(Landed::Failed(error)));
    }
}

impl Inner {
    fn end(&mut self, terms: &Terms, number: u64) {
        // A later one may have taken its place.
        if self.flights.get(terms).is_some_and(|flying| flying.number == number) {
            self.flights.remove(terms);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cache.lock().end(&self.terms, self.number);
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        let store = &inner.store;
        write!(f, "Cache({} of {} bytes, {} calls)", store.bytes(), store.capacity(), inner.flights.len())
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms {
            key: Key::of_text("a"),
            limit: None,
            first_byte_limit: None,
            retries: 0,
            elsewhere: Elsewhere::default(),
        }
    }

    fn made() -> Answer {
        let made = Made { images: Vec::new(), usage: None, warnings: Vec::new() };
        Answer {
            made,
            max_age: MAX_AGE,
            age: Duration::ZERO,
            vector: None,
            bucket: Key::of_text("b"),
            number: 0,
        }
    }

    const MAX_AGE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn any_number_of_those_who_make_the_call_may_go_away() {
        let cache = Arc::new(Cache::new(1 << 20));
        for _ in 0..1000 {
            let Boarding::Lead(flight) = cache.board(&terms(), MAX_AGE, "one") else {
                panic!("nobody leads")
            };
            let Boarding::Join(landing) = cache.board(&terms(), MAX_AGE, "two") else { panic!("two lead") };
            drop(flight);
            assert!(landing.wait().await.is_none());
        }
        let Boarding::Lead(flight) = cache.board(&terms(), MAX_AGE, "one") else { panic!("nobody leads") };
        flight.made(made());
        assert!(matches!(cache.board(&terms(), MAX_AGE, "two"), Boarding::Found(_)));
        assert!(cache.lock().flights.is_empty());
    }

    #[tokio::test]
    async fn an_earlier_call_that_ends_leaves_the_later_ones_place_alone() {
        let cache = Arc::new(Cache::new(1 << 20));
        let Boarding::Lead(early) = cache.board(&terms(), MAX_AGE, "one") else { panic!("nobody leads") };
        let late = cache.board_anew(&terms(), "two");
        drop(early);
        let Boarding::Join(landing) = cache.board(&terms(), MAX_AGE, "three") else { panic!("two lead") };
        late.failed(Error::unsupported("model", "no"));
        assert!(matches!(landing.wait().await, Some(Landed::Failed(_))));
        assert!(cache.lock().flights.is_empty());
    }
}
