//! The versions of a config: which there are, what changed, and the way back.

use axum::{
    Form,
    extract::{Path, Query, State},
    response::{IntoResponse as _, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded;

use super::{
    editor::{self, Draft, Outcome},
    found, versions,
};
use crate::{
    cli::{configs::diff, times::date},
    dashboard::{
        Dashboard,
        failure::Failure,
        layout::{self, Section},
        session::Visitor,
    },
    pb::{ConfigVersion, SavedConfig, UpdateConfigRequest},
};

/// Which version to go back to.
#[derive(Debug, Deserialize)]
pub struct Back {
    version: u32,
}

/// Which versions are compared; by default the newest with the one before.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pair {
    from: u32,
    to: u32,
}

/// `POST /configs/{slug}/rollback`: saves the content of an older version anew. One that is not valid any more is refused.
pub async fn roll_back(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(slug): Path<String>,
    Form(Back { version }): Form<Back>,
) -> Result<Response, Failure> {
    let request =
        UpdateConfigRequest { slug: slug.clone(), rollback_to: Some(version), ..Default::default() };
    match dashboard.admin.update_config(visitor.ask(request)).await {
        Ok(_) => Ok(editor::saved(&slug)),
        Err(status) => {
            let outcome = Outcome::refused(Failure::from(status).error());
            let config = found(&dashboard, &visitor, &slug, 0).await?;
            editor::page(&dashboard, &visitor, Some(&config), &Draft::of(&config), outcome).await
        }
    }
}

/// `GET /configs/{slug}/diff`
pub async fn differences(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(slug): Path<String>,
    Query(pair): Query<Pair>,
) -> Result<Response, Failure> {
    let listed = versions(&dashboard, &visitor, &slug).await?;
    let newest = listed.first().map_or(1, |version| version.version);
    let to = if pair.to == 0 { newest } else { pair.to };
    let from = if pair.from == 0 { to.saturating_sub(1).max(1) } else { pair.from };
    let before = found(&dashboard, &visitor, &slug, from).await?;
    let after = found(&dashboard, &visitor, &slug, to).await?;
    let names = [from, to].map(|version| format!("version {version}"));
    let choice = |name: &str, label: &str, chosen: u32| {
        html! {
            label {
                span { (label) }
                select name=(name) {
                    @for version in &listed {
                        option value=(version.version) selected[version.version == chosen] { "version " (version.version) }
                    }
                }
            }
        }
    };
    let body = html! {
        h1 { (after.name) ": what changed" }
        p { a href={ "/configs/" (slug) } { "Back to the config" } }
        form method="get" class="filter" aria-label="Versions" {
            (choice("from", "From", from))
            (choice("to", "To", to))
            div class="actions" { button { "Compare" } }
        }
        (shown(&diff(&names, &before.config_json, &after.config_json)))
    };
    Ok(layout::page(Some(&visitor), Some(Section::Configs), "What changed", &body).into_response())
}

/// A unified diff, line by line.
pub fn shown(diff: &str) -> Markup {
    html! {
        @if diff.is_empty() { p class="faint" { "Their content is the same." } }
        @else {
            pre class="diff scroll" tabindex="0" role="region" aria-label="Differences" {
                @for line in diff.lines() { span class=(kind(line)) { (line) } "\n" }
            }
        }
    }
}

fn kind(line: &str) -> &'static str {
    match line.as_bytes() {
        [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] | [b'@', ..] => "place",
        [b'+', ..] => "added",
        [b'-', ..] => "removed",
        _ => "same",
    }
}

/// Says that this is not the config as it is now.
pub fn old(config: &SavedConfig, newest: u32, may_change: bool) -> Markup {
    let SavedConfig { slug, version, .. } = config;
    html! {
        div class="notice" {
            p {
                "This is version " (version) ". In force is " a href={ "/configs/" (slug) } { "version " (newest) } ": "
                a href={ "/configs/" (slug) "/diff?from=" (version) "&to=" (newest) } { "what changed since" }
            }
            @if may_change { (back(slug, *version)) }
        }
    }
}

/// All versions, the newest first.
pub fn list(slug: &str, versions: &[ConfigVersion], may_change: bool) -> Markup {
    let moment = |ms: Option<i64>| html! { @if let Some(ms) = ms { (layout::time(ms, &date(ms))) } };
    let table = html! {
        table {
            thead {
                tr {
                    th scope="col" { "Version" }
                    th scope="col" { "Saved" }
                    th scope="col" { "By" }
                    th scope="col" class="number" { "Requests" }
                    th scope="col" { "First used" }
                    th scope="col" { "Last used" }
                    th scope="col" { "Changes" }
                    @if may_change { th scope="col" { "The way back" } }
                }
            }
            tbody {
                @for (i, version) in versions.iter().enumerate() {
                    @let number = version.version;
                    tr {
                        th scope="row" { a href={ "/configs/" (slug) "?version=" (number) } { "version " (number) } }
                        td { (moment(Some(version.created_unix_ms))) }
                        td { (version.created_by) }
                        td class="number" { (requests(slug, version)) }
                        td { (moment(version.first_request_unix_ms)) }
                        td { (moment(version.last_request_unix_ms)) }
                        td {
                            @if number > 1 {
                                a href={ "/configs/" (slug) "/diff?from=" (number - 1) "&to=" (number) } { "since " (number - 1) }
                            }
                        }
                        @if may_change { td { @if i > 0 { (back(slug, number)) } } }
                    }
                }
            }
        }
    };
    html! { h2 { "Versions" } (layout::scroll("Versions", &table)) }
}

fn requests(slug: &str, version: &ConfigVersion) -> Markup {
    let number = version.version.to_string();
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("config", slug)
        .append_pair("version", &number)
        .finish();
    html! {
        @if version.requests == 0 { "0" }
        @else { a href={ "/logs?" (query) } { (version.requests) } }
    }
}

fn back(slug: &str, version: u32) -> Markup {
    let question = format!(
        "Roll back to version {version}? Its content is saved as a new version and is in force at once."
    );
    html! {
        form method="post" action={ "/configs/" (slug) "/rollback" } data-confirm=(question) {
            button class="quiet" name="version" value=(version) { "Roll back to " (version) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_by_more_than_its_colour() {
        let names = ["version 1".to_owned(), "version 2".to_owned()];
        let drawn = shown(&diff(&names, r#"{"model":"<a>"}"#, r#"{"model":"b"}"#)).0;
        assert!(
            drawn.contains(r#"<span class="removed">-  &quot;model&quot;: &quot;&lt;a&gt;&quot;</span>"#),
            "{drawn}"
        );
        assert!(
            drawn.contains(r#"<span class="added">+  &quot;model&quot;: &quot;b&quot;</span>"#),
            "{drawn}"
        );
        assert!(drawn.contains(r#"<span class="place">+++ version 2</span>"#), "{drawn}");
        assert!(shown("").0.contains("the same"));
    }

    #[test]
    fn only_older_versions_are_gone_back_to() {
        let version = |version| ConfigVersion { version, requests: 3, ..Default::default() };
        let shown = list("pc-a", &[version(2), version(1)], true).0;
        assert!(shown.contains("Roll back to 1") && !shown.contains("Roll back to 2"), "{shown}");
        assert!(shown.contains(r#"href="/logs?config=pc-a&amp;version=2""#), "{shown}");
        assert!(!list("pc-a", &[version(2), version(1)], false).0.contains("Roll back"));
    }
}
