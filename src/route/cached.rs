//! A target that is ready, and its cache: an answer that is there is given again, without a call.
//!
//! Stands before health, retries and calls: what is found needs none of them. Of several requests for the same
//! answer one makes the call, and the others wait for it, each no longer than its own deadline.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout_at;

use super::{
    answer,
    prepare::{Ready, at_target},
    tries::{Tried, passed_over_for, tries},
};
use crate::{
    cache::{
        Answer, Boarding, Embedder, Flight, Landed, Terms, Vector,
        key::{self, Key},
    },
    call::{Call, InPhase, Reply},
    config::{
        plan::{Credential, Target},
        policies::{CacheMode, CachePolicy},
    },
    error::{Error, ErrorKind, Result},
    fleet::Found,
    images::made::Made,
    pb::{self, BillingClass, CacheStatus},
    phases::Phase,
    telemetry,
};

/// Whoever waited in vain for a call that was given up makes it only with that much time left. No picture is
/// made in less, and of many that waited for a silent provider each would pay for another call.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// Why a target was passed over whose call somebody else had made.
const SHARED_FAILURE: &str = "shared_failure";

/// Answers from the cache if the target has one, else by trying the target.
pub async fn run(ready: &Ready<'_>, call: &Call) -> Result<Reply> {
    let policy = policy(ready.target, call);
    let notice = policy.and_then(|policy| only_exact(policy, ready.target, call));
    let (status, outcome) = match policy {
        Some(policy) => Box::pin(Asked::new(ready, call, policy).run()).await,
        None => (CacheStatus::Unspecified, tries(ready, call).await),
    };
    telemetry::cache_lookup(status);
    match outcome {
        Ok(tried) => {
            if matches!(status, CacheStatus::Hit | CacheStatus::SemanticHit) {
                telemetry::cache_saved(ready.provider(), &ready.fitted.capability().model, ready.price());
            }
            let mut reply = answer::reply(ready, call, tried, status);
            reply.warnings.extend(notice);
            Ok(reply)
        }
        Err(error) => {
            if error.ejected.is_none() {
                call.ctx.record.set_cache_status(status);
            }
            call.ctx.record.warn(notice.into_iter().collect());
            Err(error)
        }
    }
}

/// Whether the answer to exactly this request is there already.
pub async fn is_cached(ready: &Ready<'_>, call: &Call) -> bool {
    match policy(ready.target, call).filter(|_| !call.ctx.overrides.cache_refresh) {
        Some(policy) => call.ctx.cache.has(&Asked::new(ready, call, policy).terms.key, policy.max_age).await,
        None => false,
    }
}

fn policy<'a>(target: &'a Target, call: &Call) -> Option<&'a CachePolicy> {
    let ctx = &call.ctx;
    target.cache.as_ref().filter(|_| ctx.cache.is_on() && !ctx.overrides.keep_nothing)
}

/// What to say where prompts were to be compared and nobody can.
fn only_exact(policy: &CachePolicy, target: &Target, call: &Call) -> Option<pb::Warning> {
    let wanted = matches!(policy.mode, CacheMode::Semantic { .. });
    (wanted && call.ctx.embedder.is_none()).then(|| pb::Warning {
        field: "cache".into(),
        action: pb::warning::Action::Notice.into(),
        detail: "semantic needs `embeddings` in the gateway's file; only the same prompt was looked for"
            .into(),
        target: target.path.clone(),
    })
}

/// A request at a target with a cache.
struct Asked<'a> {
    ready: &'a Ready<'a>,
    call: &'a Call,
    policy: &'a CachePolicy,
    terms: Terms,
    bucket: Key,
}

impl<'a> Asked<'a> {
    fn new(ready: &'a Ready<'a>, call: &'a Call, policy: &'a CachePolicy) -> Self {
        let (target, overrides) = (ready.target, &call.ctx.overrides);
        let namespace = overrides.cache_namespace.as_ref().or(policy.namespace.as_ref());
        let (key, bucket) = key::of(&key::Parts {
            caller: &call.ctx.caller,
            credential: own_credential(ready, call),
            namespace: namespace.map_or("", String::as_str),
            provider: ready.provider(),
            upstream: &ready.message,
            calls: &ready.fitted.calls,
            wish: &ready.fitted.wish,
        });
        let terms = Terms {
            key,
            limit: overrides.request_timeout.or(target.request_timeout),
            first_byte_limit: target.first_byte_timeout,
            retries: target.retry.as_ref().map_or(0, |retry| retry.attempts),
            elsewhere: call.elsewhere,
        };
        Self { ready, call, policy, terms, bucket }
    }

