//! What a gateway did in a time: how requests ended, how long they took, what they cost, and who answered.
//!
//! Each sum is read from the requests of that time. Who answered comes after the page, so that a month is not waited for.

use axum::{
    extract::{Query, State},
    http::{HeaderMap, header, uri::Authority},
    response::{IntoResponse as _, Redirect, Response},
};
use futures::future::try_join;
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded;

use super::{
    Dashboard,
    chart::{Chart, Hue, Series, Shape},
    failure::Failure,
    layout::{self, Section},
    range::{Period, Range},
    session::Visitor,
};
use crate::{
    cli::{table::usd, times::short},
    config::callers::Scope,
    moment,
    pb::{GetUsageRequest, ListRequestsRequest, RequestFilter, UsageGroup, unix_now_ms},
    usage::total,
};

/// Providers and models that have a row of their own.
const ROWS: usize = 15;

/// Parts of requests that are told how long they took at most, and by what name.
const QUANTILES: [(&str, f64, Hue); 3] =
    [("p50", 0.5, Hue::Accent), ("p95", 0.95, Hue::Teal), ("p99", 0.99, Hue::Violet)];

/// Which time.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Time {
    range: String,
    /// Everything at once, whatever it says: for readers without script.
    whole: String,
}

/// `GET /`
pub async fn show(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Query(time): Query<Time>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    if !visitor.may_see(Scope::Logs)
        && let Some(first) = layout::first(&visitor)
    {
        return Ok(Redirect::to(first).into_response());
    }
    let range = Range::read(&time.range)?;
    let period = range.period(unix_now_ms());
    let asked = Asked { dashboard: &dashboard, visitor: &visitor };
    let parts = asked.usage(period, range.unit);
    let (parts, before) = try_join(parts, asked.usage(range.before(period), "")).await?;
    let parts = by_part(range, period, &parts);
    let body = html! {
        div class="head" { h1 { "Overview" } (range.links("/")) }
        @if parts.iter().any(|part| part.requests > 0) {
            (tiles(&total(&parts), &total(&before), range, period))
            (charts(&parts, range, period)?)
            @if time.whole.is_empty() {
                div data-load={ "/overview/answerers?range=" (time.range) } {
                    p { a href={ "/?whole=yes&range=" (time.range) } { "Providers and models" } }
                }
            } @else {
                (asked.answerers(period).await?)
            }
        } @else if asked.is_empty().await? {
            (first_steps(&dashboard, &visitor, &headers))
        } @else {
            p { "No request came in the last " (range.said()) "." }
            p { a href="/logs" { "The requests before" } }
        }
    };
    Ok(layout::page(Some(&visitor), Some(Section::Overview), "Overview", &body).into_response())
}

/// `GET /overview/answerers`: a part of the page.
pub async fn answerers(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Query(time): Query<Time>,
) -> Result<Markup, Failure> {
    let period = Range::read(&time.range)?.period(unix_now_ms());
    Asked { dashboard: &dashboard, visitor: &visitor }.answerers(period).await
}

/// Who asks for numbers.
struct Asked<'a> {
    dashboard: &'a Dashboard,
    visitor: &'a Visitor,
}

/// What answers from a cache would have cost.
#[derive(Debug, Default, PartialEq)]
struct Saved {
    usd: f64,
    /// Answers whose price nobody knows.
    unknown: u64,
}

impl Asked<'_> {
    async fn usage(&self, period: Period, group_by: &str) -> Result<Vec<UsageGroup>, Failure> {
        let filter = RequestFilter {
            from_unix_ms: Some(period.from_ms),
            until_unix_ms: Some(period.until_ms),
            ..Default::default()
        };
        let request = GetUsageRequest {
            filter: Some(filter),
            group_by: group_by.to_owned(),
            durations: true,
            ..Default::default()
        };
        Ok(self.dashboard.admin.get_usage(self.visitor.ask(request)).await?.into_inner().groups)
    }

    /// Who answered, and what caches saved.
    async fn answerers(&self, period: Period) -> Result<Markup, Failure> {
        let providers = self.usage(period, "provider");
        let (providers, models) = try_join(providers, self.usage(period, "model")).await?;
        let saved = saved(&models);
        Ok(html! {
            @if models.iter().any(|model| model.cache_hits > 0) {
                p {
                    "Answers from caches saved about " strong { (usd(Some(saved.usd), saved.unknown > 0)) }
                    ": what an answer of the same model cost on average, for each."
                }
            }
            (whom("Providers", "provider", &providers, period))
            (whom("Models", "model", &models, period))
        })
    }

    /// Whether there never was a request.
    async fn is_empty(&self) -> Result<bool, Failure> {
        let request = self.visitor.ask(ListRequestsRequest { page_size: 1, ..Default::default() });
        Ok(self.dashboard.admin.list_requests(request).await?.into_inner().requests.is_empty())
    }
}

