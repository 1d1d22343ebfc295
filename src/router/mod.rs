//! The router: `RouterService` in this process.
//!
//! Authenticates, finds the plan, runs it, and reports what happened. Callers hold it as [`SharedRouter`],
//! whether it is here or behind a connection.

pub mod dry_run;
mod incoming;
mod log;
mod recorded;
mod refusals;
pub mod remote;
mod replay;
pub mod report;
pub mod resolve;
mod service;
mod start;
mod targets;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use futures::Stream;
use http::HeaderMap;
use serde_json::Value;
use tonic::Status;

use self::{refusals::Refusals, replay::Replays};
use crate::{
    cache::{Cache, Embedder},
    config::{
        Problem, Settings,
        callers::{Caller, Scope},
        plan::{Plan, Source},
        providers::Providers,
    },
    error::{Error, ErrorKind, Result},
    fleet::Fleet,
    health::Health,
    issuers::Issuers,
    jobs::{JobStream, Jobs},
    otlp::Exporter,
    pb::{self, router_service_server::RouterService},
    quota::Ledger,
    store::journal::Journal,
    worker::{Workers, http::Http},
};

/// What a router answers to `StreamImage`.
pub type EventStream =
    Pin<Box<dyn Stream<Item = std::result::Result<pb::StreamImageResponse, Status>> + Send>>;

/// A router in this process, or the adapter of one elsewhere: the same to its callers.
pub type SharedRouter = Arc<dyn RouterService<StreamImageStream = EventStream, WatchJobStream = JobStream>>;

/// Metadata of an answer that streams.
pub const REQUEST_ID: &str = "x-imagegate-request-id";
/// Metadata of an answer that streams.
pub const TRACE_ID: &str = "x-portkey-trace-id";

/// Previews and progress that may wait for a slow reader.
const EVENTS_WAITING: usize = 16;

/// The router.
#[derive(Clone, Debug)]
pub struct Router {
    state: Arc<ArcSwap<State>>,
    shared: Arc<Shared>,
}

/// What lasts from request to request, whatever the configuration.
#[derive(Debug)]
struct Shared {
    health: Arc<Health>,
    replays: Replays,
    cache: Arc<Cache>,
    jobs: Jobs,
    /// What is used of limits.
    ledger: Arc<Ledger>,
    /// What is shared with other routers.
    fleet: Option<Arc<Fleet>>,
    /// Where finished requests are noted.
    journal: Option<Arc<Journal>>,
    /// Where spans of finished requests go.
    otlp: Option<Arc<Exporter>>,
    refusals: Refusals,
    /// Where chance comes from: the next seed, or the system's own.
    seeds: Option<AtomicU64>,
}

/// Everything that a change of configuration replaces at once.
#[derive(Debug)]
pub struct State {
    settings: Arc<Settings>,
    workers: Arc<Workers>,
    providers: Providers,
    issuers: Arc<Issuers>,
    embedder: Option<Arc<Embedder>>,
    /// For webhooks.
    http: Option<Arc<Http>>,
}

impl State {
    /// Puts settings and workers together. `built_in` are the providers of this binary.
    pub fn new(settings: Arc<Settings>, workers: Arc<Workers>, built_in: &Providers) -> Self {
        let providers = built_in.clone().with_all_own(workers.providers());
        let issuers = Arc::default();
        Self { settings, workers, providers, issuers, embedder: None, http: None }
    }

    /// The same with those who vouch for callers.
    #[must_use]
    pub fn trusting(self, issuers: Arc<Issuers>) -> Self {
        Self { issuers, ..self }
    }

    /// The same with these connections, for webhooks and the embeddings endpoint that the settings may name.
    #[must_use]
    pub fn reaching(self, http: &Arc<Http>) -> Self {
        let endpoint = self.settings.embeddings.clone();
        let embedder = endpoint.map(|endpoint| Arc::new(Embedder::new(endpoint, Arc::clone(http))));
        Self { embedder, http: Some(Arc::clone(http)), ..self }
    }
}

impl Router {
    /// A router with its first state.
    pub fn new(state: State) -> Self {
        Self::with(state, None, None, None, None)
    }

    /// A router that shares what it can with others, notes what it has done, and makes spans of it.
    pub fn in_fleet(
        state: State,
        fleet: Option<Arc<Fleet>>,
        journal: Option<Arc<Journal>>,
        otlp: Option<Arc<Exporter>>,
    ) -> Self {
        Self::with(state, fleet, journal, otlp, None)
    }

    /// A router that leaves nothing to chance: the same requests in the same order, the same choices.
    pub fn seeded(state: State, seed: u64) -> Self {
        Self::with(state, None, None, None, Some(AtomicU64::new(seed)))
    }

    fn with(
        state: State,
        fleet: Option<Arc<Fleet>>,
        journal: Option<Arc<Journal>>,
        otlp: Option<Arc<Exporter>>,
        seeds: Option<AtomicU64>,
    ) -> Self {
        let shared = Arc::new(Shared { journal, otlp, ..Shared::new(&state, fleet, seeds) });
        Self { state: Arc::new(ArcSwap::from_pointee(state)), shared }
    }