    async fn run(&self) -> (CacheStatus, Result<Tried>) {
        let ctx = &self.call.ctx;
        let looking = ctx.enter(Phase::Cache);
        if ctx.overrides.cache_refresh {
            let flight = ctx.cache.board_anew(&self.terms, &ctx.request_id);
            let vector = self.embed().await;
            return (CacheStatus::Refresh, self.make(flight, vector, looking).await);
        }
        loop {
            let landing = match ctx.cache.board(&self.terms, self.policy.max_age, &ctx.request_id) {
                Boarding::Found(made) => return (CacheStatus::Hit, Ok(again(made))),
                Boarding::Lead(flight) => return self.find_or_make(flight, looking).await,
                Boarding::Join(landing) => landing,
            };
            match timeout_at(self.call.deadline, landing.wait()).await {
                Ok(Some(Landed::Made(made))) => return (CacheStatus::Hit, Ok(again(made))),
                Ok(Some(Landed::Near(made))) => return (CacheStatus::SemanticHit, Ok(again(made))),
                Ok(Some(Landed::Failed(error))) => return (self.miss(), Err(self.pass_over(error))),
                Ok(None) if self.call.remaining() >= LEAST_TIME => {}
                Ok(None) | Err(_) => return (self.miss(), Err(self.pass_over(out_of_time()))),
            }
        }
    }

    /// What a request without an answer is called.
    fn miss(&self) -> CacheStatus {
        if self.comparer().is_some() { CacheStatus::SemanticMiss } else { CacheStatus::Miss }
    }

    /// Who compares prompts, and how near they must be.
    fn comparer(&self) -> Option<(&'a Embedder, f64)> {
        match self.policy.mode {
            CacheMode::Simple => None,
            CacheMode::Semantic { threshold } => Some((self.call.ctx.embedder.as_deref()?, threshold)),
        }
    }

    async fn embed(&self) -> Option<Arc<Vector>> {
        let prompt = &self.ready.fitted.calls[0].prompt;
        let (embedder, _) = self.comparer().filter(|_| !prompt.trim().is_empty())?;
        embedder.embed(prompt, self.call.deadline).await.map(Arc::new)
    }

    /// The answer that another router made, or to a prompt that means the same, or else a new one. Only here is an embedding paid for: the
    /// same prompt is found without, and those who wait need none of their own.
    async fn find_or_make(&self, flight: Flight, looking: InPhase) -> (CacheStatus, Result<Tried>) {
        let (cache, max_age) = (&self.call.ctx.cache, self.policy.max_age);
        if let Some(Found { made, age, max_age: life }) =
            cache.of_another_router(&self.terms.key, max_age).await
        {
            flight.found(Answer {
                made: made.clone(),
                max_age: life.min(max_age),
                age,
                vector: None,
                bucket: self.bucket,
                number: 0,
            });
            return (CacheStatus::Hit, Ok(again(made)));
        }
        let vector = self.embed().await;
        if let (Some(vector), Some((_, threshold))) = (&vector, self.comparer()) {
            let cache = &self.call.ctx.cache;
            if let Some(made) = cache.nearest(&self.bucket, vector, threshold, self.policy.max_age) {
                flight.near(made.clone());
                return (CacheStatus::SemanticHit, Ok(again(made)));
            }
        }
        (self.miss(), self.make(flight, vector, looking).await)
    }

    async fn make(&self, flight: Flight, vector: Option<Arc<Vector>>, looking: InPhase) -> Result<Tried> {
        drop(looking);
        match tries(self.ready, self.call).await {
            Ok(tried) => {
                let number = flight.number();
                flight.made(Answer {
                    made: tried.made.clone(),
                    max_age: self.policy.max_age,
                    age: Duration::ZERO,
                    vector,
                    bucket: self.bucket,
                    number,
                });
                Ok(tried)
            }
            Err(error) => {
                // Those who wait may have the time that this request had not.
                let is_own = error.kind == ErrorKind::Cancelled
                    || error.kind == ErrorKind::Timeout && self.call.remaining().is_zero()
                    || error.is_over_budget();
                if !is_own {
                    flight.failed(error.clone());
                }
                Err(error)
            }
        }
    }

    /// The failure of a call that was not made for this request, or not at all.
    fn pass_over(&self, error: Error) -> Error {
        let (ready, call) = (self.ready, self.call);
        call.ctx.record.warn(at_target(&ready.fitted.warnings, ready.target));
        let names = (ready.provider(), ready.model());
        passed_over_for(SHARED_FAILURE, ready.target, call, names, error.billed(BillingClass::NotSent))
    }
}

/// An answer that was made before, or for another.
fn again(made: Made) -> Tried {
    Tried { made, retries: 0 }
}

fn out_of_time() -> Error {
    let message = "the request's deadline has passed";
    Error::transport(ErrorKind::Timeout, BillingClass::NotSent, message).with_status(504)
}

/// A provider's credential that is not one of the operator's virtual keys. It may be the request's, and then its
/// owner paid for the answer, and may see more than others do.
fn own_credential<'a>(ready: &'a Ready<'_>, call: &Call) -> &'a str {
    let stored = super::standing::upstream(ready.target, call).is_none_or(|upstream| {
        upstream.virtual_key.is_some() || matches!(upstream.credential, Credential::None)
    });
    match ready.message.credential.as_ref().and_then(|held| held.credential.as_ref()) {
        Some(pb::credential::Credential::ApiKey(key)) if !stored => key,
        _ => "",
    }
}
