//! Roles that know each other by certificates, and everybody else who is turned away.

use std::{collections::HashSet, time::Duration};

use serde_json::Value;

use crate::{
    deploy::{Role, Route, Tls},
    handshake::{meet, speak_plainly},
    load::{Client, Kind, Load},
    picture::Size,
    pki::{Authority, Files, Leaf, Validity},
    process::Process,
    scenario::{eventually, tell, turn},
    service::Service,
    site::{Place, Site},
    upstream::{KEY, Upstream},
};

/// Names of the roles in their certificates.
pub const SHIM: &str = "imagegate-shim";
pub const ROUTER: &str = "imagegate-router";
pub const WORKER: &str = "imagegate-worker-openai";

/// Names of the services, where there are names.
pub const ROUTERS: &str = "routers.cluster.test";
pub const WORKERS: &str = "workers.cluster.test";

pub const SMALL: Kind = Kind { route: "small", size: Size::Small };

/// For a log line or a metric to appear.
const SOON: Duration = Duration::from_secs(2);

/// How long an endpoint that was refused may be left alone.
const BACK: Duration = Duration::from_secs(15);

pub fn route() -> [Route; 1] {
    [Route { name: "small", delay: Duration::from_millis(100), size: Size::Small, policy: "" }]
}

/// A certificate for a role, at a service's name and at a place.
pub fn leaf(authority: &Authority, role: &str, service: &str, place: &Place, validity: Validity) -> Leaf {
    authority.sign(&[role, service, &place.address.to_string()], validity)
}

