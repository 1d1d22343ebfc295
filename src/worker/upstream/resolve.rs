//! Names to addresses, for strangers' hosts to permitted ones only.

use std::{
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use tower::{BoxError, Service};

use crate::egress::Egress;

/// Resolves names as the system does.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// What may come of it; none: everything.
    guard: Option<Arc<ArcSwap<Egress>>>,
}

/// A name has no address that may be reached.
#[derive(Debug)]
pub struct Forbidden;

impl Resolver {
    /// For hosts the operator vouches for.
    pub const fn trusting() -> Self {
        Self { guard: None }
    }

    /// For all others.
    pub const fn guarded(egress: Arc<ArcSwap<Egress>>) -> Self {
        Self { guard: Some(egress) }
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let egress = self.guard.as_ref().map(|guard| guard.load_full());
        Box::pin(async move {
            let mut found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if let Some(egress) = egress {
                found.retain(|address| egress.permits(address.ip()));
                if found.is_empty() {
                    return Err(Forbidden.into());
                }
            }
            Ok(found.into_iter())
        })
    }
}

impl std::fmt::Display for Forbidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no permitted address")
    }
}

impl std::error::Error for Forbidden {}
