//! `otlp`: where spans and metrics of requests go, and how many.
//!
//! Where the file is silent, OpenTelemetry's own variables say it.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use super::{
    plan::{BaseUrl, operator_host},
    read::{Object, Problems},
};
use crate::pool::Address;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Where collectors listen for OTLP over HTTP.
const HTTP_PORT: u16 = 4318;

const PROTOCOLS: &[(&str, Protocol)] = &[("grpc", Protocol::Grpc), ("http", Protocol::Http)];

/// The resource's attribute that the service's name is.
const NAME_ATTRIBUTE: &str = "service.name";

/// Whom spans and metrics are sent to, and which.
#[derive(Clone, Debug)]
pub struct OtlpSettings {
    /// The collector.
    pub endpoint: Endpoint,
    /// Sent along; their values are not shown.
    pub headers: HeaderMap,
    /// Which traces are recorded.
    pub sampling: Sampling,
    /// Whether spans have prompts.
    pub prompts: bool,
    /// How often metrics are sent, if they are.
    pub metrics_every: Option<Duration>,
    /// What the gateway is called there.
    pub service_name: String,
    /// What else is said of it.
    pub resource_attributes: BTreeMap<String, String>,
}

/// A collector, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// OTLP over gRPC.
    Grpc(Address),
    /// OTLP over HTTP, in protobuf: what stands before `/v1/traces`.
    Http(BaseUrl),
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Of traces about which nobody has decided yet, 0 to 1.
    pub ratio: f64,
    /// Whether what the caller has decided holds.
    pub follows_parent: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    Grpc,
    Http,
}

impl OtlpSettings {
    /// Reads `otlp` of the file, which the environment has filled in.
    pub fn read(file: &mut Object<'_>) -> Option<Self> {
        if file.value("otlp").is_some_and(is_off) {
            return None;
        }
        let mut otlp = file.object("otlp")?;
        otlp.required("endpoint");
        let protocol = otlp.choice("protocol", PROTOCOLS);
        let endpoint = otlp.text("endpoint").map(|endpoint| Endpoint::parse(endpoint.trim(), protocol));
        if let Some(Err(message)) = &endpoint {
            otlp.problem("endpoint", message);
        }
        let sampling = Sampling {
            ratio: otlp.between("sample_ratio", 0.0, 1.0).unwrap_or(1.0),
            follows_parent: otlp.flag("follow_parent").unwrap_or(true),
        };
        let headers = read_headers(&mut otlp);
        let prompts = otlp.flag("prompts").unwrap_or(false);
        let metrics_every = otlp.whole("metrics_interval_s", 0, 86_400).unwrap_or(60);
        let service_name = otlp.text("service_name").unwrap_or("imagegate").to_owned();
        let resource_attributes = read_texts(&mut otlp, "resource_attributes");
        otlp.finish();
        Some(Self {
            endpoint: endpoint?.ok()?,
            headers,
            sampling,
            prompts,
            metrics_every: (metrics_every > 0).then(|| Duration::from_secs(metrics_every)),
            service_name,
            resource_attributes,
        })
    }
}

impl Endpoint {
    fn parse(text: &str, protocol: Option<Protocol>) -> Result<Self, String> {
        let base = operator_host(text)?;
        let port = url::Url::parse(text).ok().and_then(|url| url.port());
        let usual = if port == Some(HTTP_PORT) { Protocol::Http } else { Protocol::Grpc };
        match protocol.unwrap_or(usual) {
            Protocol::Grpc => Address::parse(text).map(Self::Grpc),
            Protocol::Http if text.contains(['?', '#']) => {
                Err("a query is not allowed; allowed: http:// or https://, a host, and perhaps a path".into())
            }
            Protocol::Http => Ok(Self::Http(base)),
        }
    }
}

fn read_headers(otlp: &mut Object<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, text) in read_texts(otlp, "headers") {
        match (HeaderName::try_from(&name), HeaderValue::try_from(&text)) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            (Err(_), _) => otlp.problem(&format!("headers.{name}"), "not the name of a header"),
            // Without the value, which may be a secret.
            (_, Err(_)) => otlp.problem(
                &format!("headers.{name}"),
                "not allowed; allowed: a text of visible characters, as headers have",
            ),
        }
    }
    headers
}

fn read_texts(otlp: &mut Object<'_>, name: &str) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for (key, value) in otlp.map(name).into_iter().flatten() {
        match value {
            Value::String(text) => _ = texts.insert(key.clone(), text.clone()),
            Value::Number(_) | Value::Bool(_) => _ = texts.insert(key.clone(), value.to_string()),
            _ => otlp.problem(&format!("{name}.{key}"), "not allowed; allowed: a text"),
        }
    }
    texts
}

/// YAML's older versions read `off` as false.
fn is_off(value: &Value) -> bool {
    *value == json!(false) || *value == json!("off")
}

