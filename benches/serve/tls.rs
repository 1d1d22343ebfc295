//! Certificates for the roles and the mock: one for all of them, signed by an authority of this run.

use std::{fs, path::Path, sync::Arc};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;

/// Where the roles find each other.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// Writes certificate, key and authority into a folder: `tls.crt`, `tls.key`, `ca.crt`.
pub fn write(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::new(["the benchmark's".to_owned()])?;
    // Another name than the certificate's, which would be its own authority by that.
    params.distinguished_name.push(DnType::CommonName, "benchmark authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(NAMES.map(str::to_owned))?.signed_by(&key, &authority)?;
    fs::write(folder.join("ca.crt"), authority.pem())?;
    fs::write(folder.join("tls.crt"), leaf.pem())?;
    fs::write(folder.join("tls.key"), key.serialize_pem())?;
    Ok(())
}

/// What a server needs that has the certificate of a folder.
pub fn acceptor(folder: &Path) -> Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(folder.join("tls.crt"))?;
    let key = PrivateKeyDer::from_pem_file(folder.join("tls.key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
