//! The roles as an operator starts them: arguments, files, and how long each may take to stop.

use std::{fmt::Write as _, fs, net::SocketAddr, path::PathBuf, time::Duration};

use tokio::time::Instant;

use crate::{
    admin,
    picture::Size,
    pki::Files,
    process::Process,
    scenario::eventually,
    site::{Place, Site},
    upstream::{KEY, MODEL, Upstream},
};

/// How long every role still answers after SIGTERM.
pub const SHUTDOWN_DELAY: Duration = Duration::from_secs(2);

/// What requests in flight are given after that.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);

/// Time to become ready.
const READY: Duration = Duration::from_secs(10);

/// What kubelet takes to notice that a container has ended, beyond which it is slow.
const MARGIN: Duration = Duration::from_secs(2);

/// A role's certificates, and whom it lets call it.
#[derive(Clone, Debug)]
pub struct Tls {
    pub files: Files,
    pub clients: Vec<String>,
}

/// A saved config with a single target.
#[derive(Clone, Debug)]
pub struct Route {
    pub name: &'static str,
    /// What the provider does.
    pub delay: Duration,
    pub size: Size,
    /// More fields of the target, as flow YAML.
    pub policy: &'static str,
}

/// A running role.
#[derive(Debug)]
pub struct Role {
    pub process: Process,
    /// Where it is called.
    pub address: SocketAddr,
    pub admin: SocketAddr,
    place: Place,
    folder: PathBuf,
    arguments: Vec<String>,
    listener: &'static str,
}

impl Role {
    /// A worker.
    pub async fn worker(site: &Site, place: &Place, tls: Option<&Tls>) -> Self {
        Self::worker_of("openai", site, place, place.at(site.ports.worker), tls).await
    }

    /// A worker for a provider that listens at one of its place's addresses.
    pub async fn worker_of(
        provider: &str,
        site: &Site,
        place: &Place,
        address: SocketAddr,
        tls: Option<&Tls>,
    ) -> Self {
        let admin = place.at(site.ports.admin);
        let folder = folder(site);
        let file = folder.join("worker.yaml");
        fs::write(&file, common(tls)).unwrap();
        let arguments = ["worker", "--provider", provider, "--listen"].map(str::to_owned).into_iter();
        let arguments = arguments.chain([address.to_string(), "--admin".into(), admin.to_string()]);
        let arguments = arguments.chain(["--config".into(), file.display().to_string()]).collect();
        Self::start(place, folder, arguments, "worker").await
    }

    /// A router in front of workers.
    pub async fn router(
        site: &Site,
        place: &Place,
        workers: &[String],
        upstream: &Upstream,
        routes: &[Route],
        tls: Option<&Tls>,
    ) -> Self {
        let mut text = format!("workers: {{ openai: [{}] }}\nvirtual_keys:\n", quoted(workers));
        for Route { name, delay, size, .. } in routes {
            let url = upstream.base_url(*delay, *size);
            _ = writeln!(text, "  {name}: {{ provider: openai, api_key: {KEY}, base_url: \"{url}\" }}");
        }
        _ = writeln!(text, "configs:");
        for Route { name, policy, .. } in routes {
            let target = format!("virtual_key: {name}, override_params: {{ model: {MODEL} }}");
            _ = writeln!(text, "  {name}: {{ {target}, {policy} }}");
        }
        Self::router_with(site, place, &text, tls).await
    }

    /// A router with workers, virtual keys and configs of one's own, as YAML.
    pub async fn router_with(site: &Site, place: &Place, settings: &str, tls: Option<&Tls>) -> Self {
        let (address, admin) = (place.at(site.ports.router), place.at(site.ports.admin));
        let folder = folder(site);
        let file = folder.join("router.yaml");
        let mut text = common(tls);
        _ = writeln!(text, "auth: open");
        _ = writeln!(text, "listen: {{ grpc: \"{address}\", admin: \"{admin}\" }}");
        _ = writeln!(text, "data_dir: {}", folder.display());
        text += settings;
        fs::write(&file, text).unwrap();
        let arguments = vec!["router".into(), "--config".into(), file.display().to_string()];
        Self::start(place, folder, arguments, "grpc").await
    }

    /// A shim in front of routers.
    pub async fn shim(site: &Site, place: &Place, routers: &[String], tls: Option<&Tls>) -> Self {
        let (address, admin) = (place.at(site.ports.http), place.at(site.ports.admin));
        let mut arguments = vec!["shim".to_owned()];
        let mut argue = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        argue("--router", routers.join(","));
        argue("--listen", address.to_string());
        argue("--admin", admin.to_string());
        argue("--shutdown-delay-s", SHUTDOWN_DELAY.as_secs().to_string());
        argue("--shutdown-grace-s", SHUTDOWN_GRACE.as_secs().to_string());
        if let Some(Tls { files, .. }) = tls {
            argue("--tls-certificate", files.certificate.display().to_string());
            argue("--tls-key", files.key.display().to_string());
            argue("--tls-ca", files.ca.display().to_string());
        }
        Self::start(place, folder(site), arguments, "http").await
    }

    async fn start(place: &Place, folder: PathBuf, arguments: Vec<String>, listener: &'static str) -> Self {
        let mut process = Process::start(place, &folder, &arguments);
        let address = process.address(listener).await;
        let admin = process.address("admin").await;
        let mut role = Self { process, address, admin, place: place.clone(), folder, arguments, listener };
        role.until_ready().await;
        role
    }

    /// The same again, at the same address.
    pub async fn start_again(&mut self) {
        self.process = Process::start(&self.place, &self.folder, &self.arguments);
        assert_eq!(self.process.address(self.listener).await, self.address);
        self.until_ready().await;
    }

    /// SIGTERM; it ends well, and no later than its delay and what was in flight allow. Gives the time it took.
    pub async fn stop(&mut self, in_flight: Duration) -> Duration {
        let started = Instant::now();
        self.process.terminate();
        let code = self.process.ended(SHUTDOWN_DELAY + in_flight + MARGIN).await;
        assert_eq!(code, Some(0), "exit code: {}", self.process.shown());
        started.elapsed()
    }

    /// Whether it says that it is ready.
    pub async fn is_ready(&self) -> bool {
        admin::is_ready(self.admin).await
    }

    /// The sum of a metric's values over all labels that contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        admin::metric(self.admin, name, label).await
    }

    async fn until_ready(&mut self) {
        eventually("readiness", READY, async || {
            assert!(self.process.is_running(), "{}", self.process.shown());
            if self.is_ready().await { Ok(()) } else { Err(self.process.shown()) }
        })
        .await;
    }
}

/// What the files of workers and routers share.
fn common(tls: Option<&Tls>) -> String {
    let tls = match tls {
        None => "off".to_owned(),
        Some(Tls { files, clients }) => {
            let path = |path: &PathBuf| path.display().to_string();
            let files = [&files.certificate, &files.key, &files.ca].map(path);
            let [certificate, key, ca] = files;
            let clients = match &clients[..] {
                [] => String::new(),
                clients => format!(", clients: [{}]", quoted(clients)),
            };
            format!("{{ certificate: \"{certificate}\", key: \"{key}\", ca: \"{ca}\"{clients} }}")
        }
    };
    let (delay, grace) = (SHUTDOWN_DELAY.as_secs(), SHUTDOWN_GRACE.as_secs());
    format!("tls: {tls}\nshutdown_delay_s: {delay}\nshutdown_grace_s: {grace}\n")
}

fn quoted(items: &[String]) -> String {
    items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn folder(site: &Site) -> PathBuf {
    tempfile::tempdir_in(site.folder.path()).unwrap().keep()
}
