//! TLS between the roles: who we are, whom we believe, and new certificates without a restart.
//!
//! A server is checked against the name that it is called by; a caller, where its role matters, against the names
//! that its certificate must have.

use std::{fmt, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{Resumption, danger::HandshakeSignatureValid},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    config::tls::{PeerName, TlsFiles, TlsPem},
    telemetry,
};

/// How often the files are looked at. Kubernetes replaces them by renaming a folder above them, which file events
/// miss.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// HTTP/2, which is all that gRPC speaks.
const ALPN: &[u8] = b"h2";

/// The certificates of this process, as the files have them now.
pub struct Tls {
    files: TlsFiles,
    current: ArcSwap<Current>,
    renewed: watch::Sender<u64>,
}

struct Current {
    client: Arc<ClientConfig>,
    /// None without a certificate of our own.
    server: Option<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn try_new(files: TlsFiles) -> Result<Arc<Self>, String> {
        let current = Current::try_new(&files, &files.read()?)?;
        let renewed = watch::Sender::new(0);
        Ok(Arc::new(Self { files, current: ArcSwap::from_pointee(current), renewed }))
    }

    /// Connects as a client to a server that is called `host`.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn connect(&self, host: &str, wire: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "no name that a certificate can have")
        })?;
        let config = Arc::clone(&self.current.load().client);
        TlsConnector::from(config).connect(name, wire).await
    }

    /// Accepts a client.
    ///
    /// # Errors
    /// The handshake failed, or this process has no certificate. The other side is told before the wire is given back.
    pub async fn accept(
        &self,
        wire: TcpStream,
    ) -> Result<server::TlsStream<TcpStream>, (io::Error, TcpStream)> {
        let Some(config) = self.current.load().server.clone() else {
            return Err((io::Error::other("this process has no certificate"), wire));
        };
        TlsAcceptor::from(config).accept(wire).into_fallible().await
    }

    /// Counts new certificates: connections of an earlier count were made with others.
    pub fn generation(&self) -> u64 {
        *self.renewed.borrow()
    }

    /// Waits for the next new certificates.
    pub fn renewed(&self) -> futures::future::BoxFuture<'static, ()> {
        let mut news = self.renewed.subscribe();
        Box::pin(async move {
            if news.changed().await.is_err() {
                std::future::pending().await
            }
        })
    }

    /// Puts changed files into force, as long as it runs. Bad ones are logged, and the old ones stay.
    pub async fn watch(self: Arc<Self>) {
        let mut in_force = self.files.read().ok().map(|pem| pem.digest());
        let (mut suspect, mut reported) = (None, None);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let read = self.files.read();
            let seen = read.as_ref().ok().map(TlsPem::digest);
            if seen.is_some() && seen == in_force {
                (suspect, reported) = (None, None);
                continue;
            }
            match read.and_then(|pem| Current::try_new(&self.files, &pem)) {
                Ok(current) => {
                    self.current.store(Arc::new(current));
                    self.renewed.send_modify(|count| *count += 1);
                    telemetry::certificate_reloaded();
                    (in_force, suspect, reported) = (seen, None, None);
                }
                Err(reason) => {
                    // Files that belong together are seldom replaced in one step: what is wrong must be so twice.
                    let problem = Some((seen, reason));
                    if suspect == problem && reported != problem {
                        telemetry::certificate_refused(problem.as_ref().map_or("", |(_, reason)| reason));
                        reported.clone_from(&problem);
                    }
                    suspect = problem;
                }
            }
        }
    }
}

impl Current {
    fn try_new(files: &TlsFiles, pem: &TlsPem) -> Result<Self, String> {
        let identity = match (&files.identity, &pem.identity) {
            (Some((certificate, key)), Some((chain_pem, key_pem))) => {
                let at = |error: &dyn fmt::Display| format!("{}: {error}", certificate.display());
                let chain = certificates(chain_pem).map_err(|error| at(&error))?;
                let expires = validity(&chain[0]).map_err(|error| at(&error))?;
                telemetry::certificate_expires(expires);
                let key = PrivateKeyDer::from_pem_slice(key_pem)
                    .map_err(|_| format!("{}: no private key in PEM", key.display()))?;
                Some((chain, key))
            }
            _ => None,
        };
        let roots = match (&files.ca, &pem.ca) {
            (Some(path), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for certificate in
                    certificates(pem).map_err(|error| format!("{}: {error}", path.display()))?
                {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
                }
                Some(Arc::new(roots))
            }
            _ => None,
        };
        let server = match &identity {
            Some((chain, key)) => Some(Arc::new(server_config(files, chain, key, roots.as_ref())?)),
            None => None,
        };
        Ok(Self { client: Arc::new(client_config(identity, roots)?), server })
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_config(
    identity: Option<Identity>,
    roots: Option<Arc<RootCertStore>>,
) -> Result<ClientConfig, String> {
    let mut config = match (roots, identity) {
        (Some(roots), Some((chain, key))) => ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| mismatch(&error))?,
        (Some(roots), None) => ClientConfig::builder().with_root_certificates(roots).with_no_client_auth(),
        (None, _) => ClientConfig::with_platform_verifier().map_err(|error| error.to_string())?,
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would believe in certificates that have meanwhile been replaced.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(
    files: &TlsFiles,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    roots: Option<&Arc<RootCertStore>>,
) -> Result<ServerConfig, String> {
    let builder = match roots.filter(|_| !files.clients.is_empty()) {
        Some(roots) => {
            let signed = WebPkiClientVerifier::builder(Arc::clone(roots)).build();
            let signed = signed.map_err(|error| error.to_string())?;
            let verifier = Named { signed, names: files.clients.clone() };
            ServerConfig::builder().with_client_cert_verifier(Arc::new(verifier))
        }
        None => ServerConfig::builder().with_no_client_auth(),
    };
    let config = builder.with_single_cert(chain.to_vec(), key.clone_key());
    let mut config = config.map_err(|error| mismatch(&error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn mismatch(error: &rustls::Error) -> String {
    format!("certificate and key do not fit: {error}")
}

/// All certificates of a file, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("no certificate in PEM".to_owned()),
    }
}

/// When a certificate ends, in seconds since 1970.
fn validity(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| "not an X.509 certificate")?;
    Ok(parsed.validity().not_after.timestamp())
}

/// Believes a caller whose certificate is signed and has one of some names.
#[derive(Debug)]
struct Named {
    signed: Arc<dyn ClientCertVerifier>,
    names: Vec<PeerName>,
}

impl Named {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let found = parsed.subject_alternative_name().ok().flatten();
        let found = found.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let is_meant = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(dns) => self.names.iter().any(|wanted| wanted.is_dns(dns)),
            GeneralName::URI(uri) => self.names.iter().any(|wanted| wanted.is_uri(uri)),
            _ => false,
        };
        if found.iter().any(is_meant) {
            return Ok(());
        }
        let shown = found.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        });
        let wrong = WrongName {
            shown: shown.collect(),
            allowed: self.names.iter().map(ToString::to_string).collect(),
        };
        let other = OtherError(Arc::new(wrong));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
    }
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.signed.verify_client_cert(certificate, between, now)?;
        self.check(certificate)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// A certificate of the right CA and for the wrong role.