/// Puts what OpenTelemetry's variables say where the file says nothing of it. Without `otlp` in the file, an endpoint
/// there is enough.
pub fn fill_in(file: &mut Value, environment: &dyn Fn(&str) -> Option<String>, problems: &Problems) {
    let variable = |name: &str| environment(name).filter(|text| !text.trim().is_empty());
    let Value::Object(file) = file else { return };
    let written = file.get("otlp").is_some_and(|otlp| !otlp.is_null());
    if !written && variable(ENDPOINT).is_none() {
        return;
    }
    let otlp = file.entry("otlp").or_insert(Value::Null);
    if otlp.is_null() {
        *otlp = Value::Object(Map::new());
    }
    let Value::Object(otlp) = otlp else { return };
    let mut put = |name: &str, value: Option<Value>| {
        if let (false, Some(value)) = (otlp.contains_key(name), value) {
            otlp.insert(name.to_owned(), value);
        }
    };
    put("endpoint", variable(ENDPOINT).map(Value::String));
    put(
        "protocol",
        variable(PROTOCOL).and_then(|text| match text.trim() {
            "grpc" => Some("grpc".into()),
            "http/protobuf" => Some("http".into()),
            other => {
                problems.add(PROTOCOL, format!("'{other}' is not allowed; allowed: grpc, http/protobuf"));
                None
            }
        }),
    );
    let pairs = |name: &str| {
        let read = variable(name).map(|text| parse_pairs(&text));
        if matches!(read, Some(None)) {
            // Without the text, which may hold a secret.
            problems.add(name, "not allowed; allowed: NAME=VALUE, separated by commas");
        }
        read.flatten()
    };
    put("headers", pairs(HEADERS).map(Value::Object));
    let mut attributes = pairs(RESOURCE_ATTRIBUTES);
    let named = attributes.as_mut().and_then(|attributes| attributes.remove(NAME_ATTRIBUTE));
    put("service_name", variable(SERVICE_NAME).map(Value::String).or(named));
    put("resource_attributes", attributes.map(Value::Object));
    if let Some(sampler) = variable(SAMPLER) {
        match parse_sampler(sampler.trim(), variable(SAMPLER_ARG).as_deref()) {
            Ok((ratio, follows_parent)) => {
                put("sample_ratio", Some(ratio.into()));
                put("follow_parent", Some(follows_parent.into()));
            }
            Err((name, message)) => problems.add(name, message),
        }
    }
}

fn parse_sampler(name: &str, arg: Option<&str>) -> Result<(f64, bool), (&'static str, String)> {
    let ratio = || match arg.map_or(Ok(1.0), |arg| arg.trim().parse::<f64>()) {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err((SAMPLER_ARG, format!("'{}' is not allowed; allowed: 0 to 1", arg.unwrap_or_default()))),
    };
    match name {
        "always_on" => Ok((1.0, false)),
        "always_off" => Ok((0.0, false)),
        "traceidratio" => Ok((ratio()?, false)),
        "parentbased_always_on" => Ok((1.0, true)),
        "parentbased_always_off" => Ok((0.0, true)),
        "parentbased_traceidratio" => Ok((ratio()?, true)),
        other => {
            let allowed = "always_on, always_off, traceidratio, and each with parentbased_ before it";
            Err((SAMPLER, format!("'{other}' is not allowed; allowed: {allowed}")))
        }
    }
}

/// `a=1,b=2`, as W3C Baggage writes it.
fn parse_pairs(text: &str) -> Option<Map<String, Value>> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let (name, value) = (decoded(name.trim())?, decoded(value.trim())?);
        (!name.is_empty()).then_some((name, Value::String(value)))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

