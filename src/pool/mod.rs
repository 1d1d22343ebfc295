//! A service in other processes, at all the endpoints that answer for it.
//!
//! A Kubernetes Service in front of gRPC pins every caller to one pod, since HTTP/2 keeps its connection. So the
//! caller balances by itself: a [`Pool`] knows the endpoints behind a name, keeps connections to all of them, and puts
//! each call on one by power of two choices. It is what the generated gRPC clients and `framing` send their requests
//! through.
//!
//! A call that was certainly not sent, or that its endpoint says it has not begun, goes to another endpoint. What may
//! have been sent is never repeated here: that is for the routing config to say, which knows what it costs.

mod address;
mod answer;
mod choose;
mod connection;
mod endpoint;
mod keeper;
mod load;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, Uri, Version, header, request::Parts, uri};
use http_body_util::BodyExt as _;
use tokio::{
    io::DuplexStream,
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body};

pub use self::{address::Address, answer::Answer};
use self::{
    choose::Dice,
    connection::{Connection, Failure},
    endpoint::{Endpoint, Place},
};
use crate::{
    error::{Error, ErrorKind},
    pb::{
        BillingClass, WorkerEndpoint, admin_service_client::AdminServiceClient,
        router_service_client::RouterServiceClient, worker_endpoint,
        worker_service_client::WorkerServiceClient,
    },
    tls::Tls,
    transport::{MESSAGE_BYTES, grpc_timeout},
};

/// How long a call waits for a connection. An attempt to connect that takes longer fails.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// How often a call that was not sent moves on. Each time it has met a connection that was about to end.
const MOST_MOVES: usize = 10;

/// What a pool's endpoints do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// The worker of this provider.
    Worker(String),
    /// The router.
    Router,
    /// Who is sent spans and metrics by OTLP.
    Collector,
}

/// A service in other processes. Cheap to clone; with the last clone its connections end.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
    _keeper: Arc<AbortOnDropHandle<()>>,
}

struct Inner {
    service: Arc<Service>,
    label: Arc<str>,
    dialer: Dialer,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Why names could not be looked up, and when that was.
    unresolved: Mutex<Option<(Instant, String)>>,
    dice: Dice,
    /// Calls that wait for a connection.
    waiting: AtomicUsize,
    /// Wakes the keeper.
    wake: Arc<Notify>,
    /// Changes when a connection has come or could not be made.
    news: watch::Sender<u64>,
}

/// How connections are made.
enum Dialer {
    Network {
        addresses: Vec<Address>,
        tls: Option<Arc<Tls>>,
    },
    /// To a server in this process.
    InMemory(Box<dyn Fn() -> std::io::Result<DuplexStream> + Send + Sync>),
}

impl Pool {
    /// The endpoints behind some addresses, which are connected to from now on. `tls`: how, where the scheme is https.
    pub fn new(service: Service, addresses: Vec<Address>, tls: Option<Arc<Tls>>) -> Self {
        Self::start(service, Dialer::Network { addresses, tls })
    }

    /// A server in this process, connected to by `connect`: for tests, on their own clock.
    pub fn in_memory(
        service: Service,
        connect: impl Fn() -> std::io::Result<DuplexStream> + Send + Sync + 'static,
    ) -> Self {
        Self::start(service, Dialer::InMemory(Box::new(connect)))
    }

