//! What `generate` and `explain` have in common: a request, and the router to ask.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use tonic::{Request, Status};

use super::connect::{self, RouterArgs};
use crate::{
    config::Origin,
    error::Error,
    gateway::Gateway,
    params, pb,
    router::{Router, SharedRouter, remote::Remote},
};

/// A request and whom it goes to.
#[derive(Debug, clap::Args)]
pub struct Ask {
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

    /// JSON object that conditions of the routing config may ask about
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,

    #[command(flatten)]
    router: RouterArgs,

    /// Ask no router: run in this process with this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Ask {
    /// The router: in this process, or behind a connection that is made when it is first used.
    pub fn router(&self) -> Result<SharedRouter> {
        Ok(match &self.config {
            Some(file) => {
                let (gateway, settings) = Gateway::try_new(Origin::File(file.clone()))?;
                Arc::new(Router::new(gateway.state(&settings)?))
            }
            None => Arc::new(Remote::new(self.router.pool()?)),
        })
    }

    /// What is asked for.
    pub fn image(&self) -> Result<pb::ImageRequest> {
        let mut image = pb::ImageRequest { prompt: self.prompt.clone(), n: self.n, ..Default::default() };
        if let Some(model) = &self.model {
            image.model.clone_from(model);
        }
        if let Some(size) = &self.size {
            params::set_text(&mut image, "size", size)?;
        }
        Ok(image)
    }

    /// Whether more than one image is asked for.
    pub fn wants_several(&self) -> bool {
        self.n.is_some_and(|n| n > 1)
    }

    /// A message with the caller's metadata.
    pub fn message<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = self.router.message(message)?;
        for (name, text) in [("x-portkey-config", &self.config_id), ("x-portkey-metadata", &self.metadata)] {
            if let Some(text) = text {
                connect::put(&mut request, name, text)?;
            }
        }
        Ok(request)
    }

    /// What became of it, where a router that does not answer is told in words for a person.
    pub fn failed(&self, status: &Status) -> anyhow::Error {
        let error = Error::from_status(status);
        let has_tried = error.report.as_ref().is_some_and(|report| !report.attempts.is_empty());
        if error.transport && !has_tried && self.config.is_none() {
            return self.router.unreachable(", or run in this process with --config FILE");
        }
        error.into()
    }
}
