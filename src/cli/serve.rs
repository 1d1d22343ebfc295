//! `imagegate serve`: every role in one process.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::{ConfigArg, person::Person, preview::PreviewMode, router};
use crate::config::file::Listen;

/// Run everything in one process.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigArg,

    /// At a terminal, show a small preview of images below the line of their request
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_value = "off",
        default_missing_value = "auto"
    )]
    preview: PreviewMode,
}

impl Serve {
    /// Runs until it is asked to stop. A person at a terminal is shown what happens.
    pub async fn run(self, for_person: bool) -> Result<()> {
        let local = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let defaults = Listen { http: local(8787), grpc: local(50051), admin: local(9090) };
        let person = for_person.then(|| Person::new(self.preview));
        router::serve(self.config.origin(), defaults, person).await
    }
}
