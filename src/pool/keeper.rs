//! Keeps a pool's endpoints and connections: looks up names, connects, replaces what is old, tries again what failed.
//!
//! Requests never connect by themselves. So none of them waits for a host that does not answer while others do.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep_until, timeout},
};

use super::{
    Address, CONNECT_WITHIN, Dialer, Inner,
    connection::Connection,
    endpoint::{Endpoint, Place, Standing},
};
use crate::{digest::scramble, telemetry, tls, transport};

/// How often names are looked up.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);

/// How soon after the last time, when calls find no endpoint.
pub const LOOK_UP_AGAIN: Duration = Duration::from_millis(500);

/// How long a look-up may take.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(5);

/// How often states are counted that change by themselves.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// What one address stands for now.
type Found = Vec<(Address, Result<Vec<SocketAddr>, String>)>;

/// What an attempt to connect came to.
type Attempt = (Arc<Endpoint>, Result<Arc<Connection>, String>);

/// Runs as long as the pool lives.
pub async fn keep(inner: Arc<Inner>) {
    let mut keeper = Keeper {
        attempts: FuturesUnordered::new(),
        looking: None,
        looked: None,
        unresolved: BTreeMap::new(),
        counted: Counts::new(&inner),
        inner,
    };
    keeper.begin();
    loop {
        keeper.step().await;
    }
}

struct Keeper {
    inner: Arc<Inner>,
    attempts: FuturesUnordered<BoxFuture<'static, Attempt>>,
    looking: Option<BoxFuture<'static, Found>>,
    looked: Option<Instant>,
    /// What was last said of names that could not be looked up.
    unresolved: BTreeMap<Address, String>,
    counted: Counts,
}

impl Keeper {
    /// Endpoints that need no look-up.
    fn begin(&mut self) {
        match &self.inner.dialer {
            Dialer::Network { addresses, .. } => {
                let numbers = addresses.iter().filter_map(|address| {
                    let ip = address.ip()?;
                    Some((address.clone(), Ok(vec![SocketAddr::new(ip, address.port)])))
                });
                let numbers: Found = numbers.collect();
                if !numbers.is_empty() {
                    self.found(numbers);
                }
            }
            Dialer::InMemory(_) => {
                let address = Address { tls: false, host: "in-memory".into(), port: 1 };
                self.found(vec![(address, Ok(vec![SocketAddr::from(([0, 0, 0, 0], 1))]))]);
            }
        }
    }

    async fn step(&mut self) {
        let now = Instant::now();
        let is_wanted = self.inner.waiting.load(std::sync::atomic::Ordering::Relaxed) > 0;
        let mut next = now + COUNT_EVERY;
        if let Some(at) = self.looks_up_at(is_wanted, now) {
            if at <= now {
                self.look_up(now);
            } else {
                next = next.min(at);
            }
        }
        let endpoints = self.inner.endpoints.load_full();
        for endpoint in endpoints.iter() {
            match endpoint.connects_at(now, is_wanted, self.inner.generation()) {
                Some(at) if at <= now => {
                    endpoint.connecting();
                    self.attempts.push(Box::pin(attempt(Arc::clone(&self.inner), Arc::clone(endpoint))));
                }
                Some(at) => next = next.min(at),
                None => {}
            }
        }
        self.counted.update(&endpoints, now);
        let mut renewed = self.inner.tls().map(|tls| tls.renewed());
        tokio::select! {
            Some((endpoint, outcome)) = self.attempts.next() => self.attempted(&endpoint, outcome),
            Some(found) = maybe(&mut self.looking) => {
                self.looking = None;
                self.found(found);
            }
            Some(()) = maybe(&mut renewed) => {}
            () = self.inner.wake.notified() => {}
            () = sleep_until(next) => {}
        }
    }

    /// When names are looked up next. Never, if there are none or it is being done.
    fn looks_up_at(&self, is_wanted: bool, now: Instant) -> Option<Instant> {
        let Dialer::Network { addresses, .. } = &self.inner.dialer else { return None };
        if self.looking.is_some() || addresses.iter().all(|address| address.ip().is_some()) {
            return None;
        }
        let pause = if is_wanted { LOOK_UP_AGAIN } else { LOOK_UP_EVERY };
        Some(self.looked.map_or(now, |looked| looked + pause))
    }

    fn look_up(&mut self, now: Instant) {
        let Dialer::Network { addresses, .. } = &self.inner.dialer else { return };
        self.looked = Some(now);
        let addresses = addresses.clone();
        self.looking = Some(Box::pin(async move {
            futures::future::join_all(addresses.into_iter().map(|address| async move {
                let found = look_up(&address).await;
                (address, found)
            }))
            .await
        }));
    }

