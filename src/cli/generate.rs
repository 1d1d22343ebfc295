//! `imagegate generate`: a person's client.

use std::{
    io::{Write as _, stderr, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use serde_json::json;
use tonic::{Request, Status};

use super::{
    ask::Ask,
    failure, json,
    preview::{Preview, PreviewMode},
    progress::Progress,
    report,
    table::plain,
};
use crate::{
    error::{Error, ErrorKind},
    images::{Pieces, gather},
    params,
    pb::{self, ImageResult, stream_image_response::Event},
    router::SharedRouter,
};

/// What shells say of a command that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Make an image and write it to a file.
#[derive(Debug, clap::Args)]
pub struct Generate {
    #[command(flatten)]
    ask: Ask,

    /// File to write; several images are numbered. The ending is the format: png, jpeg, webp. `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// How the image is shown, where standard output is a terminal
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    preview: PreviewMode,

    /// Show no image: the same as `--preview off`
    #[arg(long, conflicts_with = "preview")]
    no_preview: bool,

    /// Images on the way to the finished one, where a provider has them: 0 to 3
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=3))]
    partial_images: Option<u32>,

    /// For programs: files, attempts, cost lines and warnings as a JSON document
    #[arg(long)]
    json: bool,
}

impl Generate {
    /// Asks, shows progress, writes the images, says who answered and why. Ctrl-C ends the request too.
    pub async fn run(self) -> Result<ExitCode> {
        if self.is_to_stdout() && (self.json || self.ask.wants_several()) {
            bail!("-o -: standard output takes one image, and neither several (-n) nor --json");
        }
        tokio::select! {
            outcome = self.make() => outcome.map(|()| ExitCode::SUCCESS),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                let error = Error::new(ErrorKind::Cancelled, "interrupted: the request was cancelled");
                failure::tell(&error.into(), self.json);
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }

    async fn make(&self) -> Result<()> {
        let router = self.ask.router()?;
        let is_shown = !(self.no_preview || self.json || self.is_to_stdout());
        let mut preview = is_shown.then(|| Preview::new(self.preview)).flatten();
        let (result, images) = self.ask(&router, preview.as_mut()).await?;
        let mut files = Vec::new();
        for (i, (image, pieces)) in result.images.iter().zip(images).enumerate() {
            if self.is_to_stdout() {
                pieces.iter().try_for_each(|piece| stdout().write_all(piece))?;
                continue;
            }
            let path = self.path(i, result.images.len(), image);
            write(&path, &pieces).with_context(|| path.display().to_string())?;
            if let Some(preview) = &mut preview {
                preview.finished(&pieces.into_bytes())?;
            }
            let (width, height, format) = (image.width, image.height, image.format().name());
            if !self.json {
                writeln!(stdout(), "{} ({width}x{height} {format})", path.display())?;
            }
            let file = path.display().to_string();
            files.push(json!({ "file": file, "width": width, "height": height, "format": format }));
        }
        let answer = result.report.unwrap_or_default();
        if self.json {
            let mut document = json::report(&answer);
            document["images"] = files.into();
            return json::print(&document);
        }
        tell(&answer)
    }

    fn is_to_stdout(&self) -> bool {
        self.output.as_deref() == Some(Path::new("-"))
    }

    fn request(&self) -> Result<Request<pb::StreamImageRequest>> {
        let mut image = self.ask.image()?;
        image.partial_images = self.partial_images;
        let ending = self.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
        if let Some(ending) = ending {
            params::set_text(&mut image, "output_format", ending)?;
        }
        self.ask.message(pb::StreamImageRequest { image: Some(image) })
    }

    async fn ask(
        &self,
        router: &SharedRouter,
        mut preview: Option<&mut Preview>,
    ) -> Result<(ImageResult, Vec<Pieces>)> {
        let failed = |status: Status| self.ask.failed(&status);
        let progress = Progress::new();
        let mut events = router.stream_image(self.request()?).await.map_err(failed)?.into_inner();
        let mut images: Vec<Pieces> = Vec::new();
        while let Some(event) = events.next().await {
            match event.map_err(failed)?.event {
                Some(Event::Progress(now)) => progress.show(&now),
                Some(Event::ImageChunk(chunk)) => gather(&mut images, chunk.image_index, chunk.data),
                Some(Event::Result(result)) => return Ok((result, images)),
                Some(Event::PartialImage(partial)) => {
                    if let Some(preview) = &mut preview {
                        progress.aside(|| preview.partial(&partial.data))?;
                    }
                }
                None => {}
            }
        }
        bail!("the router's answer ended early")
    }

    fn path(&self, index: usize, count: usize, image: &pb::Image) -> PathBuf {
        let chosen = self.output.clone().unwrap_or_else(|| "imagegate".into());
        let stem =
            chosen.file_stem().map_or_else(|| "imagegate".into(), |stem| stem.to_string_lossy().into_owned());
        let ending = match chosen.extension() {
            Some(ending) => ending.to_string_lossy().into_owned(),
            None => image.format().name().to_owned(),
        };
        let number = if count > 1 { format!("-{}", index + 1) } else { String::new() };
        chosen.with_file_name(format!("{stem}{number}.{ending}"))
    }
}

/// Who answered, what was tried and why, what it costs, what was changed.
fn tell(answer: &pb::RouteReport) -> Result<()> {
    let mut out = stderr();
    let (provider, model, target) = (plain(&answer.provider), plain(&answer.model), plain(&answer.target));
    writeln!(out, "answered by {provider} {model} ({target})")?;
    if answer.attempts.len() > 1 {
        report::attempts(&mut out, &answer.attempts)?;
    }
    report::costs_and_changes(&mut out, answer)
}

fn write(path: &Path, pieces: &Pieces) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    pieces.iter().try_for_each(|piece| file.write_all(piece))
}
