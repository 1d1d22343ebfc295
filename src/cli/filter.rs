//! Which requests of the log `logs` and `usage` are about.

use super::times::When;
use crate::pb::{RequestFilter, unix_now_ms};

/// Every filter that is given has to hold
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters", disable_version_flag = true)]
pub struct FilterArgs {
    /// From then on: 7d, 2026-11-27, 2026-11-27T10:30:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<When>,

    /// Before then
    #[arg(long, value_name = "TIME")]
    until: Option<When>,

    /// Of the target that answered, or failed last
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,

    /// Of the same target
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Slug of a saved config, `inline` or `request`
    #[arg(long, value_name = "SLUG")]
    config: Option<String>,

    /// Version of that config
    #[arg(long = "version", id = "config_version", value_name = "N", requires = "config",
          value_parser = clap::value_parser!(u32).range(1..))]
    config_version: Option<u32>,

    /// Id of the API key
    #[arg(long, value_name = "ID")]
    caller: Option<String>,

    /// Slug of the virtual key
    #[arg(long, value_name = "SLUG")]
    virtual_key: Option<String>,

    /// HTTP status; several are alternatives
    #[arg(long = "status", alias = "statuses", value_name = "STATUS", value_delimiter = ',')]
    statuses: Vec<u32>,

    /// Answered, or with `=false` failed
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    success: Option<bool>,

    /// Another target answered than the first, or `=false` not
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    fallback: Option<bool>,

    /// Some target refused the content, or `=false` none
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    refused: Option<bool>,

    /// As the caller or the answer named it
    #[arg(long, value_name = "ID")]
    trace_id: Option<String>,

    /// In the request's metadata; all of several
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,

    /// Costs at least this
    #[arg(long, value_name = "USD")]
    min_cost_usd: Option<f64>,

    /// Costs at most this
    #[arg(long, value_name = "USD")]
    max_cost_usd: Option<f64>,

    /// hit, miss, refresh, semantic_hit or semantic_miss
    #[arg(long, value_name = "STATUS")]
    cache_status: Option<String>,
}

impl FilterArgs {
    /// For the router, with lengths of time taken from now.
    pub fn to_message(&self) -> RequestFilter {
        let now = unix_now_ms();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        RequestFilter {
            from_unix_ms: self.since.map(|when| when.ago(now)),
            until_unix_ms: self.until.map(|when| when.ago(now)),
            provider: text(&self.provider),
            model: text(&self.model),
            config: text(&self.config),
            caller: text(&self.caller),
            virtual_key: text(&self.virtual_key),
            statuses: self.statuses.clone(),
            success: self.success,
            fallback: self.fallback,
            refused: self.refused,
            trace_id: text(&self.trace_id),
            metadata: self.metadata.iter().cloned().collect(),
            min_cost_usd: self.min_cost_usd,
            max_cost_usd: self.max_cost_usd,
            cache_status: text(&self.cache_status),
            config_version: self.config_version.unwrap_or_default(),
        }
    }
}

/// `name=value`, where the value may have more of `=`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        filter: FilterArgs,
    }

    fn filter(args: &[&str]) -> RequestFilter {
        Line::try_parse_from([&["logs"], args].concat()).unwrap().filter.to_message()
    }

    #[test]
    fn nothing_given_is_everything() {
        assert_eq!(filter(&[]), RequestFilter::default());
    }

    #[test]
    fn a_switch_asks_for_either_side() {
        assert_eq!(filter(&["--fallback"]).fallback, Some(true));
        assert_eq!(filter(&["--success=false", "--refused=true"]).success, Some(false));
    }

    #[test]
    fn lists_and_pairs_add_up() {
        let filter =
            filter(&["--status", "429,503", "--status", "500", "--metadata", "a=b=c", "--metadata", "d="]);
        assert_eq!(filter.statuses, [429, 503, 500]);
        assert_eq!(filter.metadata.len(), 2);
        assert_eq!((&*filter.metadata["a"], &*filter.metadata["d"]), ("b=c", ""));
        assert!(pair("=x").is_err() && pair("x").is_err());
    }

    #[test]
    fn a_version_is_one_of_a_config() {
        assert_eq!(filter(&["--config", "pc-a", "--version", "3"]).config_version, 3);
        for wrong in [&["logs", "--version", "3"][..], &["logs", "--config", "pc-a", "--version", "0"]] {
            assert!(Line::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn since_lies_in_the_past() {
        let from = filter(&["--since", "1h"]).from_unix_ms.unwrap();
        assert!((unix_now_ms() - 3_600_000 - from).abs() < 60_000);
        assert_eq!(filter(&["--until", "1970-01-02"]).until_unix_ms, Some(86_400_000));
    }
}
