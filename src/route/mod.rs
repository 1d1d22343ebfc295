//! Executes a checked plan: which target is called, in what order, and what a failure does.
//!
//! A strategy is one function over its part of the plan. The plan is the tree that runs; nothing is built per
//! request. No task is spawned here, so dropping the future stops everything below it.

mod cost;
mod fallback;
mod fit;
mod retry;
mod size;
mod target;

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
    }
}
