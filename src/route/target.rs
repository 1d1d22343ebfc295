//! The leaf: one target. Merges parameters, fits them to the model, calls the worker, verifies the answer.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::try_join_all};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Status};

use super::{
    cost,
    fit::{self, Fitted},
    retry,
};
use crate::{
    call::{Call, Reply, RequestContext},
    config::plan::{Credential, Source, Target, Upstream, split_model},
    error::{Error, ErrorKind, Result},
    images::{Pieces, convert, probe},
    params,
    pb::{self, FinishReason, ImageFormat, generate_response::Event},
    transport,
    worker::SharedWorker,
};

/// How far timers of the same deadline may be apart: `grpc-timeout` is rounded to milliseconds, and so are timers.
const TIMER_GRAIN: Duration = Duration::from_millis(10);

/// Shorter texts are not looked for in a provider's error, in bytes.
const SHORTEST_HIDDEN: usize = 6;

/// Tries one target, again where its retry policy says so.
pub async fn run(target: &Target, call: &Call) -> Result<Reply> {
    let ctx = &call.ctx;
    let upstream = match &target.source {
        Source::Fixed(upstream) => upstream,
        Source::Request => match &ctx.upstream {
            Some(upstream) => upstream,
            None => {
                let message = "the target takes its provider from the request, which names none";
                let error = Error::unsupported("x-portkey-provider", message);
                return Err(passed_over(ctx, target, "", &call.request.model, error));
            }
        },
    };
    let provider = upstream.provider.as_str();
    let prepared = prepare(target, call, upstream).await;
    let (request, worker, record) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Err(passed_over(ctx, target, provider, &call.request.model, error)),
    };
    let fitted = match fit::fit(&request, &record, target.params_policy, ctx.settings.retired_models) {
        Ok(fitted) => fitted,
        Err(error) => return Err(passed_over(ctx, target, provider, &request.model, error)),
    };
    let upstream = match upstream_message(target, ctx, upstream) {
        Ok(upstream) => upstream,
        Err(error) => return Err(passed_over(ctx, target, provider, &request.model, error)),
    };
    let attempt = Attempt {
        target,
        ctx,
        provider,
        worker: &worker,
        fitted: &fitted,
        upstream,
        limit: ctx.overrides.request_timeout.or(target.request_timeout),
        requested_size: request.dimensions(),
    };
    let mut retries = 0;
    loop {
        let mut error = match attempt.run(retries).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        if error.provider.is_empty() {
            provider.clone_into(&mut error.provider);
        }
        let policy = target.retry.as_ref().filter(|_| !ctx.is_committed());
        let pause = policy.and_then(|policy| retry::pause(policy, retries, &error, ctx.remaining(), dice()));
        let Some(pause) = pause else {
            ctx.record.warn(at_target(&fitted.warnings, target));
            ctx.record.set_retry_count(retry::count(policy, retries, &error));
            return Err(error);
        };
        tokio::time::sleep(pause).await;
        retries += 1;
    }
}

fn passed_over(
    ctx: &RequestContext,
    target: &Target,
    provider: &str,
    model: &str,
    mut error: Error,
) -> Error {
    ctx.skip(&target.path, provider, model, &error);
    if error.provider.is_empty() {
        provider.clone_into(&mut error.provider);
    }
    error
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
    let (worker, record) = call.ctx.workers.find(&upstream.provider).await?;
    Ok((request, worker, record))
}

fn upstream_message(target: &Target, ctx: &RequestContext, upstream: &Upstream) -> Result<pb::Upstream> {
    let host =
        ctx.overrides.custom_host.as_ref().or(target.custom_host.as_ref()).or(upstream.base_url.as_ref());
    if let (Some(host), Some(virtual_key)) = (host.filter(|host| host.from_caller), &upstream.virtual_key) {
        // Or else any caller could send a stored credential to a server of its own.
        if !ctx.settings.egress.trusts(&host.url) {
            let message =
                format!("virtual key \"{virtual_key}\" is not sent to a host that came with the request");
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
    }
    let credential = match &upstream.credential {
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
        options: upstream.options.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
    })
}

fn expose(secret: &crate::config::spec::Secret) -> String {
    use secrecy::ExposeSecret as _;
    secret.0.expose_secret().to_owned()
}

/// Everything that the tries of one target have in common.
struct Attempt<'a> {
    target: &'a Target,
    ctx: &'a Arc<RequestContext>,
    provider: &'a str,
    worker: &'a SharedWorker,
    fitted: &'a Fitted<'a>,
    upstream: pb::Upstream,
    limit: Option<Duration>,
    requested_size: Option<pb::Dimensions>,
}

/// One call's answer, verified.
struct Answer {
    images: Vec<(pb::Image, Pieces)>,
    done: pb::GenerateDone,
}

