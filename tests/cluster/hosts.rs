//! Hosts on this machine: network namespaces with a cable each to one switch.
//!
//! The switch is a bridge in a namespace of its own, so that firewall rules of the machine do not apply to it. All
//! are removed at the end; what a killed run left behind is removed by the next.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU8, Ordering},
};

/// Of all names here, which no interface may have longer than 15 characters.
const MARK: &str = "igc";

/// Hosts that may be made. Each knows the hardware addresses of all.
const MOST: u8 = 20;

/// Switches of this process so far. The kernel takes its time to remove what one has left.
static SWITCHES: AtomicU8 = AtomicU8::new(b'a');

/// The switch and what is plugged in.
#[derive(Debug)]
pub struct Hosts {
    /// Of all names; alone, it is this process's own interface.
    prefix: String,
    switch: String,
    /// The network's first three bytes.
    network: [u8; 3],
    names: Vec<String>,
}

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its namespace.
    pub name: String,
    pub address: Ipv4Addr,
    /// None where the kernel has no IPv6.
    pub address_v6: Option<Ipv6Addr>,
    /// Where it is plugged in.
    port: String,
}

impl Hosts {
    /// The switch, with this process plugged in.
    ///
    /// # Errors
    /// The machine does not allow it.
    pub fn try_new() -> Result<Self, String> {
        remove_stale();
        let prefix =
            format!("{MARK}{}{}", std::process::id(), char::from(SWITCHES.fetch_add(1, Ordering::Relaxed)));
        let switch = format!("{prefix}s");
        let network = free_network()?;
        let hosts = Self { prefix, switch, network, names: Vec::new() };
        let (prefix, switch) = (&hosts.prefix, &hosts.switch);
        ip(&[&format!("netns add {switch}")])?;
        ip(&[
            &format!("-n {switch} link add name switch type bridge forward_delay 0 mcast_snooping 0"),
            &format!("-n {switch} link set switch up"),
            &format!("link add name {prefix} type veth peer name p1 netns {switch}"),
            &format!("-n {switch} link set p1 master switch up"),
        ])?;
        hosts.configure("", prefix, 1)?;
        Ok(hosts)
    }

    /// This process's own address on the switch.
    pub fn local(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// One more host, whose names are resolved by the server at `local`.
    pub fn add(&mut self) -> Host {
        let number = u8::try_from(self.names.len() + 2).unwrap();
        assert!(number <= MOST, "more than {MOST} hosts");
        let name = format!("{}h{number}", self.prefix);
        let port = format!("p{number}");
        let files = Path::new("/etc/netns").join(&name);
        fs::create_dir_all(&files).unwrap();
        self.names.push(name.clone());
        let resolver = format!("nameserver {}\noptions timeout:1 attempts:2\n", self.local());
        fs::write(files.join("resolv.conf"), resolver).unwrap();
        if Path::new("/etc/nsswitch.conf").exists() {
            fs::write(files.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        }
        let switch = &self.switch;
        ip(&[&format!("netns add {name}")]).unwrap();
        ip(&[
            &format!("link add name eth0 netns {name} type veth peer name {port} netns {switch}"),
            &format!("-n {switch} link set {port} master switch up"),
            &format!("-n {name} link set lo up"),
        ])
        .unwrap();
        self.configure(&format!("-n {name} "), "eth0", number).unwrap();
        // Beside the other one, and only between hosts: this process is not called over it.
        let address = self.address_v6(number);
        let has_v6 = ip(&[&format!("-n {name} addr add {address}/64 dev eth0 nodad")]).is_ok();
        Host { name, address: self.address(number), address_v6: has_v6.then_some(address), port }
    }

    /// Drops all packets to and from a host, without a word to either side: the other end of its cable is still
    /// there, and leads nowhere.
    pub fn partition(&self, host: &Host) {
        ip(&[&format!("-n {} link set {} nomaster", self.switch, host.port)]).unwrap();
    }

    /// Sends no faster than a network between machines: what a process has written is not at once what arrives.
    ///
    /// # Errors
    /// The kernel cannot do that.
    pub fn slow_down(host: &Host, megabits: u32) -> Result<(), String> {
        let shape = format!("tbf rate {megabits}mbit burst 256kb limit 64mb");
        let shape = shape.split(' ');
        let arguments = ["-n", &host.name, "qdisc", "add", "dev", "eth0", "root"];
        run(Command::new("tc").args(arguments).args(shape)).map(drop)
    }

    /// Lets them pass again.
    pub fn heal(&self, host: &Host) {
        ip(&[&format!("-n {} link set {} master switch", self.switch, host.port)]).unwrap();
    }

    fn address(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, number)
    }

    fn address_v6(&self, number: u8) -> Ipv6Addr {
        let [a, b, c] = self.network.map(u16::from);
        Ipv6Addr::new(0xfd00, a, b, c, 0, 0, 0, number.into())
    }

    /// Where all others are is written down: an unanswered question for it would become "no route to host", and a
    /// partition would not be silent.
    fn configure(&self, namespace: &str, interface: &str, number: u8) -> Result<(), String> {
        let [a, b, c] = self.network;
        let hardware = |number| format!("02:00:{a:02x}:{b:02x}:{c:02x}:{number:02x}");
        let own = hardware(number);
        let mut commands = vec![
            format!("{namespace}link set dev {interface} address {own} up"),
            format!("{namespace}addr add {}/24 dev {interface}", self.address(number)),
        ];
        for other in (1..=MOST).filter(|other| *other != number) {
            let (address, hardware) = (self.address(other), hardware(other));
            commands.push(format!(
                "{namespace}neigh add {address} lladdr {hardware} nud permanent dev {interface}"
            ));
        }
        ip(&commands.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.switch]) {
            remove(name);
        }
    }
}

