//! Connections to providers: opened, driven by the request that uses them, and kept for the next one.
//!
//! HTTP/1.1 only. An image fills a connection by itself, so there is nothing for HTTP/2 to share, and its frames and
//! windows would cost another copy.

mod link;
mod resolve;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    error::Error as StdError,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Request, Response, Uri, header::HOST, uri::PathAndQuery};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use tokio::time::{Instant, interval, timeout};
use tower::{BoxError, ServiceExt as _};

use self::{link::Link, resolve::Forbidden};
pub use self::{
    link::{AnswerBody, RequestBody},
    resolve::Resolver,
};

/// Opening a connection, handshakes included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that nobody has used for this long is closed. Many servers do so after a minute; who comes just then
/// finds out only after having sent something.
const KEPT_FOR: Duration = Duration::from_secs(55);
const LOOK_EVERY: Duration = Duration::from_secs(5);

const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_RETRIES: u32 = 3;

/// Connections of one kind.
#[derive(Debug)]
pub struct Upstreams {
    connector: HttpsConnector<HttpConnector<Resolver>>,
    idle: Arc<Idle>,
}

/// Connections that nobody uses, by scheme and authority, the one used last at the end.
#[derive(Default)]
struct Idle(Mutex<Kept>);

type Kept = HashMap<Box<str>, Vec<(Box<Link>, Instant)>>;

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The host has no address that may be reached.
    Forbidden,
    /// There is no connection: nothing was sent.
    Connect(BoxError),
    /// There is none yet.
    ConnectTimeout,
    /// The request was at least partly on its way.
    Broken(BoxError),
}

impl Upstreams {
    /// No connections yet.
    pub fn new(resolver: Resolver, tls: ClientConfig) -> Self {
        let mut connector = HttpConnector::new_with_resolver(resolver);
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEP_ALIVE));
        connector.set_keepalive_interval(Some(KEEP_ALIVE));
        connector.set_keepalive_retries(Some(KEEP_ALIVE_RETRIES));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Self { connector, idle: Arc::default() }
    }

    /// Sends a request and waits for the head of its answer. On a kept connection that turns out to be closed before
    /// anything was sent, it is sent again.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<AnswerBody>, Failure> {
        let origin = to_origin_form(&mut request)?;
        while let Some(mut link) = self.idle.take(&origin) {
            match link.exchange(request).await {
                Ok(answer) => return Ok(self.answer(answer, link, origin)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::Broken(error.into_error().into())),
                },
            }
        }
        let mut link = Box::pin(self.open(&origin)).await?;
        match link.exchange(request).await {
            Ok(answer) => Ok(self.answer(answer, link, origin)),
            Err(error) => Err(Failure::Broken(error.into_error().into())),
        }
    }

    /// Closes what is of no use any more, as long as it runs.
    pub async fn tidy(&self) {
        let mut looks = interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            self.idle.tidy();
        }
    }

    fn answer(
        &self,
        answer: Response<hyper::body::Incoming>,
        link: Box<Link>,
        origin: Box<str>,
    ) -> Response<AnswerBody> {
        answer.map(|body| AnswerBody::new(body, link, Arc::clone(&self.idle), origin))
    }

    async fn open(&self, origin: &str) -> Result<Box<Link>, Failure> {
        let opened = async {
            let origin: Uri = origin.parse()?;
            let wire = self.connector.clone().oneshot(origin).await?;
            Ok(Link::open(wire).await?)
        };
        match timeout(CONNECT_TIMEOUT, opened).await {
            Ok(opened) => opened.map_err(|error: BoxError| {
                let is_forbidden = causes(&*error).any(<dyn StdError>::is::<Forbidden>);
                if is_forbidden { Failure::Forbidden } else { Failure::Connect(error) }
            }),
            Err(_) => Err(Failure::ConnectTimeout),
        }
    }
}

impl Idle {
    /// One that is still open, and no longer kept.
    fn take(&self, origin: &str) -> Option<Box<Link>> {
        let mut kept = self.lock();
        let links = kept.get_mut(origin)?;
        loop {
            let (mut link, _) = links.pop()?;
            if link.is_ready() {
                return Some(link);
            }
        }
    }

    fn put(&self, origin: Box<str>, link: Box<Link>) {
        self.lock().entry(origin).or_default().push((link, Instant::now()));
    }

    fn tidy(&self) {
        self.lock().retain(|_, links| {
            links.retain_mut(|(link, since)| since.elapsed() < KEPT_FOR && link.is_ready());
            !links.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error and what led to it.
pub fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Leaves the path in the request's line and puts the host into a header, as servers want it. What is left of the address
/// is where to connect to.
fn to_origin_form(request: &mut Request<RequestBody>) -> Result<Box<str>, Failure> {
    let uri = std::mem::take(request.uri_mut());
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(Failure::Connect("an address without a host".into()));
    };
    let authority = match (scheme, uri.port_u16()) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => host.to_owned(),
        (_, Some(port)) => format!("{host}:{port}"),
    };
    let origin = format!("{scheme}://{authority}").into();
    if let (false, Ok(host)) = (request.headers().contains_key(HOST), HeaderValue::try_from(authority)) {
        request.headers_mut().insert(HOST, host);
    }
    let path = uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = path.into();
    Ok(origin)
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.lock().iter().map(|(origin, links)| (origin, links.len()))).finish()
    }
}
