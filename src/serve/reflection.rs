//! gRPC reflection, in both versions of its protocol: grpcurl and Python's client still speak the older one.
//!
//! Few ask, and what they are told takes a fifth of a start to prepare: it is prepared when somebody asks.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use tonic::{body::Body, server::NamedService};
use tonic_reflection::server::Builder;
use tower::Service;

use crate::{pb::DESCRIPTORS, transport::GrpcServer};

/// Descriptors of the health service, so that reflection can show it.
const HEALTH_DESCRIPTORS: &[u8] = tonic_health::pb::FILE_DESCRIPTOR_SET;

/// Shows these services, in the newer version.
pub fn v1(services: &'static [&'static str]) -> impl GrpcServer {
    Lazy::new(|| builder(services).build_v1().expect("the descriptors are our own"))
}

/// Shows these services, in the older version.
pub fn v1alpha(services: &'static [&'static str]) -> impl GrpcServer {
    Lazy::new(|| builder(services).build_v1alpha().expect("the descriptors are our own"))
}

fn builder(services: &[&str]) -> Builder<'static> {
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(HEALTH_DESCRIPTORS);
    services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
}

/// A service that is made when it is first called.
struct Lazy<S>(Arc<LazyLock<S, Box<dyn FnOnce() -> S + Send>>>);

impl<S> Lazy<S> {
    fn new(make: impl FnOnce() -> S + Send + 'static) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(make))))
    }
}

impl<S: GrpcServer> Service<http::Request<Body>> for Lazy<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        LazyLock::force(&self.0).clone().call(request)
    }
}

impl<S: NamedService> NamedService for Lazy<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Clone for Lazy<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for Lazy<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lazy(..)")
    }
}
