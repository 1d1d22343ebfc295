//! `imagegate router`: the router over gRPC, with the shim in front of it where the file wants one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;

use super::ConfigArg;
use crate::{
    admin::Admin,
    config::{Origin, file::Listen, memory::StoreChoice},
    fleet::Fleet,
    gateway::Gateway,
    router::{self, remote::Served},
    serve::{Grpc, Servers},
    shim::{Files, Shim},
    store::journal::Journal,
    telemetry, worker,
};

/// Run the gRPC router.
#[derive(Debug, clap::Args)]
pub struct Router {
    #[command(flatten)]
    config: ConfigArg,
}

impl Router {
    /// Runs until it is asked to stop.
    pub async fn run(self) -> Result<()> {
        let local = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        serve(self.config.origin(), Listen { http: None, grpc: local(50051), admin: local(9090) }).await
    }
}

/// Runs the router and all that the configuration wants beside it.
pub async fn serve(origin: Origin, defaults: Listen) -> Result<()> {
    let metrics = telemetry::init_metrics().map_err(anyhow::Error::msg)?;
    let (gateway, settings) = Gateway::try_new(origin)?;
    let gateway = Arc::new(gateway);
    let listen = Listen {
        http: settings.listen.http.or(defaults.http),
        grpc: settings.listen.grpc.or(defaults.grpc),
        admin: settings.listen.admin.or(defaults.admin),
    };
    settings.check_exposure(listen).map_err(anyhow::Error::msg)?;
    gateway.remember().await?;
    let journal = (!matches!(settings.memory.store, StoreChoice::Off)).then(Journal::new);
    if let (Some(journal), Some(_)) = (&journal, gateway.store()) {
        journal.protect(&settings.data_dir).await;
    }
    let fleet = settings.redis.as_ref().map(Fleet::try_new).transpose().map_err(anyhow::Error::msg)?;
    if let Some(fleet) = &fleet {
        fleet.begin().await;
    }
    let router = router::Router::in_fleet(gateway.state(&settings)?, fleet, journal.clone());
    let admin = Admin::new(Arc::clone(&gateway), router.clone());
    let mut servers = Servers::new(settings.shutdown);
    if let Some(address) = listen.admin {
        servers.admin(address, metrics).await?;
    }
    if let Some(address) = listen.grpc {
        let served = Served(Arc::new(router.clone()));
        let service =
            Grpc::<_, worker::remote::Served>::Router(served, admin.clone(), settings.limits.max_body_bytes);
        servers.grpc("grpc", address, service, gateway.tls()).await?;
    }
    if let Some(address) = listen.http {
        let files = Arc::new(Files::new(&settings.data_dir, settings.image_lifetime));
        let public_url = settings.public_url.as_deref();
        let limit = settings.limits.max_body_bytes;
        let memory = Arc::new(admin.clone());
        let shim = Shim::new(Arc::new(router.clone()), memory, Arc::clone(&files), public_url, limit);
        servers.http("http", address, shim.routes()).await?;
        servers.background(async move { files.keep_swept().await });
    }
    let jobs = router.clone();
    servers.until_drained(|draining| async move { jobs.run_jobs(draining.cancelled()).await });
    servers.until_the_end(router.clone().run_fleet());
    servers.background(gateway.give_up_jobs());
    if let Some(tls) = gateway.tls() {
        servers.background(Arc::clone(tls).watch());
    }
    if let Some(journal) = &journal {
        let (gateway, router, journal) = (Arc::clone(&gateway), router.clone(), Arc::clone(journal));
        let settings = Arc::clone(&settings);
        servers.until_the_end(async move {
            let was_open = gateway.store().is_some();
            let store = gateway.opened(&router).await;
            if !was_open {
                journal.protect(&settings.data_dir).await;
            }
            let memory = &settings.memory;
            tokio::join!(
                gateway.keep_fresh(&store, &router),
                journal.keep_writing(&store, memory.flush_every),
                journal.keep_forgetting(&store, memory.retention),
            );
        });
    }
    servers.background(Arc::clone(&gateway).watch(Some((router.clone(), listen))));
    let outcome = servers.run().await;
    router.leave_fleet().await;
    if let Some(journal) = &journal {
        journal.flush(gateway.store()).await;
    }
    if let Some(store) = gateway.store() {
        store.close().await;
    }
    outcome
}