/// A group for each part of a time, also where nothing was.
fn by_part(range: &Range, period: Period, groups: &[UsageGroup]) -> Vec<UsageGroup> {
    let of = |part: i64| groups.iter().find(|group| group.key.parse() == Ok(part));
    range.parts(period).map(|part| of(part).cloned().unwrap_or_default()).collect()
}

/// What answers from a cache would have cost if each had cost what an answer of its model did that was made: an estimate.
fn saved(models: &[UsageGroup]) -> Saved {
    let mut saved = Saved::default();
    for model in models.iter().filter(|model| model.cache_hits > 0) {
        let made = model.succeeded.saturating_sub(model.cache_hits);
        if made == 0 || model.cost_unknown > 0 {
            saved.unknown += model.cache_hits;
        } else {
            saved.usd += model.cost_usd / made as f64 * model.cache_hits as f64;
        }
    }
    saved
}

/// The requests of a time that are like that.
fn logs(period: Period, filters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("since", &moment::text(period.from_ms)).extend_pairs(filters);
    format!("/logs?{}", query.finish())
}

fn tiles(now: &UsageGroup, before: &UsageGroup, range: &Range, period: Period) -> Markup {
    let tile = |name: &str,
                value: &dyn Fn(&UsageGroup) -> String,
                filters: &[(&str, &str)],
                note: Option<String>| {
        html! {
            div {
                dt { a href=(logs(period, filters)) { (name) } }
                dd class="value" { (value(now)) }
                @if let Some(note) = note { dd { (note) } }
                dd class="faint" { "before: " @if before.requests > 0 { (value(before)) } @else { "none" } }
            }
        }
    };
    let share = |part: u64, of: &UsageGroup| format!("{part} ({})", percent(part, of.requests));
    let slow = format!("p95 {}, p99 {}", took(now, 0.95), took(now, 0.99));
    html! {
        dl class="tiles" {
            (tile("Requests", &|of| of.requests.to_string(), &[], Some(format!("{} images", now.images))))
            (tile("Answered", &|of| share(of.succeeded, of), &[("success", "true")], None))
            (tile("Failed", &|of| share(of.failed(), of), &[("success", "false")], None))
            (tile("Rescued by a fallback", &|of| share(of.rescued, of), &[("fallback", "true"), ("success", "true")], None))
            (tile("Refused by a target", &|of| share(of.refused, of), &[("refused", "true")], None))
            (tile("Answered from a cache", &|of| share(of.cache_hits, of), &[("cache_status", "hit")], None))
            (tile("Took: p50", &|of| took(of, 0.5), &[], Some(slow)))
            (tile("Cost", &cost, &[], None))
        }
        p class="hint" {
            "The last " (range.said()) ", since " (layout::time(period.from_ms, &range.text(period.from_ms)))
            " UTC; before: as long a time that ended " (range.said()) " ago. p95: 95 of 100 requests took no longer, to within 7 %."
        }
    }
}

