//! Targets in order, the next one as soon as the one before is late. The first answer wins, the others are
//! given up.
//!
//! A second call costs money, so there is a budget for them. If many first calls are late, lateness tells
//! nothing about the target, and there are none. A request that wants previews is not hedged: previews of two
//! pictures cannot be shown as one.

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{fallback, prepare, standing};
use crate::{
    call::{Call, Reply},
    config::plan::{Hedge, Plan},
    error::Result,
    telemetry,
};

/// Tries the children, overlapping where one is late.
pub async fn run(hedge: &Hedge, call: &Call) -> Result<Reply> {
    let wants_previews = call.ctx.events.is_some() && call.request.partial_images.is_some_and(|n| n > 0);
    if wants_previews {
        return fallback::run(&hedge.order, call).await;
    }
    let node = call.ctx.health.node(hedge.id);
    node.earn_extra_call(hedge.budget);
    let children = &hedge.order.children;
    let mut running = FuturesUnordered::new();
    let mut next = 0;
    let mut failures = fallback::Failures::new(call);
    let mut late_at = Instant::now() + hedge.after;
    let mut was_late = false;
    loop {
        if running.is_empty() {
            let Some(child) = children.get(next) else { break };
            running.push(start(hedge, child, next, call));
            next += 1;
        }
        let may_overlap = next < children.len();
        tokio::select! {
            // A reply that is there beats a timer that has run out; and the same order every time.
            biased;
            Some((child, outcome)) = running.next() => match outcome {
                Ok(reply) => {
                    if !was_late {
                        node.note_late(false);
                    }
                    return Ok(reply);
                }
                Err(error) => {
                    let goes_on = fallback::may_go_on(&hedge.order, &error, call);
                    failures.add(child, error);
                    if !goes_on {
                        // No further ones; those under way are paid for and may still succeed.
                        next = children.len();
                    }
                }
            },
            () = sleep_until(late_at), if may_overlap => {
                let first_time = !std::mem::replace(&mut was_late, true);
                if first_time {
                    node.note_late(true);
                }
                late_at = Instant::now() + hedge.after;
                let may = !call.ctx.is_committed()
                    && may_spend(&children[next], call).await
                    && node.take_extra_call();
                if may || first_time {
                    telemetry::hedge(may);
                }
                if may {
                    running.push(start(hedge, &children[next], next, call));
                    next += 1;
                }
            }
        }
    }
    drop(running);
    fallback::last_resort(&hedge.order, failures, call).await
}

async fn start<'a>(hedge: &Hedge, child: &'a Plan, i: usize, call: &Call) -> (&'a Plan, Result<Reply>) {
    let call = call.or(fallback::elsewhere(&hedge.order, i, call));
    (child, Box::pin(super::run(child, &call)).await)
}

/// Whether paying for both would stay within what the next target's config allows.
async fn may_spend(next: &Plan, call: &Call) -> bool {
    let Some(target) = standing::lead(next, call) else { return true };
    let Some(cap) = target.retry.as_ref().and_then(|retry| retry.max_duplicate_spend_usd) else {
        return true;
    };
    let price = prepare::ready(target, call).await.ok().and_then(|ready| ready.price());
    call.ctx.record.at_risk_beside(price).is_within(cap)
}
