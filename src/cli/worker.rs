//! `imagegate worker`: the worker of one or several providers over gRPC.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Result, ensure};

use super::ConfigArg;
use crate::{
    admission::Admission,
    config::tls::TlsChoice,
    gateway::Gateway,
    router,
    serve::{Grpc, Servers},
    telemetry, worker,
};

/// Run the worker of one or several providers.
#[derive(Debug, clap::Args)]
pub struct Worker {
    /// Providers to serve
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    provider: Vec<String>,

    /// Address for the router
    #[arg(long, env = "IMAGEGATE_LISTEN_WORKER", value_name = "ADDR", default_value = "127.0.0.1:50061")]
    listen: SocketAddr,

    /// Address for probes and metrics
    #[arg(long, env = "IMAGEGATE_LISTEN_ADMIN", value_name = "ADDR")]
    admin: Option<SocketAddr>,

    /// Plain text, also where others can read it
    #[arg(long, value_enum)]
    tls: Option<Off>,

    /// For `tls`, `egress`, and virtual keys that the router's file marks `held_by: worker`
    #[command(flatten)]
    config: ConfigArg,
}

/// What can be said on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Off {
    Off,
}

impl Worker {
    /// Runs until it is asked to stop.
    pub async fn run(self) -> Result<()> {
        let metrics = telemetry::init_metrics().map_err(anyhow::Error::msg)?;
        let (gateway, settings) = Gateway::try_new(self.config.origin())?;
        let choice = self.tls.map_or(&settings.tls, |Off::Off| &TlsChoice::Off);
        choice.check_exposure("--listen", self.listen).map_err(anyhow::Error::msg)?;
        let tls = gateway.tls().filter(|_| choice.files().is_some());
        if let Some(files) = choice.files() {
            // Whoever reaches a worker can spend what it holds.
            ensure!(
                !files.clients.is_empty(),
                "tls.clients: Required: the names of those who may call this worker"
            );
        }
        let served = worker::remote::Served(gateway.worker(&self.provider)?);
        let mut servers = Servers::new(settings.shutdown);
        if let Some(address) = self.admin {
            servers.admin(address, metrics, axum::Router::new()).await?;
        }
        let admission = Admission::new(settings.limits.bytes_in_flight);
        let service = Grpc::<router::remote::Served, _>::Worker(served);
        servers.grpc("worker", self.listen, service, tls, admission).await?;
        servers.background(gateway.run_upstreams());
        if let Some(tls) = tls {
            servers.background(Arc::clone(tls).watch());
        }
        servers.background(Arc::new(gateway).watch(None));
        servers.run().await
    }
}