#[derive(Debug)]
struct WrongName {
    shown: Vec<String>,
    allowed: Vec<String>,
}

impl fmt::Display for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if self.shown.is_empty() { "no name".to_owned() } else { self.shown.join(", ") };
        write!(f, "the certificate is for {shown}; allowed: {}", self.allowed.join(", "))
    }
}

impl std::error::Error for WrongName {}

/// What went wrong with a connection, in a few words.
pub fn explain(error: &io::Error) -> String {
    match rustls_error(error) {
        Some(error) => reason(error).1,
        None => {
            let words = error.to_string();
            refusal(&words).unwrap_or(words)
        }
    }
}

/// The other side's refusal, of which HTTP/2's library keeps only the words: in TLS 1.3 it comes after the handshake.
fn refusal(words: &str) -> Option<String> {
    use rustls::AlertDescription as Alert;
    let alerts = [
        Alert::CertificateRequired,
        Alert::CertificateExpired,
        Alert::UnknownCA,
        Alert::BadCertificate,
        Alert::CertificateUnknown,
        Alert::AccessDenied,
    ];
    let mut refusals = alerts.into_iter().map(rustls::Error::AlertReceived);
    refusals.find(|error| error.to_string() == words).map(|error| reason(&error).1)
}

/// The same in a word, of which there are few.
pub fn kind(error: &io::Error) -> &'static str {
    rustls_error(error).map_or("connection", |error| reason(error).0)
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn reason(error: &rustls::Error) -> (&'static str, String) {
    use rustls::{AlertDescription as Alert, Error as E};
    let (kind, text) = match error {
        E::InvalidCertificate(problem) => return certificate_reason(problem),
        E::NoCertificatesPresented => ("no_certificate", "the peer shows no certificate"),
        E::InvalidMessage(_) => ("not_tls", "the peer does not speak TLS"),
        E::AlertReceived(Alert::CertificateRequired) => ("refused", "the peer asks for a certificate"),
        E::AlertReceived(Alert::CertificateExpired) => {
            ("refused", "the peer says our certificate has expired")
        }
        E::AlertReceived(Alert::UnknownCA) => ("refused", "the peer does not know the CA of our certificate"),
        E::AlertReceived(Alert::BadCertificate | Alert::CertificateUnknown | Alert::AccessDenied) => {
            ("refused", "the peer does not accept our certificate")
        }
        E::NoApplicationProtocol | E::AlertReceived(Alert::NoApplicationProtocol) => {
            ("protocol", "the peer does not speak HTTP/2")
        }
        other => return ("other", format!("TLS: {other}")),
    };
    (kind, text.to_owned())
}

fn certificate_reason(problem: &CertificateError) -> (&'static str, String) {
    use CertificateError as C;
    let (kind, text) = match problem {
        C::Expired | C::ExpiredContext { .. } => ("expired", "the peer's certificate has expired"),
        C::NotValidYet | C::NotValidYetContext { .. } => {
            ("not_yet_valid", "the peer's certificate is not valid yet")
        }
        C::UnknownIssuer => ("unknown_ca", "the peer's certificate is not signed by the configured CA"),
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            ("wrong_name", "the peer's certificate is for another name")
        }
        C::Other(other) => match other.0.downcast_ref::<WrongName>() {
            Some(wrong) => return ("wrong_name", wrong.to_string()),
            None => ("certificate", "the peer's certificate is not accepted"),
        },
        other => return ("certificate", format!("the peer's certificate is not accepted: {other}")),
    };
    (kind, text.to_owned())
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).field("generation", &self.generation()).finish()
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn a_refusal_is_told_in_our_words_also_where_only_its_own_are_left() {
        let refused = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let told = "the peer does not know the CA of our certificate";
        assert_eq!(explain(&io::Error::other(refused.to_string())), told);
        assert_eq!(explain(&io::Error::other(refused)), told);
        assert_eq!(explain(&io::Error::other("broken")), "broken");
    }
}
