//! How commands without a file reach other processes: addresses, and TLS by flags.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Result, anyhow};

use crate::{
    config::tls::TlsFiles,
    gateway::client_tls,
    pool::{Address, Pool, Service},
    tls::Tls,
};

/// Certificates for connections to other processes.
#[derive(Debug, clap::Args)]
pub struct TlsArgs {
    /// Certificate to show, in PEM
    #[arg(long, env = "IMAGEGATE_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,

    /// Its private key, in PEM
    #[arg(long, env = "IMAGEGATE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Who signs the other side's certificate, in PEM; the system's CAs without it
    #[arg(long, env = "IMAGEGATE_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// The certificates, if there are any.
    pub fn read(&self) -> Result<Option<Arc<Tls>>> {
        let Self { tls_certificate, tls_key, tls_ca } = self;
        let files = TlsFiles::of_flags(tls_certificate.clone(), tls_key.clone(), tls_ca.clone());
        let tls = files.and_then(|files| files.map(Tls::try_new).transpose());
        tls.map_err(anyhow::Error::msg)
    }
}

/// The endpoints behind some addresses. `flag` is where they come from.
pub fn pool(flag: &str, service: Service, uris: &[String], tls: Option<&Arc<Tls>>) -> Result<Pool> {
    let addresses = Address::parse_all(uris).map_err(|reason| anyhow!("{flag}: {reason}"))?;
    let tls = client_tls(&addresses, tls)?;
    Ok(Pool::new(service, addresses, tls))
}
