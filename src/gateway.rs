//! Puts the parts of a process together from its configuration, and again whenever that changes.

use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use arc_swap::ArcSwap;
use tracing::{error, info, warn};

use crate::{
    config::{
        Origin, Settings, file::Listen, memory::StoreChoice, plan::Credential, providers::Providers,
        saved::Saved, tls::TlsFiles,
    },
    egress::Egress,
    issuers::Issuers,
    otlp::Exporter,
    pb::{WorkerEndpoint, unix_now_ms},
    pool::{Address, Pool, Service},
    provider::{self, sandbox::Sandbox},
    quota,
    router::{Router, State},
    serve::Hangups,
    store::{CannotOpen, Store},
    telemetry::{self, StoreState},
    tls::Tls,
    worker::{
        SharedWorker, Workers,
        drive::{Held, HttpWorker, Options, Secrets},
        http::Http,
        local::Local,
        remote::Remote,
    },
};

/// How often a file is looked at. Kubernetes replaces mounted files by renaming a folder above them, which
/// file events miss; reading a few KiB costs nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often a store that could not be opened at the start is tried again.
const OPEN_EVERY: Duration = Duration::from_secs(5);

/// The workers of this process and the connections to others.
pub struct Gateway {
    origin: Origin,
    built_in: Providers,
    local: BTreeMap<String, SharedWorker>,
    http: Arc<Http>,
    secrets: Arc<ArcSwap<Secrets>>,
    /// What the file says of TLS; it is read once.
    tls: Option<Arc<Tls>>,
    /// As they are configured, so that a change of configuration keeps connections.
    remote: Mutex<Remotes>,
    /// Who vouches for callers, with the keys that are known of them.
    issuers: ArcSwap<Issuers>,
    /// What the file says now.
    settings: ArcSwap<Settings>,
    /// What is remembered, if it can be.
    store: OnceLock<Arc<Store>>,
    /// What was saved, as it was last loaded.
    saved: ArcSwap<Saved>,
    /// Held while something is put into force, so that nothing older comes after it.
    changing: Mutex<()>,
}

/// Workers elsewhere, by provider and addresses.
type Remotes = BTreeMap<(String, Vec<Address>), Elsewhere>;

/// A worker elsewhere, and the connections to it.
#[derive(Clone)]
struct Elsewhere {
    pool: Pool,
    worker: SharedWorker,
}

impl Gateway {
    /// Reads the configuration and makes the workers of this process.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration.
    pub fn try_new(origin: Origin) -> Result<(Self, Arc<Settings>)> {
        let http =
            Arc::new(Http::try_new(Egress::default()).map_err(|reason| anyhow!("HTTP client: {reason}"))?);
        let secrets = Arc::new(ArcSwap::default());
        let built_in = built_in();
        let local = local_workers(&http, &secrets);
        let settings = Arc::new(origin.read(&built_in)?);
        http.set_budget(settings.limits.bytes_in_flight);
        let tls = settings.tls.files().cloned().map(Tls::try_new).transpose();
        let tls = tls.map_err(|reason| anyhow!("tls: {reason}"))?;
        let gateway = Self {
            origin,
            built_in,
            local,
            http,
            secrets,
            tls,
            remote: Mutex::default(),
            issuers: ArcSwap::default(),
            settings: ArcSwap::new(Arc::clone(&settings)),
            store: OnceLock::new(),
            saved: ArcSwap::default(),
            changing: Mutex::default(),
        };
        gateway.apply(&settings);
        Ok((gateway, settings))
    }

    /// What the router works with.
    ///
    /// # Errors
    /// The address of a worker cannot be one.
    pub fn state(&self, settings: &Arc<Settings>) -> Result<State> {
        let workers = Arc::new(self.workers(settings)?);
        let providers = self.built_in.clone().with_all_own(workers.providers());
        let joined = Arc::new(settings.joined(&self.saved.load(), &providers, unix_now_ms()));
        let issuers = self.issuers(settings);
        name_in_metrics(&joined, &workers);
        Ok(State::new(joined, workers, &self.built_in).reaching(&self.http).trusting(issuers))
    }