    /// The client of a worker, without the default limit of messages.
    pub fn worker(self) -> WorkerServiceClient<Self> {
        WorkerServiceClient::new(self)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    /// The client of a router, without the default limit of messages.
    pub fn router(self) -> RouterServiceClient<Self> {
        RouterServiceClient::new(self)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    /// The client of a router's memory, without the default limit of messages.
    pub fn admin(self) -> AdminServiceClient<Self> {
        AdminServiceClient::new(self)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    /// How its endpoints stand, those of the worker of `provider`.
    pub fn endpoints(&self, provider: &str) -> Vec<WorkerEndpoint> {
        let now = Instant::now();
        let endpoints = self.inner.endpoints.load();
        let endpoint = |one: &Arc<Endpoint>| WorkerEndpoint {
            provider: provider.to_owned(),
            address: one.place.address.to_string(),
            state: worker_endpoint::State::from(one.standing(now)).into(),
            calls_in_flight: u32::try_from(one.calls()).unwrap_or(u32::MAX),
        };
        let mut endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
        endpoints.sort_by(|one, other| one.address.cmp(&other.address));
        endpoints
    }

    fn start(service: Service, dialer: Dialer) -> Self {
        let inner = Arc::new(Inner {
            label: service.label().into(),
            service: Arc::new(service),
            dialer,
            endpoints: ArcSwap::default(),
            unresolved: Mutex::default(),
            dice: Dice::new(),
            waiting: AtomicUsize::new(0),
            wake: Arc::default(),
            news: watch::Sender::default(),
        });
        #[expect(
            clippy::disallowed_methods,
            reason = "connections are kept whether or not there are requests"
        )]
        let keeper = tokio::spawn(keeper::keep(Arc::clone(&inner)));
        Self { inner, _keeper: Arc::new(AbortOnDropHandle::new(keeper)) }
    }

    /// Sends a request, whose body is there in pieces, to an endpoint. `grpc-timeout` among its headers limits the time
    /// until the answer begins.
    ///
    /// # Errors
    /// No endpoint can be reached, or the connection broke.
    pub async fn send(&self, parts: Parts, body: Vec<Bytes>) -> Result<Response<Answer>, Status> {
        let limit = grpc_timeout(&parts.headers);
        let exchange = self.inner.exchange(parts, body);
        match limit {
            Some(limit) => timeout(limit, exchange)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("the call's deadline has passed"))),
            None => exchange.await,
        }
    }
}

impl tower::Service<Request<Body>> for Pool {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let pool = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            pool.send(parts, gather(body).await?).await
        })
    }
}

