//! The target that the request's own facts name.

use crate::{
    call::{Call, Reply},
    config::plan::{Conditional, Plan},
    error::{Error, Result},
};

/// Runs the child that the first true case names.
pub async fn run(conditional: &Conditional, call: &Call) -> Result<Reply> {
    match choose(conditional, call) {
        Some(child) => Box::pin(super::run(child, call)).await,
        None => Err(unresolved()),
    }
}

/// The child that the first true case names, else the default.
pub fn choose<'a>(conditional: &'a Conditional, call: &Call) -> Option<&'a Plan> {
    let facts = call.facts();
    let case = conditional.cases.iter().find(|(condition, _)| condition.holds(facts));
    let child = case.map(|(_, child)| *child).or(conditional.default)?;
    Some(&conditional.children[child])
}

/// No case holds and there is no default.
pub fn unresolved() -> Error {
    // The reference's words.
    Error::invalid("x-portkey-config", "Query router did not resolve to any valid target")
}
