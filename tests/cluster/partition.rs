//! A worker's host that no packet reaches any more, and that comes back.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    deploy::{Role, Route},
    load::{Client, Kind, Load},
    picture::Size,
    scenario::{eventually, tell, turn, under_load},
    service::Service,
    site::{Place, Site},
    upstream::{KEY, MODEL, OTHER_MODEL, Upstream},
};

const PER_SECOND: u32 = 100;

const DELAY: Duration = Duration::from_millis(300);

/// The config's limit of silence, as in `POLICY`.
const SILENCE: Duration = Duration::from_millis(1000);

const POLICY: &str = "first_byte_timeout_ms: 1000, \
     retry: { attempts: 2, on_status_codes: [408, 500, 502, 503, 504], max_delay_ms: 50, budget: false }";

/// By when nobody waits for the lost host any more.
const NOTICED: Duration = Duration::from_secs(5);

const WINDOW: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn requests_move_on_from_a_host_that_is_cut_off_and_return_to_it() {
    let _turn = turn().await;
    let Some(mut site) = Site::with_hosts("a partition").await else { return };
    let upstream = Upstream::start(site.local).await;
    let [lost, other, router, shim]: [Place; 4] = site.places();
    let _workers = [Role::worker(&site, &lost, None).await, Role::worker(&site, &other, None).await];
    let places = [lost.clone(), other];
    let workers = site.uris("http", "workers.cluster.test", site.ports.worker, &places);
    let routes = [Route { name: "small", delay: DELAY, size: Size::Small, policy: POLICY }];
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, std::slice::from_ref(&router));
    let router = Role::router(&site, &router, &workers, &upstream, &routes, None).await;
    let shim = Role::shim(&site, &shim, &routers, None).await;
    let client = Client::http(Service::fixed(shim.address));
    let load = Load::start(&client, Kind { route: "small", size: Size::Small }, PER_SECOND);
    under_load(Duration::from_secs(3)).await;

    // What is under way then, or finds the host before it is known to be lost, waits for the limit once; by chance
    // the next try may find it again.
    let cut = Instant::now();
    let at_risk = upstream.calls_by_host(cut - Duration::from_secs(1));
    assert!(at_risk.contains_key(&lost.address.into()), "it has no calls to begin with: {at_risk:?}");
    site.partition(&lost);
    under_load(NOTICED).await;
    let noticed = Instant::now();
    under_load(Duration::from_secs(3)).await;
    let (whole, later) = (load.since(cut), load.since(noticed));
    tell(format!("cut off: {whole}"));
    tell(format!("cut off, from {NOTICED:?} on: {later}"));
    whole.assert_all_answered("a host that is cut off");
    let limit = (SILENCE + Duration::from_millis(50)) * 2 + DELAY * 2;
    assert!(whole.quantile(1.0) < limit, "longer than the limit of two tries, {limit:?}: {whole}");
    let slow = later.quantile(0.99);
    assert!(
        slow < SILENCE,
        "requests still wait for a host that is lost: {later}; {}",
        router.process.shown()
    );
    let repeated = upstream.duplicates().len();
    let most = at_risk[&lost.address.into()];
    assert!(repeated <= most, "{repeated} requests were called for twice, of {most} that were under way");

    let ejected = router.process.said("endpoint ejected");
    let endpoint = lost.at(site.ports.worker).to_string();
    let named = ejected.iter().any(|line| line["service"] == "openai" && line["endpoint"] == *endpoint);
    assert!(named, "no line says that {endpoint} is left alone: {}", router.process.shown());
    let ejections = router.metric("imagegate_endpoint_ejections_total", "service=\"openai\"").await;
    assert!(ejections >= 1.0, "{ejections} ejections are counted");

    site.heal(&lost);
    let healed = Instant::now();
    eventually("the share of a host that is back", Duration::from_secs(30), async || {
        if healed.elapsed() < WINDOW {
            return Err("too early to tell".to_owned());
        }
        let counts = upstream.calls_by_host(Instant::now() - WINDOW);
        let all: usize = counts.values().sum();
        let share = counts.get(&lost.address.into()).copied().unwrap_or_default() as f64 * 2.0 / all as f64;
        (share > 0.7).then_some(()).ok_or(format!("{share:.2} of an even share: {counts:?}"))
    })
    .await;
    tell(format!("back: its share after {:?}", healed.elapsed()));
    let report = load.stop().await;
    report.assert_all_answered("a host that is cut off and comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_fall_back_from_a_worker_that_is_cut_off_within_its_limit_and_return_to_it() {
    let _turn = turn().await;
    let Some(mut site) = Site::with_hosts("a partition with a fallback").await else { return };
    let upstream = Upstream::start(site.local).await;
    let [first, second, router, shim]: [Place; 4] = site.places();
    let _workers = [
        Role::worker(&site, &first, None).await,
        Role::worker_of("openai-compatible", &site, &second, second.at(site.ports.worker), None).await,
    ];
    let [at_first, at_second] = [("first", &first), ("second", &second)].map(|(name, place)| {
        let name = format!("{name}.cluster.test");
        site.uris("http", &name, site.ports.worker, std::slice::from_ref(place)).remove(0)
    });
    let url = upstream.base_url(DELAY, Size::Small);
    let settings = format!(
        "workers: {{ openai: \"{at_first}\", openai-compatible: \"{at_second}\" }}
virtual_keys:
  first: {{ provider: openai, api_key: {KEY}, base_url: \"{url}\" }}
  second: {{ provider: openai-compatible, api_key: {KEY}, base_url: \"{url}\" }}
configs:
  small:
    strategy: {{ mode: fallback }}
    breaker: {{ cooldown_s: 2 }}
    targets:
      - {{ virtual_key: first, override_params: {{ model: {MODEL} }}, first_byte_timeout_ms: {} }}
      - {{ virtual_key: second, override_params: {{ model: {OTHER_MODEL} }} }}
",
        SILENCE.as_millis()
    );
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, std::slice::from_ref(&router));
    let router = Role::router_with(&site, &router, &settings, None).await;
    let shim = Role::shim(&site, &shim, &routers, None).await;
    let client = Client::http(Service::fixed(shim.address));
    let load = Load::start(&client, Kind { route: "small", size: Size::Small }, PER_SECOND / 2);
    let begun = Instant::now();
    let [first_host, second_host] = [&first, &second].map(|place| place.address.into());
    under_load(Duration::from_secs(1)).await;
    let counts = upstream.calls_by_host(begun);
    assert!(
        counts.contains_key(&first_host) && !counts.contains_key(&second_host),
        "the second target is called while the first one works: {counts:?}"
    );

    let cut = Instant::now();
    let at_risk = upstream.calls_by_host(cut - DELAY * 2)[&first_host];
    site.partition(&first);
    under_load(SILENCE * 2).await;
    let noticed = Instant::now();
    under_load(Duration::from_secs(2)).await;
    let (whole, later) = (load.since(cut), load.since(noticed));
    tell(format!("cut off: {whole}"));
    tell(format!("cut off, from {:?} on: {later}", SILENCE * 2));
    whole.assert_all_answered("a target whose worker is cut off");
    // And some for a busy machine, less than another limit would take.
    let limit = SILENCE + DELAY * 3;
    assert!(whole.quantile(1.0) < limit, "longer than the limit and the second call, {limit:?}: {whole}");
    let most = later.quantile(0.9);
    assert!(most < SILENCE, "requests still wait for a worker that is lost: {later}");
    let repeated = upstream.duplicates().len();
    assert!(
        repeated <= at_risk,
        "{repeated} requests were called for twice, of {at_risk} that were under way"
    );

    site.heal(&first);
    let healed = Instant::now();
    eventually("requests that return to the first target", Duration::from_secs(10), async || {
        let counts = upstream.calls_by_host((Instant::now() - WINDOW).max(healed));
        let calls = counts.get(&first_host).copied().unwrap_or_default();
        // Its slow start has begun: it is more than a trial now and then.
        (calls >= 10).then_some(()).ok_or_else(|| format!("{counts:?}; {}", router.process.shown()))
    })
    .await;
    tell(format!("back: the first target is called again after {:?}", healed.elapsed()));
    load.stop().await.assert_all_answered("a target whose worker is cut off and comes back");
    assert_eq!(upstream.refusals(), [] as [String; 0]);
}
