//! A TLS client that tells what a listener presents and whether it lets the caller in.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, Stream,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

use crate::pki::Leaf;

/// HTTP/2's preface with empty settings. Whoever is let in gets the server's settings for it.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const PATIENCE: Duration = Duration::from_secs(5);

/// What a listener did with a caller.
#[derive(Debug)]
pub struct Met {
    /// What it presented.
    pub der: Vec<u8>,
    /// An error is its refusal.
    pub let_in: io::Result<()>,
}

/// Calls a listener that should present a certificate of `ca_pem` for `name`, perhaps with one of the caller's own.
///
/// # Errors
/// The listener is not to be trusted, or there is none.
pub async fn meet(address: SocketAddr, name: &str, ca_pem: &str, caller: Option<&Leaf>) -> io::Result<Met> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match caller {
        None => config.with_no_client_auth(),
        Some(leaf) => {
            let chain = CertificateDer::pem_slice_iter(leaf.certificate_pem.as_bytes());
            let chain = chain.collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    tokio::task::spawn_blocking(move || {
        let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        let der = connection.peer_certificates().unwrap()[0].to_vec();
        // With TLS 1.3 the client is done before the server has looked at its certificate.
        let mut stream = Stream::new(&mut connection, &mut stream);
        let let_in = stream.write_all(PREFACE).and_then(|()| stream.read_exact(&mut [0; 9]));
        Ok(Met { der, let_in })
    })
    .await
    .unwrap()
}

/// Speaks plain text to a listener and gives what it answers before it hangs up.
///
/// # Errors
/// It does not hang up, or resets the connection.
pub async fn speak_plainly(address: SocketAddr) -> io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(PREFACE)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    })
    .await
    .unwrap()
}
