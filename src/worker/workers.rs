//! Which worker serves a provider, and what it can do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tonic::Request;

use super::SharedWorker;
use crate::{
    error::{Error, ErrorKind, Result},
    pb::{self, BillingClass},
    telemetry,
};

/// How long a worker's record is believed.
const FRESH: Duration = Duration::from_secs(60);

/// How long a worker may take to describe itself: it knows the answer by heart.
const PATIENCE: Duration = Duration::from_secs(2);

/// Workers by provider.
#[derive(Debug, Default)]
pub struct Workers {
    by_provider: BTreeMap<String, Entry>,
}

struct Entry {
    worker: SharedWorker,
    /// What it said last, and when.
    record: Mutex<Option<(Instant, Arc<pb::Provider>)>>,
}

impl Workers {
    /// Adds the worker of a provider, over one that may be there.
    pub fn insert(&mut self, provider: impl Into<String>, worker: SharedWorker) {
        self.by_provider.insert(provider.into(), Entry { worker, record: Mutex::default() });
    }

    /// Every provider there is a worker for.
    pub fn providers(&self) -> BTreeSet<String> {
        self.by_provider.keys().cloned().collect()
    }

    /// The worker of a provider and its record, asked for if it is not known or old.
    ///
    /// # Errors
    /// The worker cannot be reached and has never been, or does not serve the provider.
    pub async fn find(&self, provider: &str) -> Result<(SharedWorker, Arc<pb::Provider>)> {
        let entry = self.by_provider.get(provider).ok_or_else(|| {
            Error::unsupported("provider", format!("there is no worker for provider {provider}"))
        })?;
        let known = entry.known();
        if let Some((at, record)) = &known
            && at.elapsed() < FRESH
        {
            return Ok((Arc::clone(&entry.worker), Arc::clone(record)));
        }
        let record = match (entry.describe(provider).await, known) {
            (Ok(record), _) => {
                telemetry::know_provider(
                    &record.name,
                    record.models.iter().map(|model| model.model.as_str()),
                );
                Arc::new(record)
            }
            // An old record beats none: the call itself will tell whether the worker is there.
            (Err(_), Some((_, old))) => old,
            (Err(error), None) => return Err(error),
        };
        *entry.lock() = Some((Instant::now(), Arc::clone(&record)));
        Ok((Arc::clone(&entry.worker), record))
    }

    /// Every record that can be had now.
    pub async fn records(&self) -> Vec<Arc<pb::Provider>> {
        let found =
            futures::future::join_all(self.by_provider.keys().map(|provider| self.find(provider))).await;
        found.into_iter().filter_map(|found| Some(found.ok()?.1)).collect()
    }
}

impl Entry {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Arc<pb::Provider>)>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Option<(Instant, Arc<pb::Provider>)> {
        self.lock().clone()
    }

    async fn describe(&self, provider: &str) -> Result<pb::Provider> {
        let unreachable = |reason: &str| {
            let message = format!("the worker of {provider} {reason}");
            Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, message)
        };
        let mut request = Request::new(pb::DescribeRequest {});
        request.set_timeout(PATIENCE);
        let answer = timeout(PATIENCE, self.worker.describe(request))
            .await
            .map_err(|_| unreachable("does not describe itself in time"))?
            .map_err(|status| match Error::from_status(&status) {
                // It says why.
                error if error.transport => error.billed(BillingClass::NotSent),
                _ => unreachable("does not describe itself"),
            })?;
        let mut providers = answer.into_inner().providers;
        match providers.iter().position(|record| record.name == provider) {
            Some(found) => Ok(providers.swap_remove(found)),
            None => {
                let names: Vec<&str> = providers.iter().map(|record| record.name.as_str()).collect();
                let message =
                    format!("the worker configured for {provider} serves {} only", names.join(", "));
                Err(Error::unsupported("provider", message))
            }
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry(..)")
    }
}
