//! A gateway that is open because it has no callers' keys answers its own machine only. Its address alone does not see to
//! that: a page in a browser there can reach it under a name of its own that it has made to mean 127.0.0.1, or post to it.
//!
//! gRPC needs no such guard: no browser speaks it without an extra in between.

use std::net::IpAddr;

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, header, uri::Authority},
    middleware::{self, Next},
    response::Response,
};
use url::Url;

use super::answer;
use crate::error::{Error, ErrorKind};

/// The routes, for requests from this machine only as long as `is_open`.
pub fn only_from_here(routes: Router, is_open: impl Fn() -> bool + Clone + Send + Sync + 'static) -> Router {
    routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        let refused = if is_open() { stranger(&request) } else { None };
        async move {
            match refused {
                None => next.run(request).await,
                Some(refused) => refused,
            }
        }
    }))
}

fn stranger(request: &Request) -> Option<Response> {
    let headers = request.headers();
    // HTTP/2 has it in the address.
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| text(headers, header::HOST));
    let problem = match (host, text(headers, header::ORIGIN)) {
        // A browser always says where it goes.
        (Some(host), _) if !host.parse().is_ok_and(|host: Authority| is_here(host.host())) => {
            ("host", format!("host: \"{host}\" is not allowed; allowed: localhost, 127.0.0.1, [::1]"))
        }
        (_, Some(origin)) if !is_of_here(&origin) => {
            ("origin", format!("origin: pages of \"{origin}\" may not call this gateway"))
        }
        _ => return None,
    };
    let (param, problem) = problem;
    let mut error = Error::new(
        ErrorKind::PermissionDenied,
        format!(
            "{problem}. It has no API keys, so only its own machine may use it: add api_keys or jwt_issuers to its \
             configuration, or write `auth: open`"
        ),
    );
    error.param = Some(param.to_owned());
    Some(answer::error(&error, headers))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn is_of_here(origin: &str) -> bool {
    Url::parse(origin).is_ok_and(|origin| origin.host_str().is_some_and(is_here))
}

fn is_here(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host == "localhost" || host.ends_with(".localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::any};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(is_open: bool, host: Option<&str>, origin: Option<&str>) -> (u16, String) {
        let routes = only_from_here(Router::new().route("/", any(|| async { "ok" })), move || is_open);
        let mut request = Request::post("/");
        for (name, value) in [("host", host), ("origin", origin)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let response = routes.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn an_open_gateway_answers_its_own_machine_only() {
        for host in [
            "localhost",
            "localhost:8787",
            "LocalHost.:8787",
            "gw.localhost",
            "127.0.0.1:8787",
            "127.8.9.1",
            "[::1]:8787",
        ] {
            assert_eq!(ask(true, Some(host), None).await.0, 200, "{host}");
        }
        for host in [
            "images.example",
            "images.example:8787",
            "localhost.example",
            "notlocalhost",
            "127.0.0.1.example",
            "192.168.0.7:8787",
            "[::2]",
            "0.0.0.0:8787",
            "",
            "a b",
        ] {
            let (status, body) = ask(true, Some(host), None).await;
            assert_eq!(status, 403, "{host}");
            assert!(body.contains("allowed: localhost") && body.contains("auth: open"), "{body}");
            assert_eq!(ask(false, Some(host), Some("https://a.example")).await.0, 200, "it has callers");
        }
        assert_eq!(ask(true, None, None).await.0, 200);
    }

    #[tokio::test]
    async fn pages_of_other_sites_may_not_call_it() {
        for (origin, status) in [
            ("http://localhost:3000", 200),
            ("http://127.0.0.1", 200),
            ("http://[::1]:1", 200),
            ("https://evil.example", 403),
            ("null", 403),
            ("http://localhost.evil.example", 403),
        ] {
            assert_eq!(ask(true, Some("127.0.0.1:8787"), Some(origin)).await.0, status, "{origin}");
        }
    }
}
