//! `imagegate serve`: every role in one process.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::{ConfigArg, router};
use crate::config::file::Listen;

/// Run everything in one process.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigArg,
}

impl Serve {
    /// Runs until it is asked to stop.
    pub async fn run(self) -> Result<()> {
        let local = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let defaults = Listen { http: local(8787), grpc: local(50051), admin: local(9090) };
        router::serve(self.config.origin(), defaults).await
    }
}
