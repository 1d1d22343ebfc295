//! How commands without a file reach other processes: addresses, TLS and the caller's key by flags.

use std::{fmt, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use tonic::{Request, Response, Status, metadata::MetadataValue};

use crate::{
    admin,
    config::tls::TlsFiles,
    error::Error,
    gateway::client_tls,
    pool::{Address, Pool, Service},
    tls::Tls,
};

/// Certificates for connections to other processes.
#[derive(Debug, clap::Args)]
pub struct TlsArgs {
    /// Certificate to show, in PEM
    #[arg(long, global = true, env = "IMAGEGATE_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,

    /// Its private key, in PEM
    #[arg(long, global = true, env = "IMAGEGATE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Who signs the other side's certificate, in PEM; the system's CAs without it
    #[arg(long, global = true, env = "IMAGEGATE_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

/// The router to ask, and as whom.
#[derive(Debug, clap::Args)]
pub struct RouterArgs {
    /// The router to ask
    #[arg(
        long,
        global = true,
        env = "IMAGEGATE_ROUTER",
        value_name = "URI",
        default_value = "http://127.0.0.1:50051"
    )]
    router: String,

    #[command(flatten)]
    tls: TlsArgs,

    /// API key for the router
    #[arg(long, global = true, env = "IMAGEGATE_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// What a router remembers, behind a connection that is made when it is first used.
#[derive(Debug)]
pub struct Memory<'a> {
    admin: admin::remote::Remote,
    args: &'a RouterArgs,
}

/// Nobody answers, in words for a person. Another time somebody may.
#[derive(Debug)]
pub struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

impl TlsArgs {
    /// The certificates, if there are any.
    pub fn read(&self) -> Result<Option<Arc<Tls>>> {
        let Self { tls_certificate, tls_key, tls_ca } = self;
        let files = TlsFiles::of_flags(tls_certificate.clone(), tls_key.clone(), tls_ca.clone());
        let tls = files.and_then(|files| files.map(Tls::try_new).transpose());
        tls.map_err(anyhow::Error::msg)
    }
}

impl RouterArgs {
    /// The router behind a connection that is made when it is first used.
    pub fn pool(&self) -> Result<Pool> {
        let uris = std::slice::from_ref(&self.router);
        pool("--router", Service::Router, uris, self.tls.read()?.as_ref())
    }

    /// What the router remembers.
    pub fn memory(&self) -> Result<Memory<'_>> {
        Ok(Memory { admin: admin::remote::Remote::new(self.pool()?), args: self })
    }

    /// A message from the caller.
    pub fn message<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        if let Some(key) = &self.api_key {
            put(&mut request, "x-portkey-api-key", key)?;
        }
        Ok(request)
    }

    /// A router that does not answer, in words for a person. `instead` is what else can be done.
    pub fn unreachable(&self, instead: &str) -> anyhow::Error {
        Unreachable(format!(
            "no router answers at {}: start one with `imagegate serve`{instead}",
            self.router
        ))
        .into()
    }
}

impl Memory<'_> {
    /// One call of `AdminService`.
    pub async fn ask<Q, A>(
        &self,
        message: Q,
        call: impl AsyncFnOnce(&admin::remote::Remote, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A> {
        Ok(self.try_ask(message, call).await??)
    }

    /// The same for those who tell more about an error that the router answers.
    pub async fn try_ask<Q, A>(
        &self,
        message: Q,
        call: impl AsyncFnOnce(&admin::remote::Remote, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<Result<A, Error>> {
        match call(&self.admin, self.args.message(message)?).await {
            Ok(answer) => Ok(Ok(answer.into_inner())),
            Err(status) => match Error::from_status(&status) {
                error if error.transport => Err(self.args.unreachable("")),
                mut error => {
                    if error.message.is_empty() {
                        // A router that is older than the command says nothing.
                        error.kind.name().clone_into(&mut error.message);
                    }
                    Ok(Err(error))
                }
            },
        }
    }
}

/// The endpoints behind some addresses. `flag` is where they come from.
pub fn pool(flag: &str, service: Service, uris: &[String], tls: Option<&Arc<Tls>>) -> Result<Pool> {
    let addresses = Address::parse_all(uris).map_err(|reason| anyhow!("{flag}: {reason}"))?;
    let tls = client_tls(&addresses, tls)?;
    Ok(Pool::new(service, addresses, tls))
}

/// Adds what HTTP callers send as a header, and what no log shows.
pub fn put<T>(request: &mut Request<T>, name: &'static str, text: &str) -> Result<()> {
    let mut value: MetadataValue<_> = text.parse().with_context(|| format!("{name} is not plain text"))?;
    value.set_sensitive(true);
    request.metadata_mut().insert(name, value);
    Ok(())
}
