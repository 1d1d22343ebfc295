//! Which requests a page is about, as its address says.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::layout;
use crate::{
    cli::{filter::pair, times::When},
    error::{Error, Result},
    pb::{RequestFilter, unix_now_ms},
};

/// The filters of an address, by the names that `imagegate logs` has for them. What is empty is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Filter {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub until: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub provider: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub config: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub caller: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub virtual_key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub success: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fallback: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub refused: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub min_cost_usd: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub max_cost_usd: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cache_status: String,
}

impl Filter {
    /// For the router, with lengths of time taken from now.
    ///
    /// # Errors
    /// A value that means nothing.
    pub fn to_message(&self) -> Result<RequestFilter> {
        let now = unix_now_ms();
        let moment =
            |field, text| read(field, text, str::parse::<When>).map(|when| when.map(|when| when.ago(now)));
        let yes_or_no = |field, text| read(field, text, yes_or_no);
        let number = |text: &str| text.parse().map_err(|_| "not a number".to_owned());
        let version = |text: &str| text.parse().map_err(|_| "not the number of a version".to_owned());
        Ok(RequestFilter {
            from_unix_ms: moment("since", &self.since)?,
            until_unix_ms: moment("until", &self.until)?,
            provider: text(&self.provider),
            model: text(&self.model),
            config: text(&self.config),
            config_version: read("version", &self.version, version)?.unwrap_or_default(),
            caller: text(&self.caller),
            virtual_key: text(&self.virtual_key),
            statuses: read("status", &self.status, statuses)?.unwrap_or_default(),
            success: yes_or_no("success", &self.success)?,
            fallback: yes_or_no("fallback", &self.fallback)?,
            refused: yes_or_no("refused", &self.refused)?,
            trace_id: text(&self.trace_id),
            metadata: read("metadata", &self.metadata, pair)?.into_iter().collect(),
            min_cost_usd: read("min_cost_usd", &self.min_cost_usd, number)?,
            max_cost_usd: read("max_cost_usd", &self.max_cost_usd, number)?,
            cache_status: text(&self.cache_status),
        })
    }

    /// As the part of an address behind `?`; empty if nothing is asked for.
    pub fn to_query(&self) -> String {
        serde_urlencoded::to_string(self).unwrap_or_default()
    }

    /// A form that asks for it.
    pub fn form(&self, action: &str) -> Markup {
        let choice = |name: &str, label: &str, value: &str, choices: &[(&str, &str)]| {
            html! {
                label {
                    span { (label) }
                    select name=(name) {
                        @for (choice, shown) in choices {
                            option value=(choice) selected[*choice == value] { (shown) }
                        }
                        // One that was written into the address.
                        @if !choices.iter().any(|(choice, _)| *choice == value) {
                            option value=(value) selected { (value) }
                        }
                    }
                }
            }
        };
        let sides = |yes, no| [("", "any"), ("true", yes), ("false", no)];
        html! {
            form class="filter" method="get" action=(action) role="search" aria-label="Filter" {
                (choice("since", "Since", &self.since, &SINCE))
                (choice("success", "Outcome", &self.success, &sides("answered", "failed")))
                (choice("fallback", "Fallback", &self.fallback, &sides("yes", "no")))
                (choice("refused", "Refused by a target", &self.refused, &sides("yes", "no")))
                (layout::field("provider", "Provider", &self.provider, "openai"))
                (layout::field("model", "Model", &self.model, "dall-e-3"))
                details open[self.has_more()] {
                    summary { "More" }
                    (layout::field("config", "Config", &self.config, "pc-hero"))
                    (layout::field("version", "Version of it", &self.version, "3"))
                    (layout::field("status", "HTTP status", &self.status, "429,503"))
                    (layout::field("caller", "API key (id)", &self.caller, ""))
                    (layout::field("virtual_key", "Virtual key", &self.virtual_key, ""))
                    (layout::field("trace_id", "Trace", &self.trace_id, ""))
                    (layout::field("metadata", "Metadata", &self.metadata, "team=growth"))
                    (layout::field("min_cost_usd", "Costs at least", &self.min_cost_usd, "0.04"))
                    (layout::field("max_cost_usd", "Costs at most", &self.max_cost_usd, "0.20"))
                    (choice("cache_status", "Cache", &self.cache_status, &CACHE))
                    (layout::field("until", "Until", &self.until, "2026-11-27"))
                }
                div class="actions" {
                    button { "Filter" }
                    @if *self != Self::default() { a href=(action) { "Clear" } }
                }
            }
        }
    }