/// Without percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut file: Value, variables: &[(&str, &str)]) -> Result<Option<OtlpSettings>, Vec<String>> {
        let problems = Problems::default();
        let environment = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        };
        fill_in(&mut file, &environment, &problems);
        let settings = Object::open(&file, "", &problems).and_then(|mut file| OtlpSettings::read(&mut file));
        let problems: Vec<_> = problems.into_vec().iter().map(ToString::to_string).collect();
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    fn address(uri: &str) -> Endpoint {
        Endpoint::Grpc(Address::parse(uri).unwrap())
    }

    fn base(url: &str) -> Endpoint {
        Endpoint::Http(BaseUrl { url: url.into(), from_caller: false })
    }

    #[test]
    fn nothing_is_sent_unless_somebody_names_an_endpoint() {
        for (file, variables) in [
            (json!({}), vec![]),
            (json!({"otlp": null}), vec![("OTEL_SERVICE_NAME", "x")]),
            (json!({"otlp": "off"}), vec![(ENDPOINT, "http://c:4317")]),
            (json!({"otlp": false}), vec![(ENDPOINT, "http://c:4317")]),
        ] {
            assert!(read(file, &variables).unwrap().is_none());
        }
        let settings = read(json!({"otlp": {"endpoint": "http://c:4317"}}), &[]).unwrap().unwrap();
        assert_eq!(settings.endpoint, address("http://c:4317"));
        assert_eq!(settings.sampling, Sampling { ratio: 1.0, follows_parent: true });
        assert_eq!((settings.prompts, settings.metrics_every), (false, Some(Duration::from_secs(60))));
        assert_eq!(settings.service_name, "imagegate");
    }

    #[test]
    fn the_port_tells_the_protocol_unless_it_is_said() {
        for (endpoint, protocol, expected) in [
            ("http://c:4317", None, address("http://c:4317")),
            ("https://c", Some("grpc"), address("https://c")),
            ("http://c:4318", None, base("http://c:4318")),
            ("http://c:4318", Some("grpc"), address("http://c:4318")),
            ("https://c/otlp/", Some("http"), base("https://c/otlp")),
        ] {
            let file = json!({"otlp": {"endpoint": endpoint, "protocol": protocol}});
            assert_eq!(read(file, &[]).unwrap().unwrap().endpoint, expected);
        }
    }

    #[test]
    fn the_standards_variables_say_what_the_file_does_not() {
        let variables = [
            (ENDPOINT, "https://c/otlp"),
            (PROTOCOL, "http/protobuf"),
            (HEADERS, "authorization=Bearer%20secret, x-tenant=a"),
            (RESOURCE_ATTRIBUTES, "service.name=less,deployment.environment.name=test"),
            (SAMPLER, "parentbased_traceidratio"),
            (SAMPLER_ARG, "0.25"),
        ];
        let settings = read(json!({}), &variables).unwrap().unwrap();
        assert_eq!(settings.endpoint, base("https://c/otlp"));
        assert_eq!(settings.headers["authorization"], "Bearer secret");
        assert_eq!(settings.headers["x-tenant"], "a");
        assert!(!format!("{settings:?}").contains("secret"));
        assert_eq!(settings.service_name, "less");
        assert_eq!(
            settings.resource_attributes,
            [("deployment.environment.name".into(), "test".into())].into()
        );
        assert_eq!(settings.sampling, Sampling { ratio: 0.25, follows_parent: true });

        let file =
            json!({"otlp": {"endpoint": "http://d:1", "protocol": "grpc", "sample_ratio": 1, "headers": {}}});
        let settings = read(file, &variables).unwrap().unwrap();
        assert_eq!(settings.endpoint, address("http://d:1"));
        assert_eq!((settings.sampling.ratio, settings.headers.len()), (1.0, 0));
        let named = [(ENDPOINT, "http://c:1"), (SERVICE_NAME, "more"), (SAMPLER, "always_off")];
        let settings = read(json!({}), &named).unwrap().unwrap();
        assert_eq!(settings.service_name, "more");
        assert_eq!(settings.sampling, Sampling { ratio: 0.0, follows_parent: false });
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        let file = json!({"otlp": {
            "endpoint": "http://c:4317/path", "protocol": "udp", "sample_ratio": 2, "prompts": "yes",
            "headers": {"a b": "x", "authorization": "Bearer\nsecret"}, "metrics_interval_s": 0.5,
            "resource_attributes": {"a": []}, "sample_rate": 1,
        }});
        let problems = read(file, &[]).unwrap_err();
        let allowed = [
            "otlp.protocol: 'udp' is not allowed; allowed: grpc, http",
            "otlp.endpoint: \"http://c:4317/path\" is not allowed: a path; allowed: http://HOST:PORT or https://HOST:PORT",
            "otlp.sample_ratio: 2 is not allowed; allowed: 0 to 1",
            "otlp.headers.a b: not the name of a header",
            "otlp.headers.authorization: not allowed; allowed: a text of visible characters, as headers have",
            "otlp.prompts: Expected boolean, received string",
            "otlp.metrics_interval_s: 0.5 is not allowed; allowed: a whole number from 0 to 86400",
            "otlp.resource_attributes.a: not allowed; allowed: a text",
            "otlp.sample_rate: unknown field; did you mean \"sample_ratio\"?",
        ];
        assert_eq!(problems, allowed);
        let variables = [
            (ENDPOINT, "http://c:4317"),
            (PROTOCOL, "http/json"),
            (HEADERS, "secret"),
            (SAMPLER, "jaeger_remote"),
        ];
        let problems = read(json!({}), &variables).unwrap_err();
        assert_eq!(
            problems[..2],
            [
                "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' is not allowed; allowed: grpc, http/protobuf",
                "OTEL_EXPORTER_OTLP_HEADERS: not allowed; allowed: NAME=VALUE, separated by commas",
            ]
        );
        assert!(problems[2].starts_with("OTEL_TRACES_SAMPLER: 'jaeger_remote' is not allowed; allowed: "));
        let ratio = [(ENDPOINT, "http://c:1"), (SAMPLER, "traceidratio"), (SAMPLER_ARG, "2")];
        let problems = read(json!({}), &ratio).unwrap_err();
        assert_eq!(problems, ["OTEL_TRACES_SAMPLER_ARG: '2' is not allowed; allowed: 0 to 1"]);
    }
}
