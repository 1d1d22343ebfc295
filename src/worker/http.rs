//! The only code that opens connections to providers.
//!
//! Connections of two kinds: for hosts the operator wrote, and for hosts that came with a request or an answer, which go
//! to permitted addresses only, checked where the name is resolved. The environment may name a proxy for the former.

use std::{
    error::Error as StdError,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, USER_AGENT},
};
use hyper_util::client::proxy::matcher::Matcher;
use rustls::ClientConfig;
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::{sync::mpsc, time::timeout};
use url::Url;

use super::{
    incoming::{Body, Incoming},
    upstream::{CONNECT_TIMEOUT, Failure, RequestBody, Resolver, Upstreams, causes},
};
use crate::{
    egress::Egress,
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::BillingClass,
};

const AGENT: HeaderValue = HeaderValue::from_static(concat!("imagegate/", env!("CARGO_PKG_VERSION")));
const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");

/// How long fetching one image may take in all, and how often its address may lead to another.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 3;

/// Requests that may wait to be sent later, and how long each may take.
const LATER_WAITING: usize = 256;
const LATER_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the operator vouches for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The operator wrote it.
    Operator,
    /// It came with a request or an answer.
    Stranger,
}

/// The connections of all workers of this process.
#[derive(Debug)]
pub struct Http {
    trusted: Upstreams,
    guarded: Upstreams,
    /// For the hosts of the operator that the environment names a proxy for.
    proxied: reqwest::Client,
    proxies: Matcher,
    egress: Arc<ArcSwap<Egress>>,
    later: (mpsc::Sender<Later>, tokio::sync::Mutex<mpsc::Receiver<Later>>),
    /// Bytes that may be in flight in this process.
    budget: AtomicUsize,
}

/// A request that nobody waits for.
type Later = (http::Request<Pieces>, Trust);

