//! The conformance kit: asks a worker what `worker.proto` promises, and says what it found instead.
//!
//! It knows only what a router knows: the worker's address. What no worker does unasked (refuse, be slow, send
//! 64 MB) is asked of models that a worker lists for this purpose, see [`trigger`]. One module for each group of
//! checks; [`check::Check`] has their ids and promises. Every call is a real call, which a paid provider bills.

mod answer;
mod asking;
mod bulk;
pub mod check;
mod describe;
mod edges;
mod errors;
mod health;
mod patient;
pub mod report;
mod samples;
mod stopping;
mod together;
mod trigger;
mod truth;
mod verdict;

use std::{collections::BTreeMap, time::Duration};

use tokio::time::timeout;

use self::{asking::Subject, check::Check, report::Report};
use crate::{error::Error, pb::credential::Credential, pool::Pool, route::fit::is_retired};

/// How long any one call may take: as long as an attempt of the router does by default.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// How long the worker may take to describe itself before it counts as unreachable.
const REACH_LIMIT: Duration = Duration::from_secs(10);

/// What to ask, and as whom.
#[derive(Clone, Default)]
pub struct Settings {
    /// Only this one of the worker's providers.
    pub provider: Option<String>,
    /// Models of each provider whose edges are tried.
    pub max_models: usize,
    /// Credentials by provider; the empty name is for those without their own.
    pub credentials: BTreeMap<String, Credential>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("provider", &self.provider)
            .field("max_models", &self.max_models)
            .finish_non_exhaustive()
    }
}

/// Runs every check against the worker at an address.
///
/// # Errors
/// Why nothing could be checked: the address is none, nobody answers there, or the provider is not served.
pub async fn run(pool: Pool, uri: &str, settings: &Settings) -> Result<Report, String> {
    let mut report = Report::default();
    let described = timeout(REACH_LIMIT, describe::ask(&pool)).await;
    let record = match described {
        Err(_) => return Err(format!("{uri} does not answer within {} s", REACH_LIMIT.as_secs())),
        Ok(Err(status)) if Error::from_status(&status).transport => {
            return Err(format!("nothing answers at {uri}"));
        }
        Ok(Err(status)) => {
            report.fail(Check::Describe, format!("Describe answers {}", asking::told(&status)));
            return Ok(report);
        }
        Ok(Ok(described)) => described,
    };
    describe::check(&pool, &record, &mut report).await;
    health::check(&pool, &mut report).await;
    let chosen = |name: &str| settings.provider.as_deref().is_none_or(|wanted| wanted == name);
    let providers: Vec<_> = record.providers.into_iter().filter(|provider| chosen(&provider.name)).collect();
    if let (Some(wanted), true) = (&settings.provider, providers.is_empty()) {
        return Err(format!("the worker at {uri} does not serve \"{wanted}\""));
    }
    for provider in providers {
        let credential =
            settings.credentials.get(&provider.name).or_else(|| settings.credentials.get("")).cloned();
        let subject = Subject::new(pool.clone(), uri, provider, credential);
        check_provider(&subject, settings.max_models, &mut report).await;
    }
    Ok(report)
}

async fn check_provider(subject: &Subject, max_models: usize, report: &mut Report) {
    report.providers.push(subject.name().to_owned());
    errors::unknown_provider(subject, report).await;
    if !subject.record.keyless {
        errors::bad_credential(subject, report).await;
        if subject.credential.is_none() {
            let reason = format!("{} needs a credential and none was given", subject.name());
            Check::OF_CALLS.iter().for_each(|check| report.unobserved(*check, &reason));
            report.calls += subject.calls();
            return;
        }
    }
    errors::unknown_model(subject, report).await;
    let models = subject.record.models.iter();
    let mut models = models.filter(|model| {
        !model.model.ends_with('*') && !trigger::is_one(subject.name(), &model.model) && !is_retired(model)
    });
    let mut usual = None;
    for model in models.by_ref().take(max_models) {
        let works = truth::check(subject, model, report).await;
        usual = usual.or(works);
    }
    report.models_left += models.count();
    match usual {
        Some(usual) => {
            together::check(subject, &usual, report).await;
            errors::refusal(subject, &usual, report).await;
            errors::rate_limit(subject, &usual, report).await;
            bulk::check(subject, &usual, report).await;
            stopping::deadline(subject, &usual, report).await;
            stopping::cancellation(subject, &usual, report).await;
        }
        None => {
            let reason = format!("no model of {} answers an ordinary call", subject.name());
            Check::OF_CALLS.iter().for_each(|check| report.unobserved(*check, &reason));
        }
    }
    report.calls += subject.calls();
}
