//! The calls of one target: again where its config says so and its health allows.

use std::time::Duration;

use super::{
    attempt::Attempt,
    prepare::{Ready, at_target},
    retry::{self, Withheld},
    standing,
};
use crate::{
    call::Call,
    config::{identity::Identity, plan::Target},
    error::{Error, ErrorKind, Result},
    health::{Ejected, Permit, Standing, TargetHealth, Verdict},
    images::made::Made,
    pb,
    phases::Phase,
    telemetry,
};

/// Throws of the dice of one target: whether it takes part while it warms up, then one for each retry.
const WARMING: u64 = 0;
const FIRST_RETRY: u64 = 100;

/// Why a target was passed over that a limit does not allow to call.
const OVER_QUOTA: &str = "over_quota";

/// A caller that waited so much longer than the target usually takes shows that the target is silent; one that
/// gave up sooner shows nothing.
const PATIENCE: f64 = 3.0;
const LEAST_PATIENCE: Duration = Duration::from_secs(10);

/// What a target made in the end.
pub struct Tried {
    /// The answer.
    pub made: Made,
    /// Retries before it.
    pub retries: u32,
}

/// Notes that a target was passed over without a call.
pub fn passed_over(target: &Target, call: &Call, provider: &str, model: &str, error: Error) -> Error {
    let reason = error.skipped_for();
    passed_over_for(reason, target, call, (provider, model), error)
}

/// Notes that a target was passed over for a reason that its error does not tell.
pub fn passed_over_for(
    reason: &'static str,
    target: &Target,
    call: &Call,
    (provider, model): (&str, &str),
    error: Error,
) -> Error {
    call.ctx.skip(&target.path, provider, model, &error, reason);
    telemetry::skipped(provider, reason);
    error
}

/// Calls the target, again where that may help.
pub async fn tries(ready: &Ready<'_>, call: &Call) -> Result<Tried> {
    let (target, ctx) = (ready.target, &call.ctx);
    let breaker = target.breaker.as_ref();
    let identity = standing::identity(target, call);
    let health = ctx.health.target(identity, ready.provider());
    let mut permit = match health.admit(breaker, warming(identity, call)) {
        Ok(permit) => permit,
        Err(ejected) if call.elsewhere.covers(ejected) => {
            let mut error = Error::ejected(ejected);
            ready.provider().clone_into(&mut error.provider);
            return Err(passed_over(target, call, ready.provider(), ready.model(), error));
        }
        Err(_) => health.force(),
    };
    let attempt = Attempt::new(ready, call);
    if let Some(budget) = target.retry.as_ref().and_then(|retry| retry.budget) {
        health.earn_retry(budget);
    }
    let mut hold = match attempt.hold().await {
        Ok(hold) => hold,
        Err(error) => {
            let names = (ready.provider(), ready.model());
            return Err(passed_over_for(OVER_QUOTA, target, call, names, error));
        }
    };
    let mut retries = 0;
    loop {
        let outcome = attempt.run(&hold).await;
        drop(hold);
        let verdict = match &outcome {
            Ok(_) => Verdict::Success,
            Err(error) => verdict(target, error, &permit, &health.standing(breaker), call),
        };
        let pause = outcome.as_ref().err().filter(|error| error.kind == ErrorKind::RateLimited);
        permit.finish(verdict, breaker, pause.and_then(|error| error.retry_after));
        let mut error = match outcome {
            Ok(made) => return Ok(Tried { made, retries }),
            Err(error) => error,
        };
        if error.provider.is_empty() {
            ready.provider().clone_into(&mut error.provider);
        }
        let dice = ctx.dice(identity, FIRST_RETRY + u64::from(retries));
        match again(ready, &error, retries, dice, &health, call) {
            Ok(pause) => {
                let _waiting = ctx.enter(Phase::Waiting);
                tokio::time::sleep(pause).await;
            }
            Err(withheld) => return Err(give_up(ready, call, error, retries, withheld)),
        }
        // Meanwhile a hedge may have begun another call.
        if is_too_expensive(ready, call) {
            return Err(give_up(ready, call, error, retries, Withheld::TooExpensive));
        }
        hold = match attempt.hold().await {
            Ok(hold) => hold,
            Err(_) => return Err(give_up(ready, call, error, retries, Withheld::OverQuota)),
        };
        retries += 1;
        // A retry that has been waited for is made, unless another target has it better.
        permit = match health.admit(breaker, 0.0) {
            Ok(permit) => permit,
            Err(ejected @ (Ejected::Open(_) | Ejected::Probing)) if call.elsewhere.covers(ejected) => {
                return Err(give_up(ready, call, error, retries - 1, Withheld::TargetIsDown));
            }
            Err(_) => health.force(),
        };
    }
}

