//! `tls`: the files that a process shows and checks at connections between the roles.

use std::{fmt, fs, io, net::SocketAddr, path::PathBuf};

use serde_json::Value;

use super::read::Object;
use crate::digest::Framed;

/// What was said of encryption between the roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TlsChoice {
    /// Nothing: plain text on loopback, and no start on other addresses.
    #[default]
    Unsaid,
    /// Plain text, said plainly.
    Off,
    /// TLS.
    On(TlsFiles),
}

/// Files in PEM, which are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate, with those between it and the CA's, and its key. A client may do without.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Who signs the certificates of peers; the system's CAs without it.
    pub ca: Option<PathBuf>,
    /// Of which names a caller's certificate must have one. Empty: callers need none.
    pub clients: Vec<PeerName>,
}

/// A name in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerName {
    /// A DNS name, in lower case.
    Dns(String),
    /// `*.suffix`: any DNS name with one more label. Holds the suffix, with its dot.
    DnsBelow(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
}

/// The content of the files.
pub struct TlsPem {
    /// Certificates and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// CA certificates.
    pub ca: Option<Vec<u8>>,
}

impl TlsChoice {
    /// Reads `tls` of the file.
    pub fn read(file: &mut Object<'_>) -> Self {
        match file.value("tls") {
            None => Self::Unsaid,
            // YAML's older versions read `off` as false.
            Some(Value::Bool(false)) => Self::Off,
            Some(Value::String(text)) if text == "off" => Self::Off,
            Some(Value::Object(_)) => {
                file.object("tls").map_or(Self::Unsaid, |object| Self::On(read(object)))
            }
            Some(_) => {
                file.problem("tls", "not allowed; allowed: off, or certificate, key, ca and clients");
                Self::Unsaid
            }
        }
    }

    /// Refuses plain text where others can read it and nobody has said so: credentials and prompts travel here.
    ///
    /// # Errors
    /// The address that is reachable, and what to write.
    pub fn check_exposure(&self, field: &str, address: SocketAddr) -> Result<(), String> {
        if address.ip().is_loopback() || *self != Self::Unsaid {
            return Ok(());
        }
        Err(format!(
            "{field}: {address} is reachable from outside and would speak plain text: write `tls` with certificate and \
             key, or `tls: off`"
        ))
    }

    /// The files, if there is TLS.
    pub fn files(&self) -> Option<&TlsFiles> {
        match self {
            Self::On(files) => Some(files),
            Self::Unsaid | Self::Off => None,
        }
    }
}

fn read(mut object: Object<'_>) -> TlsFiles {
    object.required("certificate");
    object.required("key");
    let path = |object: &mut Object<'_>, name: &str| object.text(name).map(PathBuf::from);
    let identity = path(&mut object, "certificate").zip(path(&mut object, "key"));
    let ca = path(&mut object, "ca");
    let mut clients = Vec::new();
    for (i, name) in object.texts("clients").unwrap_or_default().into_iter().enumerate() {
        match PeerName::parse(name) {
            Ok(name) => clients.push(name),
            Err(message) => object.problem(&format!("clients.{i}"), message),
        }
    }
    if ca.is_none() && !clients.is_empty() {
        object.problem("ca", "Required: certificates of callers must be signed by somebody");
    }
    object.finish();
    TlsFiles { identity, ca, clients }
}

impl PeerName {
    /// Reads a name.
    ///
    /// # Errors
    /// Why it cannot be in a certificate.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_dns = |name: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !name.is_empty() && name.split('.').all(|label| !label.is_empty() && label.chars().all(good))
        };
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("*.") {
            Some(suffix) if is_dns(suffix) => Ok(Self::DnsBelow(format!(".{suffix}"))),
            None if is_dns(&lower) => Ok(Self::Dns(lower)),
            None if text.contains("://") && url::Url::parse(text).is_ok() => Ok(Self::Uri(text.to_owned())),
            _ => Err(format!(
                "\"{text}\" is not allowed; allowed: a DNS name, *.SUFFIX, or a URI such as spiffe://DOMAIN/PATH"
            )),
        }
    }

    /// Whether a certificate's DNS name is meant.
    pub fn is_dns(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        match self {
            Self::Dns(wanted) => *wanted == name,
            Self::DnsBelow(suffix) => name
                .strip_suffix(suffix.as_str())
                .is_some_and(|label| !label.is_empty() && !label.contains('.')),
            Self::Uri(_) => false,
        }
    }

    /// Whether a certificate's URI is meant.
    pub fn is_uri(&self, uri: &str) -> bool {
        matches!(self, Self::Uri(wanted) if wanted == uri)
    }
}

