//! What a config would do with requests of the log. Calls nobody, and changes nothing.
//!
//! Targets stand as if nobody had called them yet, caches are empty, and chance comes from each request's id: whoever
//! asks again is told the same. Limits of the caller's time are those of a request that has just come.

use std::sync::{Arc, atomic::AtomicBool};

use http::HeaderMap;
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Router, State,
    recorded::Recorded,
    resolve::{self, Route},
};
use crate::{
    admission::Held,
    cache::Cache,
    call::{Call, Overrides, Record, RequestContext},
    config::{
        Problem,
        identity::Identity,
        memory::Keeps,
        plan::{Credential, Plan, Upstream},
        strategy::Policy,
    },
    error::Error,
    health::Health,
    pb::{self, RequestRecord, dry_run_request::Verdict, planned_target::Decision},
    quota::Ledger,
    route,
    trace::TraceContext,
};

/// A config that is tried on one request after another.
#[derive(Debug)]
pub struct DryRun {
    state: Arc<State>,
    tenant: String,
    route: Route,
    /// Of those who are called in this run only; it also knows whose turn it is.
    health: Arc<Health>,
    /// Always empty.
    cache: Arc<Cache>,
}

impl Router {
    /// Checks a config that a tenant wants to try.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn dry_run(&self, tenant: &str, name: &str, config: &Value) -> Result<DryRun, Vec<Problem>> {
        let state = self.state.load_full();
        let plan = Arc::new(state.settings.check_config(tenant, config, &state.providers)?);
        Ok(DryRun::new(state, tenant, Route { plan, name: name.to_owned(), version: 0 }))
    }

    /// The same with a config of the file. None: there is no such one.
    pub fn dry_run_of_file(&self, tenant: &str, name: &str) -> Option<DryRun> {
        let state = self.state.load_full();
        let plan = Arc::clone(state.settings.configs.get(name)?);
        Some(DryRun::new(state, tenant, Route { plan, name: name.to_owned(), version: 0 }))
    }
}

impl DryRun {
    fn new(state: Arc<State>, tenant: &str, route: Route) -> Self {
        Self {
            state,
            tenant: tenant.to_owned(),
            route,
            health: Arc::default(),
            cache: Arc::new(Cache::new(0)),
        }
    }

    /// What it would do with a request, beside what happened.
    pub async fn of(&self, record: &RequestRecord) -> pb::DryRunRequest {
        let mut seen = pb::DryRunRequest {
            id: record.id.clone(),
            created_unix_ms: record.created_unix_ms,
            operation: record.operation,
            recorded: Some(recorded(record)),
            ..Default::default()
        };
        let Some(request) = Recorded::read(record) else {
            return match record.asked {
                Some(_) => undecided(seen, "not_routed", "it was refused before a target was looked for"),
                None => undecided(seen, "not_kept", "nothing was kept of what it asked for"),
            };
        };
        let upstream = match self.upstream(&request) {
            Ok(upstream) => upstream,
            Err(message) => return undecided(seen, "provider", &message),
        };
        if let Err(error) = self.check_grants(record, upstream.as_deref()) {
            return refused(seen, &error);
        }
        let (targets, error) = {
            let call = self.call(record, &request, upstream);
            route::explain_recorded(&self.route.plan, &call, &|field| request.hides(field)).await
        };
        seen.targets =
            targets.into_iter().map(|target| pb::PlannedTarget { state: None, ..target }).collect();
        let first = seen
            .targets
            .iter()
            .find(|target| matches!(target.decision(), Decision::Tried | Decision::Undecided));
        match first.cloned() {
            Some(first) if first.decision() == Decision::Tried => {
                seen.set_verdict(Verdict::Routed);
                let called = seen
                    .recorded
                    .iter()
                    .any(|then| (&then.first_provider, &then.first_model) == (&first.provider, &first.model));
                seen.changed = !called;
                seen.first = Some(first);
                seen
            }
            Some(first) => undecided(seen, &first.reason, &first.message),
            None => refused(seen, &error),
        }
    }

