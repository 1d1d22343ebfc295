//! Traces over several services, as W3C Trace Context spells them (<https://www.w3.org/TR/trace-context/>).
//!
//! The context goes along: from the caller through shim, router and worker to the provider. Where spans are made of
//! requests (`otlp`), each attempt goes on under its own span; else as it came.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::digest::{hex, unhex};

/// The number of a trace. Not all zeros.
pub type TraceId = [u8; 16];
/// The number of a span in its trace. Not all zeros.
pub type SpanId = [u8; 8];

/// Trace, parent and flags.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems add to it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a `traceparent` in the version that is known, `00-TRACE-PARENT-FLAGS`.
const LENGTH: usize = 55;

/// Longest `tracestate` that is handed on, in bytes: what everybody has to be able to take.
const STATE_AT_MOST: usize = 512;

/// Flags that are known: whether the trace is recorded, and whether its number is random. Others are not handed on by
/// whoever makes a context of his own.
const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

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
        Self::begin_in(request.into_bytes(), request)
    }

    /// The one of a request that brings none and names its trace otherwise.
    pub fn begin_in(trace: TraceId, request: uuid::Uuid) -> Self {
        Self::of(&hex(&trace), request_span(request), 0, None)
    }

    /// The same trace, for what a span does. Whether it is recorded has been decided.
    #[must_use]
    pub fn under(&self, span: SpanId, is_sampled: bool) -> Self {
        let flags = self.flags() & RANDOM | if is_sampled { SAMPLED } else { 0 };
        Self::of(self.trace_id(), span, flags, self.state.clone())
    }

    fn of(trace: &str, parent: SpanId, flags: u8, state: Option<HeaderValue>) -> Self {
        let text = format!("00-{trace}-{}-{flags:02x}", hex(&parent));
        Self { parent: HeaderValue::try_from(text).expect("digits are a value"), state }
    }

    /// The id of the trace, 32 digits.
    pub fn trace_id(&self) -> &str {
        self.part(3..35)
    }

    /// The id of the trace.
    pub fn trace(&self) -> TraceId {
        unhex(self.trace_id()).unwrap_or_default()
    }

    /// The span that the request is part of.
    pub fn parent(&self) -> SpanId {
        unhex(self.part(36..52)).unwrap_or_default()
    }

    /// Whether whoever sent it records the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags() & SAMPLED != 0
    }

    /// What tracing systems have added, as they write it.
    pub fn state(&self) -> &str {
        self.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default()
    }

    fn flags(&self) -> u8 {
        unhex(self.part(53..55)).map_or(0, |[flags]| flags)
    }

    fn part(&self, place: std::ops::Range<usize>) -> &str {
        self.parent.to_str().ok().and_then(|text| text.get(place)).unwrap_or_default()
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

/// The span of a request: the end of its number, of which two bits are always set and the rest is chance.
pub fn request_span(request: uuid::Uuid) -> SpanId {
    *request.into_bytes().last_chunk().expect("a number has more bytes")
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
    fn a_span_goes_on_in_the_same_trace_under_its_own_number() {
        let later = format!("cc{}7-what-there-will-be", &VALID[2..54]);
        let context =
            TraceContext::read(&headers(&[("traceparent", &later), ("tracestate", "a=1")])).unwrap();
        assert_eq!(context.parent(), [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert!(context.is_sampled());
        for (is_sampled, flags) in [(true, "03"), (false, "02")] {
            let mut handed = HeaderMap::new();
            context.under([0x11; 8], is_sampled).put(&mut handed);
            assert_eq!(handed[TRACEPARENT], format!("00-{}-1111111111111111-{flags}", &VALID[3..35]));
            assert_eq!(handed[TRACESTATE], "a=1");
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