    /// Those that the file names, with what is known of their keys and tokens.
    fn issuers(&self, settings: &Settings) -> Arc<Issuers> {
        let (named, before) = (&settings.callers.issuers, self.issuers.load_full());
        if before.are(named) {
            return before;
        }
        let issuers = Arc::new(Issuers::new(named, Some(&self.http), Some(&before)));
        self.issuers.store(Arc::clone(&issuers));
        issuers
    }

    /// Keeps the issuers' keys, as long as it runs.
    pub async fn keep_issuers(&self) {
        loop {
            self.issuers.load_full().look().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Opens the store and loads what was saved. A file that cannot be used is done without, and said: the gateway
    /// still does what its configuration says. A database that was configured is waited for by whoever starts this
    /// process again.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn remember(&self) -> Result<()> {
        let settings = self.settings.load_full();
        match self.open(&settings).await {
            Err(reason) if matches!(settings.memory.store, StoreChoice::File) => {
                telemetry::store_up(false);
                telemetry::store_changed(StoreState::Away, &reason.to_string());
                Ok(())
            }
            opened => Ok(opened?),
        }
    }

    /// The store, once it can be opened: what was saved is in force then. Not for a gateway that shall have none.
    pub async fn opened(&self, router: &Router) -> Arc<Store> {
        loop {
            if let Some(store) = self.store() {
                return Arc::clone(store);
            }
            tokio::time::sleep(OPEN_EVERY).await;
            let settings = self.settings.load_full();
            if self.open(&settings).await.is_err() {
                continue;
            }
            let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            match self.state(&self.settings.load_full()) {
                Ok(state) => router.replace(state),
                Err(problem) => error!(%problem, "what was saved is not in force"),
            }
            telemetry::store_changed(StoreState::Well, "");
        }
    }

    /// Opens the store, if there shall be one, and loads what was saved.
    async fn open(&self, settings: &Settings) -> Result<(), CannotOpen> {
        if matches!(settings.memory.store, StoreChoice::Off) {
            return Ok(());
        }
        let store = Store::open(&settings.memory, &settings.data_dir).await?;
        let saved = store.load().await.map_err(|error| CannotOpen(error.message.clone()))?;
        telemetry::store_up(true);
        self.saved.store(Arc::new(saved));
        _ = self.store.set(Arc::new(store));
        Ok(())
    }

    /// What is remembered, if it can be.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.store.get()
    }

    /// Loads what was saved and puts it into force.
    ///
    /// # Errors
    /// The store is away: what was loaded before stays in force.
    pub async fn refresh(&self, router: &Router) -> Result<()> {
        let Some(store) = self.store() else { return Ok(()) };
        let saved = store.load().await.map_err(|error| anyhow!("{}", error.message))?;
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.revision >= self.saved.load().revision {
            self.saved.store(Arc::new(saved));
            router.replace(self.state(&self.settings.load_full())?);
        }
        Ok(())
    }

    /// Notices what other routers have saved, and what expires, as long as it runs.
    pub async fn keep_fresh(&self, store: &Store, router: &Router) {
        // A store that does not answer keeps nothing from expiring.
        tokio::join!(self.keep_looking(store, router), self.keep_expiring(router));
    }

