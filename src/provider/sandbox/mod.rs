//! The offline provider: renders placeholder art from the prompt, so that everything can be tried without
//! an account, a key or a network.
//!
//! The same request gives the same bytes; without a seed, one is derived from the prompt. It speaks no HTTP
//! and so is no `Provider`: it is a worker by itself. Model ids such as `sandbox-fail-503`, `sandbox-stall` or
//! `sandbox-truncate` make it fail in a chosen way, see `sandbox.yaml`. Inputs must be bytes: it fetches
//! nothing.

mod lettering;
mod render;
mod scene;
mod script;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use image::{
    DynamicImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use tonic::{Request, Response, Status};

use self::{
    render::{Input, Picture},
    script::Script,
};
use super::catalog;
use crate::{
    error::{Error, ErrorKind, Result},
    images::{convert, mask},
    pb::{
        self, Operation, generate_response::Event, input_image::Source, size::Size,
        worker_service_server::WorkerService,
    },
    worker::EventStream,
};

/// The provider `sandbox`, as a worker.
#[derive(Debug)]
pub struct Sandbox {
    record: pb::Provider,
    /// Held by every call as long as it is worked at.
    work: Arc<()>,
}

/// One call, checked and with its input decoded.
struct Job {
    picture: Picture,
    /// Of the first image; each further one has the next.
    seed: u64,
    count: u32,
    /// For each image.
    previews: u32,
    format: pb::ImageFormat,
    compression: Option<u32>,
    script: Script,
}

/// One event to come. Made when its turn is, so that a caller who leaves stops the rest.
#[derive(Clone, Copy, Debug)]
enum Work {
    Progress { after: Duration, fraction: f64 },
    Preview { image: u32, index: u32 },
    Image(u32),
    Done,
}

const SIDES: std::ops::RangeInclusive<u32> = 16..=4096;
const MAX_IMAGES: u32 = 10;
const MAX_PREVIEWS: u32 = 3;
const DEFAULT_SIDE: u32 = 1024;
/// How much of an edited image is new where the request does not say.
const DEFAULT_STRENGTH: f32 = 0.5;

impl Sandbox {
    /// Its id in configs, logs and metrics.
    pub const NAME: &'static str = "sandbox";

