//! An authoritative name server over UDP: names with A and AAAA records that a scenario changes, enough for
//! glibc's `getaddrinfo`. No TCP, no EDNS, no other types.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};

use tokio::{net::UdpSocket, task::JoinSet};

const PORT: u16 = 53;
const TTL_S: u32 = 1;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// Response, authoritative, recursion available.
const FLAGS: u16 = 0x8480;
const RECURSION_DESIRED: u16 = 0x0100;

/// How it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    #[default]
    Well,
    /// Not at all.
    Silent,
    /// SERVFAIL to everything.
    Failing,
}

/// A running server.
#[derive(Debug)]
pub struct Dns {
    zone: Arc<Mutex<Zone>>,
    _server: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Zone {
    names: HashMap<String, Vec<IpAddr>>,
    asked: HashMap<String, usize>,
    mood: Mood,
}

impl Dns {
    /// Listens on the port where resolvers look for it.
    pub async fn try_start(address: Ipv4Addr) -> io::Result<Self> {
        let socket = UdpSocket::bind((address, PORT)).await?;
        let zone = Arc::new(Mutex::new(Zone::default()));
        let mut server = JoinSet::new();
        server.spawn(serve(socket, Arc::clone(&zone)));
        Ok(Self { zone, _server: server })
    }

    /// Replaces the records of a name. None: the name does not exist.
    pub fn set(&self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let mut zone = self.zone.lock().unwrap();
        if addresses.is_empty() {
            zone.names.remove(name);
        } else {
            zone.names.insert(name.to_owned(), addresses);
        }
    }

    /// From now on.
    pub fn set_mood(&self, mood: Mood) {
        self.zone.lock().unwrap().mood = mood;
    }

    /// Questions for a name so far, answered or not.
    pub fn asked(&self, name: &str) -> usize {
        self.zone.lock().unwrap().asked.get(name).copied().unwrap_or_default()
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut question = [0; 512];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut question).await else { continue };
        let answer = zone.lock().unwrap().answer(&question[..length]);
        if let Some(answer) = answer {
            _ = socket.send_to(&answer, peer).await;
        }
    }
}

impl Zone {
    fn answer(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let (name, end) = read_name(message)?;
        let kind = u16::from_be_bytes(message.get(end..end + 2)?.try_into().ok()?);
        let question = message.get(HEADER..end + 4)?;
        *self.asked.entry(name.clone()).or_default() += 1;
        let known = self.names.get(&name);
        let code = match (self.mood, known) {
            (Mood::Silent, _) => return None,
            (Mood::Failing, _) => 2,
            (Mood::Well, None) => 3,
            (Mood::Well, Some(_)) => 0,
        };
        let fits = |address: &&IpAddr| match kind {
            TYPE_A => address.is_ipv4(),
            TYPE_AAAA => address.is_ipv6(),
            _ => false,
        };
        let records: Vec<&IpAddr> = known.into_iter().flatten().filter(fits).filter(|_| code == 0).collect();
        let flags = u16::from_be_bytes(message.get(2..4)?.try_into().ok()?) & RECURSION_DESIRED;
        let mut answer = message.get(..2)?.to_vec();
        let counts = [flags | FLAGS | code, 1, u16::try_from(records.len()).ok()?, 0, 0];
        answer.extend(counts.into_iter().flat_map(u16::to_be_bytes));
        answer.extend_from_slice(question);
        for address in records {
            // The question's name, class IN.
            answer.extend([0xc0, HEADER as u8]);
            answer.extend(kind.to_be_bytes());
            answer.extend(1_u16.to_be_bytes());
            answer.extend(TTL_S.to_be_bytes());
            let (v4, v6);
            let data: &[u8] = match address {
                IpAddr::V4(address) => (v4 = address.octets(), &v4).1,
                IpAddr::V6(address) => (v6 = address.octets(), &v6).1,
            };
            answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            answer.extend_from_slice(data);
        }
        Some(answer)
    }
}

/// The question's name in lower case, and where its type begins.
fn read_name(message: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}