    /// What the numbers do not tell.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let plan = &*self.route.plan;
        let mut has_cache = false;
        plan.visit(&mut |target| has_cache |= target.cache.is_some());
        if has_cache {
            notes.push(
                "caches are taken to be empty: what would come out of them is counted as called".to_owned(),
            );
        }
        if has_balance(plan, &|policy| matches!(policy, Policy::LeastBusy | Policy::LeastLatency)) {
            notes.push(
                "how busy and how fast targets were is not known: balances by load or latency choose by chance".to_owned(),
            );
        }
        if has_balance(plan, &|policy| matches!(policy, Policy::Weighted)) {
            notes.push("balances by weight draw anew for each request, and always the same".to_owned());
        }
        notes
    }

    /// Provider and credential that the request brings, if the config has a use for them.
    fn upstream(&self, request: &Recorded) -> Result<Option<Arc<Upstream>>, String> {
        if !self.route.plan.takes_from_request() {
            return Ok(None);
        }
        let Some((provider, virtual_key)) = &request.named else {
            return Err(
                "the config takes the provider from the request, and the log does not have it".to_owned()
            );
        };
        if let Some(known) = self.state.settings.virtual_keys_of(&self.tenant).get(virtual_key) {
            return Ok(Some(Arc::clone(known)));
        }
        if !virtual_key.is_empty() {
            return Err(format!(
                "the request named the virtual key \"{virtual_key}\", which does not exist any more"
            ));
        }
        Ok(Some(Arc::new(Upstream {
            provider: provider.clone(),
            virtual_key: None,
            credential: Credential::None,
            base_url: None,
            options: std::collections::BTreeMap::new(),
            from_caller: true,
            models: Arc::default(),
            metered: None,
        })))
    }

    fn check_grants(&self, record: &RequestRecord, upstream: Option<&Upstream>) -> Result<(), Error> {
        match self.state.settings.callers.of_id(&record.caller) {
            Some(caller) => resolve::check_grants(caller, &self.route, upstream),
            // It has gone, and so has what it was allowed.
            None => Ok(()),
        }
    }

    fn call(&self, record: &RequestRecord, request: &Recorded, upstream: Option<Arc<Upstream>>) -> Call {
        let settings = &self.state.settings;
        let ctx = RequestContext {
            request_id: record.id.clone(),
            trace_id: record.trace_id.clone(),
            trace: TraceContext::begin(uuid::Uuid::default()),
            traced: None,
            deadline: Instant::now() + settings.limits.total_timeout,
            headers: HeaderMap::new(),
            metadata: request.metadata.clone(),
            seed: Identity::of([record.id.as_str()]).to_u64(),
            upstream,
            overrides: Overrides::default(),
            workers: Arc::clone(&self.state.workers),
            health: Arc::clone(&self.health),
            caller: record.caller.clone(),
            tenant: self.tenant.clone(),
            keeps: Keeps::default(),
            // Nothing is called, and so nothing is used.
            ledger: Ledger::new(None),
            metered: Vec::new(),
            cache: Arc::clone(&self.cache),
            embedder: None,
            settings: Arc::clone(settings),
            // Nothing is sent; that somebody listens decides whether previews are asked for.
            events: request.streamed.then(|| mpsc::channel(1).0),
            committed: AtomicBool::new(false),
            record: Record::new(Instant::now()),
            held: Held::default(),
        };
        Call::new(Arc::new(request.image.clone()), Arc::new(ctx))
    }
}

fn refused(seen: pb::DryRunRequest, error: &Error) -> pb::DryRunRequest {
    let was_called = seen.recorded.as_ref().is_some_and(|then| !then.first_provider.is_empty());
    let reason = [error.kind.name(), error.param.as_deref().unwrap_or_default()].join(" ");
    pb::DryRunRequest {
        verdict: Verdict::Refused.into(),
        reason: reason.trim().to_owned(),
        message: error.message.clone(),
        changed: was_called,
        ..seen
    }
}

fn undecided(seen: pb::DryRunRequest, reason: &str, message: &str) -> pb::DryRunRequest {
    let (reason, message) = (reason.to_owned(), message.to_owned());
    pb::DryRunRequest { verdict: Verdict::Undecided.into(), reason, message, ..seen }
}

fn recorded(record: &RequestRecord) -> pb::DryRunRecorded {
    let attempts = record.report.iter().flat_map(|report| &report.attempts);
    let first = attempts.filter(|attempt| attempt.is_call()).min_by_key(|attempt| attempt.number);
    let (first_provider, first_model) = match first {
        Some(first) => (first.provider.clone(), first.model.clone()),
        // From the cache, or answered before under the same idempotency key.
        None if record.outcome == "ok" => (record.provider.clone(), record.model.clone()),
        None => (String::new(), String::new()),
    };
    pb::DryRunRecorded {
        config: record.config.clone(),
        config_version: record.config_version,
        first_provider,
        first_model,
        provider: record.provider.clone(),
        model: record.model.clone(),
        target: record.target.clone(),
        outcome: record.outcome.clone(),
        status: record.status,
        cost_usd: record.cost_usd,
        cost_unknown: record.cost_unknown,
    }
}

fn has_balance(plan: &Plan, is_wanted: &dyn Fn(&Policy) -> bool) -> bool {
    match plan {
        Plan::Target(_) => false,
        Plan::Fallback(fallback) => fallback.children.iter().any(|child| has_balance(child, is_wanted)),
        Plan::Hedge(hedge) => hedge.order.children.iter().any(|child| has_balance(child, is_wanted)),
        Plan::Conditional(conditional) => {
            conditional.children.iter().any(|child| has_balance(child, is_wanted))
        }
        Plan::Balance(balance) => {
            is_wanted(&balance.policy)
                || balance.children.iter().any(|child| has_balance(&child.plan, is_wanted))
        }
        Plan::Deadline(_, inner) => has_balance(inner, is_wanted),
    }
}
