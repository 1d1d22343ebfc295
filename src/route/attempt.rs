//! One try at one target: the worker's calls, their limits, and what their answers are worth.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::try_join_all};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Request, Status};

use super::{cost, prepare::Ready, standing};
use crate::{
    admission::Held,
    call::{Call, RequestContext, Running},
    config::{plan::Target, spec::is_secret_option},
    error::{Error, ErrorKind, Result},
    images::made::Made,
    images::{Pieces, convert, probe},
    otlp::ProviderCall,
    pb::{self, BillingClass, FinishReason, generate_response::Event},
    quota::{Hold, Payment, nanos},
    telemetry::{self, Called},
    transport,
};

/// How far timers of the same deadline may be apart: `grpc-timeout` is rounded to milliseconds, and so are timers.
const TIMER_GRAIN: Duration = Duration::from_millis(10);

/// Shorter texts are not looked for in a provider's error, in bytes.
const SHORTEST_HIDDEN: usize = 6;

/// What all tries of one target have in common.
pub struct Attempt<'a> {
    ready: &'a Ready<'a>,
    call: &'a Call,
    target: &'a Target,
    ctx: &'a Arc<RequestContext>,
    limit: Option<Duration>,
}

/// One call's answer, verified.
struct Answer {
    images: Vec<(pb::Image, Pieces)>,
    done: pb::GenerateDone,
}

impl<'a> Attempt<'a> {
    /// Tries of a target that is ready.
    pub fn new(ready: &'a Ready<'a>, call: &'a Call) -> Self {
        let (target, ctx) = (ready.target, &call.ctx);
        Self { ready, call, target, ctx, limit: ctx.overrides.request_timeout.or(target.request_timeout) }
    }

    /// Holds what a try is expected to cost, where somebody has a budget, and counts its calls at the virtual key.
    ///
    /// # Errors
    /// A limit does not allow it.
    pub async fn hold(&self) -> Result<Hold> {
        let of_key =
            standing::upstream(self.target, self.call).and_then(|upstream| upstream.metered.as_ref());
        let calls = &self.ready.fitted.calls;
        let expected = calls.iter().fold(0_i64, |sum, request| sum.saturating_add(self.expected(request)));
        let held = self.ctx.ledger.hold(&self.ctx.metered, of_key, calls.len(), expected).await;
        held.map_err(|exceeded| {
            let mut error = exceeded.refuse();
            self.ready.provider().clone_into(&mut error.provider);
            error
        })
    }

    /// In billionths of a dollar.
    fn expected(&self, request: &pb::ImageRequest) -> i64 {
        let price = cost::expected(request, self.ready.fitted.prices());
        self.ctx.ledger.expected(self.ready.provider(), &request.model, request.wanted(), price)
    }

    /// All calls of one try. If one fails the others are given up: the rest of their images would be paid for
    /// and thrown away.
    pub async fn run(&self, hold: &Hold) -> Result<Made> {
        let own_limit = self.limit.unwrap_or(self.ctx.settings.limits.attempt_timeout);
        let deadline = self.call.deadline.min(Instant::now() + own_limit);
        let mut first = 0;
        let calls = self.ready.fitted.calls.iter().map(|request| {
            let offset = first;
            first += request.wanted();
            self.call(request, offset, deadline, hold)
        });
        let answers = try_join_all(calls).await?;
        let mut made = Made { images: Vec::with_capacity(first), usage: None, warnings: Vec::new() };
        for answer in answers {
            made.warnings.extend(answer.done.warnings);
            add_usage(&mut made.usage, answer.done.usage);
            made.images.extend(answer.images);
        }
        Ok(made)
    }

