//! A provider that follows a script, behind the generated worker trait.
//!
//! Like a real one it keeps books of every call. A call that nobody waits for any longer ends at once and frees its
//! place; whether it was billed, nobody can say.

use std::{
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use imagegate::{
    error::Error,
    pb::{
        self, BillingClass, generate_response::Event, size_rule::Rule, worker_service_server::WorkerService,
    },
    worker::EventStream,
};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::{
    behaviour::{Fate, Script},
    draws::Draws,
    journal::{CallOutcome, CallRecord, Journal},
};

/// One provider.
#[derive(Debug)]
pub struct Provider {
    record: pb::Provider,
    script: Script,
    seed: u64,
    calls: AtomicU64,
    in_flight: AtomicUsize,
    journal: Arc<Journal>,
    image: Bytes,
}

/// A call that has a place in the journal, and at the provider unless it was turned away.
struct Call<'a> {
    provider: &'a Provider,
    place: usize,
    ended: bool,
}

/// The prompt of a request, by which a provider's call is known to belong to it.
pub fn prompt(request: usize) -> String {
    format!("picture {request}")
}

impl Provider {
    /// A provider with nothing to do yet.
    pub fn new(name: &str, script: Script, seed: u64, journal: Arc<Journal>) -> Self {
        let models = script.models.iter().map(|model| capability(model, &script)).collect();
        Self {
            record: pb::Provider { name: name.to_owned(), models, keyless: true, ..Default::default() },
            script,
            seed,
            calls: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            journal,
            image: pixel(),
        }
    }

    /// Calls under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn begin(&self, image: &pb::ImageRequest) -> Call<'_> {
        let now = self.journal.now();
        let place = self.journal.call_starts(CallRecord {
            request: image.prompt.rsplit(' ').next().and_then(|number| number.parse().ok()),
            provider: self.record.name.clone(),
            model: image.model.clone(),
            images: image.wanted(),
            start: now,
            end: now,
            outcome: CallOutcome::Running,
            billing: BillingClass::Unknown,
            price_usd: self.script.price_usd.unwrap_or_default() * image.wanted() as f64,
        });
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Call { provider: self, place, ended: false }
    }

    /// An answer that is all there at once.
    fn answer(&self, images: usize) -> EventStream {
        let chunk = |image_index| pb::ImageChunk { image_index, data: self.image.clone() };
        let chunks = (0..).take(images).map(|index| Event::ImageChunk(chunk(index)));
        let done = pb::GenerateDone { images: vec![pb::Image::default(); images], ..Default::default() };
        let events = chunks.chain([Event::Done(done)]);
        let events: Vec<_> = events.map(|event| Ok(pb::GenerateResponse { event: Some(event) })).collect();
        Box::pin(stream::iter(events))
    }
}

impl Call<'_> {
    fn end(mut self, outcome: CallOutcome, billing: BillingClass) {
        self.ended = true;
        self.provider.journal.call_ends(self.place, outcome, billing);
    }

    fn fail(self, outcome: CallOutcome, error: &Error) -> Status {
        self.end(outcome, error.billing);
        error.to_status()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.provider.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            self.provider.journal.call_ends(self.place, CallOutcome::Cancelled, BillingClass::Unknown);
        }
    }
}

#[tonic::async_trait]
impl WorkerService for Provider {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        Ok(Response::new(pb::DescribeResponse { providers: vec![self.record.clone()] }))
    }

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<EventStream>, Status> {
        let image = request.into_inner().image.unwrap_or_default();
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let beside = self.in_flight.load(Ordering::Relaxed);
        let mut draws = Draws::new(self.seed, &self.record.name, number);
        let fate = self.script.fate(self.journal.now(), beside, &mut draws);
        let call = self.begin(&image);
        match fate {
            Fate::Answer(after) => {
                sleep(after).await;
                call.end(CallOutcome::Answered, BillingClass::Billed);
                Ok(Response::new(self.answer(image.wanted())))
            }
            Fate::Fail(after, failure) => {
                sleep(after).await;
                Err(call.fail(CallOutcome::Failed(failure.status), &failure.error()))
            }
            Fate::Refuse(after) => {
                sleep(after).await;
                Err(call.fail(CallOutcome::Refused, &Error::refused("prompt", "the prompt was refused")))
            }
            Fate::TurnAway(failure) => {
                Err(call.fail(CallOutcome::TurnedAway(failure.status), &failure.error()))
            }
            Fate::Silence => {
                // Longer than anybody waits. A sleep rather than nothing at all: the paused clock must go on.
                sleep(Duration::from_secs(86_400)).await;
                Err(call.fail(CallOutcome::Cancelled, &Error::bad_answer("silence")))
            }
        }
    }
}

/// A model without limits, so that no answer needs conversion.
fn capability(model: &str, script: &Script) -> pb::ModelCapability {
    let price = |usd| pb::Price { item: "image".into(), usd, ..Default::default() };
    pb::ModelCapability {
        model: model.to_owned(),
        operations: script.operations.iter().map(|operation| i32::from(*operation)).collect(),
        max_n: script.max_n,
        max_prompt_chars: script.max_prompt_chars,
        size: Some(pb::SizeRule { rule: Some(Rule::Free(pb::FreeSize::default())), auto: true }),
        formats: vec![pb::ImageFormat::Png.into()],
        prices: script.price_usd.map(price).into_iter().collect(),
        ..Default::default()
    }
}

/// The smallest picture: nobody looks at it.
fn pixel() -> Bytes {
    let mut bytes = Cursor::new(Vec::new());
    let written = image::RgbImage::new(1, 1).write_to(&mut bytes, image::ImageFormat::Png);
    written.expect("one black pixel can be written to memory");
    bytes.into_inner().into()
}
