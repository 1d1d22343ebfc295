//! Kubernetes' native gRPC probes: each role's admin listener answers them in plain text, and they tell who is ready
//! from who is alive.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus::{self, NotServing, Serving};

use crate::{
    admin,
    deploy::{Role, SHUTDOWN_DELAY},
    identity::{ROUTER, ROUTERS, SHIM, SMALL, WORKER, WORKERS, leaf, route, tls},
    load::{Client, Connection, Load},
    pki::{Authority, Validity},
    scenario::{tell, turn, under_load},
    service::Service,
    site::{Place, Site},
    upstream::Upstream,
};

const PER_SECOND: u32 = 20;

/// How long a role may still say that it is ready.
const READY: Duration = Duration::from_millis(100);

/// How long after SIGTERM it is still asked: half of its delay, as the machine may be slow.
const ASKED_FOR: Duration = Duration::from_millis(SHUTDOWN_DELAY.as_millis() as u64 / 2);

const INTERVAL: Duration = Duration::from_millis(100);

/// For the connections of a role that drains to end.
const ENDED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn native_probes_are_answered_in_plain_text_and_tell_ready_from_alive() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [at_worker, at_router, at_shim]: [Place; 3] = site.places();
    let authority = Authority::new("cluster");
    let ca = authority.pem();
    let workers = site.uris("https", WORKERS, site.ports.worker, std::slice::from_ref(&at_worker));
    let routers = site.uris("https", ROUTERS, site.ports.router, std::slice::from_ref(&at_router));
    let worker_leaf = leaf(&authority, WORKER, WORKERS, &at_worker, Validity::Now);
    let worker_tls = tls(&site, "worker", &worker_leaf, &ca, &[ROUTER]);
    let router_leaf = leaf(&authority, ROUTER, ROUTERS, &at_router, Validity::Now);
    let router_tls = tls(&site, "router", &router_leaf, &ca, &[SHIM]);
    let shim_tls = tls(&site, "shim", &authority.sign(&[SHIM], Validity::Now), &ca, &[]);
    let worker = Role::worker(&site, &at_worker, Some(&worker_tls)).await;
    let router = Role::router(&site, &at_router, &workers, &upstream, &route(), Some(&router_tls)).await;
    let shim = Role::shim(&site, &at_shim, &routers, Some(&shim_tls)).await;
    let client = Client::http(Service::fixed(shim.address));
    let mut kept = Connection::open(shim.address).await.unwrap();
    kept.ask(SMALL).await.unwrap();
    assert!(kept.is_reusable, "it is asked to reconnect by a shim that is ready");
    let mut roles = [("worker", worker), ("router", router), ("shim", shim)];
    for (name, role) in &roles {
        for service in ["readiness", "liveness", ""] {
            assert_eq!(said(role.admin, service).await, Serving, "{name}: {service:?}");
        }
        let unknown = admin::health(role.admin, "another").await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{name}: {unknown:?}");
    }

    let load = Load::start(&client, SMALL, PER_SECOND);
    under_load(Duration::from_millis(500)).await;
    let asked = Instant::now();
    let [worker, router, shim] = &roles;
    let answers = async {
        tokio::time::sleep(READY).await;
        let mut new = Connection::open(shim.1.address).await.unwrap();
        for (what, connection) in [("kept", &mut kept), ("new", &mut new)] {
            connection.ask(SMALL).await.unwrap();
            assert!(!connection.is_reusable, "a {what} connection is not asked to be given up");
            let last = timeout(ENDED, connection.ended()).await.expect("it is not closed").unwrap();
            assert!(last.is_empty(), "a {what} connection ends with {last:?}");
        }
        tokio::time::sleep_until(asked + ASKED_FOR).await;
        load.stop().await
    };
    let (_, _, _, report) =
        tokio::join!(told_to_stop(worker), told_to_stop(router), told_to_stop(shim), answers);
    tell(format!("all three told to stop: {report}"));
    report.assert_all_answered("roles that were told to stop");
    for (name, role) in &mut roles {
        let code = role.process.ended(SHUTDOWN_DELAY + ENDED).await;
        assert_eq!(code, Some(0), "{name}: {}", role.process.shown());
    }
    assert_eq!(upstream.duplicates(), []);
}

/// Tells it to stop: its probes say so at once, and go on saying that it lives.
async fn told_to_stop((name, role): &(&str, Role)) {
    let asked = Instant::now();
    role.process.terminate();
    // When the last probe was sent that it was ready for: how long the answer took says nothing.
    let mut ready = Duration::ZERO;
    loop {
        let sent = asked.elapsed();
        if said(role.admin, "readiness").await == NotServing {
            break;
        }
        ready = sent;
    }
    tell(format!("{name}: SERVING for {ready:?} after SIGTERM"));
    assert!(ready < READY, "{name}: still ready {ready:?} after SIGTERM");
    while asked.elapsed() < ASKED_FOR {
        for (service, expected) in [("liveness", Serving), ("readiness", NotServing), ("", NotServing)] {
            let status = said(role.admin, service).await;
            assert_eq!(status, expected, "{name}: {service:?} {:?} after SIGTERM", asked.elapsed());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn said(admin: SocketAddr, service: &str) -> ServingStatus {
    admin::health(admin, service).await.unwrap_or_else(|error| panic!("{admin}: {service:?}: {error:?}"))
}
