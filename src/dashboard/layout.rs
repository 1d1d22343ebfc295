//! What every page has around it, and the pieces that several pages have.

use maud::{DOCTYPE, Markup, html};

use super::{assets, session::Visitor};
use crate::{config::callers::Scope, error::Error, moment};

/// A place in the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// What the gateway did.
    Overview,
    /// The request log.
    Logs,
    /// How targets stand.
    Targets,
    /// Requests made by hand.
    Playground,
    /// Saved configs.
    Configs,
    /// Virtual keys and API keys.
    Keys,
}

const SECTIONS: [(Section, &str, &str); 6] = [
    (Section::Overview, "Overview", "/"),
    (Section::Logs, "Logs", "/logs"),
    (Section::Targets, "Targets", "/targets"),
    (Section::Playground, "Playground", "/playground"),
    (Section::Configs, "Configs", "/configs"),
    (Section::Keys, "Keys", "/keys"),
];

impl Section {
    fn is_for(self, visitor: &Visitor) -> bool {
        match self {
            Self::Configs => visitor.may_see(Scope::Configs),
            Self::Playground => visitor.may(Scope::Generate),
            Self::Overview | Self::Logs | Self::Targets => visitor.may_see(Scope::Logs),
            Self::Keys => visitor.may_see(Scope::Keys),
        }
    }
}

/// Where the first section is that a visitor may see.
pub fn first(visitor: &Visitor) -> Option<&'static str> {
    SECTIONS.iter().find(|(section, ..)| section.is_for(visitor)).map(|(.., address)| *address)
}

/// A whole page. Without a visitor there is no navigation.
pub fn page(visitor: Option<&Visitor>, section: Option<Section>, title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · imagegate" }
                link rel="icon" href=(assets::address("icon.svg")) type="image/svg+xml";
                link rel="stylesheet" href=(assets::address("style.css"));
                script src=(assets::address("script.js")) defer {}
            }
            body {
                a class="skip" href="#main" { "Skip to the content" }
                header {
                    a class="brand" href="/" { "imagegate" }
                    @if let Some(visitor) = visitor { (navigation(visitor, section)) }
                }
                main id="main" tabindex="-1" { (body) }
            }
        }
    }
}

fn navigation(visitor: &Visitor, section: Option<Section>) -> Markup {
    html! {
        nav aria-label="Pages" {
            @for (other, name, address) in SECTIONS.iter().filter(|(section, ..)| section.is_for(visitor)) {
                a href=(address) aria-current=[(Some(*other) == section).then_some("page")] { (name) }
            }
        }
        div class="visitor" {
            button type="button" class="quiet" data-theme-switch { "Theme" }
            @if let Some(name) = visitor.name() {
                span { (name) }
                form method="post" action="/sign-out" { button class="quiet" { "Sign out" } }
            }
        }
    }
}

/// What is wrong, with every part of it.
pub fn problem(error: &Error) -> Markup {
    html! {
        div class="problem" role="alert" {
            p { (error.message) }
            @if !error.violations.is_empty() {
                ul {
                    @for violation in &error.violations {
                        li { code { (violation.path) } ": " (violation.message) }
                    }
                }
            }
        }
    }
}

/// A moment, which the script also tells in the reader's own time.
pub fn time(unix_ms: i64, shown: &str) -> Markup {
    html! { time datetime=(moment::text(unix_ms)) { (shown) } }
}

/// A list of names and values; those without a value are left out.
pub fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl class="facts" {
            @for (name, value) in facts.iter().filter(|(_, value)| !value.0.is_empty()) {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// A field of a form, of one line.
pub fn field(name: &str, label: &str, value: &str, hint: &str) -> Markup {
    html! {
        label { span { (label) } input name=(name) value=(value) placeholder=(hint) autocomplete="off"; }
    }
}

/// A table that may be wider than the page.
pub fn scroll(label: &str, table: &Markup) -> Markup {
    html! { div class="scroll" role="region" aria-label=(label) tabindex="0" { (table) } }
}

/// A text as it is.
pub fn text(text: &str) -> Markup {
    html! { (text) }
}
