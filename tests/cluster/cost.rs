//! What a request costs in this build: `cargo test --test cluster -- --ignored --nocapture cost`.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    deploy::{Role, Route},
    load::{Client, Kind, Load},
    picture::Size,
    process::own_cpu,
    scenario::{tell, turn, under_load},
    service::Service,
    site::Site,
    upstream::Upstream,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; decides nothing"]
async fn the_cost_of_a_request() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let [worker, router, shim] = site.places();
    let workers = site.uris("http", "workers.cluster.test", site.ports.worker, std::slice::from_ref(&worker));
    let routers = site.uris("http", "routers.cluster.test", site.ports.router, std::slice::from_ref(&router));
    let delay = Duration::from_millis(300);
    let routes = Size::ALL.map(|size| Route { name: size.name(), delay, size, policy: "" });
    let roles = [
        Role::worker(&site, &worker, None).await,
        Role::router(&site, &router, &workers, &upstream, &routes, None).await,
        Role::shim(&site, &shim, &routers, None).await,
    ];
    let client = Client::http(Service::fixed(roles[2].address));
    for (size, rate) in [(Size::Small, 100), (Size::Small, 200), (Size::Large, 10)] {
        let load = Load::start(&client, Kind { route: size.name(), size }, rate);
        under_load(Duration::from_secs(1)).await;
        let cpu = || [0, 1, 2].map(|role: usize| roles[role].process.cpu());
        let (before, own, from) = (cpu(), own_cpu(), Instant::now());
        under_load(Duration::from_secs(6)).await;
        let report = load.since(from);
        let ms = |used: Duration| used.as_secs_f64() * 1000.0 / f64::from(rate) / 6.0;
        let own = ms(own_cpu() - own);
        let [worker, router, shim] = std::array::from_fn(|role| ms(cpu()[role] - before[role]));
        let all = load.stop().await;
        tell(format!(
            "{size:?}, {rate}/s: CPU ms a request: worker {worker:.2}, router {router:.2}, shim {shim:.2}, \
             provider and load {own:.2}, all {:.2}; {report}",
            worker + router + shim + own,
        ));
        all.assert_all_answered("all");
    }
}
