//! Puts the parts of a process together from its configuration, and again whenever that changes.

use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use arc_swap::ArcSwap;
use tracing::{error, info, warn};

use crate::{
    config::{Origin, Settings, file::Listen, plan::Credential, providers::Providers},
    egress::Egress,
    provider::{self, sandbox::Sandbox},
    router::{Router, State},
    serve::Hangups,
    telemetry, transport,
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

/// The workers of this process and the connections to others.
pub struct Gateway {
    origin: Origin,
    built_in: Providers,
    local: BTreeMap<String, SharedWorker>,
    http: Arc<Http>,
    secrets: Arc<ArcSwap<Secrets>>,
    /// By address, so that a change of configuration keeps connections.
    remote: Mutex<BTreeMap<String, SharedWorker>>,
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
        let gateway = Self { origin, built_in, local, http, secrets, remote: Mutex::default() };
        gateway.apply(&settings);
        Ok((gateway, settings))
    }

    /// What the router works with.
    ///
    /// # Errors
    /// The address of a worker cannot be one.
    pub fn state(&self, settings: &Arc<Settings>) -> Result<State> {
        let workers = Arc::new(self.workers(settings)?);
        Ok(State::new(Arc::clone(settings), workers, &self.built_in).reaching(&self.http))
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
        for (name, uri) in &settings.workers {
            workers.insert(name, self.remote(uri).with_context(|| format!("workers.{name}"))?);
        }
        Ok(workers)
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

    /// Tells providers that jobs are no longer wanted whose callers have gone, as long as it runs.
    pub fn give_up_jobs(&self) -> impl Future<Output = ()> + Send + use<> {
        let http = Arc::clone(&self.http);
        async move { http.send_what_is_left().await }
    }

    /// Puts every valid change of the file into force. An invalid one is logged, and the old one stays.
    pub async fn watch(self, router: Option<(Router, Listen)>) {
        let mut hangups = Hangups::new();
        let mut seen = self.origin.path().and_then(fingerprint);
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = self.origin.path().and_then(fingerprint);
                    if now == seen || now.is_none() {
                        continue;
                    }
                    seen = now;
                }
                () = hangups.next() => seen = self.origin.path().and_then(fingerprint),
            }
            self.reload(router.as_ref());
        }
    }

    fn reload(&self, router: Option<&(Router, Listen)>) {
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
                Credential::HeldByWorker(_) => return None,
            };
            Some((name.clone(), Held { api_key, options: Options(upstream.options.clone()) }))
        });
        self.secrets.store(Arc::new(held.collect()));
    }

    fn remote(&self, uri: &str) -> Result<SharedWorker> {
        let mut known = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = known.get(uri) {
            return Ok(Arc::clone(worker));
        }
        let channel = transport::channel(uri).map_err(|reason| anyhow!(reason))?;
        let worker: SharedWorker = Arc::new(Remote::new(channel));
        known.insert(uri.to_owned(), Arc::clone(&worker));
        Ok(worker)
    }
}

/// The providers of this binary.
pub fn built_in() -> Providers {
    let http = provider::all().into_iter().fold(Providers::default(), |all, one| all.with(one.record()));
    http.with_own(Sandbox::NAME)
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
