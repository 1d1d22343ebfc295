//! What came of requests: a column each.

use std::time::Duration;

use maud::{Markup, html};

use super::{plan::warnings, run::Column};
use crate::{
    cli::{table::usd, times::short},
    dashboard::{
        layout::{self, facts, text},
        logs::answered_by,
        waterfall,
    },
    error::Error,
    pb::{ImageResult, RequestRecord, RouteReport},
    route::cost,
};

/// What is said of every answer to this visitor.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// The visitor may see the request log.
    pub links_to_log: bool,
}

impl Answers {
    /// Columns beside each other, each with what came of it until now.
    pub fn columns(self, columns: &[Column], inside: impl Fn(usize) -> Markup) -> Markup {
        html! {
            div class={ "columns" @if columns.len() > 1 { " several" } } {
                @for (i, column) in columns.iter().enumerate() {
                    section class="column" data-column=(i) {
                        @if column.title.is_empty() { h2 { "Answer" } }
                        @else { h2 { (column.title) " " code class="faint" { (column.target) } } }
                        (inside(i))
                    }
                }
            }
        }
    }

    /// A column of which nothing is known yet. The script fills it.
    pub fn waiting() -> Markup {
        html! {
            p class="state" { span data-state role="status" { "asked" } " " span class="faint" data-elapsed {} }
            progress max="1" aria-label="Progress" {}
            ul class="pictures" data-previews {}
            div data-outcome {}
        }
    }

    /// A finished request. `source` says where each image is; none: the script puts it in.
    pub fn answered(
        self,
        result: &ImageResult,
        took: Duration,
        source: impl Fn(usize) -> Option<String>,
    ) -> Markup {
        let record = record(result.report.clone().unwrap_or_default(), took);
        let report = record.report.clone().unwrap_or_default();
        let count = result.images.len();
        html! {
            ul class="pictures" {
                @for (i, image) in result.images.iter().enumerate() {
                    li {
                        img data-image=(i) data-type=(image.format().mime_type()) src=[source(i)]
                            alt={ "image " (i + 1) " of " (count) };
                        p {
                            (image.format().name()) " " (image.width) "×" (image.height)
                            @if let Some(seed) = image.seed { ", seed " (seed) }
                        }
                        @if !image.revised_prompt.is_empty() { p { "The provider's prompt: " (image.revised_prompt) } }
                    }
                }
            }
            (facts(&[
                ("Answered by", answered_by(&record)),
                ("Took", text(&short(record.duration_ms))),
                ("Cost", text(&usd(record.cost_usd, record.cost_unknown))),
                ("Cache", text(report.cache_status().name().unwrap_or_default())),
            ]))
            (warnings(&report.warnings))
            (self.attempts(&record))
        }
    }

    /// A request that nobody answered.
    pub fn failed(self, error: &Error, took: Duration) -> Markup {
        let record = record(error.report.as_deref().cloned().unwrap_or_default(), took);
        let cost = if record.calls > 0 { usd(record.cost_usd, record.cost_unknown) } else { String::new() };
        html! {
            (layout::problem(error))
            (facts(&[("Took", text(&short(record.duration_ms))), ("Cost", text(&cost))]))
            (self.attempts(&record))
        }
    }

    fn attempts(self, record: &RequestRecord) -> Markup {
        html! {
            @if record.report.as_ref().is_some_and(|report| !report.attempts.is_empty()) { (waterfall::draw(record)) }
            @if self.links_to_log && !record.id.is_empty() {
                p { a href={ "/logs/" (record.id) } { "This request in the log" } }
            }
        }
    }
}

/// As much of the log's record as is known at once.
fn record(report: RouteReport, took: Duration) -> RequestRecord {
    let (cost_usd, cost_unknown) = cost::sum(&report.cost_lines);
    RequestRecord {
        id: report.request_id.clone(),
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        provider: report.provider.clone(),
        model: report.model.clone(),
        calls: u32::try_from(report.attempts.iter().filter(|attempt| attempt.is_call()).count())
            .unwrap_or(u32::MAX),
        cost_usd,
        cost_unknown,
        report: Some(report),
        ..Default::default()
    }
}
