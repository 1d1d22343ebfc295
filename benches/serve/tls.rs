//! Certificates for the roles: one for all of them, signed by an authority of this run.

use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Where the roles find each other.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// Writes certificate, key and authority into a folder: `tls.crt`, `tls.key`, `ca.crt`.
pub fn write(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::new(["the benchmark's".to_owned()])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(NAMES.map(str::to_owned))?.signed_by(&key, &authority)?;
    fs::write(folder.join("ca.crt"), authority.pem())?;
    fs::write(folder.join("tls.crt"), leaf.pem())?;
    fs::write(folder.join("tls.key"), key.serialize_pem())?;
    Ok(())
}
