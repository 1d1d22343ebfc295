//! `imagegate generate`: a person's client.

use std::{
    io::{IsTerminal as _, Write as _, stderr, stdout},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use tonic::{Request, Status};

use super::ask::Ask;
use crate::{
    images::{Pieces, gather},
    params,
    pb::{self, ImageResult, attempts_text, stream_image_response::Event},
    router::SharedRouter,
};

/// Make an image and write it to a file.
#[derive(Debug, clap::Args)]
pub struct Generate {
    #[command(flatten)]
    ask: Ask,

    /// File to write; several images are numbered. The ending is the format: png, jpeg, webp
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Generate {
    /// Asks, shows progress, writes the images, says who answered and why.
    pub async fn run(self) -> Result<()> {
        let router = self.ask.router()?;
        let (result, images) = self.ask(&router).await?;
        for (i, (image, pieces)) in result.images.iter().zip(images).enumerate() {
            let path = self.path(i, result.images.len(), image);
            write(&path, &pieces).with_context(|| path.display().to_string())?;
            writeln!(
                stdout(),
                "{} ({}x{} {})",
                path.display(),
                image.width,
                image.height,
                image.format().name()
            )?;
        }
        self.tell(&result)
    }

    fn request(&self) -> Result<Request<pb::StreamImageRequest>> {
        let mut image = self.ask.image()?;
        let ending = self.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
        if let Some(ending) = ending {
            params::set_text(&mut image, "output_format", ending)?;
        }
        self.ask.message(pb::StreamImageRequest { image: Some(image) })
    }

    async fn ask(&self, router: &SharedRouter) -> Result<(ImageResult, Vec<Pieces>)> {
        let failed = |status: Status| self.ask.failed(&status);
        let mut events = router.stream_image(self.request()?).await.map_err(failed)?.into_inner();
        let mut images: Vec<Pieces> = Vec::new();
        let progress = Progress::new();
        while let Some(event) = events.next().await {
            match event.map_err(failed)?.event {
                Some(Event::Progress(now)) => progress.show(&now)?,
                Some(Event::ImageChunk(chunk)) => gather(&mut images, chunk.image_index, chunk.data),
                Some(Event::Result(result)) => {
                    progress.clear()?;
                    return Ok((result, images));
                }
                Some(Event::PartialImage(_)) | None => {}
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

    fn tell(&self, result: &ImageResult) -> Result<()> {
        let report = result.report.clone().unwrap_or_default();
        let mut out = stderr();
        writeln!(out, "answered by {} {} ({})", report.provider, report.model, report.target)?;
        if report.attempts.len() > 1 {
            writeln!(out, "attempts: {}", attempts_text(&report.attempts))?;
        }
        for warning in &report.warnings {
            writeln!(out, "{}: {}", warning.field, warning.detail)?;
        }
        Ok(())
    }
}

fn write(path: &Path, pieces: &Pieces) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    pieces.iter().try_for_each(|piece| file.write_all(piece))
}

/// One line that is written over, on a terminal only.
struct Progress {
    on_terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { on_terminal: stderr().is_terminal() }
    }

    fn show(&self, now: &pb::Progress) -> std::io::Result<()> {
        if !self.on_terminal {
            return Ok(());
        }
        match now.fraction {
            Some(fraction) => write!(stderr(), "\r\u{1b}[K{} {:.0} %", now.state, fraction * 100.0)?,
            None => write!(stderr(), "\r\u{1b}[K{}", now.state)?,
        }
        stderr().flush()
    }

    fn clear(&self) -> std::io::Result<()> {
        if self.on_terminal { write!(stderr(), "\r\u{1b}[K") } else { Ok(()) }
    }
}