    /// Takes over what names stand for now. A name that could not be looked up stands for what it did before.
    fn found(&mut self, found: Found) {
        let old = self.inner.endpoints.load_full();
        let mut places = BTreeSet::new();
        let mut problem = None;
        for (address, found) in found {
            let (host, authority) = (Arc::from(address.host.as_str()), Arc::from(address.authority()));
            match found {
                Ok(found) => {
                    self.unresolved.remove(&address);
                    places.extend(found.into_iter().map(|ip| Place {
                        address: ip,
                        tls: address.tls,
                        host: Arc::clone(&host),
                        authority: Arc::clone(&authority),
                    }));
                }
                Err(reason) => {
                    let known = old.iter().map(|endpoint| &endpoint.place);
                    places.extend(known.filter(|place| place.authority == authority).cloned());
                    if self.unresolved.get(&address) != Some(&reason) {
                        telemetry::name_unresolved(&self.inner.label, &address.host, &reason);
                        self.unresolved.insert(address, reason.clone());
                    }
                    problem = Some(reason);
                }
            }
        }
        let label = &self.inner.label;
        for gone in old.iter().filter(|endpoint| !places.contains(&endpoint.place)) {
            telemetry::endpoint_changed(label, &gone.place.address.to_string(), "endpoint left");
            gone.leave();
        }
        let endpoints = places.into_iter().map(|place| {
            if let Some(known) = old.iter().find(|endpoint| endpoint.place == place) {
                return Arc::clone(known);
            }
            telemetry::endpoint_changed(label, &place.address.to_string(), "endpoint found");
            Arc::new(Endpoint::new(Arc::clone(label), place, Arc::clone(&self.inner.wake)))
        });
        self.inner.endpoints.store(Arc::new(endpoints.collect()));
        let mut unresolved = self.inner.unresolved.lock().unwrap_or_else(PoisonError::into_inner);
        *unresolved = problem.map(|reason| (Instant::now(), reason));
        drop(unresolved);
        self.inner.news.send_modify(|count| *count += 1);
    }

    fn attempted(&self, endpoint: &Endpoint, outcome: Result<Arc<Connection>, String>) {
        let (label, address) = (&self.inner.label, endpoint.place.address.to_string());
        match outcome {
            Ok(connection) => {
                if endpoint.connected(connection) {
                    telemetry::endpoint_changed(label, &address, "endpoint back");
                }
            }
            Err(reason) => {
                if endpoint.not_connected(reason.clone()) {
                    telemetry::endpoint_unreachable(label, &address, &reason);
                }
            }
        }
        self.inner.news.send_modify(|count| *count += 1);
    }
}

impl Inner {
    fn tls(&self) -> Option<&Arc<tls::Tls>> {
        match &self.dialer {
            Dialer::Network { tls, .. } => tls.as_ref(),
            Dialer::InMemory(_) => None,
        }
    }

    /// Of the certificates in use.
    fn generation(&self) -> u64 {
        self.tls().map_or(0, |tls| tls.generation())
    }
}

async fn look_up(address: &Address) -> Result<Vec<SocketAddr>, String> {
    if let Some(ip) = address.ip() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    let found = timeout(LOOK_UP_WITHIN, lookup_host((address.host.as_str(), address.port))).await;
    let found: BTreeSet<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(_)) => return Err(format!("the name {} cannot be resolved", address.host)),
        Err(_) => return Err(format!("the name {} is not resolved in time", address.host)),
    };
    if found.is_empty() {
        return Err(format!("the name {} has no addresses", address.host));
    }
    Ok(found.into_iter().collect())
}

async fn attempt(inner: Arc<Inner>, endpoint: Arc<Endpoint>) -> Attempt {
    let connected = timeout(CONNECT_WITHIN, connect(&inner, &endpoint.place)).await;
    let outcome =
        connected.unwrap_or_else(|_| Err(format!("no connection within {} s", CONNECT_WITHIN.as_secs())));
    (endpoint, outcome)
}

async fn connect(inner: &Arc<Inner>, place: &Place) -> Result<Arc<Connection>, String> {
    let generation = inner.generation();
    let wake = Arc::clone(&inner.wake);
    let ended = move || wake.notify_one();
    let luck = scramble(uuid::Uuid::new_v4().as_u128() as u64) as f64 / u64::MAX as f64;
    let explain = |error: io::Error| tls::explain(&error);
    if let Dialer::InMemory(connect) = &inner.dialer {
        return Connection::open(connect().map_err(explain)?, generation, luck, ended).await;
    }
    let wire = TcpStream::connect(place.address).await.map_err(explain)?;
    transport::tune(&wire).map_err(explain)?;
    if !place.tls {
        return Connection::open(wire, generation, luck, ended).await;
    }
    let tls = inner.tls().ok_or("https without TLS settings")?;
    let wire = tls.connect(&place.host, wire).await.map_err(explain)?;
    Connection::open(wire, generation, luck, ended).await
}

/// Waits for something that may not be under way.
async fn maybe<F: Future + Unpin>(future: &mut Option<F>) -> Option<F::Output> {
    match future {
        Some(future) => Some(future.await),
        None => std::future::pending().await,
    }
}

/// Endpoints by how they stand, as the metric has them.
struct Counts {
    label: Arc<str>,
    counted: [usize; 3],
}

impl Counts {
    const STANDINGS: [(Standing, &str); 3] =
        [(Standing::Ready, "ready"), (Standing::Warming, "warming"), (Standing::Ejected, "ejected")];

    fn new(inner: &Inner) -> Self {
        // Zeros, too, are there from the beginning.
        Self::STANDINGS.iter().for_each(|(_, name)| telemetry::endpoints(&inner.label, name, 0.0));
        Self { label: Arc::clone(&inner.label), counted: [0; 3] }
    }

    fn update(&mut self, endpoints: &[Arc<Endpoint>], now: Instant) {
        let standings: Vec<Standing> = endpoints.iter().map(|endpoint| endpoint.standing(now)).collect();
        self.set(
            Self::STANDINGS.map(|(standing, _)| standings.iter().filter(|one| **one == standing).count()),
        );
    }

    fn set(&mut self, counts: [usize; 3]) {
        if counts == self.counted {
            return;
        }
        for ((_, name), (new, old)) in Self::STANDINGS.iter().zip(counts.iter().zip(&self.counted)) {
            telemetry::endpoints(&self.label, name, *new as f64 - *old as f64);
        }
        self.counted = counts;
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.set([0; 3]);
    }
}
