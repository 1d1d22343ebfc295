//! Where a scenario takes place: hosts with names, or loopback addresses where the machine allows no hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use tempfile::TempDir;

use crate::{
    dns::Dns,
    hosts::{Host, Hosts},
    scenario::tell,
};

/// Of a role's listeners.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub http: u16,
    pub router: u16,
    pub worker: u16,
    pub admin: u16,
}

/// Where one process runs.
#[derive(Clone, Debug)]
pub struct Place {
    pub address: Ipv4Addr,
    /// None: this process's.
    pub namespace: Option<String>,
    host: Option<Host>,
}

/// All places of a scenario. Dropped, all is gone.
#[derive(Debug)]
pub struct Site {
    pub ports: Ports,
    /// Where this process listens for the others.
    pub local: IpAddr,
    /// For the files of the roles.
    pub folder: TempDir,
    network: Network,
}

#[derive(Debug)]
enum Network {
    Hosts(Hosts, Dns),
    /// Addresses given away.
    Loopback(u8),
}

impl Site {
    /// With hosts if they can be had.
    pub async fn new() -> Self {
        match Self::try_with_hosts().await {
            Ok(site) => site,
            Err(reason) => {
                tell(format!("on loopback addresses instead of hosts: {reason}"));
                Self::on_loopback()
            }
        }
    }

    /// For what cannot be shown otherwise. None, and a line, where the machine has none.
    pub async fn with_hosts(scenario: &str) -> Option<Self> {
        let site = Self::try_with_hosts().await;
        site.map_err(|reason| tell(format!("NOT RUN, for want of hosts: {scenario}: {reason}"))).ok()
    }

    /// Each on an address of its own, in this process's network.
    pub fn on_loopback() -> Self {
        Self {
            ports: Ports { http: free_port(), router: free_port(), worker: free_port(), admin: free_port() },
            local: Ipv4Addr::LOCALHOST.into(),
            folder: TempDir::new().unwrap(),
            network: Network::Loopback(1),
        }
    }

    async fn try_with_hosts() -> Result<Self, String> {
        let hosts = Hosts::try_new()?;
        let local = hosts.local();
        let dns = Dns::try_start(local).await.map_err(|error| format!("name server: {error}"))?;
        Ok(Self {
            ports: Ports { http: 8787, router: 50051, worker: 50061, admin: 9090 },
            local: local.into(),
            folder: TempDir::new().map_err(|error| error.to_string())?,
            network: Network::Hosts(hosts, dns),
        })
    }

    /// One more place.
    pub fn place(&mut self) -> Place {
        match &mut self.network {
            Network::Hosts(hosts, _) => {
                let host = hosts.add();
                Place { address: host.address, namespace: Some(host.name.clone()), host: Some(host) }
            }
            Network::Loopback(given) => {
                *given += 1;
                let address = Ipv4Addr::new(127, 77, own_byte(), *given);
                Place { address, namespace: None, host: None }
            }
        }
    }

    /// Several more places.
    pub fn places<const N: usize>(&mut self) -> [Place; N] {
        std::array::from_fn(|_| self.place())
    }

    /// Addresses for clients of a service at these places: a name for all, or a list where there are no names.
    pub fn uris(&self, scheme: &str, name: &str, port: u16, places: &[Place]) -> Vec<String> {
        self.uris_of(scheme, name, &places.iter().map(|place| place.at(port)).collect::<Vec<_>>())
    }

    /// The same for addresses, which have one port where there are names.
    pub fn uris_of(&self, scheme: &str, name: &str, addresses: &[SocketAddr]) -> Vec<String> {
        match &self.network {
            Network::Hosts(_, dns) => {
                dns.set(name, addresses.iter().map(SocketAddr::ip));
                vec![format!("{scheme}://{name}:{}", addresses[0].port())]
            }
            Network::Loopback(_) => addresses.iter().map(|address| format!("{scheme}://{address}")).collect(),
        }
    }

    /// Of a site with hosts.
    pub fn dns(&self) -> &Dns {
        match &self.network {
            Network::Hosts(_, dns) => dns,
            Network::Loopback(_) => panic!("there are no names on loopback"),
        }
    }

    /// Drops all packets to and from a place of a site with hosts.
    pub fn partition(&self, place: &Place) {
        let (hosts, host) = self.host(place);
        hosts.partition(host);
    }

    /// Sends no faster from there than so, if it is a host.
    pub fn slow_down(place: &Place, megabits: u32) {
        if let Some(Err(reason)) = place.host.as_ref().map(|host| Hosts::slow_down(host, megabits)) {
            tell(format!("as fast as memory instead of {megabits} Mbit/s: {reason}"));
        }
    }

    /// Lets them pass again.
    pub fn heal(&self, place: &Place) {
        let (hosts, host) = self.host(place);
        hosts.heal(host);
    }

    fn host<'a>(&'a self, place: &'a Place) -> (&'a Hosts, &'a Host) {
        match (&self.network, &place.host) {
            (Network::Hosts(hosts, _), Some(host)) => (hosts, host),
            _ => panic!("there are no packets to drop on loopback"),
        }
    }
}

impl Place {
    /// With a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// An IPv6 address with a port: with this one at a host, with any at the only one that loopback has. None where
    /// there is no IPv6.
    pub fn at_v6(&self, port: u16) -> Option<SocketAddr> {
        match &self.host {
            Some(host) => Some((host.address_v6?, port).into()),
            None => TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).ok(),
        }
    }
}

/// Several test processes at once have different addresses.
fn own_byte() -> u8 {
    u8::try_from(std::process::id() % 250).unwrap_or_default()
}

/// One that is free at an address of ours is as good as certainly free at the others.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 77, own_byte(), 1), 0)).unwrap();
    listener.local_addr().unwrap().port()
}
