//! One endpoint: an address with its connections, its load and its health.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    connection::{CALLS_PER_CONNECTION, Connection},
    load::Load,
};
use crate::{pb::worker_endpoint, telemetry};

/// An endpoint that cannot be connected to is tried again after this, twice as late each time, up to a limit.
const RETRY_AT_FIRST: Duration = Duration::from_millis(250);
const RETRY_AT_MOST: Duration = Duration::from_secs(5);

/// With somebody waiting it is tried again sooner, but not sooner than this.
const RETRY_FOR_CALLS: Duration = Duration::from_millis(500);

/// Connections to one endpoint.
const MOST_CONNECTIONS: usize = 64;

/// Where an endpoint is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// What is connected to.
    pub address: SocketAddr,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// The name that it goes by, which its certificate must have.
    pub host: Arc<str>,
    /// The same with its port, for requests.
    pub authority: Arc<str>,
}

/// An endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// For logs and metrics.
    pub service: Arc<str>,
    /// Where it is.
    pub place: Place,
    calls: AtomicUsize,
    /// Wakes the keeper of its connections.
    wake: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    load: Load,
    /// A call is finding out whether it works again.
    is_probed: bool,
    connections: Vec<Arc<Connection>>,
    is_connecting: bool,
    /// Failed attempts to connect in a row, when the last one was, and why it failed.
    attempts_failed: u32,
    last_failure: Option<(Instant, String)>,
    /// When a connection was last made: those that end at once are not made again at once.
    last_made: Option<Instant>,
}

/// How an endpoint stands, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It takes its share.
    Ready,
    /// It takes a growing part of its share.
    Warming,
    /// It is left alone, or cannot be connected to.
    Ejected,
}

impl From<Standing> for worker_endpoint::State {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Ready => Self::Ready,
            Standing::Warming => Self::Warming,
            Standing::Ejected => Self::Ejected,
        }
    }
}

impl Endpoint {
    /// An endpoint without connections.
    pub fn new(service: Arc<str>, place: Place, wake: Arc<Notify>) -> Self {
        let state = State {
            load: Load::new(Instant::now()),
            is_probed: false,
            connections: Vec::new(),
            is_connecting: false,
            attempts_failed: 0,
            last_failure: None,
            last_made: None,
        };
        Self { service, place, calls: AtomicUsize::new(0), wake, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a call can be sent to it now, and whether it should be.
    pub fn is_open(&self, now: Instant) -> Option<bool> {
        let state = self.lock();
        let is_left_alone = state.load.is_ejected(now) || state.load.is_on_probation() && state.is_probed;
        state.connections.iter().any(|one| one.is_open()).then_some(!is_left_alone)
    }

    /// What one more call costs.
    pub fn cost(&self, now: Instant) -> f64 {
        self.lock().load.cost(self.calls(), now)
    }

    /// The connection with the fewest calls.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        let state = self.lock();
        let open = state.connections.iter().filter(|one| one.is_open());
        open.min_by_key(|one| one.calls()).map(Arc::clone)
    }

    /// A call begins.
    pub fn begin(self: &Arc<Self>) -> Calling {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        let is_probe = state.load.is_on_probation() && !state.is_probed;
        state.is_probed |= is_probe;
        drop(state);
        Calling { endpoint: Arc::clone(self), begun: Instant::now(), is_waiting: true, is_probe }
    }

    /// Calls in flight.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Whether its connections are so full that another one is wanted.
    pub fn is_crowded(&self) -> bool {
        self.calls() >= CALLS_PER_CONNECTION && self.lock().is_crowded()
    }

    /// Whether it cannot be reached, as far as is known: why, if an attempt failed just now.
    pub fn just_failed(&self, now: Instant) -> Option<String> {
        let state = self.lock();
        let (at, reason) = state.last_failure.as_ref()?;
        let recent = now.saturating_duration_since(*at) < RETRY_FOR_CALLS;
        (recent && !state.is_connecting).then(|| reason.clone())
    }

    /// Whether to connect now; from when on, if not. `wanted`: a call waits for it. None: it needs nothing.
    /// `generation`: connections with other certificates are replaced.
    pub fn connects_at(&self, now: Instant, wanted: bool, generation: u64) -> Option<Instant> {
        let mut state = self.lock();
        state.connections.retain(|one| one.is_open());
        if state.is_connecting {
            return None;
        }
        let is_good = |one: &Arc<Connection>| !one.is_old(now) && one.generation == generation;
        let first_to_retire =
            state.connections.iter().filter(|one| is_good(one)).map(|one| one.retires()).min();
        if first_to_retire.is_some() {
            state.connections.retain(is_good);
        }
        let due = match first_to_retire {
            Some(_) if state.is_crowded() && state.connections.len() < MOST_CONNECTIONS => now,
            Some(retires) => retires,
            None => state.last_made.map_or(now, |made| made + RETRY_AT_FIRST),
        };
        let Some((at, _)) = &state.last_failure else { return Some(due) };
        let pause = RETRY_AT_FIRST * 2_u32.saturating_pow(state.attempts_failed.saturating_sub(1).min(8));
        Some(due.max(*at + pause.min(if wanted { RETRY_FOR_CALLS } else { RETRY_AT_MOST })))
    }

    /// An attempt to connect begins.
    pub fn connecting(&self) {
        self.lock().is_connecting = true;
    }

    /// A connection is there. Those that it replaces get no more calls. True if the endpoint is back.
    pub fn connected(&self, connection: Arc<Connection>) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let was_lost = state.connections.is_empty();
        let is_back = state.attempts_failed > 0;
        state.is_connecting = false;
        state.last_made = Some(now);
        (state.attempts_failed, state.last_failure) = (0, None);
        state.connections.push(connection);
        if was_lost && is_back {
            state.load.begin(now);
        }
        is_back
    }

