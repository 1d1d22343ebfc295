//! What a person at the terminal sees of a gateway that runs: where it is and what it has, then a line for each request
//! as it ends. All of it goes to standard error, previews to standard output.

use std::{
    collections::BTreeSet,
    io::{self, Write, stderr},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    logs::row,
    preview::{Preview, PreviewMode},
};
use crate::{
    config::{self, Settings, file::Listen, saved::DEFAULT_TENANT},
    telemetry::watch::{self, Seen},
};

/// Names of one kind that are shown.
const SHOWN: usize = 8;

/// Shows requests as they end.
#[derive(Debug)]
pub struct Person {
    seen: mpsc::Receiver<Seen>,
    preview: Option<Preview>,
    has_colours: bool,
}

impl Person {
    /// Begins to watch.
    pub fn new(preview: PreviewMode) -> Self {
        let preview = Preview::small(preview);
        let has_colours = config::environment("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { seen: watch::begin(preview.is_some()), preview, has_colours }
    }

    /// Shows requests, as long as it runs.
    pub async fn watch(&mut self) {
        while let Some(seen) = self.seen.recv().await {
            self.show(seen).await;
        }
    }

    /// Shows those that are there already.
    pub async fn catch_up(&mut self) {
        while let Ok(seen) = self.seen.try_recv() {
            self.show(seen).await;
        }
    }

    async fn show(&mut self, seen: Seen) {
        let status = self.status(seen.record.status);
        let mut text = row::as_it_ends(&seen.record, &status) + "\n";
        if seen.missed > 0 {
            text.insert_str(0, &format!("{} requests are not shown: there were too many\n", seen.missed));
        }
        say(&text);
        if let Some(image) = seen.image
            && let Some(mut preview) = self.preview.take()
        {
            let drawn = spawn_blocking(move || {
                _ = preview.finished(&image.into_bytes());
                preview
            });
            self.preview = drawn.await.ok();
        }
    }

    fn status(&self, status: u32) -> String {
        let colour = match status {
            _ if !self.has_colours => return status.to_string(),
            200..300 => 32,
            400..500 => 33,
            _ => 31,
        };
        format!("\u{1b}[{colour}m{status}\u{1b}[0m")
    }
}

/// Says where the gateway is, what it has, and how it is asked.
pub fn welcome(settings: &Settings, at: Listen) {
    let mut text = Vec::new();
    // Memory takes everything.
    _ = write_welcome(&mut text, settings, at);
    say(&String::from_utf8_lossy(&text));
}

/// Says that the gateway stops. The terminal has written `^C` where the line begins.
pub fn farewell() {
    say("\rstopping, once the requests in flight are finished\n");
}

/// A terminal that cannot be written to has nobody before it.
fn say(text: &str) {
    _ = stderr().write_all(text.as_bytes());
}

fn write_welcome(out: &mut impl Write, settings: &Settings, at: Listen) -> io::Result<()> {
    writeln!(out, "imagegate {}\n", env!("CARGO_PKG_VERSION"))?;
    let grpc = if settings.tls.files().is_some() { "https" } else { "http" };
    let addresses = [
        ("OpenAI API", at.http.map(|address| url("http", address) + "/v1")),
        ("gRPC", at.grpc.map(|address| url(grpc, address))),
        ("dashboard", at.admin.map(|address| url("http", address))),
    ];
    let addresses = addresses.into_iter().filter_map(|(name, address)| Some((name, address?)));
    let has = [
        ("configs", listed(&configs(settings))),
        ("virtual keys", listed(&virtual_keys(settings))),
        ("workers", listed(&settings.workers.keys().cloned().collect::<Vec<_>>())),
    ];
    for (name, value) in addresses.chain(has.into_iter().filter(|(_, value)| !value.is_empty())) {
        writeln!(out, "  {name:<12}  {value}")?;
    }
    if let Some(command) = at.http.and_then(|address| request(settings, address)) {
        writeln!(out, "\n  Try it:\n    {command}")?;
    }
    writeln!(out, "\nRequests are shown as they end. Ctrl-C stops the gateway.\n")
}

/// How an address is reached from this machine.
fn url(scheme: &str, address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("{scheme}://{}", SocketAddr::new(host, address.port()))
}

/// The file's configs and those that were saved, with a word at the default.
fn configs(settings: &Settings) -> Vec<String> {
    let saved = settings.tenants.get(DEFAULT_TENANT).into_iter().flat_map(|realm| realm.configs.keys());
    let ids: BTreeSet<&String> = settings.configs.keys().chain(saved).collect();
    let default = default_config(settings);
    let shown = |id: &String| match default == Some(id) {
        true => format!("{id} (default)"),
        false => id.clone(),
    };
    ids.into_iter().map(shown).collect()
}

fn default_config(settings: &Settings) -> Option<&String> {
    let saved = settings.tenants.get(DEFAULT_TENANT).and_then(|realm| realm.default_config.as_ref());
    saved.or(settings.default_config.as_ref())
}

fn virtual_keys(settings: &Settings) -> Vec<String> {
    let keys = settings.virtual_keys.iter();
    keys.map(|(id, upstream)| format!("{id} ({})", upstream.provider)).collect()
}

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// A first request, if there is a config to name.
fn request(settings: &Settings, address: SocketAddr) -> Option<String> {
    let route = match default_config(settings) {
        Some(_) => String::new(),
        None => format!(" -H 'x-portkey-config: {}'", settings.configs.keys().next()?),
    };
    let key = if settings.callers.is_empty() { "" } else { " -H 'authorization: Bearer API_KEY'" };
    Some(format!(
        "curl {}/v1/images/generations -H 'content-type: application/json'{key}{route} \\\n      \
         -d '{{\"prompt\": \"a lighthouse at dusk\", \"response_format\": \"url\"}}'",
        url("http", address)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, gateway::built_in};

    fn welcomed(yaml: &str, http: &str) -> String {
        let settings = config::read(yaml, &built_in(), &|_| None).unwrap();
        let at = Listen { http: Some(http.parse().unwrap()), ..settings.listen };
        let mut out = Vec::new();
        write_welcome(&mut out, &settings, at).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_embedded_gateway_says_where_it_is_and_how_it_is_asked() {
        let text = welcomed(config::EMBEDDED, "127.0.0.1:8787");
        for said in [
            "\n  OpenAI API    http://127.0.0.1:8787/v1\n",
            "\n  gRPC          http://127.0.0.1:50051\n",
            "\n  dashboard     http://127.0.0.1:9090\n",
            "\n  configs       demo (default), demo-fallback\n",
            "\n    curl http://127.0.0.1:8787/v1/images/generations -H 'content-type: application/json' \\\n      -d '{\"",
        ] {
            assert!(text.contains(said), "{text}");
        }
        assert!(!text.contains("virtual keys") && !text.contains("API_KEY"), "{text}");
    }

    #[test]
    fn a_key_and_a_route_are_named_where_they_are_needed() {
        let text = welcomed(
            "virtual_keys: {prod: {provider: openai, api_key: k}}\nconfigs: {hero: {virtual_key: prod}}\n\
             api_keys: [{name: a, key: ig-0123456789abcdef0123, scopes: [generate]}]\n",
            "0.0.0.0:80",
        );
        assert!(text.contains("  virtual keys  prod (openai)\n"), "{text}");
        assert!(text.contains("curl http://127.0.0.1:80/v1/") && text.contains("Bearer API_KEY"), "{text}");
        assert!(text.contains("-H 'x-portkey-config: hero'") && !text.contains("ig-0123"), "{text}");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..10).map(|i| i.to_string()).collect();
        assert_eq!(listed(&names), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
        assert_eq!(listed(&names[..8]), "0, 1, 2, 3, 4, 5, 6, 7");
    }
}