impl Attempt<'_> {
    /// All calls of one try. If one fails the others are given up: the rest of their images would be paid for
    /// and thrown away.
    async fn run(&self, retries: u32) -> Result<Reply> {
        let own_limit = self.limit.unwrap_or(self.ctx.settings.limits.attempt_timeout);
        let deadline = self.ctx.deadline.min(Instant::now() + own_limit);
        let mut first = 0;
        let calls = self.fitted.calls.iter().map(|request| {
            let offset = first;
            first += request.wanted();
            self.call(request, offset, deadline)
        });
        let answers = try_join_all(calls).await?;
        let mut warnings = at_target(&self.fitted.warnings, self.target);
        let mut images = Vec::with_capacity(first);
        let mut usage = None;
        for answer in answers {
            warnings.extend(at_target(&answer.done.warnings, self.target));
            add_usage(&mut usage, answer.done.usage);
            images.extend(answer.images);
        }
        self.report_size(&images, &mut warnings);
        let sent = &self.fitted.calls[0];
        Ok(Reply {
            target: self.target.path.clone(),
            provider: self.provider.to_owned(),
            model: sent.model.clone(),
            images,
            usage,
            applied: pb::Applied {
                size: sent.size,
                quality: sent.quality,
                background: sent.output.map_or(0, |output| output.background),
                delivery: sent.output.map_or(0, |output| output.delivery),
            },
            warnings,
            retry_count: i32::try_from(retries).unwrap_or(i32::MAX),
            strict_open_ai_compliance: self.target.strict_open_ai_compliance
                && !self.ctx.overrides.not_strict,
        })
    }

    async fn call(&self, request: &pb::ImageRequest, offset: usize, deadline: Instant) -> Result<Answer> {
        let running = self.ctx.begin(&self.target.path, self.provider, &request.model);
        let number = running.number();
        let outcome = match timeout_at(deadline, self.exchange(request, offset, deadline)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.timed_out()),
        };
        let outcome = outcome.map_err(|mut error| {
            self.hide_private(&mut error.message, request);
            error
        });
        let capability = self.fitted.capability;
        let (request_id, cost_lines) = match &outcome {
            Ok(Answer { done, .. }) => {
                let lines = cost::lines(self.provider, request, capability, done, number);
                (done.upstream_request_id.as_str(), lines)
            }
            // Paid for and useless is paid for.
            Err(error) if error.billing == pb::BillingClass::Billed => {
                ("", cost::estimate(self.provider, request, capability, number))
            }
            Err(_) => ("", Vec::new()),
        };
        let duration = running.finish(&outcome, request_id, cost_lines);
        crate::telemetry::attempt(
            self.ctx,
            &self.target.path,
            self.provider,
            &request.model,
            &outcome,
            duration,
        );
        outcome
    }

    /// A provider may quote the prompt or the key in its error. The text goes to logs, and to callers who are
    /// not meant to see the operator's keys.
    fn hide_private(&self, message: &mut String, request: &pb::ImageRequest) {
        let key = match self.upstream.credential.as_ref().and_then(|held| held.credential.as_ref()) {
            Some(pb::credential::Credential::ApiKey(key)) => key.as_str(),
            _ => "",
        };
        let words = [(key, "[key]"), (&request.prompt, "[prompt]"), (&request.negative_prompt, "[prompt]")];
        for (text, shown) in words {
            // A prompt of a few letters would blank out parts of ordinary words.
            if text.len() >= SHORTEST_HIDDEN && message.contains(text) {
                *message = message.replace(text, shown);
            }
        }
    }

    fn timed_out(&self) -> Error {
        let (status, message) = match self.limit {
            _ if self.ctx.remaining().is_zero() => (504, "the request's deadline has passed".to_owned()),
            // The reference's words.
            Some(limit) => {
                (408, format!("Request exceeded the timeout sent in the request: {}ms", limit.as_millis()))
            }
            None => {
                (408, format!("no answer within {} s", self.ctx.settings.limits.attempt_timeout.as_secs()))
            }
        };
        Error::transport(ErrorKind::Timeout, pb::BillingClass::Unknown, message).with_status(status)
    }

    async fn exchange(&self, request: &pb::ImageRequest, offset: usize, deadline: Instant) -> Result<Answer> {
        let mut message = Request::new(pb::GenerateRequest {
            provider: self.provider.to_owned(),
            image: Some(request.clone()),
            upstream: Some(self.upstream.clone()),
            request_id: self.ctx.request_id.clone(),
        });
        message.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let mut events = match self.worker.generate(message).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(self.failure(&status, deadline).await),
        };
        let wanted = request.wanted();
        let mut pieces = vec![Pieces::default(); wanted];
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event.event,
                Err(status) => return Err(self.failure(&status, deadline).await),
            };
            match event {
                Some(Event::Progress(progress)) => self.ctx.progress(progress),
                Some(Event::PartialImage(mut preview)) => {
                    preview.image_index += u32::try_from(offset).unwrap_or_default();
                    self.ctx.preview(preview).await;
                }
                Some(Event::ImageChunk(chunk)) => {
                    // More images than asked for are not our caller's.
                    if let Some(image) = pieces.get_mut(chunk.image_index as usize) {
                        image.push(chunk.data);
                    }
                }
                Some(Event::Done(done)) => {
                    transport::end(events).await;
                    return Ok(Answer { images: self.verify(&done, pieces).await?, done });
                }
                None => {}
            }
        }
        Err(Error::bad_answer("the worker's answer ended early"))
    }

    /// What the worker's status means. "Cancelled" is never our caller's doing: had it gone, nobody would wait
    /// here. tonic says it when a deadline passes, a worker when it stops.
    async fn failure(&self, status: &Status, deadline: Instant) -> Error {
        let error = Error::from_status(status);
        match error.kind {
            // The attempt's own limit is about to say so, in the words that callers and configs know.
            ErrorKind::Cancelled | ErrorKind::Timeout if Instant::now() + TIMER_GRAIN >= deadline => {
                std::future::pending().await
            }
            ErrorKind::Cancelled => Error::transport(
                ErrorKind::Unavailable,
                pb::BillingClass::Unknown,
                "the worker gave up the call",
            ),
            _ => error,
        }
    }

    /// A success is an image: as many as were asked for, complete, in a format we can name.
    async fn verify(&self, done: &pb::GenerateDone, pieces: Vec<Pieces>) -> Result<Vec<(pb::Image, Pieces)>> {
        let (wanted, given) = (pieces.len(), done.images.len());
        if given == 0 {
            return Err(Error::bad_answer("the answer has no image"));
        }
        if done.images.iter().any(|image| image.finish_reason() == FinishReason::ContentFiltered) {
            return Err(Error::refused("output", "the provider's content filter withheld the image"));
        }
        if given < wanted {
            return Err(Error::bad_answer(format!("the answer has {given} of {wanted} images")));
        }
        let mut images = Vec::with_capacity(wanted);
        for (i, (mut pieces, image)) in pieces.into_iter().zip(&done.images).enumerate() {
            let mut image = image.clone();
            if pieces.is_empty() {
                pieces.push(std::mem::take(&mut image.data));
            }
            let found = probe::probe(&pieces)
                .map_err(|defect| Error::bad_answer(format!("image {i} of the answer: {defect}")))?;
            let found = if self.must_convert(&found) {
                pieces = self.convert(pieces).await?;
                probe::probe(&pieces).map_err(|defect| Error::new(ErrorKind::Internal, defect.to_string()))?
            } else {
                found
            };
            image.format = found.format.into();
            (image.width, image.height) = (found.width, found.height);
            image.finish_reason = FinishReason::Stop.into();
            images.push((image, pieces));
        }
        Ok(images)
    }

    fn must_convert(&self, found: &probe::Probe) -> bool {
        let wish = &self.fitted.wish;
        wish.format.is_some_and(|format| format != found.format)
            || wish.exact_size.is_some_and(|size| (size.width, size.height) != (found.width, found.height))
    }

    async fn convert(&self, pieces: Pieces) -> Result<Pieces> {
        let wish = self.fitted.wish;
        let converted =
            tokio::task::spawn_blocking(move || convert::convert(&pieces.into_bytes(), &wish)).await;
        match converted {
            Ok(Ok(image)) => Ok(image.into()),
            Ok(Err(reason)) => {
                Err(Error::bad_answer(format!("the answer's image cannot be converted: {reason}")))
            }
            Err(_) => Err(Error::new(ErrorKind::Internal, "converting the image failed")),
        }
    }

    /// A provider may answer with another size than it was asked for.
    fn report_size(&self, images: &[(pb::Image, Pieces)], warnings: &mut Vec<pb::Warning>) {
        let Some(wanted) = self.requested_size else { return };
        if warnings.iter().any(|warning| warning.field == "size") {
            return;
        }
        let other = images.iter().map(|(image, _)| image).find(|image| {
            image.format() != ImageFormat::Svg && (image.width, image.height) != (wanted.width, wanted.height)
        });
        if let Some(image) = other {
            warnings.push(pb::Warning {
                field: "size".into(),
                action: pb::warning::Action::Adjusted.into(),
                detail: format!("{wanted} was asked for, {}x{} was answered", image.width, image.height),
                target: self.target.path.clone(),
            });
        }
    }
}

fn at_target(warnings: &[pb::Warning], target: &Target) -> Vec<pb::Warning> {
    let at = |warning: &pb::Warning| pb::Warning { target: target.path.clone(), ..warning.clone() };
    warnings.iter().map(at).collect()
}

fn add_usage(total: &mut Option<pb::Usage>, usage: Option<pb::Usage>) {
    fn add<T: std::ops::Add<Output = T>>(a: Option<T>, b: Option<T>) -> Option<T> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        }
    }
    let Some(more) = usage else { return };
    let sum = total.unwrap_or_default();
    *total = Some(pb::Usage {
        input_text_tokens: add(sum.input_text_tokens, more.input_text_tokens),
        input_image_tokens: add(sum.input_image_tokens, more.input_image_tokens),
        output_text_tokens: add(sum.output_text_tokens, more.output_text_tokens),
        output_image_tokens: add(sum.output_image_tokens, more.output_image_tokens),
        megapixels: add(sum.megapixels, more.megapixels),
        compute_ms: add(sum.compute_ms, more.compute_ms),
        credits: add(sum.credits, more.credits),
    });
}

/// Uniform in 0..1.
fn dice() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(bits) / f64::from(u32::MAX)
}