fn charts(parts: &[UsageGroup], range: &Range, period: Period) -> Result<Markup, Failure> {
    let labels: Vec<Option<String>> = range.parts(period).map(|part| range.label(part)).collect();
    let part_names: Vec<String> = range.parts(period).map(|part| range.text(part)).collect();
    let series = |name, hue, value: &dyn Fn(&UsageGroup) -> Option<f64>| Series {
        name,
        hue,
        values: parts.iter().map(value).collect(),
    };
    let count =
        |name, hue, value: fn(&UsageGroup) -> u64| series(name, hue, &|part| Some(value(part) as f64));
    let most = |what: &str, value: &dyn Fn(&UsageGroup) -> f64, text: &dyn Fn(&UsageGroup) -> String| {
        let most = parts.iter().zip(&part_names).max_by(|(a, _), (b, _)| value(a).total_cmp(&value(b)));
        most.map_or_else(String::new, |(part, name)| {
            format!(
                "By the {}, in UTC. The most {what}: {}, at {name}. All numbers are in the table below.",
                range.unit,
                text(part)
            )
        })
    };
    let requests = Chart {
        id: "requests",
        title: "Requests",
        description: most("requests", &|part| part.requests as f64, &|part| part.requests.to_string()),
        shape: Shape::Bars,
        series: vec![
            count("answered", Hue::Accent, |part| part.succeeded.saturating_sub(part.rescued)),
            count("rescued by a fallback", Hue::Warning, |part| part.rescued),
            count("failed", Hue::Bad, UsageGroup::failed),
        ],
        labels: &labels,
        amount: whole,
        least: 1.0,
    };
    let durations = Chart {
        id: "durations",
        title: "How long they took",
        description: most("time", &|part| part.quantile_ms(0.99).unwrap_or_default() as f64, &|part| {
            took(part, 0.99)
        }),
        shape: Shape::Lines,
        series: QUANTILES
            .map(|(name, part, hue)| {
                series(name, hue, &|of| of.quantile_ms(part).map(|millis| millis as f64))
            })
            .into(),
        labels: &labels,
        amount: |millis| short(millis.round() as u64),
        least: 1.0,
    };
    let costs = Chart {
        id: "costs",
        title: "Cost, as far as it is known",
        description: most("money", &|part| part.cost_usd, &cost),
        shape: Shape::Bars,
        series: vec![series("cost", Hue::Accent, &|part| Some(part.cost_usd))],
        labels: &labels,
        amount: dollars,
        least: 0.0001,
    };
    Ok(html! {
        div class="charts" { (requests.draw()?) (durations.draw()?) (costs.draw()?) }
        details {
            summary { "The numbers by the " (range.unit) }
            table class="stacks" {
                caption { "Times are when the " (range.unit) " began, in UTC" }
                thead { tr { th scope="col" { "Time" } @for name in COLUMNS { th scope="col" class="number" { (name) } } } }
                tbody {
                    @for (name, part) in part_names.iter().zip(parts) { tr { th scope="row" { (name) } (cells(part)) } }
                }
            }
        }
    })
}

const COLUMNS: [&str; 9] =
    ["Requests", "Failed", "Rescued", "Refused", "From a cache", "p50", "p95", "p99", "Cost"];

fn cells(group: &UsageGroup) -> Markup {
    let [p50, p95, p99] = QUANTILES.map(|(_, part, _)| took(group, part));
    let [requests, failed, rescued, refused, hits] =
        [group.requests, group.failed(), group.rescued, group.refused, group.cache_hits]
            .map(|number| number.to_string());
    let values = [requests, failed, rescued, refused, hits, p50, p95, p99, cost(group)];
    html! { @for (name, value) in COLUMNS.iter().zip(values) { td class="number" data-name=(name) { (value) } } }
}

/// Who answered.
fn whom(title: &str, filter: &str, groups: &[UsageGroup], period: Period) -> Markup {
    let mut groups: Vec<&UsageGroup> = groups.iter().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.requests));
    let (shown, others) = groups.split_at(groups.len().min(ROWS));
    html! {
        h2 { (title) }
        table class="stacks" {
            caption { "By who answered, or failed last; money by who was paid" }
            thead { tr { th scope="col" { (title.trim_end_matches('s')) } @for name in COLUMNS { th scope="col" class="number" { (name) } } } }
            tbody {
                @for group in shown {
                    tr {
                        th scope="row" {
                            @if group.key.is_empty() { span class="faint" { "nobody" } }
                            @else { a href=(logs(period, &[(filter, &group.key)])) { (group.key) } }
                        }
                        (cells(group))
                    }
                }
                @if !others.is_empty() {
                    tr { th scope="row" class="faint" { (others.len()) " others" } (cells(&total(others.iter().copied()))) }
                }
            }
        }
    }
}