/// Its files, and whom it lets in.
pub fn tls(site: &Site, role: &str, leaf: &Leaf, ca_pem: &str, clients: &[&str]) -> Tls {
    let folder = tempfile::tempdir_in(site.folder.path()).unwrap().keep();
    let clients = clients.iter().map(|&client| client.to_owned()).collect();
    Tls { files: Files::write(&folder, role, leaf, ca_pem), clients }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_with_certificates_work_and_turn_everybody_else_away() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [at_worker, at_router, at_shim]: [Place; 3] = site.places();
    let authority = Authority::new("cluster");
    let other = Authority::new("cluster");
    let ca = authority.pem();
    let worker_leaf = leaf(&authority, WORKER, WORKERS, &at_worker, Validity::Now);
    let router_leaf = leaf(&authority, ROUTER, ROUTERS, &at_router, Validity::Now);
    let shim_leaf = authority.sign(&[SHIM], Validity::Now);

    let workers = site.uris("https", WORKERS, site.ports.worker, std::slice::from_ref(&at_worker));
    let routers = site.uris("https", ROUTERS, site.ports.router, std::slice::from_ref(&at_router));
    let worker_tls = tls(&site, "worker", &worker_leaf, &ca, &[ROUTER]);
    let router_tls = tls(&site, "router", &router_leaf, &ca, &[SHIM]);
    let shim_tls = tls(&site, "shim", &shim_leaf, &ca, &[]);
    let worker = Role::worker(&site, &at_worker, Some(&worker_tls)).await;
    let router = Role::router(&site, &at_router, &workers, &upstream, &route(), Some(&router_tls)).await;
    let shim = Role::shim(&site, &at_shim, &routers, Some(&shim_tls)).await;
    let client = Client::http(Service::fixed(shim.address));
    Load::crowd(&client, SMALL, 20).finished().await.assert_all_answered("three roles with certificates");

    let expired = authority.sign(&[ROUTER], Validity::Past);
    let stranger = other.sign(&[ROUTER], Validity::Now);
    let address = worker.address.ip().to_string();
    let mut reasons = HashSet::new();
    for (what, caller) in [
        ("a caller of another role", Some(&shim_leaf)),
        ("a certificate of an unknown authority", Some(&stranger)),
        ("an expired certificate", Some(&expired)),
        ("no certificate", None),
    ] {
        let before = worker.process.said("TLS handshake refused").len();
        let met = meet(worker.address, &address, &ca, caller).await.unwrap();
        assert_eq!(met.der, worker_leaf.der, "{what}: the worker presents another certificate");
        assert!(met.let_in.is_err(), "{what}: the worker lets it in");
        let line = refusal(&worker, before, what).await;
        reasons.insert(line["reason"].as_str().unwrap_or_default().to_owned());
        tell(format!("{what}: {} says {}, caller sees {:?}", line["peer"], line["reason"], met.let_in));
    }
    assert!(reasons.len() >= 4 && !reasons.contains(""), "each has a reason of its own: {reasons:?}");
    // Each of them is let in by the right listener: it was the certificate that the worker refused.
    for (listener, name, caller) in
        [(&worker, &address, &router_leaf), (&router, &router.address.ip().to_string(), &shim_leaf)]
    {
        let met = meet(listener.address, name, &ca, Some(caller)).await.unwrap();
        assert!(met.let_in.is_ok(), "{:?}: {}", met.let_in, listener.process.shown());
    }
    let met = meet(router.address, &router.address.ip().to_string(), &ca, Some(&worker_leaf)).await.unwrap();
    assert!(met.let_in.is_err(), "the router lets a worker in");
    refusal(&router, 0, "a worker at the router").await;

    let before = worker.process.said("TLS handshake refused").len();
    match speak_plainly(worker.address).await {
        // An alert of TLS, nothing of HTTP.
        Ok(answer) => assert!(answer.is_empty() || answer[0] == 21, "plain text is answered: {answer:?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "plain text: {error}"),
    }
    refusal(&worker, before, "plain text").await;
    let refusals = worker.metric("imagegate_tls_refusals_total", "").await;
    assert!(refusals >= 5.0, "{refusals} refusals are counted");

    Load::crowd(&client, SMALL, 20).finished().await.assert_all_answered("after all who were turned away");
    let keys = [&worker_leaf, &router_leaf, &shim_leaf].map(|leaf| leaf.key_pem.lines().nth(1).unwrap());
    for role in [&worker, &router, &shim] {
        let log = role.process.log();
        assert!(!log.contains(KEY), "the provider's key is in a log");
        assert!(keys.iter().all(|key| !log.contains(*key)), "a private key is in a log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_known_by_a_uri_or_by_one_label_before_a_suffix() {
    const WORKLOAD: &str = "spiffe://cluster.test/ns/images/sa/router";
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [at_worker, at_router]: [Place; 2] = site.places();
    let authority = Authority::new("cluster");
    let ca = authority.pem();
    let workers = site.uris("https", WORKERS, site.ports.worker, std::slice::from_ref(&at_worker));
    let worker_leaf = leaf(&authority, WORKER, WORKERS, &at_worker, Validity::Now);
    let worker_tls = tls(&site, "worker", &worker_leaf, &ca, &[WORKLOAD, "*.callers.cluster.test"]);
    let worker = Role::worker(&site, &at_worker, Some(&worker_tls)).await;
    let address = worker.address.ip().to_string();
    for (is_let_in, names) in [
        (true, &[WORKLOAD][..]),
        (true, &["elsewhere.cluster.test", WORKLOAD]),
        (true, &["router-1.callers.cluster.test"]),
        (true, &["ROUTER-2.Callers.Cluster.Test"]),
        (false, &["spiffe://cluster.test/ns/images/sa/router/2"]),
        (false, &["spiffe://cluster.test/ns/images/sa"]),
        (false, &["spiffe://elsewhere.test/ns/images/sa/router"]),
        (false, &["spiffe://router-1.callers.cluster.test"]),
        (false, &["callers.cluster.test"]),
        (false, &["a.router-1.callers.cluster.test"]),
        (false, &["router-1-callers.cluster.test"]),
        (false, &["router-1.callers.cluster.test.elsewhere.test"]),
        (false, &["10.0.0.1"]),
    ] {
        let before = worker.process.said("TLS handshake refused").len();
        let caller = authority.sign(names, Validity::Now);
        let met = meet(worker.address, &address, &ca, Some(&caller)).await.unwrap();
        assert_eq!(met.let_in.is_ok(), is_let_in, "{names:?}: {:?}; {}", met.let_in, worker.process.shown());
        if !is_let_in {
            let line = refusal(&worker, before, names[0]).await;
            let reason = line["reason"].as_str().unwrap_or_default();
            assert!(reason.contains(WORKLOAD) && reason.contains("*.callers.cluster.test"), "{reason}");
            let shown = if names[0] == "10.0.0.1" { "no name" } else { names[0] };
            assert!(reason.contains(shown), "{names:?}: {reason}");
        }
    }

    // The gateway's own client, too, shows them.
    for (name, is_let_in) in [(WORKLOAD, true), ("spiffe://cluster.test/ns/images/sa/shim", false)] {
        let leaf = leaf(&authority, name, ROUTERS, &at_router, Validity::Now);
        let files = tls(&site, "router", &leaf, &ca, &[]);
        let mut router = Role::router(&site, &at_router, &workers, &upstream, &route(), Some(&files)).await;
        // A shim for each, which has not met the other router.
        let at_shim = site.place();
        let routers = site.uris("https", ROUTERS, site.ports.router, std::slice::from_ref(&at_router));
        let shim_tls = tls(&site, "shim", &authority.sign(&[SHIM], Validity::Now), &ca, &[]);
        let shim = Role::shim(&site, &at_shim, &routers, Some(&shim_tls)).await;
        let client = Client::http(Service::fixed(shim.address));
        let report = Load::crowd(&client, SMALL, 10).finished().await;
        tell(format!("a router that is {name}: {report}"));
        let answered = report.count() - report.errors().count();
        assert_eq!(answered, if is_let_in { 10 } else { 0 }, "{name}: {}", router.process.shown());
        assert!(report.errors().all(|error| error.contains("not_sent")), "{name}: {report}");
        router.process.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_prove_who_it_is_is_a_failed_attempt_and_gets_no_call() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [at_worker, at_router, at_shim]: [Place; 3] = site.places();
    let (authority, other) = (Authority::new("cluster"), Authority::new("another cluster"));
    let ca = authority.pem();
    let good = leaf(&authority, WORKER, WORKERS, &at_worker, Validity::Now);
    let router_leaf = leaf(&authority, ROUTER, ROUTERS, &at_router, Validity::Now);
    let workers = site.uris("https", WORKERS, site.ports.worker, std::slice::from_ref(&at_worker));
    let routers = site.uris("https", ROUTERS, site.ports.router, std::slice::from_ref(&at_router));
    let router_tls = tls(&site, "router", &router_leaf, &ca, &[]);
    let shim_tls = tls(&site, "shim", &authority.sign(&[SHIM], Validity::Now), &ca, &[]);
    let router = Role::router(&site, &at_router, &workers, &upstream, &route(), Some(&router_tls)).await;
    let shim = Role::shim(&site, &at_shim, &routers, Some(&shim_tls)).await;
    let client = Client::http(Service::fixed(shim.address));

    for (what, word, presented) in [
        ("an unknown authority", "CA", leaf(&other, WORKER, WORKERS, &at_worker, Validity::Now)),
        ("an expired certificate", "expired", leaf(&authority, WORKER, WORKERS, &at_worker, Validity::Past)),
        ("another name", "another name", authority.sign(&["elsewhere.cluster.test"], Validity::Now)),
    ] {
        let files = tls(&site, "impostor", &presented, &ca, &[ROUTER]);
        let worker = Role::worker(&site, &at_worker, Some(&files)).await;
        let error = eventually("a failure that is about certificates", BACK, async || {
            let report = Load::crowd(&client, SMALL, 1).finished().await;
            let error = report.errors().next().unwrap_or_else(|| panic!("{what}: the request was answered"));
            // Until the router has met it, the failure is about the one before.
            if error.contains("certificate") && error.contains(word) { Ok(error) } else { Err(error) }
        })
        .await;
        tell(format!("{what}: {error}"));
        assert!(error.contains(" 503 ") && error.contains("not_sent"), "{what}: {error}");
        let address = worker.address.to_string();
        assert!(!error.contains(KEY) && !error.contains(&address), "{what}: it says too much: {error}");
        eventually("a line in the router's log", SOON, async || {
            let log = router.process.log();
            let warned = log.lines().any(|line| line.contains("WARN") && line.contains("certificate"));
            warned.then_some(()).ok_or(router.process.shown())
        })
        .await;
    }
    assert_eq!(upstream.calls(), 0, "calls to the provider");

    let _worker = Role::worker(&site, &at_worker, Some(&tls(&site, "worker", &good, &ca, &[ROUTER]))).await;
    eventually("the right worker's first answer", BACK, async || {
        let report = Load::crowd(&client, SMALL, 1).finished().await;
        report.errors().next().map_or(Ok(()), Err)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_others_can_reach_wants_certificates_or_a_plain_no() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let place = Site::on_loopback().place();
    let folder = site.folder.path().to_owned();
    let file = folder.join("router.yaml");
    std::fs::write(&file, "auth: open\nlisten: { grpc: \"0.0.0.0:0\", admin: \"127.0.0.1:0\" }\n").unwrap();
    let file = file.display().to_string();
    for (role, arguments) in [
        ("worker", vec!["worker", "--provider", "openai", "--listen", "0.0.0.0:0"]),
        ("router", vec!["router", "--config", &file]),
    ] {
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let mut process = Process::start(&place, &folder, &arguments);
        let code = process.ended(Duration::from_secs(10)).await;
        let log = process.log();
        assert_eq!(code, Some(1), "{role}: {log}");
        assert!(log.contains("0.0.0.0:0") && log.contains("tls"), "{role}: it does not say why: {log}");
        assert!(log.contains("tls: off") || log.contains("--tls off"), "{role}: nor what to write: {log}");
        assert!(process.said("listening").is_empty(), "{role}: it listened all the same: {log}");
    }
    // With hosts, where nobody else is.
    let place = site.place();
    if place.namespace.is_some() {
        let listen = place.at(site.ports.worker).to_string();
        let arguments = ["worker", "--provider", "openai", "--tls", "off", "--listen", &listen];
        let mut process = Process::start(&place, &folder, &arguments.map(str::to_owned));
        assert_eq!(process.address("worker").await.to_string(), listen);
    }
}

/// The next line about a refused handshake.
async fn refusal(role: &Role, before: usize, what: &str) -> Value {
    eventually(&format!("a line about {what}"), SOON, async || {
        let lines = role.process.said("TLS handshake refused");
        lines.get(before).cloned().ok_or_else(|| role.process.shown())
    })
    .await
}
