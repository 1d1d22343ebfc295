//! A new version, three times over: every role is replaced instance by instance, and no client notices.

use std::time::Duration;

use crate::{
    deploy::{Role, Route},
    load::{Client, Kind, Load},
    picture::Size,
    scenario::{eventually, tell, turn},
    service::Service,
    site::{Place, Site},
    upstream::Upstream,
};

const PER_SECOND: u32 = 100;

const DELAY: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_of_all_roles_fail_no_request_and_repeat_no_call() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    // Without a retry: none is needed.
    let routes = [Route { name: "small", delay: DELAY, size: Size::Small, policy: "" }];
    let [at_workers, at_routers, at_shims]: [[Place; 2]; 3] = std::array::from_fn(|_| site.places());
    let uris = site.uris("http", "workers.cluster.test", site.ports.worker, &at_workers);
    let mut workers = Vec::new();
    for place in &at_workers {
        workers.push(Role::worker(&site, place, None).await);
    }
    let mut routers = Vec::new();
    for place in &at_routers {
        routers.push(Role::router(&site, place, &uris, &upstream, &routes, None).await);
    }
    let uris = site.uris("http", "routers.cluster.test", site.ports.router, &at_routers);
    let mut shims = Vec::new();
    for place in &at_shims {
        shims.push(Role::shim(&site, place, &uris, None).await);
    }
    let service = Service::new(shims.iter().map(|shim| (shim.address, shim.admin)).collect());
    let client = Client::http(service);
    let load = Load::start(&client, Kind { route: "small", size: Size::Small }, PER_SECOND);

    // One role after the other, then all at the same time.
    roll(&mut workers, None).await;
    roll(&mut routers, None).await;
    roll(&mut shims, Some(client.service())).await;
    for _ in 0..2 {
        let shims = roll(&mut shims, Some(client.service()));
        tokio::join!(roll(&mut workers, None), roll(&mut routers, None), shims);
    }
    let report = load.stop().await;
    tell(&report);
    report.assert_all_answered("three rolling restarts");
    assert_eq!(upstream.duplicates(), [], "requests that were paid for more than once");
    assert_eq!(upstream.calls(), report.count(), "calls to the provider, and requests");
    assert_eq!(upstream.refusals(), [] as [String; 0]);
}

/// The next one follows as soon as its forerunner is seen to be ready again.
async fn roll(instances: &mut [Role], service: Option<&Service>) {
    for instance in instances {
        instance.stop(DELAY).await;
        instance.start_again().await;
        let address = instance.address;
        eventually("a Service that sees it", Duration::from_secs(2), async || {
            service.is_none_or(|service| service.sees(address)).then_some(()).ok_or("it does not")
        })
        .await;
    }
}