impl TlsPem {
    /// By what it is known again.
    pub fn digest(&self) -> [u8; 32] {
        let (certificate, key) = self.identity.as_ref().map_or((&[][..], &[][..]), |(a, b)| (a, b));
        [certificate, key, self.ca.as_deref().unwrap_or_default()].into_iter().collect::<Framed>().finish()
    }
}

impl TlsFiles {
    /// Reads all files.
    ///
    /// # Errors
    /// The first that cannot be read, and why.
    pub fn read(&self) -> Result<TlsPem, String> {
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|error: io::Error| format!("{} cannot be read: {error}", path.display()))
        };
        let identity = match &self.identity {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(TlsPem { identity, ca: self.ca.as_ref().map(read).transpose()? })
    }

    /// Reads `tls` as if it were in a file, for commands that have none.
    ///
    /// # Errors
    /// One of certificate and key without the other.
    pub fn of_flags(
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        ca: Option<PathBuf>,
    ) -> Result<Option<Self>, String> {
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err("--tls-certificate needs --tls-key".into()),
            (None, Some(_)) => return Err("--tls-key needs --tls-certificate".into()),
        };
        Ok((identity.is_some() || ca.is_some()).then_some(Self { identity, ca, clients: Vec::new() }))
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::DnsBelow(suffix) => write!(f, "*{suffix}"),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

impl fmt::Debug for TlsPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsPem(..)")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::read::Problems, *};

    fn choice(value: Value) -> (TlsChoice, Vec<String>) {
        let problems = Problems::default();
        let value = json!({ "tls": value });
        let mut file = Object::open(&value, "", &problems).unwrap();
        let choice = TlsChoice::read(&mut file);
        (choice, problems.into_vec().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn off_is_said_plainly_and_silence_is_not_off() {
        assert_eq!(choice(json!("off")).0, TlsChoice::Off);
        assert_eq!(choice(json!(false)).0, TlsChoice::Off);
        assert_eq!(choice(Value::Null).0, TlsChoice::Unsaid);
        assert_eq!(
            choice(json!("on")).1,
            ["tls: not allowed; allowed: off, or certificate, key, ca and clients"]
        );
    }

    #[test]
    fn who_may_call_needs_somebody_who_signs() {
        let (_, problems) = choice(json!({"certificate": "a", "clients": ["router", "not a name"]}));
        assert_eq!(problems.len(), 3, "{problems:?}");
        let (choice, problems) = choice(
            json!({"certificate": "a", "key": "b", "ca": "c", "clients": ["*.Images.svc", "spiffe://d/r"]}),
        );
        assert!(problems.is_empty(), "{problems:?}");
        let clients = &choice.files().unwrap().clients;
        assert_eq!(
            clients.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["*.images.svc", "spiffe://d/r"]
        );
    }

    #[test]
    fn a_star_stands_for_one_label() {
        let name = PeerName::parse("*.router.svc").unwrap();
        assert!(name.is_dns("a.router.svc") && name.is_dns("A.ROUTER.svc"));
        assert!(!name.is_dns("router.svc") && !name.is_dns("a.b.router.svc") && !name.is_uri("a.router.svc"));
        let exact = PeerName::parse("imagegate-router").unwrap();
        assert!(exact.is_dns("imagegate-router") && !exact.is_dns("imagegate-router.evil"));
    }
}
