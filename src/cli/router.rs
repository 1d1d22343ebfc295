//! `imagegate router`: the router over gRPC, with the shim in front of it where the file wants one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Result, anyhow};
use tokio::sync::Mutex;

use super::{
    ConfigArg,
    person::{self, Person},
};
use crate::{
    admin::Admin,
    admission::Admission,
    config::{Origin, file::Listen, memory::StoreChoice},
    dashboard::{Dashboard, Sessions},
    fleet::Fleet,
    gateway::Gateway,
    objects::{Objects, gallery::Gallery},
    router::{self, remote::Served},
    serve::{Grpc, Servers},
    shim::{self, Files, Shim},
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
        let defaults = Listen { http: None, grpc: local(50051), admin: local(9090) };
        serve(self.config.origin(), defaults, None).await
    }
}

/// Runs the router and all that the configuration wants beside it, and shows a person what happens, if there is one.
pub async fn serve(origin: Origin, defaults: Listen, person: Option<Person>) -> Result<()> {
    let metrics = telemetry::init_metrics().map_err(anyhow::Error::msg)?;
    let (gateway, settings) = Gateway::try_new(origin)?;
    let gateway = Arc::new(gateway);
    let listen = Listen {
        http: settings.listen.http.or(defaults.http),
        grpc: settings.listen.grpc.or(defaults.grpc),
        admin: settings.listen.admin.or(defaults.admin),
    };
    settings.check_exposure(listen).map_err(anyhow::Error::msg)?;
    let objects = Objects::open(&settings.images).map_err(|reason| anyhow!("images: {reason}"))?;
    gateway.remember().await?;
    let gallery = Gallery::new(Arc::clone(&objects));
    let journal =
        (!matches!(settings.memory.store, StoreChoice::Off)).then(|| Journal::new(Arc::clone(&gallery)));
    if let (Some(journal), Some(_)) = (&journal, gateway.store()) {
        journal.protect(&settings.data_dir).await;
    }
    let fleet = settings.redis.as_ref().map(Fleet::try_new).transpose().map_err(anyhow::Error::msg)?;
    if let Some(fleet) = &fleet {
        fleet.begin().await;
    }
    let otlp = gateway.exporter(&settings)?;
    let router = router::Router::in_fleet(gateway.state(&settings)?, fleet, journal.clone(), otlp.clone());
    if let Some(store) = gateway.store() {
        let kept = store.counters().await.map_err(|error| anyhow::anyhow!("{}", error.message))?;
        router.ledger().load(kept);
    }
    let admin = Admin::new(Arc::clone(&gateway), router.clone(), Arc::clone(&gallery));
    let mut servers = Servers::new(settings.shutdown);
    let mut bound = Listen::default();
    let admission = Admission::new(settings.limits.bytes_in_flight);
    if let Some(address) = listen.admin {
        let sessions = Sessions::new(settings.memory.vault.as_ref());
        let (dispatch, memory) = (Arc::new(router.clone()), Arc::new(admin.clone()));
        let asked = router.clone();
        let known = Arc::new(move || asked.trusted());
        let pages = Dashboard::new(dispatch, memory, sessions, known, address, listen.http).routes();
        let asked = router.clone();
        let pages = shim::only_from_here(pages, move || asked.is_open());
        let counting = router.clone();
        let metrics = metrics.looking(move || counting.count_breakers());
        bound.admin = Some(servers.admin(address, metrics, pages).await?);
    }
    if let Some(address) = listen.grpc {
        let served = Served(Arc::new(router.clone()));
        let service =
            Grpc::<_, worker::remote::Served>::Router(served, admin.clone(), settings.limits.max_body_bytes);
        bound.grpc = Some(servers.grpc("grpc", address, service, gateway.tls(), admission.clone()).await?);
    }
    if let Some(address) = listen.http {
        let files = Arc::new(Files::new(Arc::clone(&objects), settings.image_lifetime));
        let public_url = settings.public_url.as_deref();
        let limit = settings.limits.max_body_bytes;
        let memory = Arc::new(admin.clone());
        let shim =
            Shim::new(Arc::new(router.clone()), memory, Arc::clone(&files), public_url, limit, admission);
        let asked = router.clone();
        let routes = shim::only_from_here(shim.routes(), move || asked.is_open());
        bound.http = Some(servers.http("http", address, routes).await?);
        servers.background(async move { files.keep_swept().await });
    }
    let jobs = router.clone();
    servers.until_drained(|draining| async move { jobs.run_jobs(draining.cancelled()).await });
    servers.until_the_end(router.clone().run_fleet());
    if let Some(otlp) = otlp.clone() {
        servers.until_the_end(async move { otlp.run().await });
    }
    servers.background(gateway.run_upstreams());
    if let Some(tls) = gateway.tls() {
        servers.background(Arc::clone(tls).watch());
    }
    if let Some(journal) = &journal {
        let (gateway, router, journal) = (Arc::clone(&gateway), router.clone(), Arc::clone(journal));
        let (settings, gallery) = (Arc::clone(&settings), Arc::clone(&gallery));
        servers.until_the_end(async move {
            let remember = async {
                let was_open = gateway.store().is_some();
                let store = gateway.opened(&router).await;
                if !was_open {
                    journal.protect(&settings.data_dir).await;
                    router.ledger().load(store.counters().await.unwrap_or_default());
                }
                let memory = &settings.memory;
                tokio::join!(
                    gateway.keep_fresh(&store, &router),
                    router.ledger().keep_writing(&store, memory.flush_every),
                    journal.keep_writing(&store, memory.flush_every),
                    journal.keep_forgetting(&store, memory.retention),
                )
            };
            tokio::join!(journal.keep_digesting(), gallery.keep_hanging(), remember);
        });
    }
    servers.until_the_end(Arc::clone(router.ledger()).run());
    let trusting = Arc::clone(&gateway);
    servers.until_the_end(async move { trusting.keep_issuers().await });
    servers.background(Arc::clone(&gateway).watch(Some((router.clone(), listen))));
    let person = person.map(|person| Arc::new(Mutex::new(person)));
    if let Some(person) = person.clone() {
        person::welcome(&router.known().0, bound);
        servers.until_the_end(async move { person.lock().await.watch().await });
        servers.until_drained(|draining| async move {
            draining.cancelled().await;
            person::farewell();
        });
    }
    let outcome = servers.run().await;
    if let Some(person) = person {
        person.lock().await.catch_up().await;
    }
    router.leave_fleet().await;
    if let Some(otlp) = &otlp {
        otlp.flush().await;
    }
    if let Some(journal) = &journal {
        journal.flush(gateway.store()).await;
    }
    gallery.flush().await;
    if let Some(store) = gateway.store() {
        router.ledger().flush(store).await;
        store.close().await;
    }
    outcome
}
