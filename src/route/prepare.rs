//! A target made ready for its first call: parameters merged, request fitted to the model, credential and
//! address found. Calls no provider; what cannot be served is known here.

use std::sync::Arc;

use super::{
    cost,
    fit::{self, Fitted},
    standing,
};
use crate::{
    call::{Call, RequestContext},
    config::plan::{Credential, Target, Upstream, split_model},
    error::{Error, ErrorKind, Result},
    params, pb,
    worker::SharedWorker,
};

/// Everything that all tries of one target need.
pub struct Ready<'a> {
    /// The target.
    pub target: &'a Target,
    /// Who serves it.
    pub worker: SharedWorker,
    /// What it is asked.
    pub fitted: Fitted,
    /// Where and as whom the provider is called.
    pub message: pb::Upstream,
    /// The size that was asked for, in pixels.
    pub requested_size: Option<pb::Dimensions>,
}

/// A target that cannot serve the request.
pub struct NotReady {
    /// Its provider, if it has one.
    pub provider: String,
    /// The model that was asked for.
    pub model: String,
    /// Why.
    pub error: Error,
}

impl Ready<'_> {
    /// The provider's id.
    pub fn provider(&self) -> &str {
        &self.fitted.record.name
    }

    /// The model that is called.
    pub fn model(&self) -> &str {
        &self.fitted.calls[0].model
    }

    /// What all calls of one try are expected to cost, in USD, if the prices are known.
    pub fn price(&self) -> Option<f64> {
        self.fitted.calls.iter().map(|request| cost::expected(request, self.fitted.prices())).sum()
    }
}

/// Makes a target ready for a request.
///
/// # Errors
/// It cannot serve it, with the reason.
pub async fn ready<'a>(target: &'a Target, call: &Call) -> Result<Ready<'a>, Box<NotReady>> {
    let not_ready = |provider: &str, model: &str, mut error: Error| {
        provider.clone_into(&mut error.provider);
        Box::new(NotReady { provider: provider.to_owned(), model: model.to_owned(), error })
    };
    let Some(upstream) = standing::upstream(target, call) else {
        let message = "the target takes its provider from the request, which names none";
        let error = Error::unsupported("x-portkey-provider", message);
        return Err(not_ready("", &call.request.model, error));
    };
    let provider = upstream.provider.as_str();
    let (request, worker, record) = prepare(target, call, upstream)
        .await
        .map_err(|error| not_ready(provider, &call.request.model, error))?;
    let mut fitted = fit::fit(&request, &record, target.params_policy, call.ctx.settings.retired_models)
        .map_err(|error| not_ready(provider, &request.model, error))?;
    fitted.price_by(&call.ctx.settings.prices, upstream.models.len());
    let message = upstream_message(target, &call.ctx, upstream)
        .map_err(|error| not_ready(provider, &request.model, error))?;
    Ok(Ready { target, worker, fitted, message, requested_size: request.dimensions() })
}

/// Warnings as the target's own.
pub fn at_target(warnings: &[pb::Warning], target: &Target) -> Vec<pb::Warning> {
    let at = |warning: &pb::Warning| pb::Warning { target: target.path.clone(), ..warning.clone() };
    warnings.iter().map(at).collect()
}

/// The request with the target's parameters, and the worker with its record.
async fn prepare(
    target: &Target,
    call: &Call,
    upstream: &Upstream,
) -> Result<(pb::ImageRequest, SharedWorker, Arc<pb::Provider>)> {
    let mut request = pb::ImageRequest::clone(&call.request);
    for (name, value) in &target.default_params {
        if params::get(&request, name).is_none() {
            params::set(&mut request, name, value)?;
        }
    }
    for (name, value) in &target.override_params {
        params::set(&mut request, name, value)?;
    }
    for path in &target.drop_params {
        params::clear(&mut request, path);
    }
    let wants_previews = call.ctx.events.is_some() && call.request.partial_images.is_some_and(|n| n > 0);
    if !wants_previews {
        // Previews that nobody is shown are paid for, and would commit the request to this target.
        request.partial_images = None;
    }
    if let Some((slug, model)) = split_model(&request.model) {
        if upstream.virtual_key.as_deref() != Some(slug) {
            let message = format!("model: \"{}\" names another virtual key than this target", request.model);
            return Err(Error::unsupported("model", message));
        }
        request.model = model.to_owned();
    }
    let (worker, mut record) = call.ctx.workers.find(&upstream.provider).await?;
    if !upstream.models.is_empty() {
        let models = upstream.models.iter().chain(&record.models).cloned().collect();
        record = Arc::new(pb::Provider { models, ..pb::Provider::clone(&record) });
    }
    Ok((request, worker, record))
}

fn upstream_message(target: &Target, ctx: &RequestContext, upstream: &Upstream) -> Result<pb::Upstream> {
    let custom_host = ctx.overrides.custom_host.as_ref().or(target.custom_host.as_ref());
    let from_caller = custom_host.filter(|host| host.from_caller);
    if let (Some(host), Some(virtual_key)) = (from_caller, &upstream.virtual_key) {
        // Or else any caller could send a stored credential to a server of its own.
        if !ctx.settings.egress.trusts(&host.url) {
            let message =
                format!("virtual key \"{virtual_key}\" is not sent to a host that came with the request");
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
    }
    // A virtual key's own host was saved by whoever saved the key.
    let host = custom_host.or(upstream.base_url.as_ref());
    let credential = match &upstream.credential {
        Credential::Withdrawn(reason) => {
            let key = upstream.virtual_key.as_deref().unwrap_or_default();
            let message = format!("virtual key \"{key}\" {reason}");
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        Credential::None => None,
        Credential::ApiKey(key) => Some(pb::credential::Credential::ApiKey(expose(key))),
        Credential::HeldByWorker(name) => Some(pb::credential::Credential::HeldByWorker(name.clone())),
    };
    let names = ctx.overrides.forward_headers.as_ref().unwrap_or(&target.forward_headers);
    let headers = names.iter().filter_map(|name| {
        let value = ctx.headers.get(name)?.to_str().ok()?;
        Some((name.clone(), value.to_owned()))
    });
    Ok(pb::Upstream {
        base_url: host.map_or_else(String::new, |host| host.url.clone()),
        base_url_from_caller: host.is_some_and(|host| host.from_caller),
        credential: credential.map(|credential| pb::Credential { credential: Some(credential) }),
        headers: headers.collect(),
        options: upstream.options.clone(),
        from_caller: upstream.from_caller,
    })
}

fn expose(secret: &crate::config::spec::Secret) -> String {
    use secrecy::ExposeSecret as _;
    secret.0.expose_secret().to_owned()
}