impl Http {
    /// Connections for both kinds of hosts.
    ///
    /// # Errors
    /// The system's certificates cannot be read.
    pub fn try_new(egress: Egress) -> std::result::Result<Self, String> {
        let egress = Arc::new(ArcSwap::from_pointee(egress));
        let tls = ClientConfig::with_platform_verifier().map_err(|error| error.to_string())?;
        let proxied = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // A redirect would take the credential along. Where images lie, `fetch` follows them itself.
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls.clone())
            .build();
        let (sender, receiver) = mpsc::channel(LATER_WAITING);
        Ok(Self {
            trusted: Upstreams::new(Resolver::trusting(), tls.clone()),
            guarded: Upstreams::new(Resolver::guarded(Arc::clone(&egress)), tls),
            // Its own words end before they say what is wrong.
            proxied: proxied.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?,
            proxies: Matcher::from_env(),
            egress,
            later: (sender, tokio::sync::Mutex::new(receiver)),
            budget: AtomicUsize::new(usize::MAX),
        })
    }

    /// Replaces what strangers' hosts may reach.
    pub fn set_egress(&self, egress: Egress) {
        self.egress.store(Arc::new(egress));
    }

    /// Limits the bytes in flight with which an answer is still read without waiting.
    pub fn set_budget(&self, bytes: usize) {
        self.budget.store(bytes, Ordering::Relaxed);
    }

    /// Sends a request and waits for the answer's headers.
    pub async fn send(&self, mut request: http::Request<Pieces>, trust: Trust) -> Result<Incoming> {
        let address = request.uri().clone();
        let host = address.host().unwrap_or_default();
        let headers = request.headers_mut();
        headers.entry(USER_AGENT).or_insert(AGENT);
        headers.entry(ACCEPT).or_insert(ANYTHING);
        let request = request.map(Into::into);
        let sent = match trust {
            Trust::Operator if self.proxies.intercept(&address).is_some() => {
                self.send_by_proxy(request).await
            }
            Trust::Operator => self.trusted.send(request).await.map(|answer| answer.map(Body::Direct)),
            // Behind a proxy it would be the proxy that resolves, unguarded.
            Trust::Stranger => {
                self.check(&address)?;
                self.guarded.send(request).await.map(|answer| answer.map(Body::Direct))
            }
        };
        let (head, body) = sent.map_err(|failure| unreachable_error(&failure, host))?.into_parts();
        Ok(Incoming::new(address, head, body, self.budget.load(Ordering::Relaxed)))
    }

    async fn send_by_proxy(
        &self,
        request: http::Request<RequestBody>,
    ) -> std::result::Result<http::Response<Body>, Failure> {
        let (parts, body) = request.into_parts();
        let url =
            parts.uri.to_string().parse().map_err(|error: url::ParseError| Failure::Connect(error.into()))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let mut response = self.proxied.execute(request).await.map_err(|error| match error.is_connect() {
            true if error.is_timeout() => Failure::ConnectTimeout,
            true => Failure::Connect(error.into()),
            false => Failure::Broken(error.into()),
        })?;
        let mut answer = http::Response::new(());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer.map(|()| Body::Proxied(response)))
    }

    /// Sends a request when somebody gets to it, for one who cannot wait: see [`Http::run`]. If
    /// too many wait already, it is not sent.
    pub fn send_later(&self, request: http::Request<Pieces>, trust: Trust) {
        if self.later.0.try_send((request, trust)).is_err() {
            tracing::warn!("a provider could not be told that its job is no longer wanted");
        }
    }

    /// Sends what was left to be sent later and closes what nobody uses, as long as it runs.
    pub async fn run(&self) {
        futures::join!(self.send_what_is_left(), self.trusted.tidy(), self.guarded.tidy());
    }

    async fn send_what_is_left(&self) {
        let mut waiting = self.later.1.lock().await;
        while let Some((request, trust)) = waiting.recv().await {
            match timeout(LATER_TIMEOUT, self.send(request, trust)).await {
                Ok(Ok(incoming)) => tracing::debug!(status = incoming.status.as_u16(), "job given up"),
                Ok(Err(error)) => tracing::warn!(%error, "a job could not be given up"),
                Err(_) => tracing::warn!("a provider does not answer to giving up its job"),
            }
        }
    }

    /// Fetches an image from an address that is not the API's own: no credential is sent. A few redirects are
    /// followed, each through the guard again; whom the operator vouches for is left with the first other origin.
    ///
    /// # Errors
    /// Why there is no image, without anything of what came instead.
    pub async fn fetch(&self, url: &str, trust: Trust, limit: usize) -> Result<Bytes> {
        let image = timeout(FETCH_TIMEOUT, Box::pin(self.fetch_following(url, trust, limit))).await;
        image.unwrap_or_else(|_| {
            Err(Error::bad_answer(format!(
                "fetching the image took longer than {} s",
                FETCH_TIMEOUT.as_secs()
            )))
        })
    }

    async fn fetch_following(&self, url: &str, mut trust: Trust, limit: usize) -> Result<Bytes> {
        let mut url = Url::parse(url).map_err(|_| Error::bad_answer("the image's address is not a URL"))?;
        for _ in 0..=MAX_REDIRECTS {
            let incoming = self.send(self.image_request(&url, trust)?, trust).await?;
            let Some(next) = incoming.redirect(&url)? else { return incoming.image(limit).await };
            if next.origin() != url.origin() {
                trust = Trust::Stranger;
            }
            url = next;
        }
        Err(Error::bad_answer(format!("the image's address redirects more than {MAX_REDIRECTS} times")))
    }

    fn image_request(&self, url: &Url, trust: Trust) -> Result<http::Request<Pieces>> {
        if trust == Trust::Stranger {
            self.egress.load().check(url.as_str()).map_err(|reason| {
                Error::new(ErrorKind::PermissionDenied, format!("the image's address is refused: {reason}"))
            })?;
        }
        // What is sent compressed could be any size: images are compressed themselves.
        http::Request::get(url.as_str())
            .header(ACCEPT_ENCODING, "identity")
            .body(Pieces::default())
            .map_err(|_| Error::bad_answer("the image's address is not a URL"))
    }

    /// A literal address is not resolved, so the guard does not see it.
    fn check(&self, address: &Uri) -> Result<()> {
        let host = address.host().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse();
        let permitted = match literal {
            Ok(address) => self.egress.load().permits(address),
            // Any other way to write an address is resolved like a name.
            Err(_) => !host.is_empty(),
        };
        if permitted { Ok(()) } else { Err(forbidden()) }
    }
}

/// Adds headers that the caller forwards, over the provider's own.
pub fn forward<'a>(headers: &mut HeaderMap, forwarded: impl IntoIterator<Item = (&'a String, &'a String)>) {
    for (name, value) in forwarded {
        if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            // Whatever a caller forwards may be a credential.
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
}

fn forbidden() -> Error {
    Error::new(ErrorKind::PermissionDenied, "the host resolves to an address that requests may not reach")
}

fn unreachable_error(failure: &Failure, host: &str) -> Error {
    let (billing, reason) = match failure {
        Failure::Forbidden => return forbidden(),
        Failure::ConnectTimeout => (BillingClass::NotSent, "connecting took too long"),
        Failure::Connect(error) => (BillingClass::NotSent, reason(&**error)),
        // The request was at least partly on its way.
        Failure::Broken(error) => (BillingClass::Unknown, reason(&**error)),
    };
    Error::transport(ErrorKind::Unavailable, billing, format!("{host}: {reason}"))
}

fn reason(error: &(dyn StdError + 'static)) -> &'static str {
    let kinds = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    let known = kinds.filter_map(|kind| match kind {
        io::ErrorKind::ConnectionRefused => Some("connection refused"),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Some("connection reset"),
        io::ErrorKind::TimedOut => Some("connecting took too long"),
        io::ErrorKind::UnexpectedEof => Some("the connection was closed"),
        _ => None,
    });
    known.last().unwrap_or("the connection failed")
}
