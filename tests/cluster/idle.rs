//! Connections that clients keep for long without using them, while the shims at their other end are replaced.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    deploy::{Role, Route, SHUTDOWN_DELAY},
    load::{Client, Connection, Kind, Load},
    picture::Size,
    scenario::{eventually, tell, turn},
    service::Service,
    site::{Place, Site},
    upstream::Upstream,
};

const SMALL: Kind = Kind { route: "small", size: Size::Small };

/// Connections that are open at once, most of them idle.
const KEPT: usize = 120;

/// So few that a connection is idle for longer than a shim still answers after SIGTERM.
const PER_SECOND: u32 = 30;

/// When the connections of a shim end that drains, many requests a second for some time.
const RUSH_PER_SECOND: u32 = 400;
const RUSH: Duration = Duration::from_millis(300);

/// For connections to end once draining has begun, and the process after them.
const ENDED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed_without_a_reset_and_clients_that_repeat_once_lose_nothing() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [worker, router]: [Place; 2] = site.places();
    let places: [Place; 2] = site.places();
    let workers = site.uris("http", "workers.cluster.test", site.ports.worker, std::slice::from_ref(&worker));
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, std::slice::from_ref(&router));
    let routes = [Route { name: "small", delay: Duration::from_millis(50), size: Size::Small, policy: "" }];
    let _worker = Role::worker(&site, &worker, None).await;
    let _router = Role::router(&site, &router, &workers, &upstream, &routes, None).await;
    let mut shims = Vec::new();
    for place in &places {
        shims.push(Role::shim(&site, place, &routers, None).await);
    }

    closed_without_a_reset(&mut shims[0]).await;

    let service = Service::new(shims.iter().map(|shim| (shim.address, shim.admin)).collect());
    let client = Client::sdk(service);
    Load::crowd(&client, SMALL, KEPT).finished().await.assert_all_answered("the first requests");
    let (idle, _) = client.idle_and_repeated();
    // One that is answered at once leaves its connection to another.
    assert!(idle > KEPT / 2, "{idle} connections are kept");
    let load = Load::start(&client, SMALL, PER_SECOND);
    for shim in &mut shims {
        let idle = client.idle_and_repeated().0;
        let (took, rushed) = tokio::join!(shim.stop(Duration::ZERO), rush(&client));
        tell(format!("{idle} idle connections; stopped after {took:?}; at its end: {rushed} requests"));
        shim.start_again().await;
        let address = shim.address;
        eventually("a Service that offers it", Duration::from_secs(4), async || {
            client.service().offers(address).then_some(()).ok_or("it does not")
        })
        .await;
    }
    let report = load.stop().await;
    let (_, repeated) = client.idle_and_repeated();
    tell(format!("{repeated} requests were repeated; {report}"));
    report.assert_all_answered("a rolling restart of shims with idle connections");
    assert_eq!(upstream.duplicates(), [], "requests that were paid for more than once");
    assert_eq!(upstream.refusals(), [] as [String; 0]);
}

/// Connections that have had a request, and such that never had one, are open while the shim still answers, and then
/// end as they should.
async fn closed_without_a_reset(shim: &mut Role) {
    let mut connections = Vec::new();
    for number in 0..16 {
        let mut connection = Connection::open(shim.address).await.unwrap();
        if number % 2 == 0 {
            connection.ask(SMALL).await.unwrap();
        }
        connections.push(connection);
    }
    let asked = Instant::now();
    shim.process.terminate();
    tokio::time::sleep_until(asked + SHUTDOWN_DELAY / 2).await;
    for (number, connection) in connections.iter().enumerate() {
        assert!(connection.is_open(), "connection {number} is closed {:?} after SIGTERM", asked.elapsed());
    }
    for (number, connection) in connections.iter_mut().enumerate() {
        let ended = timeout(SHUTDOWN_DELAY + ENDED, connection.ended()).await;
        let last = ended.unwrap_or_else(|_| panic!("connection {number} is not closed"));
        let last = last.unwrap_or_else(|error| panic!("connection {number} is reset: {error}"));
        assert!(last.is_empty(), "connection {number} ends with {last:?}");
    }
    let ended = asked.elapsed();
    let code = shim.process.ended(ENDED).await;
    assert_eq!(code, Some(0), "exit code: {}", shim.process.shown());
    tell(format!("16 idle connections ended {ended:?} after SIGTERM, the shim {:?}", asked.elapsed()));
    shim.start_again().await;
}

/// Many requests over connections that a shim closes at this moment. Gives their number.
async fn rush(client: &Arc<Client>) -> usize {
    tokio::time::sleep(SHUTDOWN_DELAY - RUSH / 2).await;
    let load = Load::start(client, SMALL, RUSH_PER_SECOND);
    tokio::time::sleep(RUSH).await;
    let report = load.stop().await;
    report.assert_all_answered("requests while connections are closed");
    report.count()
}
