//! The leaf: one target, made ready, answered from its cache or by calls.

use super::{
    cached,
    prepare::{self, NotReady},
    tries::passed_over,
};
use crate::{
    call::{Call, Reply},
    config::plan::Target,
    error::Result,
};

/// Answers from one target.
pub async fn run(target: &Target, call: &Call) -> Result<Reply> {
    match prepare::ready(target, call).await {
        Ok(ready) => cached::run(&ready, call).await,
        Err(not_ready) => {
            let NotReady { provider, model, error } = *not_ready;
            Err(passed_over(target, call, &provider, &model, error))
        }
    }
}