    async fn call(
        &self,
        request: &pb::ImageRequest,
        offset: usize,
        deadline: Instant,
        hold: &Hold,
    ) -> Result<Answer> {
        let prices = self.ready.fitted.prices();
        let price = cost::expected(request, prices);
        let running = self.ctx.begin(&self.target.path, self.ready.provider(), &request.model, price);
        let number = running.number();
        let payment = hold.pay(self.expected(request));
        let outcome = match timeout_at(deadline, self.exchange(request, offset, deadline, &running)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.timed_out()),
        };
        let outcome = outcome.map_err(|mut error| {
            self.hide_private(&mut error.message, request);
            error
        });
        let (request_id, cost_lines) = match &outcome {
            Ok(Answer { done, .. }) => {
                let lines = cost::lines(self.ready.provider(), request, prices, done, number);
                (done.upstream_request_id.as_str(), lines)
            }
            // Paid for and useless is paid for.
            Err(error) if error.billing == pb::BillingClass::Billed => {
                ("", cost::estimate(self.ready.provider(), request, prices, number))
            }
            Err(_) => ("", Vec::new()),
        };
        self.settle(payment, request, price, &outcome, &cost_lines);
        let usd = cost_lines.iter().filter_map(|line| line.amount_usd).sum();
        let is_unpriced = cost_lines.iter().any(|line| line.amount_usd.is_none());
        let duration = running.finish(&outcome, request_id, cost_lines);
        telemetry::attempt(&Called {
            request_id: &self.ctx.request_id,
            target: &self.target.path,
            provider: self.ready.provider(),
            model: &request.model,
            entry: &self.ready.fitted.capability().model,
            error: outcome.as_ref().err(),
            images: outcome.as_ref().map_or(0, |answer| answer.images.len()),
            usd,
            is_unpriced,
            duration,
        });
        if let Some(traced) = &self.ctx.traced {
            traced.called(&ProviderCall {
                provider: self.ready.provider(),
                model: &self.ready.fitted.capability().model,
                operation: request.effective_operation(),
                duration,
                error: outcome.as_ref().err(),
                usage: outcome.as_ref().ok().and_then(|answer| answer.done.usage.as_ref()),
            });
        }
        outcome
    }

    /// What the call has really cost, as far as anybody knows.
    fn settle(
        &self,
        payment: Payment<'_>,
        request: &pb::ImageRequest,
        price: Option<f64>,
        outcome: &Result<Answer>,
        lines: &[pb::CostLine],
    ) {
        let known: Option<f64> = lines.iter().map(|line| line.amount_usd).sum();
        match outcome {
            // Whether it was billed is not known: it has cost what was expected.
            Err(error) if matches!(error.billing, BillingClass::Unknown | BillingClass::Unspecified) => {}
            Err(error) if error.billing != BillingClass::Billed => payment.is(0),
            Ok(_) | Err(_) => {
                let usd = known.unwrap_or_else(|| lines.iter().filter_map(|line| line.amount_usd).sum());
                payment.is(nanos(usd));
                if price.is_none() && known.is_some() {
                    self.ctx.ledger.learn(self.ready.provider(), &request.model, request.wanted(), usd);
                }
            }
        }
    }

    /// A provider may quote the prompt or the key in its error. The text goes to logs, and to callers who are
    /// not meant to see the operator's keys.
    fn hide_private(&self, message: &mut String, request: &pb::ImageRequest) {
        let key = match self.ready.message.credential.as_ref().and_then(|held| held.credential.as_ref()) {
            Some(pb::credential::Credential::ApiKey(key)) => key.as_str(),
            _ => "",
        };
        let secrets = self.ready.message.options.iter().filter(|(name, _)| is_secret_option(name));
        let keys = secrets.map(|(_, secret)| secret.as_str()).chain([key]).map(|key| (key, "[key]"));
        let prompts = [&request.prompt, &request.negative_prompt].map(|prompt| (prompt.as_str(), "[prompt]"));
        for (text, shown) in keys.chain(prompts) {
            // A prompt of a few letters would blank out parts of ordinary words.
            if text.len() >= SHORTEST_HIDDEN && message.contains(text) {
                *message = message.replace(text, shown);
            }
        }
    }

    fn timed_out(&self) -> Error {
        let (status, message) = match self.limit {
            _ if self.call.remaining().is_zero() => (504, "the request's deadline has passed".to_owned()),
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

    fn silent(&self, limit: Duration) -> Error {
        let message = format!("no first byte of an answer within {} ms", limit.as_millis());
        Error::transport(ErrorKind::Timeout, pb::BillingClass::Unknown, message)
    }

    async fn exchange(
        &self,
        request: &pb::ImageRequest,
        offset: usize,
        deadline: Instant,
        running: &Running,
    ) -> Result<Answer> {
        let mut message = Request::new(pb::GenerateRequest {
            provider: self.ready.provider().to_owned(),
            image: Some(request.clone()),
            upstream: Some(self.ready.message.clone()),
            request_id: self.ctx.request_id.clone(),
            announce_answer: self.target.first_byte_timeout.is_some(),
            chunks_first: false,
        });
        self.ctx.trace_of(running.number()).put(message.metadata_mut().as_mut());
        message.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let begun = async {
            let mut events = self.ready.worker.generate(message).await?.into_inner();
            let first = events.next().await.transpose()?;
            Ok((events, first))
        };
        let begun = match self.target.first_byte_timeout {
            Some(limit) => timeout(limit, begun).await.map_err(|_| self.silent(limit))?,
            None => begun.await,
        };
        let (mut events, mut first) = match begun {
            Ok(begun) => begun,
            Err(status) => return Err(self.failure(&status, deadline).await),
        };
        // By the numbers they came with. Some may turn out to be nobody's.
        let mut arrived = BTreeMap::<u32, Pieces>::new();
        let arriving = Held::default();
        loop {
            let event = match first.take() {
                Some(event) => event,
                None => match events.next().await {
                    None => break,
                    Some(Ok(event)) => event,
                    Some(Err(status)) => return Err(self.failure(&status, deadline).await),
                },
            };
            match event.event {
                Some(Event::Progress(progress)) => self.ctx.progress(progress),
                Some(Event::PartialImage(mut preview)) => {
                    preview.image_index += u32::try_from(offset).unwrap_or_default();
                    Box::pin(self.ctx.preview(preview)).await;
                }
                Some(Event::ImageChunk(chunk)) => {
                    arriving.add(chunk.data.len());
                    arrived.entry(chunk.image_index).or_default().push(chunk.data);
                }
                Some(Event::Done(mut done)) => {
                    transport::end(events).await;
                    running.answered();
                    // More images than asked for are not our caller's.
                    let image = |place| arrived.remove(&done.chunks_of(place)).unwrap_or_default();
                    let pieces = (0..request.wanted()).map(image).collect();
                    drop(arrived);
                    let images = self.verify(&mut done, pieces).await?;
                    // From here on they are the request's.
                    drop(arriving);
                    self.ctx.held.add(images.iter().map(|(_, image)| image.len()).sum());
                    return Ok(Answer { images, done });
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

    /// A success is an image: as many as were asked for, complete, in a format we can name. Notes the sizes that were
    /// made, which is what costs, before any is cut to another.
    async fn verify(
        &self,
        done: &mut pb::GenerateDone,
        pieces: Vec<Pieces>,
    ) -> Result<Vec<(pb::Image, Pieces)>> {
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
        for (i, (mut pieces, image)) in pieces.into_iter().zip(&mut done.images).enumerate() {
            if pieces.is_empty() {
                pieces.push(std::mem::take(&mut image.data));
            }
            let found = probe::probe(&pieces)
                .map_err(|defect| Error::bad_answer(format!("image {i} of the answer: {defect}")))?;
            (image.width, image.height) = (found.width, found.height);
            let mut image = image.clone();
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
        let wish = &self.ready.fitted.wish;
        wish.format.is_some_and(|format| format != found.format)
            || wish.exact_size.is_some_and(|size| (size.width, size.height) != (found.width, found.height))
    }

    async fn convert(&self, pieces: Pieces) -> Result<Pieces> {
        let wish = self.ready.fitted.wish;
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
        cached_text_tokens: add(sum.cached_text_tokens, more.cached_text_tokens),
        cached_image_tokens: add(sum.cached_image_tokens, more.cached_image_tokens),
    });
}
