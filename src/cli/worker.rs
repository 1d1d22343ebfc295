//! `imagegate worker`: the worker of one or several providers over gRPC.

use std::net::SocketAddr;

use anyhow::Result;

use super::ConfigArg;
use crate::{
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

    /// For `egress`, and for virtual keys that the router's file marks `held_by: worker`
    #[command(flatten)]
    config: ConfigArg,
}

impl Worker {
    /// Runs until it is asked to stop.
    pub async fn run(self) -> Result<()> {
        let metrics = telemetry::init_metrics().map_err(anyhow::Error::msg)?;
        let (gateway, settings) = Gateway::try_new(self.config.origin())?;
        let served = worker::remote::Served(gateway.worker(&self.provider)?);
        let mut servers = Servers::new(settings.shutdown_grace);
        if let Some(address) = self.admin {
            servers.admin(address, metrics).await?;
        }
        servers.grpc("worker", self.listen, Grpc::<router::remote::Served, _>::Worker(served)).await?;
        servers.background(gateway.give_up_jobs());
        servers.background(gateway.watch(None));
        servers.run().await
    }
}
