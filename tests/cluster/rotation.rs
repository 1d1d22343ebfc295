//! Certificates and authorities that are replaced on disk while requests come in.

use std::{net::SocketAddr, time::Duration};

use crate::{
    deploy::{Role, Tls},
    handshake::meet,
    identity::{ROUTER, ROUTERS, SHIM, SMALL, WORKER, WORKERS, leaf, route, tls},
    load::{Client, Load},
    pki::{Authority, Leaf, Validity},
    scenario::{eventually, tell, turn, under_load},
    service::Service,
    site::{Place, Site},
    upstream::Upstream,
};

const PER_SECOND: u32 = 50;

/// How long a change on disk may stay unnoticed.
const NOTICED: Duration = Duration::from_secs(10);

/// A role with its certificates.
struct Member {
    role: Role,
    tls: Tls,
    /// The role's name, its service, and where it is.
    name: (&'static str, &'static str, Place),
    leaf: Leaf,
}

impl Member {
    /// A new certificate, of this authority, where the role reads it.
    fn renew(&mut self, authority: &Authority) {
        let (role, service, place) = &self.name;
        self.leaf = leaf(authority, role, service, place, Validity::Now);
        self.tls.files.replace(&self.leaf);
    }

    /// Waits until it has read its files once more than before.
    async fn has_read(&self, before: usize) {
        eventually("a change that is noticed", NOTICED, async || {
            (self.reads() > before).then_some(()).ok_or_else(|| self.role.process.shown())
        })
        .await;
    }

    fn reads(&self) -> usize {
        self.role.process.said("certificate reloaded").len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_authorities_are_replaced_under_load_without_an_error() {
    let _turn = turn().await;
    let mut site = Site::new().await;
    let upstream = Upstream::start(site.local).await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let places: [Place; 4] = site.places();
    let [one, two, at_router, at_shim] = places;
    let signed =
        |name: &(&'static str, &'static str, Place)| leaf(&old, name.0, name.1, &name.2, Validity::Now);
    let workers = site.uris("https", WORKERS, site.ports.worker, &[one.clone(), two.clone()]);
    let routers = site.uris("https", ROUTERS, site.ports.router, std::slice::from_ref(&at_router));
    let mut members = Vec::new();
    for place in [one, two] {
        let name = (WORKER, WORKERS, place);
        let leaf = signed(&name);
        let tls = tls(&site, "worker", &leaf, &old.pem(), &[ROUTER]);
        let role = Role::worker(&site, &name.2, Some(&tls)).await;
        members.push(Member { role, tls, name, leaf });
    }
    let name = (ROUTER, ROUTERS, at_router);
    let router_leaf = signed(&name);
    let router_tls = tls(&site, "router", &router_leaf, &old.pem(), &[SHIM]);
    let role = Role::router(&site, &name.2, &workers, &upstream, &route(), Some(&router_tls)).await;
    members.push(Member { role, tls: router_tls, name, leaf: router_leaf });
    let name = (SHIM, "shims.cluster.test", at_shim);
    let shim_leaf = signed(&name);
    let shim_tls = tls(&site, "shim", &shim_leaf, &old.pem(), &[]);
    let role = Role::shim(&site, &name.2, &routers, Some(&shim_tls)).await;
    members.push(Member { role, tls: shim_tls, name, leaf: shim_leaf });
    let client = Client::http(Service::fixed(members[3].role.address));
    let load = Load::start(&client, SMALL, PER_SECOND);
    under_load(Duration::from_secs(2)).await;

    // New certificates of the same authority.
    renew(&mut members, &old).await;
    presented(&members, &old.pem()).await;
    // Both authorities, then certificates of the new one, then only that.
    trust(&members, &[&old, &new]).await;
    renew(&mut members, &new).await;
    presented(&members, &new.pem()).await;
    trust(&members, &[&new]).await;
    let leftover = old.sign(&[ROUTER], Validity::Now);
    let worker = members[0].role.address;
    eventually("a caller of the old authority turned away", NOTICED, async || {
        let met = meet(worker, &worker.ip().to_string(), &new.pem(), Some(&leftover)).await.unwrap();
        if met.let_in.is_err() { Ok(()) } else { Err("it is let in") }
    })
    .await;
    // Everybody has to connect anew.
    for member in &mut members[..2] {
        member.role.stop(Duration::from_millis(100)).await;
        member.role.start_again().await;
        under_load(Duration::from_secs(2)).await;
    }
    let report = load.stop().await;
    tell(&report);
    report.assert_all_answered("certificates that are replaced");
    assert_eq!(upstream.duplicates(), []);
    assert_eq!(upstream.calls(), report.count());
}

async fn renew(members: &mut [Member], authority: &Authority) {
    for member in members {
        let before = member.reads();
        member.renew(authority);
        member.has_read(before).await;
    }
}

async fn trust(members: &[Member], authorities: &[&Authority]) {
    let pem: String = authorities.iter().map(|authority| authority.pem()).collect();
    for member in members {
        let before = member.reads();
        member.tls.files.replace_ca(&pem);
        member.has_read(before).await;
    }
}

/// Waits until every listener presents what lies on disk, and lets those in who come with it.
async fn presented(members: &[Member], ca_pem: &str) {
    let [one, two, router, shim] = members else { panic!("{} members", members.len()) };
    for (listener, caller) in [(one, router), (two, router), (router, shim)] {
        let address: SocketAddr = listener.role.address;
        eventually("the new certificate", NOTICED, async || {
            let name = address.ip().to_string();
            let met =
                meet(address, &name, ca_pem, Some(&caller.leaf)).await.map_err(|error| error.to_string())?;
            if met.der != listener.leaf.der {
                return Err("it presents the old certificate".to_owned());
            }
            met.let_in.map_err(|error| format!("it refuses the new certificate: {error}"))
        })
        .await;
    }
}
