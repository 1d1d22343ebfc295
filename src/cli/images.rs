//! Where images are kept, for commands without a file.

use std::{path::Path, sync::Arc};

use anyhow::{Result, anyhow};

use crate::{
    config::images::{Bucket, ImagesSettings, Place},
    objects::Objects,
};

/// Another place for images than the folder of this process.
#[derive(Debug, clap::Args)]
pub struct ImagesArgs {
    /// Where images asked for as `url` are kept: s3://BUCKET/PREFIX, which several shims can share, or file:///FOLDER.
    /// Credentials of a bucket are found where AWS' own clients find them
    #[arg(long, env = "IMAGEGATE_IMAGES_URL", value_name = "URL")]
    images_url: Option<String>,

    /// The bucket's region; without it AWS_REGION, else us-east-1
    #[arg(long, env = "IMAGEGATE_IMAGES_REGION", value_name = "NAME", requires = "images_url")]
    images_region: Option<String>,

    /// The bucket's server, where it is not AWS
    #[arg(long, env = "IMAGEGATE_IMAGES_ENDPOINT", value_name = "URL", requires = "images_url")]
    images_endpoint: Option<String>,

    /// Speak to that server in plain text
    #[arg(long, env = "IMAGEGATE_IMAGES_ALLOW_HTTP")]
    images_allow_http: bool,

    /// The bucket is the first part of the server's host
    #[arg(long, env = "IMAGEGATE_IMAGES_VIRTUAL_HOSTED")]
    images_virtual_hosted: bool,
}

impl ImagesArgs {
    /// The place, made ready.
    pub fn open(&self, data_dir: &Path) -> Result<Arc<Objects>> {
        let mut settings = ImagesSettings::below(data_dir);
        if let Some(url) = self.images_url.as_ref().filter(|url| !url.is_empty()) {
            settings.place = Place::parse(url).map_err(|message| anyhow!("--images-url: {message}"))?;
        }
        if let Place::Bucket(named) = settings.place {
            let bucket = Bucket {
                region: self.images_region.clone().filter(|region| !region.is_empty()),
                endpoint: self.images_endpoint.clone().filter(|endpoint| !endpoint.is_empty()),
                allow_http: self.images_allow_http,
                virtual_hosted: self.images_virtual_hosted,
                ..named
            };
            bucket.check().map_err(|(field, message)| anyhow!("--images-{field}: {message}"))?;
            settings.place = Place::Bucket(bucket);
        }
        Objects::open(&settings).map_err(|reason| anyhow!("--images-url: {reason}"))
    }
}
