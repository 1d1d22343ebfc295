//! Which parts of a plan can take a request now, by the health of their targets. Looks only; calls nothing and
//! changes nothing.

use std::sync::Arc;

use crate::{
    call::Call,
    config::{
        identity::Identity,
        plan::{Fallback, Plan, Source, Target, Upstream},
    },
    health::{Standing, TargetHealth},
};

/// Headers whose forwarded value is a credential: whoever brings another is another to the provider.
const CREDENTIALS: &[&str] = &["auth", "key", "token", "cookie"];

/// The provider and credential that a target uses for this request.
pub fn upstream<'a>(target: &'a Target, call: &'a Call) -> Option<&'a Upstream> {
    match &target.source {
        Source::Fixed(upstream) => Some(upstream),
        Source::Request => call.ctx.upstream.as_deref(),
    }
}

/// Whom a target calls for this request.
pub fn identity(target: &Target, call: &Call) -> Identity {
    let ctx = &call.ctx;
    let mut identity = target.identity;
    if let (Source::Request, Some(upstream)) = (&target.source, &ctx.upstream) {
        identity = identity.and(upstream.identity());
    }
    if !target.names_model {
        identity = identity.with(&call.request.model);
    }
    if let Some(host) = &ctx.overrides.custom_host {
        identity = identity.with(&host.url);
    }
    let forwarded = ctx.overrides.forward_headers.as_ref().unwrap_or(&target.forward_headers);
    for name in forwarded.iter().filter(|name| CREDENTIALS.iter().any(|part| name.contains(part))) {
        let value = ctx.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        identity = identity.with(value);
    }
    identity
}

/// What is known about a target.
pub fn health(target: &Target, call: &Call) -> Arc<TargetHealth> {
    let provider = upstream(target, call).map_or("", |upstream| upstream.provider.as_str());
    call.ctx.health.target(identity(target, call), provider)
}

/// How a target stands.
pub fn of(target: &Target, call: &Call) -> Standing {
    health(target, call).standing(target.breaker.as_ref())
}

/// Whether any target below can take the request.
pub fn is_available(plan: &Plan, call: &Call) -> bool {
    match plan {
        Plan::Target(target) => of(target, call).ejected.is_none(),
        Plan::Fallback(Fallback { children, .. }) => children.iter().any(|child| is_available(child, call)),
        Plan::Hedge(hedge) => hedge.order.children.iter().any(|child| is_available(child, call)),
        Plan::Balance(balance) => {
            balance.children.iter().any(|child| child.weight > 0.0 && is_available(&child.plan, call))
        }
        Plan::Conditional(conditional) => {
            super::conditional::choose(conditional, call).is_some_and(|child| is_available(child, call))
        }
        Plan::Deadline(_, inner) => is_available(inner, call),
    }
}

/// The target that a part of a plan would call first, by which the part is judged.
pub fn lead<'a>(plan: &'a Plan, call: &Call) -> Option<&'a Target> {
    let first = |children: &mut dyn Iterator<Item = &'a Plan>| {
        let children: Vec<&Plan> = children.collect();
        let available = children.iter().find(|child| is_available(child, call));
        lead(available.or(children.first())?, call)
    };
    match plan {
        Plan::Target(target) => Some(target),
        Plan::Fallback(fallback) => first(&mut fallback.children.iter()),
        Plan::Hedge(hedge) => first(&mut hedge.order.children.iter()),
        Plan::Balance(balance) => {
            first(&mut balance.children.iter().filter(|child| child.weight > 0.0).map(|child| &child.plan))
        }
        Plan::Conditional(conditional) => lead(super::conditional::choose(conditional, call)?, call),
        Plan::Deadline(_, inner) => lead(inner, call),
    }
}
