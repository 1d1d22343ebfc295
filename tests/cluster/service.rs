//! A Kubernetes Service in front of shims: addresses that follow readiness, late and in order.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use crate::admin;

/// From a probe that fails or succeeds to the last node that knows of it.
const LAG: Duration = Duration::from_secs(1);

const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Where clients connect to.
#[derive(Debug)]
pub struct Service {
    addresses: Arc<Addresses>,
    turn: AtomicUsize,
    _probes: JoinSet<()>,
}

/// A member: where clients go, and where it is asked whether it is ready.
type Member = (SocketAddr, SocketAddr);

#[derive(Debug, Default)]
struct Addresses {
    /// Ready as the last probe saw it. A rollout goes on with the next instance then.
    seen: Mutex<Vec<SocketAddr>>,
    /// What clients get.
    offered: Mutex<Vec<SocketAddr>>,
}

impl Service {
    /// In front of members that are ready.
    pub fn new(members: Vec<Member>) -> Self {
        let ready: Vec<SocketAddr> = members.iter().map(|(address, _)| *address).collect();
        let addresses = Addresses { seen: Mutex::new(ready.clone()), offered: Mutex::new(ready) };
        let addresses = Arc::new(addresses);
        let mut probes = JoinSet::new();
        probes.spawn(probe(members, Arc::clone(&addresses)));
        Self { addresses, turn: AtomicUsize::new(0), _probes: probes }
    }

    /// One address for ever.
    pub fn fixed(address: SocketAddr) -> Self {
        let addresses = Addresses { offered: Mutex::new(vec![address]), ..Default::default() };
        Self { addresses: Arc::new(addresses), turn: AtomicUsize::new(0), _probes: JoinSet::new() }
    }

    /// For a new connection.
    pub fn pick(&self) -> Option<SocketAddr> {
        let offered = self.addresses.offered.lock().unwrap();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        offered.get(turn.checked_rem(offered.len())?).copied()
    }

    /// Whether new connections may go there.
    pub fn offers(&self, address: SocketAddr) -> bool {
        self.addresses.offered.lock().unwrap().contains(&address)
    }

    /// Whether a probe has found it ready.
    pub fn sees(&self, address: SocketAddr) -> bool {
        self.addresses.seen.lock().unwrap().contains(&address)
    }
}

async fn probe(members: Vec<Member>, addresses: Arc<Addresses>) {
    let mut changes: VecDeque<(Instant, SocketAddr, bool)> = VecDeque::new();
    loop {
        tokio::time::sleep(PROBE_INTERVAL).await;
        for (address, admin) in &members {
            let is_ready = admin::is_ready(*admin).await;
            let mut seen = addresses.seen.lock().unwrap();
            if is_ready != seen.contains(address) {
                set(&mut seen, *address, is_ready);
                changes.push_back((Instant::now() + LAG, *address, is_ready));
            }
        }
        while let Some((_, address, is_ready)) = changes.pop_front_if(|(at, ..)| *at <= Instant::now()) {
            set(&mut addresses.offered.lock().unwrap(), address, is_ready);
        }
    }
}

fn set(addresses: &mut Vec<SocketAddr>, address: SocketAddr, is_in: bool) {
    addresses.retain(|other| *other != address);
    if is_in {
        addresses.push(address);
    }
}
