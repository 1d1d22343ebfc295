//! What a request would do, without doing it: the walk that [`super::run`] takes if every target fails.
//!
//! It asks the same functions: strategies choose in them, targets are made ready in them, health is looked at
//! in them. What is said here is therefore what runs, as long as health stays as it is.

use super::{
    balance, cached, conditional, fallback,
    prepare::{self, at_target},
    standing, tries,
};
use crate::{
    call::Call,
    config::{
        condition::Field,
        plan::{Balance, Conditional, Fallback, Plan, Target},
    },
    error::{Error, ErrorKind},
    pb::{PlannedTarget, planned_target::Decision},
};

/// Every target of a plan with what this request would do with it.
pub async fn explain(plan: &Plan, call: &Call) -> Vec<PlannedTarget> {
    let mut walk = Walk { targets: Vec::new(), is_hidden: &|_| false, takes_turns: false };
    walk.plan(plan, call).await;
    walk.targets
}

/// The same for one of several requests that once were made, of which not everything is known; and the failure with
/// which it ends if nobody answers. Balances take note of it, so that turns go round; what a condition asks for and
/// `is_hidden` leaves its targets undecided.
pub async fn explain_recorded(
    plan: &Plan,
    call: &Call,
    is_hidden: &(dyn Fn(&Field) -> bool + Sync),
) -> (Vec<PlannedTarget>, Error) {
    let mut walk = Walk { targets: Vec::new(), is_hidden, takes_turns: true };
    let error = walk.plan(plan, call).await;
    (walk.targets, error)
}

struct Walk<'a> {
    targets: Vec<PlannedTarget>,
    is_hidden: &'a (dyn Fn(&Field) -> bool + Sync),
    takes_turns: bool,
}

