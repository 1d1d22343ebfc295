//! Addresses of a service, as they are configured: one URI or several, each a name or a number.

use std::{fmt, net::IpAddr};

use url::{Host, Url};

/// Where a service may be found: `http://name:port` or `https://name:port`. A name may stand for many endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Whether connections are encrypted.
    pub tls: bool,
    /// A name or a number; certificates are checked against it.
    pub host: String,
    /// From 1.
    pub port: u16,
}

impl Address {
    /// Reads one URI.
    ///
    /// # Errors
    /// Why it cannot be the address of a service.
    pub fn parse(uri: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("\"{uri}\" is not allowed: {why}; allowed: http://HOST:PORT or https://HOST:PORT")
        };
        let url = Url::parse(uri).map_err(|error| wrong(&error.to_string()))?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(wrong(&format!("a scheme {other}"))),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("a path"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a user"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(wrong("no host")),
        };
        let port = url.port_or_known_default().ok_or_else(|| wrong("no port"))?;
        Ok(Self { tls, host, port })
    }

    /// Reads several URIs, of which there must be one.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn parse_all<S: AsRef<str>>(uris: &[S]) -> Result<Vec<Self>, String> {
        if uris.is_empty() {
            return Err("at least one address is required".into());
        }
        uris.iter().map(|uri| Self::parse(uri.as_ref().trim())).collect()
    }

    /// The address itself, if it is a number and needs no look-up.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether it never leaves this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// `host:port`, as requests name it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_a_port() {
        for (uri, shown) in [
            ("http://worker:50061", "http://worker:50061"),
            ("https://worker.images.svc/", "https://worker.images.svc:443"),
            ("http://10.0.0.7:1", "http://10.0.0.7:1"),
            ("http://[fd00::7]:50061", "http://[fd00::7]:50061"),
        ] {
            assert_eq!(Address::parse(uri).unwrap().to_string(), shown);
        }
        assert_eq!(Address::parse("http://[::1]:1").unwrap().ip(), Some("::1".parse().unwrap()));
        assert!(Address::parse("http://127.0.0.9:1").unwrap().is_loopback());
    }

    #[test]
    fn what_cannot_be_an_address_is_refused_with_what_is_allowed() {
        for uri in
            ["worker:50061", "grpc://worker:1", "http://worker:1/path", "http://u:p@worker:1", "http://:1"]
        {
            let message = Address::parse(uri).unwrap_err();
            assert!(message.contains("allowed: http://HOST:PORT"), "{message}");
        }
        assert!(Address::parse_all::<&str>(&[]).is_err());
    }
}
