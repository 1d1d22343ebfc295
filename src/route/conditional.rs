//! The target that the request's own facts name.

use crate::{
    call::{Call, Reply},
    config::{
        condition::Field,
        plan::{Conditional, Plan},
    },
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
    decide(conditional, call, &|_| false).unwrap_or_default()
}

/// The same for a request of which some fields are hidden.
///
/// # Errors
/// The hidden field that it depends on.
pub fn decide<'a>(
    conditional: &'a Conditional,
    call: &Call,
    is_hidden: &dyn Fn(&Field) -> bool,
) -> Result<Option<&'a Plan>, &'a Field> {
    let facts = call.facts();
    let mut child = conditional.default;
    for (condition, then) in &conditional.cases {
        if condition.decide(facts, is_hidden)? {
            child = Some(*then);
            break;
        }
    }
    Ok(child.map(|child| &conditional.children[child]))
}

/// No case holds and there is no default.
pub fn unresolved() -> Error {
    // The reference's words.
    Error::invalid("x-portkey-config", "Query router did not resolve to any valid target")
}