impl Walk<'_> {
    /// Goes through a part of the plan, and returns the failure with which it would end.
    async fn plan(&mut self, plan: &Plan, call: &Call) -> Error {
        match plan {
            Plan::Target(target) => self.target(target, call).await,
            Plan::Fallback(fallback) => self.fallback(fallback, call).await,
            Plan::Hedge(hedge) => {
                let first = self.targets.len();
                let error = self.fallback(&hedge.order, call).await;
                let tried =
                    self.targets[first..].iter_mut().filter(|target| target.decision() == Decision::Tried);
                for target in tried.skip(1) {
                    target.hedged_after_ms = u64::try_from(hedge.after.as_millis()).ok();
                }
                error
            }
            Plan::Balance(balance) => self.balance(balance, call).await,
            Plan::Conditional(conditional) => self.conditional(conditional, call).await,
            Plan::Deadline(limit, inner) => Box::pin(self.plan(inner, &call.within(*limit))).await,
        }
    }

    async fn conditional(&mut self, conditional: &Conditional, call: &Call) -> Error {
        let chosen = match conditional::decide(conditional, call, self.is_hidden) {
            Ok(chosen) => chosen,
            Err(field) => {
                let why = format!("the conditions ask for {field}, which is not in the log");
                for child in &conditional.children {
                    self.not_called(child, call, (Decision::Undecided, &field.to_string()), &why);
                }
                return tried();
            }
        };
        let error = match chosen {
            Some(child) => Box::pin(self.plan(child, call)).await,
            None => conditional::unresolved(),
        };
        for child in &conditional.children {
            if !chosen.is_some_and(|chosen| std::ptr::eq(chosen, child)) {
                self.not_chosen(child, call, "the conditions name another target");
            }
        }
        error
    }

    async fn balance(&mut self, balance: &Balance, call: &Call) -> Error {
        let tried_before = self.tried();
        let mut seen = Vec::new();
        let error = loop {
            let chosen = balance::choose(balance, call, &seen).await;
            if self.takes_turns && seen.is_empty() {
                balance::remember(balance, call, chosen);
            }
            let plan = &balance.children[chosen].plan;
            let error = Box::pin(self.plan(plan, &balance::of_chosen(plan, call))).await;
            let again =
                self.tried() == tried_before && balance::may_choose_again(balance, &error, seen.len());
            seen.push(chosen);
            if !again {
                break error;
            }
        };
        for (_, child) in balance.children.iter().enumerate().filter(|(i, _)| !seen.contains(i)) {
            self.not_chosen(&child.plan, call, "the balance chose another target");
        }
        error
    }

    async fn fallback(&mut self, fallback: &Fallback, call: &Call) -> Error {
        let tried_before = self.tried();
        let mut last: Option<Error> = None;
        let mut left_alone = Vec::new();
        let mut ended = false;
        for (i, child) in fallback.children.iter().enumerate() {
            if ended {
                self.not_chosen(child, call, "an earlier target ends the fallback");
                continue;
            }
            let beside_others = call.or(fallback::elsewhere(fallback, i, call));
            let error = Box::pin(self.plan(child, &beside_others)).await;
            ended = !goes_on(fallback, &error, call);
            if error.ejected.is_some_and(|ejected| !call.elsewhere.covers(ejected)) {
                left_alone.push(child);
            }
            last = Some(fallback::more_telling(last, error));
        }
        if self.tried() == tried_before {
            for child in left_alone {
                let error = Box::pin(self.plan(child, call)).await;
                let ended = !goes_on(fallback, &error, call);
                last = Some(fallback::more_telling(last, error));
                if ended {
                    break;
                }
            }
        }
        last.expect("a fallback has at least one child")
    }

    async fn target(&mut self, target: &Target, call: &Call) -> Error {
        let ready = match prepare::ready(target, call).await {
            Ok(ready) => ready,
            Err(not_ready) => {
                let mut planned = planned(target, call, Decision::Skipped);
                planned.reason = not_ready.error.skipped_for().into();
                planned.message.clone_from(&not_ready.error.message);
                self.targets.push(planned);
                return not_ready.error;
            }
        };
        let mut planned = planned(target, call, Decision::Tried);
        ready.model().clone_into(&mut planned.model);
        planned.warnings = at_target(&ready.fitted.warnings, target);
        planned.calls = u32::try_from(ready.fitted.calls.len()).unwrap_or(u32::MAX);
        planned.max_tries = target.retry.as_ref().map_or(0, |retry| retry.attempts) + 1;
        planned.price_usd = ready.price();
        planned.cached = cached::is_cached(&ready, call).await;
        // What is in the cache is given whatever the target's health.
        let error = match tries::left_alone(target, call).filter(|_| !planned.cached) {
            Some(ejected) => {
                planned.set_decision(Decision::Skipped);
                planned.reason = ejected.name().into();
                planned.message = ejected.to_string();
                Error::ejected(ejected)
            }
            None => tried(),
        };
        self.targets.push(planned);
        error
    }

    fn not_chosen(&mut self, plan: &Plan, call: &Call, why: &str) {
        self.not_called(plan, call, (Decision::NotChosen, "not_chosen"), why);
    }

    fn not_called(&mut self, plan: &Plan, call: &Call, (decision, reason): (Decision, &str), why: &str) {
        for target in plan.targets() {
            let mut planned = planned(target, call, decision);
            planned.reason = reason.to_owned();
            planned.message = why.to_owned();
            self.targets.push(planned);
        }
    }

    fn tried(&self) -> usize {
        self.targets.iter().filter(|target| target.decision() == Decision::Tried).count()
    }
}

/// The failure of a target that is called: one that lets every fallback go on.
fn tried() -> Error {
    Error::new(ErrorKind::Internal, "planned")
}

fn goes_on(fallback: &Fallback, error: &Error, call: &Call) -> bool {
    error.kind == ErrorKind::Internal || fallback::may_go_on(fallback, error, call)
}

fn planned(target: &Target, call: &Call, decision: Decision) -> PlannedTarget {
    let upstream = standing::upstream(target, call);
    PlannedTarget {
        target: target.path.clone(),
        provider: upstream.map_or_else(String::new, |upstream| upstream.provider.clone()),
        model: target.model().unwrap_or(&call.request.model).to_owned(),
        decision: decision.into(),
        state: Some(standing::of(target, call).into()),
        ..Default::default()
    }
}
