//! Kinds of requests, as each system is asked for them.

use std::borrow::Cow;

use serde_json::json;

use super::{
    load::Target,
    system::{Kind, Mock, System},
    upstream::{PREVIEWED, SIZES},
};

/// A kind of request.
pub struct Workload {
    /// For the table.
    pub name: Cow<'static, str>,
    way: Way,
    /// What the mock does, as its path says it.
    upstream: Cow<'static, str>,
    /// Of the base64 text.
    pub text_bytes: usize,
}

/// How an image is had.
enum Way {
    /// From a provider that speaks as OpenAI does.
    Plain,
    /// From Stability, in OpenAI's shape.
    Rewritten,
    /// From the second provider, after the first has failed.
    Fallback,
    /// Without a provider, but for the first time. Who has no cache proxies.
    Cached,
    /// From one of so many targets.
    Balanced(usize),
    /// From a provider with TLS.
    Tls,
    /// After a preview of itself, as events.
    Previewed,
}

/// Targets of configs that balance.
pub const TARGETS: [usize; 4] = [1, 10, 100, 1000];

/// The size of an image of which many are in flight, as the mock knows it, and its delay in ms.
const MANY: (&str, usize) = ("256k", 1000);

/// Where images are asked for.
pub const IMAGES: &str = "/v1/images/generations";

/// node takes 16 KB of headers.
const MOST_IN_A_HEADER: usize = 100;

const STABILITY_MODEL: &str = "stable-diffusion-xl-1024-v1-0";

pub const WORKLOADS: [Workload; 8] = [
    Workload::new("1 KB", Way::Plain, "0/1k", 1 << 10),
    Workload::new("2 MB", Way::Plain, "0/2m", 2 << 20),
    Workload::new("8 MB", Way::Plain, "0/8m", 8 << 20),
    Workload::new("500, then 2 MB", Way::Fallback, "0/2m", 2 << 20),
    Workload::new("2 MB, rewritten", Way::Rewritten, "0/2m", 2 << 20),
    Workload::new("2 MB, cached", Way::Cached, "0/2m", 2 << 20),
    Workload::new("2 MB, TLS", Way::Tls, "0/2m", 2 << 20),
    Workload::new("256 KB, previewed", Way::Previewed, "0/preview", PREVIEWED),
];

/// All of them arrive together after the mock's delay.
pub const CROWDED: Workload = Workload::new("64 × 2 MB at once", Way::Plain, "200/2m", 2 << 20);

impl Workload {
    const fn new(name: &'static str, way: Way, upstream: &'static str, text_bytes: usize) -> Self {
        Self { name: Cow::Borrowed(name), way, upstream: Cow::Borrowed(upstream), text_bytes }
    }

    /// Images of each size that the mock has, the smallest first.
    pub fn sizes() -> impl Iterator<Item = Self> {
        SIZES.into_iter().map(|(name, bytes)| Self::delayed(name, bytes, 0))
    }

    /// An image for a request that waits a while, as many do at once.
    pub fn waiting() -> Self {
        let (name, delay) = MANY;
        let bytes = SIZES.into_iter().find(|(size, _)| *size == name).map_or(0, |(_, bytes)| bytes);
        Self::delayed(name, bytes, delay)
    }

    /// A small image from one of so many targets.
    pub fn balanced(targets: usize) -> Self {
        let name = format!("{targets} targets").into();
        Self { name, way: Way::Balanced(targets), ..Self::new("", Way::Plain, "0/1k", 1 << 10) }
    }

    fn delayed(size: &str, text_bytes: usize, delay: usize) -> Self {
        let (name, upstream) = (size.to_owned().into(), format!("{delay}/{size}").into());
        Self { name, way: Way::Plain, upstream, text_bytes }
    }

    /// The request to a system, if it can do that.
    pub fn target(&self, kind: &Kind, system: &System, mock: &Mock) -> Option<Target> {
        let (path, headers) = match kind {
            Kind::Proxy | Kind::Nginx => (self.proxied(kind)?, String::new()),
            Kind::Portkey(_) => (IMAGES.into(), self.portkeys_headers(mock)?),
            _ => (IMAGES.into(), self.our_header()),
        };
        let model = if matches!(self.way, Way::Rewritten) { STABILITY_MODEL } else { "gpt-image-1" };
        let mut body = json!({ "model": model, "prompt": "a lighthouse at dusk" });
        if self.is_stream() {
            (body["stream"], body["partial_images"]) = (true.into(), 1.into());
        }
        Some(Target::new(&system.address, &path, &headers, &body.to_string()))
    }

    /// Whether it is answered in events, and until the first of them it is what is timed of a request alone.
    pub fn is_stream(&self) -> bool {
        matches!(self.way, Way::Previewed)
    }

