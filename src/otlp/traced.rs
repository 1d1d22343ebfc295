//! One request of which spans may be made: its place in its trace, and what its spans are called.

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderMap;
use uuid::Uuid;

use super::{
    Exporter,
    attributes::{PARENT_SPAN_ID, SPAN_ID},
    meters::ProviderCall,
    spans::{self, Ended},
};
use crate::{
    config::otlp::Sampling,
    digest::{Framed, scramble, unhex},
    error::{Error, ErrorKind},
    pb::{Attempt, ImageRequest},
    router,
    trace::{SpanId, TraceContext, TraceId, request_span},
};

/// The reference's headers.
const SPAN_ID_HEADER: &str = "x-portkey-span-id";
const PARENT_SPAN_ID_HEADER: &str = "x-portkey-parent-span-id";
const SPAN_NAME_HEADER: &str = "x-portkey-span-name";

/// Longest text that a caller may add to spans, in characters.
const TEXT_CHARS: usize = 256;

/// A request's place in its trace.
pub struct Traced {
    exporter: Arc<Exporter>,
    request: Uuid,
    /// The caller's, or one that begins here.
    context: TraceContext,
    /// Of the request.
    pub(super) span: SpanId,
    /// What the request is part of, if anything.
    pub(super) parent: Option<SpanId>,
    is_sampled: bool,
    /// What the caller calls the span.
    pub(super) name: Option<String>,
    /// What the caller calls spans and is no id here.
    pub(super) references: Vec<(&'static str, String)>,
}

impl Traced {
    /// A request begins. `context` is what it came with.
    ///
    /// The reference's ids are taken where they are ones of W3C's, and no `traceparent` says otherwise.
    pub fn begin(
        exporter: &Arc<Exporter>,
        headers: &HeaderMap,
        request: Uuid,
        context: Option<&TraceContext>,
    ) -> Self {
        let (span_text, parent_text) = (text(headers, SPAN_ID_HEADER), text(headers, PARENT_SPAN_ID_HEADER));
        let own = span_text.and_then(span_id);
        let parent = match context {
            Some(context) => Some(context.parent()),
            None => parent_text.and_then(span_id),
        };
        let references = [(SPAN_ID, span_text, own), (PARENT_SPAN_ID, parent_text, parent)];
        let references = references.into_iter().filter_map(|(name, text, used)| {
            let is_used = used.is_some() && text.and_then(span_id) == used;
            Some((name, shortened(text.filter(|_| !is_used)?)))
        });
        let decided = context.map(TraceContext::is_sampled);
        let context = context.cloned().unwrap_or_else(|| {
            let named = text(headers, router::TRACE_ID).and_then(trace_id);
            named.map_or_else(|| TraceContext::begin(request), |trace| TraceContext::begin_in(trace, request))
        });
        Self {
            is_sampled: exporter.sampling.is_sampled(&context.trace(), decided),
            exporter: Arc::clone(exporter),
            request,
            span: own.unwrap_or_else(|| request_span(request)),
            parent,
            name: text(headers, SPAN_NAME_HEADER).map(shortened),
            references: references.collect(),
            context,
        }
    }

    /// What the request is part of.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// What goes along with the call of an attempt: its span is the parent of whatever follows.
    pub fn attempt(&self, number: u32) -> TraceContext {
        self.context.under(self.attempt_span(number), self.is_sampled)
    }

    /// The span of an attempt, the same each time.
    pub(super) fn attempt_span(&self, number: u32) -> SpanId {
        let digest = [&self.request.as_bytes()[..], &number.to_be_bytes()].into_iter().collect::<Framed>();
        let mut span: SpanId = *digest.finish().first_chunk().expect("a digest has more bytes");
        // All zeros are no id.
        span[0] |= u8::from(span == SpanId::default());
        span
    }

    /// Whether spans have prompts.
    pub(super) fn shows_prompts(&self) -> bool {
        self.exporter.prompts
    }