    /// The sandbox with its embedded capability record.
    pub fn new() -> Self {
        Self { record: catalog::embedded(data!("sandbox")), work: Arc::default() }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

#[tonic::async_trait]
impl WorkerService for Sandbox {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        _request: Request<pb::DescribeRequest>,
    ) -> std::result::Result<Response<pb::DescribeResponse>, Status> {
        Ok(Response::new(pb::DescribeResponse { providers: vec![self.record.clone()] }))
    }

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> std::result::Result<Response<EventStream>, Status> {
        let image = request.into_inner().image.unwrap_or_default();
        let work = Arc::clone(&self.work);
        let events = answer(image, work).await.map_err(|error| blame_sandbox(error).to_status())?;
        Ok(Response::new(events))
    }
}

async fn answer(request: pb::ImageRequest, held: Arc<()>) -> Result<EventStream> {
    let script = Script::of(&request.model);
    if let Some(error) = script.error() {
        return Err(error);
    }
    // The sandbox has one, and this call another.
    let others = Arc::strong_count(&held).saturating_sub(2);
    if script == Script::Idle && others > 0 {
        let message = format!("the sandbox is working at {others} other calls");
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    if script == Script::Stall {
        return Ok(stream::pending().map(move |event| with(&held, event)).boxed());
    }
    let job = Arc::new(off_thread(move || Job::try_new(&request, script)).await??);
    let events = stream::iter(job.schedule()).then(move |work| {
        let job = job.clone();
        async move {
            let event = job.perform(work).await.map_err(|error| blame_sandbox(error).to_status())?;
            Ok(pb::GenerateResponse { event: Some(event) })
        }
    });
    Ok(events.map(move |event| with(&held, event)).boxed())
}

impl Job {
    fn try_new(request: &pb::ImageRequest, script: Script) -> Result<Self> {
        let operation = request.effective_operation();
        let is_edit = match operation {
            Operation::Generate => false,
            Operation::Edit | Operation::Inpaint | Operation::Variation => true,
            other => {
                let message = format!("the sandbox does not have the operation {}", other.name());
                return Err(Error::unsupported("operation", message));
            }
        };
        let count = request.n.unwrap_or(1).max(1);
        if count > MAX_IMAGES {
            let message = format!("the sandbox makes at most {MAX_IMAGES} images per call, not {count}");
            return Err(Error::invalid("n", message));
        }
        let format = match request.wanted_format() {
            pb::ImageFormat::Unspecified | pb::ImageFormat::Png => pb::ImageFormat::Png,
            format @ (pb::ImageFormat::Jpeg | pb::ImageFormat::Webp) => format,
            format => {
                let message = format!("the sandbox makes png, jpeg and webp, not {}", format.name());
                return Err(Error::unsupported("output_format", message));
            }
        };
        let size = size(request.size)?;
        let output = request.output.unwrap_or_default();
        let picture = Picture {
            prompt: request.prompt.clone(),
            flavour: flavour(request, operation),
            size,
            transparent: output.background() == pb::Background::Transparent
                && format != pb::ImageFormat::Jpeg,
            input: if is_edit { Some(input(request, size)?) } else { None },
        };
        Ok(Self {
            seed: request.seed.unwrap_or_else(|| derived_seed(&picture)),
            picture,
            count,
            previews: request.partial_images.unwrap_or(0).min(MAX_PREVIEWS),
            format,
            compression: output.compression,
            script,
        })
    }

    fn schedule(&self) -> Vec<Work> {
        let after = if let Script::Slow(delay) = self.script { delay } else { Duration::ZERO };
        let mut works = vec![Work::Progress { after, fraction: 0.0 }];
        // What is withheld is not shown on the way either.
        let shown = if self.script == Script::Filter { 0 } else { self.script.count(self.count) };
        for image in 0..shown {
            works.extend((0..self.previews).map(|index| Work::Preview { image, index }));
            works.push(Work::Image(image));
            let fraction = f64::from(image + 1) / f64::from(self.count);
            works.push(Work::Progress { after: Duration::ZERO, fraction });
        }
        works.push(Work::Done);
        works
    }

    async fn perform(self: Arc<Self>, work: Work) -> Result<Event> {
        match work {
            Work::Progress { after, fraction } => {
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
                Ok(Event::Progress(pb::Progress { fraction: Some(fraction), state: "running".into() }))
            }
            Work::Preview { image, index } => {
                let data = off_thread(move || self.preview(image, index)).await??;
                Ok(Event::PartialImage(pb::PartialImage {
                    data,
                    format: pb::ImageFormat::Png.into(),
                    partial_index: index,
                    image_index: image,
                }))
            }
            Work::Image(image) => {
                let data = off_thread(move || self.image(image)).await??;
                Ok(Event::ImageChunk(pb::ImageChunk { image_index: image, data }))
            }
            Work::Done => Ok(Event::Done(self.done())),
        }
    }

    fn preview(&self, image: u32, index: u32) -> Result<Bytes> {
        let progress = (index + 1) as f32 / (self.previews + 1) as f32;
        encode(&self.picture.preview(self.seed_of(image), progress), pb::ImageFormat::Png, None)
    }

    fn image(&self, image: u32) -> Result<Bytes> {
        let picture = self.picture.render(self.seed_of(image));
        Ok(self.script.spoil(encode(&picture, self.format, self.compression)?))
    }

    fn done(&self) -> pb::GenerateDone {
        let image = |image| pb::Image {
            format: self.format.into(),
            width: self.picture.size.width,
            height: self.picture.size.height,
            seed: Some(self.seed_of(image)),
            finish_reason: pb::FinishReason::Stop.into(),
            ..Default::default()
        };
        let withheld =
            || pb::Image { finish_reason: pb::FinishReason::ContentFiltered.into(), ..Default::default() };
        let is_filtered = self.script == Script::Filter;
        let images = (0..self.script.count(self.count))
            .map(|index| if is_filtered { withheld() } else { image(index) })
            .collect();
        let id = self.picture.hash(self.seed).into_iter().take(8).map(|byte| format!("{byte:02x}"));
        pb::GenerateDone {
            images,
            upstream_request_id: format!("sandbox-{}", id.collect::<String>()),
            ..Default::default()
        }
    }

    fn seed_of(&self, image: u32) -> u64 {
        self.seed.wrapping_add(image.into())
    }
}

/// What comes while something is held.
fn with<T>(_held: &Arc<()>, event: T) -> T {
    event
}

/// Runs work that would hold up the runtime.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::new(ErrorKind::Internal, "the sandbox could not finish its picture"))
}

fn blame_sandbox(mut error: Error) -> Error {
    error.provider = Sandbox::NAME.into();
    error
}

fn encode(picture: &DynamicImage, format: pb::ImageFormat, compression: Option<u32>) -> Result<Bytes> {
    if format != pb::ImageFormat::Png {
        return convert::encode(picture, format, compression).map_err(unwritable);
    }
    // Rows of one colour are what this filter is best at; trying all of them takes longer than drawing.
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub);
    picture.write_with_encoder(encoder).map_err(|error| unwritable(error.to_string()))?;
    Ok(bytes.into())
}

fn unwritable(message: String) -> Error {
    Error::new(ErrorKind::Internal, message)
}

fn size(wanted: Option<pb::Size>) -> Result<pb::Dimensions> {
    let size = match wanted.and_then(|size| size.size) {
        Some(Size::Dimensions(size)) => size,
        Some(Size::AspectRatio(ratio)) => {
            let shape = (ratio.width / ratio.height).sqrt();
            let side = |share: f64| (f64::from(DEFAULT_SIDE) * share).round() as u32;
            pb::Dimensions { width: side(shape), height: side(shape.recip()) }
        }
        Some(Size::Auto(_)) | None => pb::Dimensions { width: DEFAULT_SIDE, height: DEFAULT_SIDE },
    };
    if SIDES.contains(&size.width) && SIDES.contains(&size.height) {
        return Ok(size);
    }
    let message =
        format!("size {size} is not allowed, a side is {} to {} pixels", SIDES.start(), SIDES.end());
    Err(Error::invalid("size", message))
}

fn input(request: &pb::ImageRequest, size: pb::Dimensions) -> Result<Input> {
    let data = match request.inputs.first().and_then(|input| input.source.as_ref()) {
        Some(Source::Data(data)) => data,
        Some(Source::Url(_) | Source::FileId(_)) => {
            return Err(Error::invalid("image", "the sandbox fetches nothing, it needs the image itself"));
        }
        None => return Err(Error::invalid("image", "this operation needs an image")),
    };
    let image = convert::decode(data).map_err(|message| Error::invalid("image", message))?;
    let selection = request
        .mask
        .as_ref()
        .map(|mask| mask::selection(&mask.data, mask.polarity()))
        .transpose()
        .map_err(|message| Error::invalid("mask", message))?;
    let strength = request.strength.unwrap_or(DEFAULT_STRENGTH).clamp(0.0, 1.0);
    Ok(Input::new(image, selection, strength, size))
}

/// What makes a difference besides the prompt and the seed. A variation differs from an edit, or it would
/// repeat the art of a generated input.
fn flavour(request: &pb::ImageRequest, operation: Operation) -> String {
    let variation = if operation == Operation::Variation { "variation" } else { "" };
    [variation, &request.negative_prompt, &request.style, request.quality().as_str_name()].join("\n")
}

/// Half of the range of 32-bit seeds, so that the seeds of further images fit as well.
fn derived_seed(picture: &Picture) -> u64 {
    let [a, b, c, d, ..] = picture.hash(0);
    u64::from(u32::from_le_bytes([a, b, c, d]) >> 1)
}

#[cfg(test)]
mod tests;