    fn has_more(&self) -> bool {
        let first = Self {
            since: self.since.clone(),
            success: self.success.clone(),
            fallback: self.fallback.clone(),
            refused: self.refused.clone(),
            provider: self.provider.clone(),
            model: self.model.clone(),
            ..Self::default()
        };
        *self != first
    }
}

const SINCE: [(&str, &str); 6] = [
    ("", "the beginning"),
    ("15m", "15 minutes ago"),
    ("1h", "an hour ago"),
    ("24h", "a day ago"),
    ("7d", "a week ago"),
    ("30d", "30 days ago"),
];

const CACHE: [(&str, &str); 6] = [
    ("", "any"),
    ("hit", "hit"),
    ("miss", "miss"),
    ("refresh", "refresh"),
    ("semantic_hit", "semantic hit"),
    ("semantic_miss", "semantic miss"),
];

fn text(text: &str) -> String {
    text.trim().to_owned()
}

/// A value, unless it is empty.
///
/// # Errors
/// It means nothing.
pub fn read<T>(field: &str, text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |reason: String| Error::invalid(field, format!("{field}: '{text}' is not allowed: {reason}"));
    read(text).map(Some).map_err(wrong)
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "write true or false".to_owned())
}

fn statuses(text: &str) -> Result<Vec<u32>, String> {
    let status =
        |text: &str| text.trim().parse().map_err(|_| "write HTTP statuses such as 429,503".to_owned());
    text.split(',').map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(query: &str) -> Filter {
        serde_urlencoded::from_str(query).unwrap()
    }

    #[test]
    fn an_address_says_which_requests() {
        let query = "provider=openai&status=429%2C+503&success=false&metadata=team%3Da%3Db&min_cost_usd=0.5&version=3";
        let message = filter(query).to_message().unwrap();
        assert_eq!((message.provider.as_str(), message.config_version), ("openai", 3));
        assert_eq!((message.statuses, message.success), (vec![429, 503], Some(false)));
        assert_eq!((&*message.metadata["team"], message.min_cost_usd), ("a=b", Some(0.5)));
        assert_eq!(filter("fallback=&model=+").to_message().unwrap(), RequestFilter::default());
        let since = filter("since=1h").to_message().unwrap().from_unix_ms.unwrap();
        assert!((unix_now_ms() - 3_600_000 - since).abs() < 60_000);
    }

    #[test]
    fn a_value_that_means_nothing_is_named() {
        for (query, field) in [
            ("since=yesterday", "since"),
            ("status=many", "status"),
            ("fallback=maybe", "fallback"),
            ("metadata=x", "metadata"),
            ("min_cost_usd=cheap", "min_cost_usd"),
            ("version=-1", "version"),
        ] {
            let error = filter(query).to_message().unwrap_err();
            assert_eq!(error.param.as_deref(), Some(field), "{query}");
            assert!(error.message.starts_with(field), "{}", error.message);
        }
    }

    #[test]
    fn an_address_is_made_of_what_is_asked_for() {
        let asked = Filter { provider: "a&b".into(), fallback: "true".into(), ..Filter::default() };
        assert_eq!(asked.to_query(), "provider=a%26b&fallback=true");
        assert_eq!(filter(&asked.to_query()), asked);
        assert_eq!(Filter::default().to_query(), "");
    }
}