    async fn keep_expiring(&self, router: &Router) {
        let mut looked_ms = unix_now_ms();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = unix_now_ms();
            let is_due = self.saved.load().next_expiry(looked_ms).is_some_and(|at| at <= now);
            looked_ms = now;
            if !is_due {
                continue;
            }
            let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            match self.state(&self.settings.load_full()) {
                Ok(state) => router.replace(state),
                Err(problem) => error!(%problem, "what has expired stays in force"),
            }
        }
    }

    async fn keep_looking(&self, store: &Store, router: &Router) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if store.look().await.is_ok_and(|revision| revision != self.saved.load().revision) {
                // What cannot be loaded now is looked for again.
                _ = self.refresh(router).await;
            }
        }
    }

    /// Every worker: those of this process, and those that the configuration names.
    ///
    /// # Errors
    /// The address of a worker cannot be one.
    pub fn workers(&self, settings: &Settings) -> Result<Workers> {
        let mut workers = Workers::default();
        for (name, worker) in &self.local {
            workers.insert(name, Arc::clone(worker));
        }
        let mut remotes = Remotes::new();
        for (name, addresses) in &settings.workers {
            let elsewhere = self.remote(name, addresses).with_context(|| format!("workers.{name}"))?;
            workers.insert(name, Arc::clone(&elsewhere.worker));
            remotes.insert((name.clone(), addresses.clone()), elsewhere);
        }
        // Connections to those that are no longer named end with the requests that use them.
        *self.remote.lock().unwrap_or_else(PoisonError::into_inner) = remotes;
        Ok(workers)
    }

    /// The processes with workers that this one knows of, by provider and address.
    pub fn endpoints(&self) -> Vec<WorkerEndpoint> {
        let remotes = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        remotes.iter().flat_map(|((provider, _), elsewhere)| elsewhere.pool.endpoints(provider)).collect()
    }

    /// Where spans and metrics go, if the configuration names a collector.
    ///
    /// # Errors
    /// The system's CAs cannot be had.
    pub fn exporter(&self, settings: &Settings) -> Result<Option<Arc<Exporter>>> {
        let exporter = settings.otlp.as_ref().map(|otlp| Exporter::try_new(otlp, &self.http));
        exporter.transpose().context("otlp")
    }

    /// The certificates of this process, if it has any.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// The workers of some providers, as one to be served.
    ///
    /// # Errors
    /// A provider that this binary does not have.
    pub fn worker(&self, providers: &[String]) -> Result<SharedWorker> {
        let chosen = providers.iter().map(|name| {
            let name = provider::canonical_name(name);
            let worker = self.local.get(name).with_context(|| {
                let known = self.local.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                format!("unknown provider \"{name}\"; known: {known}")
            })?;
            Ok((name.to_owned(), Arc::clone(worker)))
        });
        Ok(Arc::new(Local::new(chosen.collect::<Result<Vec<_>>>()?)))
    }

    /// Tells providers that jobs are no longer wanted whose callers have gone, and closes connections that nobody uses, as
    /// long as it runs.
    pub fn run_upstreams(&self) -> impl Future<Output = ()> + Send + use<> {
        let http = Arc::clone(&self.http);
        async move { http.run().await }
    }

    /// Puts every valid change of the file into force. An invalid one is logged, and the old one stays.
    pub fn watch(self: Arc<Self>, router: Option<(Router, Listen)>) -> impl Future<Output = ()> + Send {
        // From now on: one that comes before anybody listens ends the process.
        let mut hangups = Hangups::new();
        async move {
            let mut seen = self.fingerprint();
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {
                        let now = self.fingerprint();
                        if now == seen || now.is_none() {
                            continue;
                        }
                        seen = now;
                    }
                    () = hangups.next() => seen = self.fingerprint(),
                }
                self.reload(router.as_ref());
                // It may name another file of prices.
                seen = self.fingerprint().or(seen);
            }
        }
    }

    /// What the file says now, and the one with the prices. None if one cannot be read, as in the middle of a
    /// replacement.
    fn fingerprint(&self) -> Option<Vec<Vec<u8>>> {
        let prices = self.settings.load().prices_file.clone();
        let files = self.origin.path().map(Path::to_owned).into_iter().chain(prices);
        let all: Option<Vec<_>> = files.map(|file| fingerprint(&file)).collect();
        all.filter(|all| !all.is_empty())
    }

    fn reload(&self, router: Option<&(Router, Listen)>) {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.origin.read(&self.built_in).map_err(anyhow::Error::from);
        let read = read.and_then(|settings| {
            let settings = Arc::new(settings);
            if let Some((_, listen)) = router {
                settings.check_exposure(*listen).map_err(anyhow::Error::msg)?;
            }
            Ok((self.state(&settings)?, settings))
        });
        match read {
            Ok((state, settings)) => {
                self.apply(&settings);
                self.settings.store(settings);
                if let Some((router, _)) = router {
                    router.replace(state);
                }
                telemetry::config_reload(true);
                info!(origin = %self.origin, "configuration reloaded");
            }
            Err(problem) => {
                telemetry::config_reload(false);
                error!(%problem, "configuration refused; the old one stays in force");
            }
        }
    }

    /// What the workers of this process take from the configuration.
    fn apply(&self, settings: &Settings) {
        self.http.set_egress(Egress::clone(&settings.egress));
        let held = settings.virtual_keys.iter().filter_map(|(name, upstream)| {
            let api_key = match &upstream.credential {
                Credential::ApiKey(key) => Some(key.clone()),
                Credential::None => None,
                Credential::HeldByWorker(_) | Credential::Withdrawn(_) => return None,
            };
            Some((name.clone(), Held { api_key, options: Options(upstream.options.clone()) }))
        });
        self.secrets.store(Arc::new(held.collect()));
    }

    fn remote(&self, name: &str, addresses: &[Address]) -> Result<Elsewhere> {
        let known = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(elsewhere) = known.get(&(name.to_owned(), addresses.to_vec())) {
            return Ok(elsewhere.clone());
        }
        let tls = client_tls(addresses, self.tls.as_ref())?;
        let pool = Pool::new(Service::Worker(name.to_owned()), addresses.to_vec(), tls);
        Ok(Elsewhere { worker: Arc::new(Remote::new(pool.clone())), pool })
    }
}

