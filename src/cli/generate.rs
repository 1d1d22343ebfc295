//! `imagegate generate`: a person's client.

use std::{
    io::{IsTerminal as _, Write as _, stderr, stdout},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures::StreamExt as _;
use tonic::{Request, metadata::MetadataValue};

use crate::{
    config::Origin,
    error::Error,
    gateway::Gateway,
    images::{Pieces, gather},
    params,
    pb::{self, ImageResult, attempts_text, stream_image_response::Event},
    router::{Router, SharedRouter, remote::Remote},
    transport,
};

/// Make an image and write it to a file.
#[derive(Debug, clap::Args)]
pub struct Generate {
    /// What to make
    prompt: String,

    /// Saved routing config to use
    #[arg(long, value_name = "ID")]
    config_id: Option<String>,

    /// Model, or @virtual-key/model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// WIDTHxHEIGHT, W:H or auto
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,

    /// Number of images
    #[arg(short, value_name = "N")]
    n: Option<u32>,

    /// File to write; several images are numbered. The ending is the format: png, jpeg, webp
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The router to ask
    #[arg(long, env = "IMAGEGATE_ROUTER", value_name = "URI", default_value = "http://127.0.0.1:50051")]
    router: String,

    /// API key for the router
    #[arg(long, env = "IMAGEGATE_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,

    /// Ask no router: run in this process with this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Generate {
    /// Asks, shows progress, writes the images, says who answered and why.
    pub async fn run(self) -> Result<()> {
        let router: SharedRouter = match &self.config {
            Some(file) => {
                let (gateway, settings) = Gateway::try_new(Origin::File(file.clone()))?;
                Arc::new(Router::new(gateway.state(&settings)?))
            }
            None => Arc::new(Remote::new(
                transport::channel(&self.router).map_err(|reason| anyhow!("--router: {reason}"))?,
            )),
        };
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
        let mut image = pb::ImageRequest { prompt: self.prompt.clone(), n: self.n, ..Default::default() };
        if let Some(model) = &self.model {
            image.model.clone_from(model);
        }
        if let Some(size) = &self.size {
            params::set_text(&mut image, "size", size)?;
        }
        let ending = self.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
        if let Some(ending) = ending {
            params::set_text(&mut image, "output_format", ending)?;
        }
        let mut request = Request::new(pb::StreamImageRequest { image: Some(image) });
        let texts = [("x-portkey-config", &self.config_id), ("x-portkey-api-key", &self.api_key)];
        for (name, text) in texts {
            if let Some(text) = text {
                let mut value: MetadataValue<_> =
                    text.parse().with_context(|| format!("{name} is not plain text"))?;
                value.set_sensitive(true);
                request.metadata_mut().insert(name, value);
            }
        }
        Ok(request)
    }

    async fn ask(&self, router: &SharedRouter) -> Result<(ImageResult, Vec<Pieces>)> {
        let failed = |status: tonic::Status| self.explain(&Error::from_status(&status));
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

    fn explain(&self, error: &Error) -> anyhow::Error {
        let attempts =
            error.report.as_ref().map(|report| attempts_text(&report.attempts)).unwrap_or_default();
        if !attempts.is_empty() {
            return anyhow!("{}\n  tried: {attempts}", error.message);
        }
        if error.transport && self.config.is_none() {
            return anyhow!(
                "no router answers at {}: start one with `imagegate serve`, or run in this process with --config FILE",
                self.router
            );
        }
        anyhow!("{}", error.message)
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