/// Cables go with the namespace at either end.
fn remove(name: &str) {
    _ = ip(&[&format!("netns del {name}")]);
    _ = fs::remove_dir_all(Path::new("/etc/netns").join(name));
}

/// Namespaces of test processes that are no more.
fn remove_stale() {
    for folder in ["/run/netns", "/var/run/netns", "/etc/netns"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some(rest) = name.strip_prefix(MARK) else { continue };
            let process: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let comm = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            if !process.is_empty() && !comm.starts_with("cluster") {
                remove(&name);
            }
        }
    }
}

/// A private network that nothing on this machine leads to.
fn free_network() -> Result<[u8; 3], String> {
    let routes = run(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
    let first = u8::try_from(std::process::id() % 200).unwrap_or_default();
    let mut candidates = (0..200).map(|step| [10, 213, (first + step) % 200]);
    candidates
        .find(|[a, b, c]| !routes.contains(&format!("{a}.{b}.{c}.")))
        .ok_or("no free network".to_owned())
}

/// Several commands of `ip` at once, as one of its batches, unless they name a namespace.
fn ip(commands: &[&str]) -> Result<(), String> {
    let mut batches: Vec<(Option<&str>, String)> = Vec::new();
    for command in commands {
        let (namespace, command) = match command.strip_prefix("-n ").and_then(|rest| rest.split_once(' ')) {
            Some((namespace, command)) => (Some(namespace), command),
            None => (None, *command),
        };
        match batches.last_mut() {
            Some((last, batch)) if *last == namespace => *batch += &format!("\n{command}"),
            _ => batches.push((namespace, command.to_owned())),
        }
    }
    for (namespace, batch) in batches {
        let mut command = Command::new("ip");
        if let Some(namespace) = namespace {
            command.args(["-n", namespace]);
        }
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("ip: {error}"))?;
        let mut input = child.stdin.take().ok_or("no input")?;
        input.write_all(batch.as_bytes()).map_err(|error| error.to_string())?;
        drop(input);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        checked(&batch, output)?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    checked(&format!("{command:?}"), output)
}

fn checked(what: &str, output: Output) -> Result<String, String> {
    if !output.status.success() {
        return Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
