//! Which addresses a host may have that came with a request instead of from the operator.
//!
//! Public addresses only, plus what the operator allows. Checked twice: on the written host when a config is
//! read, and on every resolved address when a connection is made, so that a name cannot change its meaning
//! in between.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// Names that cloud providers answer with credentials.
const METADATA_HOSTS: &[&str] = &[
    "metadata",
    "metadata.google.internal",
    "metadata.azure.com",
    "instance-data",
    "instance-data.ec2.internal",
];

/// Top-level names that never lead to a public host.
const PRIVATE_SUFFIXES: &[&str] = &[
    "local",
    "localdomain",
    "localhost",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "test",
    "invalid",
    "onion",
];

/// The addresses that caller-supplied hosts may reach.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// Ranges allowed besides public addresses.
    pub allow: Vec<IpNet>,
}

impl Egress {
    /// Whether a connection to this address is allowed.
    pub fn permits(&self, address: IpAddr) -> bool {
        // `::ffff:10.0.0.1` is 10.0.0.1 to the kernel.
        let address = address.to_canonical();
        self.allow.iter().any(|range| range.contains(&address)) || is_public(address)
    }

    /// Whether the operator has named this very address as one of its own.
    pub fn trusts(&self, url: &str) -> bool {
        let address = match Url::parse(url).ok().as_ref().and_then(Url::host) {
            Some(Host::Ipv4(address)) => IpAddr::from(address),
            Some(Host::Ipv6(address)) => IpAddr::from(address),
            Some(Host::Domain(_)) | None => return false,
        };
        self.allow.iter().any(|range| range.contains(&address.to_canonical()))
    }

    /// Checks a host as it is written.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&self, url: &str) -> Result<Url, &'static str> {
        if url.chars().any(char::is_control) {
            return Err("it contains control characters");
        }
        let url = Url::parse(url).map_err(|_| "it is not an absolute URL")?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("only http and https are allowed");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it contains credentials");
        }
        match url.host().ok_or("it has no host")? {
            Host::Ipv4(address) if !self.permits(address.into()) => Err("the address is not public"),
            Host::Ipv6(address) if !self.permits(address.into()) => Err("the address is not public"),
            Host::Ipv4(_) | Host::Ipv6(_) => Ok(url),
            Host::Domain(name) => {
                let name = name.trim_end_matches('.');
                let suffix = name.rsplit('.').next().unwrap_or(name);
                let private = PRIVATE_SUFFIXES.contains(&suffix) || !name.contains('.');
                if METADATA_HOSTS.contains(&name) || (private && self.allow.is_empty()) {
                    return Err("the host is not public");
                }
                Ok(url)
            }
        }
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared address space of carriers (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544).
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let first = address.segments()[0];
    // Only 2000::/3 is global unicast; of it, 2001:db8::/32 is documentation and 2002::/16 (6to4) and
    // 2001::/32 (Teredo) carry an IPv4 address that may be private.
    (0x2000..0x4000).contains(&first)
        && first != 0x2002
        && !(first == 0x2001 && matches!(address.segments()[1], 0 | 0x0db8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_hosts_pass() {
        let egress = Egress::default();
        for url in [
            "http://127.0.0.1/v1",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://10.1.2.3",
            "http://169.254.169.254/latest",
            "http://100.64.0.1",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://[fd00::1]/",
            "http://localhost:8080",
            "http://x.internal",
            "http://metadata.google.internal/",
            "http://user:secret@example.com",
            "file:///etc/passwd",
            "ftp://example.com",
            "example.com",
            "http://example.com/\u{7}",
            "http://router",
        ] {
            assert!(egress.check(url).is_err(), "{url}");
        }
        for url in ["https://api.openai.com/v1", "http://8.8.8.8", "http://[2606:4700::1111]:8080/x"] {
            assert!(egress.check(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn what_the_operator_allows_passes() {
        let egress = Egress { allow: vec!["127.0.0.0/8".parse().unwrap()] };
        assert!(egress.check("http://127.0.0.1:9/v1").is_ok());
        assert!(egress.check("http://localhost:9/v1").is_ok());
        assert!(egress.check("http://10.0.0.1/").is_err());
        assert!(egress.check("http://metadata.google.internal/").is_err());
    }
}
