//! `imagegate shim`: the HTTP shim alone.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;

use super::{
    connect::{self, TlsArgs},
    images::ImagesArgs,
};
use crate::{
    admin,
    admission::{Admission, default_budget},
    config::file::Shutdown,
    pool::Service,
    router::remote::Remote,
    serve::Servers,
    shim::{self, Files},
    telemetry,
};

/// Run the HTTP shim in front of a router elsewhere.
#[derive(Debug, clap::Args)]
pub struct Shim {
    /// The router's address; several are balanced, and so are several addresses of a name
    #[arg(long, env = "IMAGEGATE_ROUTER", value_name = "URI", value_delimiter = ',', required = true)]
    router: Vec<String>,

    /// Address for clients
    #[arg(long, env = "IMAGEGATE_LISTEN_HTTP", value_name = "ADDR", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,

    /// Address for probes and metrics
    #[arg(long, env = "IMAGEGATE_LISTEN_ADMIN", value_name = "ADDR")]
    admin: Option<SocketAddr>,

    /// Folder for images asked for as `url`, in `images` below it
    #[arg(long, env = "IMAGEGATE_DATA_DIR", value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,

    #[command(flatten)]
    images: ImagesArgs,

    /// How clients reach this shim, for links to images
    #[arg(long, env = "IMAGEGATE_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,

    /// How long images asked for as `url` can be fetched
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    image_lifetime_s: u64,

    /// Larger request bodies are refused
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    max_body_bytes: usize,

    /// Requests and answers that are held at once, by default 1 GiB or three fifths of a smaller container's memory; what
    /// finds no room is told to come again
    #[arg(long, value_name = "BYTES")]
    bytes_in_flight: Option<usize>,

    /// Certificates for the connection to the router
    #[command(flatten)]
    tls: TlsArgs,

    /// How long new requests are still answered after SIGTERM
    #[arg(long, env = "IMAGEGATE_SHUTDOWN_DELAY_S", value_name = "SECONDS", default_value_t = 0)]
    shutdown_delay_s: u64,

    /// How long in-flight requests may then take to finish
    #[arg(long, value_name = "SECONDS", default_value_t = 330)]
    shutdown_grace_s: u64,
}

impl Shim {
    /// Runs until it is asked to stop.
    pub async fn run(self) -> Result<()> {
        let metrics = telemetry::init_metrics().map_err(anyhow::Error::msg)?;
        let tls = self.tls.read()?;
        let pool = connect::pool("--router", Service::Router, &self.router, tls.as_ref())?;
        let (router, admin) = (Remote::new(pool.clone()), admin::remote::Remote::new(pool));
        let objects = self.images.open(&self.data_dir)?;
        let files = Arc::new(Files::new(objects, Duration::from_secs(self.image_lifetime_s)));
        let public_url = self.public_url.as_deref().map(|url| url.trim_end_matches('/'));
        let (files_kept, limit) = (Arc::clone(&files), self.max_body_bytes);
        let admission = Admission::new(self.bytes_in_flight.unwrap_or_else(default_budget));
        let shim =
            shim::Shim::new(Arc::new(router), Arc::new(admin), files_kept, public_url, limit, admission);
        let mut servers = Servers::new(Shutdown {
            delay: Duration::from_secs(self.shutdown_delay_s),
            grace: Duration::from_secs(self.shutdown_grace_s),
        });
        if let Some(tls) = tls {
            servers.background(tls.watch());
        }
        if let Some(address) = self.admin {
            servers.admin(address, metrics, axum::Router::new()).await?;
        }
        servers.http("http", self.listen, shim.routes()).await?;
        servers.background(async move { files.keep_swept().await });
        servers.run().await
    }
}