    /// The path of a proxy, which is the mock's.
    fn proxied(&self, kind: &Kind) -> Option<String> {
        match (&self.way, kind) {
            (Way::Plain | Way::Cached | Way::Previewed, _) => Some(format!("/{}{IMAGES}", self.upstream)),
            (Way::Tls, Kind::Nginx) => Some(format!("/tls/{}{IMAGES}", self.upstream)),
            (Way::Fallback, Kind::Nginx) => Some(format!("/fallback{IMAGES}")),
            (Way::Fallback | Way::Rewritten | Way::Balanced(_) | Way::Tls, _) => None,
        }
    }

    /// Provider and address in headers, or a config in one.
    fn portkeys_headers(&self, mock: &Mock) -> Option<String> {
        let host = match self.way {
            Way::Tls => format!("https://{}/{}", mock.tls, self.upstream),
            _ => format!("http://{}/{}", mock.plain, self.upstream),
        };
        let target = |host: &str| json!({ "provider": "openai", "api_key": "none", "custom_host": host });
        let openai = format!("{host}/v1");
        let (mode, targets) = match self.way {
            Way::Plain | Way::Tls => return Some(of_provider("openai", &openai)),
            Way::Rewritten => return Some(of_provider("stability-ai", &host)),
            Way::Fallback => {
                ("fallback", vec![target(&format!("http://{}/0/500/v1", mock.plain)), target(&openai)])
            }
            Way::Balanced(targets @ ..=MOST_IN_A_HEADER) => ("loadbalance", vec![target(&openai); targets]),
            // It answers streams of images with an error.
            Way::Cached | Way::Balanced(_) | Way::Previewed => return None,
        };
        let config = json!({ "strategy": { "mode": mode }, "targets": targets });
        Some(format!("x-portkey-config: {config}\r\n"))
    }

    /// A virtual key or a saved config of the gateway's file.
    fn our_header(&self) -> String {
        match self.way {
            Way::Plain | Way::Previewed => {
                format!("x-portkey-virtual-key: {}\r\n", key_of(&self.upstream))
            }
            Way::Tls => "x-portkey-virtual-key: tls\r\n".into(),
            Way::Rewritten => "x-portkey-virtual-key: stability\r\n".into(),
            Way::Fallback => "x-portkey-config: fallback\r\n".into(),
            Way::Cached => "x-portkey-config: cached\r\n".into(),
            Way::Balanced(targets) => format!("x-portkey-config: balance-{targets}\r\n"),
        }
    }
}

fn of_provider(provider: &str, host: &str) -> String {
    format!(
        "authorization: Bearer none\r\nx-portkey-provider: {provider}\r\nx-portkey-custom-host: {host}\r\n"
    )
}

/// What the gateway's file says of them.
pub fn settings(mock: &Mock) -> String {
    let Mock { plain: mock, tls, .. } = mock;
    let key = |upstream: &str| {
        let base_url = format!("http://{mock}/{upstream}/v1");
        format!("  {}: {{ provider: openai, api_key: none, base_url: \"{base_url}\" }}\n", key_of(upstream))
    };
    let mut upstreams: Vec<String> = SIZES.iter().map(|(size, _)| format!("0/{size}")).collect();
    upstreams.extend([
        "0/500".into(),
        "0/preview".into(),
        CROWDED.upstream.into_owned(),
        Workload::waiting().upstream.into_owned(),
    ]);
    let keys: String = upstreams.iter().map(|upstream| key(upstream)).collect();
    let (small, large, failing) = (key_of("0/1k"), key_of("0/2m"), key_of("0/500"));
    let balances = TARGETS.map(|targets| {
        let target = format!("{{ virtual_key: {small} }}");
        let targets_text = vec![target; targets].join(", ");
        format!("  balance-{targets}: {{ strategy: {{ mode: loadbalance }}, targets: [{targets_text}] }}\n")
    });
    format!(
        "virtual_keys:\n{keys}  stability: {{ provider: stability-ai, api_key: none, base_url: \"http://{mock}/0/2m\" }}\n\
         \x20 tls: {{ provider: openai, api_key: none, base_url: \"https://{tls}/0/2m/v1\" }}\n\
         configs:\n  \
         fallback: {{ strategy: {{ mode: fallback }}, targets: [{{ virtual_key: {failing} }}, {{ virtual_key: {large} }}] }}\n  \
         cached: {{ virtual_key: {large}, cache: {{ mode: simple }} }}\n{}",
        balances.concat()
    )
}

/// The virtual key that leads to what the mock does.
fn key_of(upstream: &str) -> String {
    format!("key-{}", upstream.replace('/', "-"))
}