    /// A provider call ended.
    pub fn called(&self, call: &ProviderCall<'_>) {
        if let Some(meters) = self.exporter.meters() {
            meters.called(call);
        }
    }

    /// The request ended.
    pub fn end(&self, ended: &Ended<'_>) {
        if self.is_sampled {
            let calls = ended.report.attempts.iter().filter(|attempt| Attempt::is_call(attempt)).count();
            self.exporter.queue.put(1 + calls, || spans::of(self, ended));
        }
    }

    /// The request was refused before anything was tried. Whoever has no valid key leaves no trace.
    pub fn refuse(&self, image: &ImageRequest, trace_id: &str, error: &Error, duration: Duration) {
        if self.is_sampled && error.kind != ErrorKind::Unauthenticated {
            let request_id = self.request.to_string();
            let span = || vec![spans::of_refused(self, image, (&request_id, trace_id), error, duration)];
            self.exporter.queue.put(1, span);
        }
    }
}

impl Sampling {
    /// Whether a trace is recorded, of which somebody else may have decided it.
    fn is_sampled(self, trace: &TraceId, decided: Option<bool>) -> bool {
        match decided.filter(|_| self.follows_parent) {
            Some(decided) => decided,
            // The same at every router for the same trace. Numbers that begin here in the same millisecond count on from
            // each other, so none of their bits is chance by itself.
            None => {
                let end = u64::from_be_bytes(*trace.last_chunk().expect("an id has more bytes"));
                let chance = (scramble(end) >> 11) as f64 / (1_u64 << 53) as f64;
                chance < self.ratio
            }
        }
    }
}

/// What a header says, if anything.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARS).collect()
}

fn span_id(text: &str) -> Option<SpanId> {
    unhex(text).filter(|id| *id != SpanId::default())
}

/// 32 digits, or a UUID.
fn trace_id(text: &str) -> Option<TraceId> {
    Uuid::try_parse(text).ok().map(Uuid::into_bytes).filter(|id| *id != TraceId::default())
}

impl fmt::Debug for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traced")
            .field("context", &self.context)
            .field("is_sampled", &self.is_sampled)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_traces_is_recorded_also_of_those_that_begin_here() {
        let share = |ratio| {
            let sampling = Sampling { ratio, follows_parent: true };
            let ids = std::iter::repeat_with(|| *Uuid::now_v7().as_bytes());
            ids.take(10_000).filter(|trace| sampling.is_sampled(trace, None)).count()
        };
        assert_eq!((share(0.0), share(1.0)), (0, 10_000));
        // Six standard deviations around a quarter.
        assert!((2240..=2760).contains(&share(0.25)), "{}", share(0.25));
    }

    #[test]
    fn whoever_began_a_trace_has_decided_unless_that_is_not_wanted() {
        let trace = *Uuid::now_v7().as_bytes();
        for (ratio, follows_parent, decided, expected) in [
            (0.0, true, true, true),
            (1.0, true, false, false),
            (0.0, false, true, false),
            (1.0, false, false, true),
        ] {
            assert_eq!(Sampling { ratio, follows_parent }.is_sampled(&trace, Some(decided)), expected);
        }
    }

    #[test]
    fn ids_of_others_are_taken_where_they_are_ids() {
        assert_eq!(span_id("00f067aa0ba902b7"), Some([0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
        for text in ["0000000000000000", "00f067aa0ba902b", "00f067aa0ba902b7f", "hero", "00f067aa0ba902bé"]
        {
            assert_eq!(span_id(text), None, "{text}");
        }
        let id = Uuid::now_v7();
        for text in [id.simple().to_string(), id.to_string()] {
            assert_eq!(trace_id(&text), Some(id.into_bytes()));
        }
        for text in ["my trace", "00000000000000000000000000000000", "4bf92f3577b34da6"] {
            assert_eq!(trace_id(text), None, "{text}");
        }
    }
}
