//! Load spreads evenly over the endpoints behind a name, as they die, come, leave and are taken out of the name; and
//! stays with them while nobody can say what the name stands for.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    deploy::{Role, Route},
    dns::Mood,
    load::{Client, Kind, Load},
    picture::Size,
    scenario::{eventually, tell, turn, under_load},
    service::Service,
    site::{Place, Site},
    upstream::Upstream,
};

const PER_SECOND: u32 = 100;

const SMALL: Kind = Kind { route: "small", size: Size::Small };

/// Of the busiest to the idlest.
const EVEN: f64 = 1.3;

/// Of an even share, from when on a new endpoint takes part.
const TAKES_PART: f64 = 0.7;

/// Calls that are counted at once: some hundred, so that chance does not matter.
const WINDOW: Duration = Duration::from_secs(4);

/// A call that dies with its worker was perhaps paid for: what becomes of it is the config's decision.
const RETRY: &str = "retry: { attempts: 2, max_delay_ms: 100, budget: false }";

fn route(policy: &'static str) -> Route {
    Route { name: "small", delay: Duration::from_millis(300), size: Size::Small, policy }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_behind_a_name_share_the_calls_as_they_come_and_go() {
    let _turn = turn().await;
    let Some(mut site) = Site::with_hosts("the balance over workers").await else { return };
    let name = "workers.cluster.test";
    let upstream = Upstream::start(site.local).await;
    let [first, second, third, late, router, shim]: [Place; 6] = site.places();
    let mut doomed = Role::worker(&site, &first, None).await;
    let _others = [Role::worker(&site, &second, None).await, Role::worker(&site, &third, None).await];
    let places = [first.clone(), second.clone(), third.clone()];
    let workers = site.uris("http", name, site.ports.worker, &places);
    let router_role = Role::router(&site, &router, &workers, &upstream, &[route(RETRY)], None).await;
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, &[router]);
    let shim = Role::shim(&site, &shim, &routers, None).await;
    let client = Client::http(Service::fixed(shim.address));
    let load = Load::start(&client, SMALL, PER_SECOND);
    let [first, second, third, fourth] = [&first, &second, &third, &late].map(|place| place.address.into());

    under_load(Duration::from_secs(2)).await;
    let from = Instant::now();
    under_load(Duration::from_secs(8)).await;
    let counts = upstream.calls_by_host(from);
    let found = even(&counts, &[first, second, third]);
    tell(format!("calls of three workers in 8 s: {counts:?}"));
    found.unwrap_or_else(|uneven| panic!("{uneven}; {}", router_role.process.shown()));
    let endpoints = router_role.metric("imagegate_endpoints", "service=\"openai\"").await;
    assert_eq!(endpoints, 3.0, "endpoints by the router's metric");

    let at_risk = upstream.calls_by_host(Instant::now() - Duration::from_secs(1))[&first];
    doomed.process.kill();
    let killed = Instant::now();
    eventually("an even load on the workers that are left", Duration::from_secs(10), async || {
        let counts = window(&upstream, killed)?;
        even(&counts, &[second, third])
    })
    .await;
    tell(format!("a killed worker: even again after {:?}", killed.elapsed()));

    let _late = Role::worker(&site, &late, None).await;
    site.dns().set(name, [second, third, fourth]);
    let added = Instant::now();
    eventually("the share of a new worker", Duration::from_secs(30), async || {
        let counts = window(&upstream, added)?;
        let share = share(&counts, fourth, 3);
        (share > TAKES_PART).then_some(()).ok_or(format!("{share:.2} of an even share: {counts:?}"))
    })
    .await;
    tell(format!("a new worker: its share after {:?}", added.elapsed()));

    site.dns().set(name, [third, fourth]);
    let removed = Instant::now();
    let quiet = Duration::from_secs(1);
    eventually(
        "no more calls to an address that has left the name",
        Duration::from_secs(10) + quiet,
        async || {
            let counts = upstream.calls_by_host((Instant::now() - quiet).max(removed));
            let calls = counts.get(&second).copied().unwrap_or_default();
            let waited = removed.elapsed() > quiet;
            (calls == 0 && waited).then_some(()).ok_or(format!("{calls} calls in {quiet:?}"))
        },
    )
    .await;
    let gone = Instant::now();
    tell(format!("an address that has left the name: the last call before {:?}", removed.elapsed() - quiet));
    under_load(Duration::from_secs(2)).await;
    let counts = upstream.calls_by_host(gone);
    assert!(!counts.contains_key(&second), "it has calls again: {counts:?}");

    let report = load.stop().await;
    tell(&report);
    report.assert_all_answered("workers that come and go");
    let repeated = upstream.duplicates().len();
    assert!(
        repeated <= at_risk,
        "{repeated} requests were sent twice, of {at_risk} that the kill may have cut"
    );
    assert_eq!(upstream.refusals(), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_ipv6_are_endpoints_as_all_others_are() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let places: [Place; 2] = site.places();
    let [router, shim]: [Place; 2] = site.places();
    let at = places.each_ref().map(|place| place.at_v6(site.ports.worker));
    let [Some(first), Some(second)] = at else {
        tell("NOT RUN, for want of IPv6: addresses of IPv6");
        return;
    };
    // Both families, at the same port: what listens for IPv6 on all addresses listens for IPv4, too.
    let both = (Ipv6Addr::UNSPECIFIED, first.port()).into();
    let workers = [
        Role::worker_of("openai", &site, &places[0], both, None).await,
        Role::worker_of("openai", &site, &places[1], second, None).await,
    ];
    let uris = site.uris_of("http", "workers.cluster.test", &[first, second]);
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, std::slice::from_ref(&router));
    let router = Role::router(&site, &router, &uris, &upstream, &[route("")], None).await;
    let shim = Role::shim(&site, &shim, &routers, None).await;
    let client = Client::http(Service::fixed(shim.address));
    even_calls("only IPv6", &client, &workers, &router).await;
    let endpoints = router.metric("imagegate_endpoints", "service=\"openai\"").await;
    assert_eq!(endpoints, 2.0, "endpoints by the router's metric");

    if places[0].namespace.is_some() {
        // A records beside an AAAA record. Nobody listens at the second one's IPv4 address, and no call fails for it.
        let [first_v4, second_v4] = places.each_ref().map(|place| place.at(first.port()));
        let uris = site.uris_of("http", "both.cluster.test", &[first_v4, second, second_v4]);
        let place = site.place();
        let router = Role::router(&site, &place, &uris, &upstream, &[route("")], None).await;
        even_calls("both families", &Client::grpc(router.address), &workers, &router).await;
        let found = router.process.said("endpoint found");
        for address in [first_v4, second, second_v4].map(|address| address.to_string()) {
            let is_found = found.iter().any(|line| line["endpoint"] == *address);
            assert!(is_found, "{address} is no endpoint: {}", router.process.shown());
        }
    }
    assert_eq!(upstream.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_behind_a_name_share_the_requests_as_they_come_and_go() {
    let _turn = turn().await;
    let Some(mut site) = Site::with_hosts("the balance over routers").await else { return };
    let name = "routers.cluster.test";
    let upstream = Upstream::start(site.local).await;
    let [worker, shim]: [Place; 2] = site.places();
    let places: [Place; 4] = site.places();
    let _worker = Role::worker(&site, &worker, None).await;
    let workers = site.uris("http", "workers.cluster.test", site.ports.worker, &[worker]);
    let mut routers = Vec::new();
    for place in &places[..3] {
        routers.push(Role::router(&site, place, &workers, &upstream, &[route(RETRY)], None).await);
    }
    let uris = site.uris("http", name, site.ports.router, &places[..3]);
    let shim = Role::shim(&site, &shim, &uris, None).await;
    let client = Client::http(Service::fixed(shim.address));
    let begun = Instant::now();
    let load = Load::start(&client, SMALL, PER_SECOND);

    under_load(Duration::from_secs(2)).await;
    let counts = requests_during(&routers, Duration::from_secs(5)).await;
    tell(format!("requests of three routers in 5 s: {counts:?}"));
    spread(&counts).unwrap_or_else(|uneven| panic!("{uneven}; {}", shim.process.shown()));

    // Asked to stop, it loses nothing.
    routers.remove(0).stop(Duration::from_secs(2)).await;
    let stopped = Instant::now();
    eventually("an even load on the routers that are left", Duration::from_secs(10), async || {
        spread(&requests_during(&routers, WINDOW).await)
    })
    .await;
    tell(format!("a router that was stopped: even again after {:?}", stopped.elapsed()));
    load.since(begun).assert_all_answered("a router that was stopped");

    routers.push(Role::router(&site, &places[3], &workers, &upstream, &[route(RETRY)], None).await);
    site.dns().set(name, places[1..].iter().map(|place| place.address.into()));
    let added = Instant::now();
    eventually("the share of a new router", Duration::from_secs(30), async || {
        let counts = requests_during(&routers, WINDOW).await;
        let share = counts[2] * 3.0 / counts.iter().sum::<f64>();
        (share > TAKES_PART).then_some(()).ok_or(format!("{share:.2} of an even share: {counts:?}"))
    })
    .await;
    tell(format!("a new router: its share after {:?}", added.elapsed()));
    load.since(begun).assert_all_answered("a router that is new");

    // Killed, it takes along what it was doing: nobody can know whether that was paid for. No more than that.
    let in_flight = load.in_flight();
    routers.remove(0).process.kill();
    // What is sent before the shim has heard of it is among them.
    let killed = Instant::now() + Duration::from_millis(100);
    under_load(Duration::from_secs(3)).await;
    let since = load.since(killed);
    assert_eq!(since.errors().count(), 0, "requests sent after a router was killed: {since}");
    let report = load.stop().await;
    tell(&report);
    // It had a third of them, give or take what a busy machine has not got round to.
    let (failed, had) = (report.errors().count(), (in_flight + PER_SECOND as usize / 10) / 3);
    assert!(failed < had * 2, "{failed} requests failed, and a router had about {had}: {report}");
    assert_eq!(upstream.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_stay_known_while_their_name_cannot_be_looked_up() {
    let _turn = turn().await;
    let Some(mut site) = Site::with_hosts("names that cannot be looked up").await else { return };
    let name = "workers.cluster.test";
    let upstream = Upstream::start(site.local).await;
    let [worker, router, shim]: [Place; 3] = site.places();
    let _worker = Role::worker(&site, &worker, None).await;
    let workers = site.uris("http", name, site.ports.worker, &[worker]);
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, std::slice::from_ref(&router));
    let _router = Role::router(&site, &router, &workers, &upstream, &[route("")], None).await;
    let shim = Role::shim(&site, &shim, &routers, None).await;
    let client = Client::http(Service::fixed(shim.address));
    let load = Load::start(&client, SMALL, 20);
    for (what, mood) in [
        ("a server that fails", Mood::Failing),
        ("a server that is silent", Mood::Silent),
        ("a name that is gone", Mood::Well),
    ] {
        if mood == Mood::Well {
            site.dns().set(name, []);
        }
        site.dns().set_mood(mood);
        let before = site.dns().asked(name);
        // The second time shows what became of the first.
        eventually(&format!("two look-ups with {what}"), Duration::from_secs(15), async || {
            // Each asks for both kinds of addresses.
            let asked = site.dns().asked(name) - before;
            (asked >= 4).then_some(()).ok_or(format!("{asked} questions"))
        })
        .await;
        load.since(Instant::now() - Duration::from_secs(15)).assert_all_answered(what);
    }
    load.stop().await.assert_all_answered("names that cannot be looked up");
}

/// A load, which the workers behind a router share from the beginning.
async fn even_calls(what: &str, client: &Arc<Client>, workers: &[Role], router: &Role) {
    let load = Load::start(client, SMALL, PER_SECOND);
    under_load(Duration::from_secs(1)).await;
    let counts = counted_during(workers, "imagegate_worker_calls_total", WINDOW).await;
    let report = load.stop().await;
    tell(format!("{what}: calls in {WINDOW:?}: {counts:?}; {report}"));
    spread(&counts).unwrap_or_else(|uneven| panic!("{what}: {uneven}; {}", router.process.shown()));
    report.assert_all_answered(what);
}

/// Calls in the last seconds, once these have passed since the change.
fn window(upstream: &Upstream, changed: Instant) -> Result<HashMap<IpAddr, usize>, String> {
    if changed.elapsed() < WINDOW {
        return Err("too early to tell".into());
    }
    Ok(upstream.calls_by_host(Instant::now() - WINDOW))
}

/// All calls come from these hosts, and about as many from each.
fn even(counts: &HashMap<IpAddr, usize>, hosts: &[IpAddr]) -> Result<(), String> {
    if let Some(other) = counts.keys().find(|host| !hosts.contains(host)) {
        return Err(format!("calls from {other}: {counts:?}"));
    }
    let counts: Vec<f64> =
        hosts.iter().map(|host| counts.get(host).copied().unwrap_or_default() as f64).collect();
    spread(&counts)
}

fn spread(counts: &[f64]) -> Result<(), String> {
    let most = counts.iter().copied().fold(0.0, f64::max);
    let least = counts.iter().copied().fold(f64::MAX, f64::min);
    let ratio = most / least;
    if least > 0.0 && ratio < EVEN { Ok(()) } else { Err(format!("most to least is {ratio:.2}: {counts:?}")) }
}

/// A host's calls, where 1 is an even share among so many.
fn share(counts: &HashMap<IpAddr, usize>, host: IpAddr, hosts: usize) -> f64 {
    let all: usize = counts.values().sum();
    counts.get(&host).copied().unwrap_or_default() as f64 * hosts as f64 / all.max(1) as f64
}

/// Requests that each router has answered in a time.
async fn requests_during(routers: &[Role], time: Duration) -> Vec<f64> {
    counted_during(routers, "imagegate_requests_total", time).await
}

/// By how much a counter of each has grown in a time.
async fn counted_during(roles: &[Role], metric: &str, time: Duration) -> Vec<f64> {
    let mut counts = Vec::new();
    for role in roles {
        counts.push(-role.metric(metric, "").await);
    }
    under_load(time).await;
    for (count, role) in counts.iter_mut().zip(roles) {
        *count += role.metric(metric, "").await;
    }
    counts
}
