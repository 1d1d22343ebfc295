//! What holds for every page: nothing from elsewhere runs on it or shows it, and no other site's page can post to it.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use url::Url;

/// Scripts, styles and pictures of our own only; no frames, no forms to elsewhere.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Refuses what other sites' pages have sent, and tells the browser what a page may do.
pub async fn guard(request: Request, next: Next) -> Response {
    let mut response = if is_own(request.method(), request.headers()) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "only pages of this dashboard may send this\n").into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether a request that changes something comes from a page of ours. Browsers say so; who says nothing is none.
fn is_own(method: &Method, headers: &HeaderMap) -> bool {
    if method.is_safe() {
        return true;
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin";
    }
    let origin = text(header::ORIGIN).and_then(|origin| Url::parse(origin).ok());
    let host = text(header::HOST).and_then(|host| host.parse::<Authority>().ok());
    match (origin, host) {
        (Some(origin), Some(host)) => {
            origin.host_str() == Some(host.host())
                && (origin.port() == host.port_u16() || origin.port_or_known_default() == host.port_u16())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_own_post(pairs: &[(&'static str, &str)]) -> bool {
        let headers = pairs.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        });
        is_own(&Method::POST, &headers.collect())
    }

    #[test]
    fn only_pages_of_ours_post() {
        assert!(is_own_post(&[("sec-fetch-site", "same-origin")]));
        assert!(is_own_post(&[("origin", "http://gw:9090"), ("host", "gw:9090")]));
        assert!(is_own_post(&[("origin", "https://gw.example"), ("host", "gw.example")]));
        assert!(is_own_post(&[("origin", "https://gw.example"), ("host", "gw.example:443")]));
        for others in [
            &[][..],
            &[("host", "gw:9090")],
            &[("sec-fetch-site", "cross-site"), ("origin", "http://gw:9090"), ("host", "gw:9090")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("origin", "http://gw:9091"), ("host", "gw:9090")],
            &[("origin", "http://evil.example"), ("host", "gw:9090")],
            &[("origin", "null"), ("host", "gw:9090")],
        ] {
            assert!(!is_own_post(others), "{others:?}");
        }
        assert!(is_own(&Method::GET, &HeaderMap::new()));
    }
}