/// How https among these addresses is spoken: as is configured, else as any client would.
///
/// # Errors
/// The system's CAs cannot be had.
pub fn client_tls(addresses: &[Address], configured: Option<&Arc<Tls>>) -> Result<Option<Arc<Tls>>> {
    match configured {
        Some(tls) => Ok(Some(Arc::clone(tls))),
        None if addresses.iter().any(|address| address.tls) => {
            Ok(Some(Tls::try_new(TlsFiles::default()).map_err(anyhow::Error::msg)?))
        }
        None => Ok(None),
    }
}

/// The providers of this binary.
pub fn built_in() -> Providers {
    let http = provider::all().into_iter().fold(Providers::default(), |all, one| all.with(one.record()));
    http.with_own(Sandbox::NAME)
}

/// What metrics may call by name.
fn name_in_metrics(settings: &Settings, workers: &Workers) {
    for upstream in settings.virtual_keys.values() {
        let models = upstream.models.iter().map(|model| model.model.as_str());
        telemetry::know_provider(&upstream.provider, models);
    }
    for provider in workers.providers() {
        telemetry::know_provider(&provider, []);
    }
    telemetry::know_budgets(&quota::budgets(settings));
}

fn local_workers(http: &Arc<Http>, secrets: &Arc<ArcSwap<Secrets>>) -> BTreeMap<String, SharedWorker> {
    let mut workers: BTreeMap<String, SharedWorker> = BTreeMap::new();
    for provider in provider::all() {
        let name = provider.record().name.clone();
        workers.insert(name, Arc::new(HttpWorker::new(provider, Arc::clone(http), Arc::clone(secrets))));
    }
    workers.insert(Sandbox::NAME.to_owned(), Arc::new(Sandbox::new()));
    workers
}

/// What the file says now. None if it cannot be read, as in the middle of a replacement.
fn fingerprint(path: &Path) -> Option<Vec<u8>> {
    use sha2::{Digest as _, Sha256};
    match std::fs::read(path) {
        Ok(content) => Some(Sha256::digest(content).to_vec()),
        Err(problem) => {
            warn!(%problem, path = %path.display(), "the configuration file cannot be read");
            None
        }
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("origin", &self.origin).finish_non_exhaustive()
    }
}