/// What to do where nothing was done yet.
fn first_steps(dashboard: &Dashboard, visitor: &Visitor, headers: &HeaderMap) -> Markup {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let host = host.as_ref().map_or("127.0.0.1", Authority::host);
    let key = visitor.name().map_or("", |_| "  -H 'authorization: Bearer YOUR-API-KEY' \\\n");
    html! {
        p { "No request has come yet. Make an image:" }
        @if let Some(http) = dashboard.http {
            pre class="command" {
                code {
                    "curl http://" (host) ":" (http.port()) "/v1/images/generations \\\n" (key)
                    "  -H 'content-type: application/json' \\\n  -d '{\"prompt\": \"a lighthouse at dusk\"}'"
                }
            }
            p class="hint" { "Where there is no default config, " code { "-H 'x-portkey-config: ID'" } " names one." }
        } @else {
            pre class="command" { code { "imagegate generate \"a lighthouse at dusk\"" } }
        }
        p { "It is here then, and in the " a href="/logs" { "logs" } "." }
    }
}

fn took(group: &UsageGroup, part: f64) -> String {
    group.quantile_ms(part).map_or_else(|| "-".to_owned(), short)
}

fn cost(group: &UsageGroup) -> String {
    usd(Some(group.cost_usd), group.cost_unknown > 0)
}

fn percent(part: u64, of: u64) -> String {
    let percent = part as f64 * 100.0 / of.max(1) as f64;
    // What is not all, or not nothing, is never told as that.
    match percent {
        _ if part == of || part == 0 => format!("{percent:.0} %"),
        99.95.. => "> 99.9 %".to_owned(),
        ..0.05 => "< 0.1 %".to_owned(),
        _ => format!("{percent:.1} %"),
    }
}

/// A count on a line of a chart.
fn whole(count: f64) -> String {
    match count {
        1e6.. => format!("{}M", count / 1e6),
        1e4.. => format!("{}k", count / 1e3),
        _ => count.to_string(),
    }
}

/// An amount on a line of a chart.
fn dollars(usd: f64) -> String {
    match usd {
        1e4.. => format!("${}k", usd / 1e3),
        1.0.. | ..=0.0 => format!("${usd:.0}"),
        0.01.. => format!("${usd:.2}"),
        _ => format!("${usd:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cache_saved_is_what_the_model_costs_otherwise() {
        let model = |succeeded, cache_hits, cost_usd, cost_unknown| UsageGroup {
            succeeded,
            cache_hits,
            cost_usd,
            cost_unknown,
            ..Default::default()
        };
        let is_near = |saved: &Saved, usd: f64| (saved.usd - usd).abs() < 1e-9;
        let known = saved(&[model(10, 5, 0.2, 0), model(3, 0, 9.0, 0), model(4, 2, 0.0, 0)]);
        assert!(is_near(&known, 0.2) && known.unknown == 0, "{known:?}");
        let partly = saved(&[model(10, 5, 0.2, 0), model(7, 7, 0.0, 0), model(9, 1, 0.5, 2)]);
        assert!(is_near(&partly, 0.2) && partly.unknown == 8, "{partly:?}");
    }

    #[test]
    fn a_share_that_is_not_all_is_not_called_all() {
        assert_eq!(
            [(0, 0), (0, 7), (7, 7), (1, 3), (99_999, 100_000), (1, 100_000)]
                .map(|(part, of)| percent(part, of)),
            ["0 %", "0 %", "100 %", "33.3 %", "> 99.9 %", "< 0.1 %"]
        );
    }

    #[test]
    fn amounts_on_charts_are_short() {
        assert_eq!([0.0, 20.0, 15_000.0, 2_000_000.0].map(whole), ["0", "20", "15k", "2M"]);
        assert_eq!(
            [0.0, 0.0005, 0.05, 20.0, 15_000.0].map(dollars),
            ["$0", "$0.0005", "$0.05", "$20", "$15k"]
        );
    }

    #[test]
    fn every_part_of_a_time_has_a_group() {
        let range = Range::read("1h").unwrap();
        let period = range.period(90_000_000_000);
        let at = range.parts(period).nth(58).unwrap();
        let groups = [UsageGroup { key: at.to_string(), requests: 3, ..Default::default() }];
        let parts = by_part(range, period, &groups);
        let counts: Vec<u64> = parts.iter().map(|part| part.requests).collect();
        assert_eq!((counts.len(), counts[58], counts.iter().sum::<u64>()), (60, 3, 3));
    }
}