    /// It could not be connected to. True if that is news.
    pub fn not_connected(&self, reason: String) -> bool {
        let mut state = self.lock();
        state.is_connecting = false;
        state.attempts_failed += 1;
        let is_news = state.last_failure.as_ref().is_none_or(|(_, known)| *known != reason);
        state.last_failure = Some((Instant::now(), reason));
        is_news
    }

    /// How it stands.
    pub fn standing(&self, now: Instant) -> Standing {
        let state = self.lock();
        if state.connections.iter().all(|one| !one.is_open()) || state.load.is_ejected(now) {
            Standing::Ejected
        } else if state.load.warmth(now) < 1.0 {
            Standing::Warming
        } else {
            Standing::Ready
        }
    }

    /// It is left alone, and comes back on connections that have been made anew: those it has may be dead.
    fn ejected(&self, reason: &str) {
        self.lock().connections.clear();
        self.wake.notify_one();
        telemetry::endpoint_ejected(&self.service, &self.place.address.to_string(), reason);
    }

    /// No more calls: those that run end by themselves.
    pub fn leave(&self) {
        self.lock().connections.clear();
    }
}

impl State {
    fn is_crowded(&self) -> bool {
        self.connections.iter().all(|one| one.calls() >= CALLS_PER_CONNECTION)
    }
}

/// A call to an endpoint, in flight. Dropped before it was accepted, it may show that the endpoint is silent.
#[derive(Debug)]
pub struct Calling {
    endpoint: Arc<Endpoint>,
    begun: Instant,
    is_waiting: bool,
    is_probe: bool,
}

impl Calling {
    /// The head of the answer is there.
    pub fn accepted(&mut self) {
        self.is_waiting = false;
        self.endpoint.lock().load.accepted(self.begun.elapsed(), Instant::now());
    }

    /// It broke, before its answer began or after.
    pub fn broken(&mut self) {
        self.is_waiting = false;
        let ejects = self.endpoint.lock().load.broken(Instant::now());
        if ejects {
            self.endpoint.ejected("calls to it break");
        }
    }

    /// It was not sent, which says nothing that the connection does not say itself.
    pub fn not_sent(mut self) {
        self.is_waiting = false;
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        self.endpoint.calls.fetch_sub(1, Ordering::Relaxed);
        if self.is_probe {
            self.endpoint.lock().is_probed = false;
        }
        if self.is_waiting && self.endpoint.lock().load.unheard(self.begun.elapsed(), Instant::now()) {
            self.endpoint.ejected("it does not answer");
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.authority, self.address)
    }
}