impl Inner {
    async fn exchange(&self, parts: Parts, pieces: Vec<Bytes>) -> Result<Response<Answer>, Status> {
        let mut turned_away: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            let found = self.find(&turned_away).await;
            let (endpoint, connection) = found.map_err(|reason| self.service.not_reached(&reason))?;
            if endpoint.is_crowded() {
                self.wake.notify_one();
            }
            let seat = connection.seat();
            let mut calling = endpoint.begin();
            let failure = match seat.send(request(&parts, &endpoint.place)?, pieces.clone()).await {
                Ok(answer) => {
                    calling.accepted();
                    let service = Arc::clone(&self.service);
                    return Ok(answer.map(|body| Answer::new(body, seat, calling, service)));
                }
                Err(failure) => failure,
            };
            match failure {
                Failure::NotSent(reason) => {
                    calling.not_sent();
                    self.wake.notify_one();
                    turned_away.push(endpoint);
                    if turned_away.len() > MOST_MOVES {
                        return Err(self.service.not_reached(&reason));
                    }
                }
                Failure::Broken(reason) => {
                    calling.broken();
                    return Err(self.service.broken(&reason));
                }
            }
        }
    }

    /// The connection for one more call: now, or as soon as there is one. Not at those who have turned it away, if there
    /// are others.
    async fn find(&self, turned_away: &[Arc<Endpoint>]) -> Result<(Arc<Endpoint>, Arc<Connection>), String> {
        if let Some(found) = self.choose(turned_away) {
            return Ok(found);
        }
        let _waiting = Waiting::new(&self.waiting);
        let mut news = self.news.subscribe();
        let deadline = Instant::now() + CONNECT_WITHIN;
        loop {
            if let Some(found) = self.choose(turned_away) {
                return Ok(found);
            }
            if let Some(reason) = self.is_hopeless() {
                return Err(reason);
            }
            self.wake.notify_one();
            if timeout_at(deadline, news.changed()).await.is_err() {
                return Err(format!("no connection within {} s", CONNECT_WITHIN.as_secs()));
            }
        }
    }

    fn choose(&self, turned_away: &[Arc<Endpoint>]) -> Option<(Arc<Endpoint>, Arc<Connection>)> {
        let now = Instant::now();
        let endpoints = self.endpoints.load();
        let mut good: Vec<&Arc<Endpoint>> = Vec::with_capacity(endpoints.len());
        let mut others: Vec<&Arc<Endpoint>> = Vec::new();
        for endpoint in endpoints.iter() {
            match endpoint.is_open(now) {
                Some(true) if !turned_away.iter().any(|one| Arc::ptr_eq(one, endpoint)) => {
                    good.push(endpoint)
                }
                Some(_) => others.push(endpoint),
                None => {}
            }
        }
        // Whatever is known of them: there are no others.
        let among = if good.is_empty() { others } else { good };
        let chosen = self.dice.cheaper(&among, |endpoint| endpoint.cost(now))?;
        Some((Arc::clone(chosen), chosen.connection()?))
    }

    /// Why no connection can be expected soon.
    fn is_hopeless(&self) -> Option<String> {
        let now = Instant::now();
        let endpoints = self.endpoints.load();
        if endpoints.is_empty() {
            let unresolved = self.unresolved.lock().unwrap_or_else(PoisonError::into_inner);
            let just_now = |at: Instant| now.saturating_duration_since(at) < keeper::LOOK_UP_AGAIN;
            return unresolved.as_ref().filter(|(at, _)| just_now(*at)).map(|(_, reason)| reason.clone());
        }
        let mut reasons = endpoints.iter().map(|endpoint| endpoint.just_failed(now));
        let first = reasons.next()??;
        reasons.all(|reason| reason.is_some()).then_some(first)
    }
}

/// Counts a call among those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    fn label(&self) -> &str {
        match self {
            Self::Worker(provider) => provider,
            Self::Router => "router",
            Self::Collector => "collector",
        }
    }

    /// Nothing was sent.
    fn not_reached(&self, reason: &str) -> Status {
        let message = format!("{self} is not reachable: {reason}");
        Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, message).into()
    }

    /// Something was sent, and nobody knows what became of it.
    fn broken(&self, reason: &str) -> Status {
        let message = format!("the connection to {self} broke: {reason}");
        Error::transport(ErrorKind::Unavailable, BillingClass::Unknown, message).into()
    }
}

/// The same request as an endpoint is asked.
fn request(parts: &Parts, place: &Place) -> Result<Request<()>, Status> {
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    let scheme = if place.tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    let uri = Uri::builder().scheme(scheme).authority(&*place.authority).path_and_query(path).build();
    let mut request = Request::new(());
    *request.uri_mut() = uri.map_err(|error| Status::internal(error.to_string()))?;
    *request.method_mut() = parts.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = parts.headers.clone();
    let agent = concat!("imagegate/", env!("CARGO_PKG_VERSION"));
    request.headers_mut().insert(header::USER_AGENT, header::HeaderValue::from_static(agent));
    Ok(request)
}

/// A request's body in pieces. It is there as a whole: only answers stream.
async fn gather(mut body: Body) -> Result<Vec<Bytes>, Status> {
    let mut pieces = Vec::with_capacity(1);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && !data.is_empty()
        {
            pieces.push(data);
        }
    }
    Ok(pieces)
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(provider) => write!(f, "the worker of {provider}"),
            Self::Router => f.write_str("the router"),
            Self::Collector => f.write_str("the OTLP collector"),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.inner.endpoints.load();
        let places: Vec<&Place> = endpoints.iter().map(|endpoint| &endpoint.place).collect();
        f.debug_struct("Pool").field("service", &self.inner.service).field("endpoints", &places).finish()
    }
}