    /// What is used of limits.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// Provider calls in flight.
    pub fn calls_in_flight(&self) -> u64 {
        self.shared.health.in_flight()
    }

    /// Counts how circuit breakers stand, for metrics.
    pub fn count_breakers(&self) {
        self.shared.health.count_breakers();
    }

    /// How often circuit breakers have opened and closed.
    pub fn breaker_changes(&self) -> u64 {
        self.shared.health.breaker_changes()
    }

    /// Carries out jobs until `draining`, and then those that run to their end.
    pub async fn run_jobs(&self, draining: impl Future<Output = ()>) {
        self.shared.jobs.run(draining).await;
    }

    /// Shares with other routers as long as it runs.
    pub async fn run_fleet(self) {
        if let Some(fleet) = &self.shared.fleet {
            fleet.run(&self.shared.health, &|key| self.shared.cache.forget(key)).await;
        }
    }

    /// Tells other routers what they do not know yet, before this one ends.
    pub async fn leave_fleet(&self) {
        if let Some(fleet) = &self.shared.fleet {
            fleet.flush().await;
        }
    }

    /// Replaces settings and workers. Requests in flight finish with the old ones.
    pub fn replace(&self, state: State) {
        self.shared.cache.resize(state.settings.limits.cache_bytes);
        self.state.store(Arc::new(state));
    }

    /// Before a caller is looked for: has the keys fetched that its token may need.
    pub async fn prepare(&self, headers: &HeaderMap) {
        let issuers = Arc::clone(&self.state.load().issuers);
        issuers.prepare(&resolve::credentials(headers)).await;
    }

    /// Whether everybody may do everything, because nobody has a key.
    pub fn is_open(&self) -> bool {
        self.state.load().settings.callers.are_everybody()
    }

    /// Who manages what the gateway remembers.
    ///
    /// # Errors
    /// 401 without a valid key, and where everybody is let in; 403 without any of these scopes.
    pub fn manager(&self, headers: &HeaderMap, scopes: &[Scope]) -> Result<Caller> {
        let state = self.state.load();
        if state.settings.callers.are_everybody() {
            return Ok(Caller::anybody());
        }
        let caller = resolve::authenticate(headers, &state.settings, &state.issuers, scopes)?;
        caller.map(|caller| Caller::clone(&caller)).ok_or_else(|| {
            let message =
                "an API key is required: `auth: open` lets everybody make images, and nobody manage";
            Error::new(ErrorKind::Unauthenticated, message)
        })
    }

    /// Settings and providers as they are now.
    pub fn known(&self) -> (Arc<Settings>, Providers) {
        let state = self.state.load();
        (Arc::clone(&state.settings), state.providers.clone())
    }

    /// Settings and issuers as they are now.
    pub fn trusted(&self) -> (Arc<Settings>, Arc<Issuers>) {
        let state = self.state.load();
        (Arc::clone(&state.settings), Arc::clone(&state.issuers))
    }

    /// Checks a config that a tenant wants to save.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check_config(&self, tenant: &str, config: &Value) -> Result<Plan, Vec<Problem>> {
        let state = self.state.load();
        state.settings.check_config(tenant, config, &state.providers)
    }

    /// Why a tenant's saved config cannot be run now; empty if it can.
    pub fn problem(&self, tenant: &str, slug: &str) -> String {
        let version = self.state.load().settings.config_of(tenant, slug);
        version.and_then(|version| version.plan.err()).unwrap_or_default()
    }

    /// A tenant's saved configs that use a virtual key.
    pub fn configs_with(&self, tenant: &str, virtual_key: &str) -> Vec<String> {
        let state = self.state.load();
        let configs = state.settings.tenants.get(tenant).into_iter().flat_map(|realm| &realm.configs);
        let uses = |plan: &Plan| {
            let mut uses = false;
            plan.visit(&mut |target| {
                let Source::Fixed(upstream) = &target.source else { return };
                uses |= upstream.virtual_key.as_deref() == Some(virtual_key);
            });
            uses
        };
        configs
            .filter(|(_, version)| version.plan.as_ref().is_ok_and(|plan| uses(plan)))
            .map(|(slug, _)| slug.clone())
            .collect()
    }
}

impl Shared {
    fn new(state: &State, fleet: Option<Arc<Fleet>>, seeds: Option<AtomicU64>) -> Self {
        let limits = &state.settings.limits;
        let cache = Arc::new(Cache::new(limits.cache_bytes).shared(fleet.clone()));
        Self {
            health: Arc::default(),
            replays: Replays::new(limits.idempotency_bytes, fleet.clone()),
            cache,
            ledger: Ledger::new(fleet.clone()),
            fleet,
            journal: None,
            otlp: None,
            refusals: Refusals::default(),
            jobs: Jobs::new(&state.settings.data_dir),
            seeds,
        }
    }

    fn seed(&self) -> u64 {
        match &self.seeds {
            Some(next) => next.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed),
            None => uuid::Uuid::new_v4().as_u128() as u64,
        }
    }
}
