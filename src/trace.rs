//! Traces over several services, as W3C Trace Context spells them (<https://www.w3.org/TR/trace-context/>).
//!
//! The context goes along: from the caller through shim, router and worker to the provider.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::digest::unhex;

/// Trace, parent and flags.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems add to it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a `traceparent` in the version that is known, `00-TRACE-PARENT-FLAGS`.
const LENGTH: usize = 55;

/// Longest `tracestate` that is handed on, in bytes: what everybody has to be able to take.
const STATE_AT_MOST: usize = 512;

/// Where a request stands in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    parent: HeaderValue,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// What these headers or this metadata say. None where that is nothing valid.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        // Of two contexts nobody knows which is meant.
        let (parent, None) = (parents.next()?, parents.next()) else { return None };
        if !is_valid(parent.to_str().ok()?) {
            return None;
        }
        Some(Self { parent: parent.clone(), state: state(headers) })
    }

    /// The one of a request that brings none. Its trace has the request's own number: whoever knows one finds the other.
    /// Nobody has asked for it to be recorded.
    pub fn begin(request: uuid::Uuid) -> Self {
        let trace = request.simple().to_string();
        let text = format!("00-{trace}-{}-00", &trace[16..]);
        Self { parent: HeaderValue::try_from(text).expect("digits are a value"), state: None }
    }

    /// The id of the trace, 32 digits.
    pub fn trace_id(&self) -> &str {
        self.parent.to_str().ok().and_then(|text| text.get(3..35)).unwrap_or_default()
    }

    /// Hands it on with a request or a call, in the place of whatever is there.
    pub fn put(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.parent.clone());
        match &self.state {
            Some(state) => _ = headers.insert(TRACESTATE, state.clone()),
            None => _ = headers.remove(TRACESTATE),
        }
    }
}

fn is_valid(text: &str) -> bool {
    let lower = |text: &str| !text.bytes().any(|byte| byte.is_ascii_uppercase());
    let Some(known) = text.get(..LENGTH).filter(|known| lower(known)) else { return false };
    let parts: Vec<&str> = known.split('-').collect();
    let &[version, trace, parent, flags] = parts.as_slice() else { return false };
    let is_known_length = match version {
        "00" => text.len() == LENGTH,
        // Later versions may say more.
        _ => text.len() == LENGTH || text[LENGTH..].starts_with('-'),
    };
    let some = |digits: &[u8]| digits.iter().any(|byte| *byte != 0);
    is_known_length
        && unhex::<1>(version).is_some_and(|version| version != [0xff])
        && unhex::<16>(trace).is_some_and(|trace| some(&trace))
        && unhex::<8>(parent).is_some_and(|parent| some(&parent))
        && unhex::<1>(flags).is_some()
}

/// All of it as one value, as long as it is not too long.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let values: Vec<&[u8]> = headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes).collect();
    let joined = values.join(&b","[..]);
    if joined.is_empty() || joined.len() > STATE_AT_MOST {
        return None;
    }
    HeaderValue::from_bytes(&joined).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_valid_context_goes_on_as_it_came() {
        let later = format!("cc{}-what-there-will-be", &VALID[2..]);
        for parent in [VALID, &VALID.replace("-01", "-00"), &later] {
            let given = headers(&[("traceparent", parent), ("tracestate", "a=1"), ("tracestate", "b=2")]);
            let context = TraceContext::read(&given).unwrap();
            assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
            let mut handed = headers(&[("traceparent", "another"), ("tracestate", "c=3"), ("other", "x")]);
            context.put(&mut handed);
            let expected = headers(&[("traceparent", parent), ("tracestate", "a=1,b=2"), ("other", "x")]);
            assert_eq!(handed, expected);
            assert_eq!(TraceContext::read(&handed), Some(context));
        }
    }

    #[test]
    fn what_is_no_context_is_none() {
        for parent in [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-00"),
            &VALID.to_uppercase(),
            &VALID.replace("00-4", "ff-4"),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &VALID.replace("-01", "-0g"),
            &VALID.replace('-', "_"),
            &format!("cc{}x", &VALID[2..]),
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01é",
        ] {
            let mut given = HeaderMap::new();
            given.insert(TRACEPARENT, HeaderValue::from_bytes(parent.as_bytes()).unwrap());
            assert_eq!(TraceContext::read(&given), None, "{parent}");
        }
        assert_eq!(TraceContext::read(&headers(&[("traceparent", VALID), ("traceparent", VALID)])), None);
        assert_eq!(TraceContext::read(&headers(&[("tracestate", "a=1")])), None);
    }

    #[test]
    fn a_state_that_is_too_long_is_left_out() {
        for (bytes, goes_on) in [(STATE_AT_MOST, true), (STATE_AT_MOST + 1, false)] {
            let long = format!("a={}", "x".repeat(bytes - 2));
            let context =
                TraceContext::read(&headers(&[("traceparent", VALID), ("tracestate", &long)])).unwrap();
            assert_eq!(context.state.is_some(), goes_on);
        }
    }

    #[test]
    fn a_request_without_a_context_begins_one_by_its_own_number() {
        let request = uuid::Uuid::now_v7();
        let context = TraceContext::begin(request);
        assert_eq!(context.trace_id(), request.simple().to_string());
        let mut handed = HeaderMap::new();
        context.put(&mut handed);
        assert_eq!(TraceContext::read(&handed), Some(context));
        assert!(handed[TRACEPARENT].to_str().unwrap().ends_with("-00"));
    }
}
