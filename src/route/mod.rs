//! Executes a checked plan: which target is called, in what order, and what a failure does.
//!
//! A strategy is one function over its part of the plan. The plan is the tree that runs; nothing is built per
//! request. No task is spawned here, so dropping the future stops everything below it. What a strategy chooses
//! it chooses in a function of its own, which [`explain`] asks as well.

mod answer;
mod attempt;
mod balance;
mod cached;
mod conditional;
pub mod cost;
mod explain;
mod fallback;
pub mod fit;
mod hedge;
mod prepare;
mod retry;
pub mod size;
pub mod standing;
mod target;
mod tries;

pub use self::explain::{explain, explain_recorded};
use crate::{
    call::{Call, Reply},
    config::plan::Plan,
    error::Result,
};

/// Runs a plan for one request.
///
/// # Errors
/// The failure of the last target that was called, or of the last one at all if none was.
pub async fn run(plan: &Plan, call: &Call) -> Result<Reply> {
    match plan {
        Plan::Target(target) => target::run(target, call).await,
        Plan::Fallback(fallback) => fallback::run(fallback, call).await,
        Plan::Balance(balance) => balance::run(balance, call).await,
        Plan::Conditional(conditional) => conditional::run(conditional, call).await,
        Plan::Hedge(hedge) => hedge::run(hedge, call).await,
        Plan::Deadline(limit, inner) => Box::pin(run(inner, &call.within(*limit))).await,
    }
}
