//! A role that is asked to stop while it is busy: not ready at once, still there for a while, and gone without a
//! byte lost.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    admin,
    deploy::{Role, Route, SHUTDOWN_DELAY},
    identity::{ROUTER, ROUTERS, SHIM, WORKER, WORKERS, leaf, tls},
    load::{Client, Kind, Load},
    picture::Size,
    pki::{Authority, Validity},
    scenario::{eventually, tell, turn},
    service::Service,
    site::{Place, Site},
    upstream::Upstream,
};

/// Requests that are under way at once.
const CROWD: usize = 64;

/// The same over TLS, which costs a debug build more than all the rest.
const TLS_CROWD: usize = 16;

/// How long the provider holds them: beyond the time for which a role that is stopped takes new requests.
const HELD: Duration = Duration::from_secs(3);

/// How fast every host sends: not all that a role has written has arrived when it ends.
const MEGABITS: u32 = 1000;

/// What moving 128 MB takes in a debug build on a busy machine, in all.
const MOVING: Duration = Duration::from_secs(10);

/// How long it may still say that it is ready.
const READY: Duration = Duration::from_millis(100);

/// How long the only instance of a role may stay unnoticed when it is back.
const FOUND: Duration = Duration::from_secs(6);

const LARGE: Kind = Kind { route: "large", size: Size::Large };
const SMALL: Kind = Kind { route: "small", size: Size::Small };

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_stopped_finishes_what_it_has_begun() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [worker, router, shim]: [Place; 3] = site.places();
    for place in [&worker, &router, &shim] {
        Site::slow_down(place, MEGABITS);
    }
    let workers = site.uris("http", "workers.cluster.test", site.ports.worker, std::slice::from_ref(&worker));
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, std::slice::from_ref(&router));
    let mut worker = Role::worker(&site, &worker, None).await;
    let mut router = Role::router(&site, &router, &workers, &upstream, &routes(), None).await;
    let mut shim = Role::shim(&site, &shim, &routers, None).await;
    let through_shim = || Client::http(Service::fixed(shim.address));
    let client = through_shim();
    for (name, role) in [("worker", &mut worker), ("router", &mut router)] {
        stopped_in_the_middle(name, role, &client, &upstream, CROWD).await;
    }
    let over_grpc = Client::grpc(router.address);
    stopped_in_the_middle("router, called over gRPC", &mut router, &over_grpc, &upstream, CROWD).await;
    let client = through_shim();
    stopped_in_the_middle("shim", &mut shim, &client, &upstream, CROWD).await;
    assert_eq!(upstream.duplicates(), []);
    assert_eq!(upstream.refusals(), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_stopped_finishes_what_it_has_begun_over_tls() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [at_worker, at_router, at_shim]: [Place; 3] = site.places();
    for place in [&at_worker, &at_router, &at_shim] {
        Site::slow_down(place, MEGABITS);
    }
    let authority = Authority::new("cluster");
    let ca = authority.pem();
    let workers = site.uris("https", WORKERS, site.ports.worker, std::slice::from_ref(&at_worker));
    let routers = site.uris("https", ROUTERS, site.ports.router, std::slice::from_ref(&at_router));
    let worker_leaf = leaf(&authority, WORKER, WORKERS, &at_worker, Validity::Now);
    let worker_tls = tls(&site, "worker", &worker_leaf, &ca, &[ROUTER]);
    let router_leaf = leaf(&authority, ROUTER, ROUTERS, &at_router, Validity::Now);
    let router_tls = tls(&site, "router", &router_leaf, &ca, &[SHIM]);
    let shim_tls = tls(&site, "shim", &authority.sign(&[SHIM], Validity::Now), &ca, &[]);
    let mut worker = Role::worker(&site, &at_worker, Some(&worker_tls)).await;
    let mut router = Role::router(&site, &at_router, &workers, &upstream, &routes(), Some(&router_tls)).await;
    let shim = Role::shim(&site, &at_shim, &routers, Some(&shim_tls)).await;
    let client = Client::http(Service::fixed(shim.address));
    for (name, role) in [("worker over TLS", &mut worker), ("router over TLS", &mut router)] {
        stopped_in_the_middle(name, role, &client, &upstream, TLS_CROWD).await;
    }
    assert_eq!(upstream.duplicates(), []);
    assert_eq!(upstream.refusals(), [] as [String; 0]);
}

fn routes() -> [Route; 2] {
    [
        Route { name: "large", delay: HELD, size: Size::Large, policy: "" },
        Route { name: "small", delay: Duration::ZERO, size: Size::Small, policy: "" },
    ]
}

async fn stopped_in_the_middle(
    name: &str,
    role: &mut Role,
    client: &Arc<Client>,
    upstream: &Upstream,
    count: usize,
) {
    // The one before has only just come back.
    eventually("callers that have found each other", FOUND, async || {
        let report = Load::crowd(client, SMALL, 1).finished().await;
        report.errors().next().map_or(Ok(()), Err)
    })
    .await;
    let begun = Instant::now();
    let crowd = Load::crowd(client, LARGE, count);
    eventually("all requests at the provider", Duration::from_secs(5), async || match upstream.running() {
        running if running == count => Ok(()),
        running => Err(format!("{running} of {count}: {}", crowd.since(begun))),
    })
    .await;
    let asked = Instant::now();
    let (stopped, (ready, late)) = tokio::join!(
        async {
            role.process.terminate();
            let code = role.process.ended(SHUTDOWN_DELAY + HELD + MOVING).await;
            (code, asked.elapsed())
        },
        async {
            let admin = role.admin;
            // When the last probe was sent that it was ready for: how long the answer took says nothing.
            let mut ready = Duration::ZERO;
            loop {
                let sent = asked.elapsed();
                if !admin::is_ready(admin).await {
                    break;
                }
                ready = sent;
            }
            // Whoever has not heard of it yet is answered all the same.
            tokio::time::sleep(Duration::from_millis(500)).await;
            (ready, Load::crowd(client, SMALL, 4).finished().await)
        }
    );
    let report = crowd.finished().await;
    tell(format!("{name}: ready for {ready:?}, ended after {:?}; {report}", stopped.1));
    report.assert_all_answered(name);
    assert_eq!(report.count(), count);
    late.assert_all_answered(&format!("{name}: requests after SIGTERM"));
    assert!(ready < READY, "{name}: still ready {ready:?} after SIGTERM");
    assert_eq!(stopped.0, Some(0), "{name}: {}", role.process.shown());
    role.start_again().await;
}
