//! Where images are kept, for commands without a file.

use std::{path::Path, sync::Arc};

use anyhow::{Result, anyhow};
use clap::builder::FalseyValueParser;

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
    #[arg(long, env = "IMAGEGATE_IMAGES_REGION", value_name = "NAME")]
    images_region: Option<String>,

    /// The bucket's server, where it is not AWS
    #[arg(long, env = "IMAGEGATE_IMAGES_ENDPOINT", value_name = "URL")]
    images_endpoint: Option<String>,

    /// Speak to that server in plain text
    #[arg(long, env = "IMAGEGATE_IMAGES_ALLOW_HTTP", value_parser = FalseyValueParser::new())]
    images_allow_http: bool,

    /// The bucket is the first part of the server's host
    #[arg(long, env = "IMAGEGATE_IMAGES_VIRTUAL_HOSTED", value_parser = FalseyValueParser::new())]
    images_virtual_hosted: bool,
}

impl ImagesArgs {
    /// The place, made ready.
    pub fn open(&self, data_dir: &Path) -> Result<Arc<Objects>> {
        let mut settings = ImagesSettings::below(data_dir);
        // An empty variable counts as not set.
        let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (region, endpoint) = (said(&self.images_region), said(&self.images_endpoint));
        if let Some(url) = said(&self.images_url) {
            settings.place = Place::parse(&url).map_err(|message| anyhow!("--images-url: {message}"))?;
        }
        match settings.place {
            Place::Bucket(named) => {
                let (allow_http, virtual_hosted) = (self.images_allow_http, self.images_virtual_hosted);
                let bucket = Bucket { region, endpoint, allow_http, virtual_hosted, ..named };
                bucket.check().map_err(|(field, message)| {
                    anyhow!(
                        "--images-{field}: {}",
                        message.replace("allow_http: true", "--images-allow-http")
                    )
                })?;
                settings.place = Place::Bucket(bucket);
            }
            Place::Folder(_) if region.is_some() || endpoint.is_some() => {
                let field = if region.is_some() { "region" } else { "endpoint" };
                return Err(anyhow!(
                    "--images-{field}: only a bucket has this: --images-url is s3://BUCKET/PREFIX then"
                ));
            }
            Place::Folder(_) => {}
        }
        Objects::open(&settings).map_err(|reason| anyhow!("--images-url: {reason}"))
    }
}