/// How long to wait before the next try.
fn again(
    ready: &Ready<'_>,
    error: &Error,
    retries: u32,
    dice: f64,
    health: &TargetHealth,
    call: &Call,
) -> Result<Duration, Withheld> {
    let target = ready.target;
    let policy = target.retry.as_ref().filter(|_| !call.ctx.is_committed()).ok_or(Withheld::NotWanted)?;
    let pause = retry::pause(policy, retries, error, call.remaining(), dice)?;
    if is_too_expensive(ready, call) {
        return Err(Withheld::TooExpensive);
    }
    let standing = health.standing(target.breaker.as_ref());
    let down = matches!(standing.ejected, Some(Ejected::Open(_) | Ejected::Probing));
    if down && call.elsewhere.if_broken {
        return Err(Withheld::TargetIsDown);
    }
    if policy.budget.is_some() && !health.spend_retry() {
        return Err(Withheld::BudgetSpent);
    }
    Ok(pause)
}

/// Whether a retry might make the request cost more for nothing than its config allows.
fn is_too_expensive(ready: &Ready<'_>, call: &Call) -> bool {
    let cap = ready.target.retry.as_ref().and_then(|retry| retry.max_duplicate_spend_usd);
    cap.is_some_and(|cap| !call.ctx.record.at_risk_beside(ready.price()).is_within(cap))
}

fn give_up(ready: &Ready<'_>, call: &Call, error: Error, retries: u32, withheld: Withheld) -> Error {
    let (target, ctx) = (ready.target, &call.ctx);
    let mut warnings = at_target(&ready.fitted.warnings, target);
    if let Some(detail) = withheld.explanation() {
        telemetry::retry_withheld(withheld.name());
        warnings.push(pb::Warning {
            field: "retry".into(),
            action: pb::warning::Action::Notice.into(),
            detail: detail.to_owned(),
            target: target.path.clone(),
        });
    }
    ctx.record.warn(warnings);
    let policy = target.retry.as_ref().filter(|_| !ctx.is_committed());
    ctx.record.set_retry_count(retry::count(policy, retries, &error));
    error
}

/// The throw that decides whether a target that comes back gets this request. One that a balance has chosen by
/// its share gets it.
fn warming(identity: Identity, call: &Call) -> f64 {
    if call.is_chosen { 0.0 } else { call.ctx.dice(identity, WARMING) }
}

/// Why this request would pass the target over, if it would. Changes nothing.
pub fn left_alone(target: &Target, call: &Call) -> Option<Ejected> {
    let dice = warming(standing::identity(target, call), call);
    let ejected = standing::health(target, call).would_admit(target.breaker.as_ref(), dice).err()?;
    call.elsewhere.covers(ejected).then_some(ejected)
}

/// What a failed try tells about its target.
fn verdict(target: &Target, error: &Error, permit: &Permit, standing: &Standing, call: &Call) -> Verdict {
    let listed = target.breaker.as_ref().and_then(|breaker| breaker.failure_statuses.as_ref());
    match error.kind {
        ErrorKind::Cancelled | ErrorKind::Internal => Verdict::Nothing,
        // Whatever a config lists: the request is at fault, not the target.
        ErrorKind::ContentRejected | ErrorKind::Unsupported => Verdict::Alive,
        ErrorKind::Timeout if call.remaining().is_zero() => {
            let usual = Duration::from_secs_f64(standing.seconds.unwrap_or_default() * PATIENCE);
            if permit.elapsed() > usual.max(LEAST_PATIENCE) { Verdict::Failure } else { Verdict::Nothing }
        }
        _ => match listed {
            Some(statuses) if statuses.iter().any(|status| error.matches_status(*status)) => Verdict::Failure,
            Some(_) => Verdict::Alive,
            None => match error.kind {
                ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::BadAnswer => Verdict::Failure,
                _ => Verdict::Alive,
            },
        },
    }
}
