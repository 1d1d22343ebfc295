//! Limits of keys: typed into a form, and shown with what has been used of them.

use maud::{Markup, html};

use super::typed::Typed;
use crate::{
    cli::{
        quota::{all_words, budget, rate, words},
        table::usd,
        times::date,
    },
    config::quota::{reset_word, unit_word},
    dashboard::{layout, waterfall::bars},
    error::{Error, Result},
    pb::{Quota, QuotaUse, quota_use::Limit},
};

const RATES: [(&str, &str); 5] =
    [("rps", "a second"), ("rpm", "a minute"), ("rph", "an hour"), ("rpd", "a day"), ("rpw", "a week")];

const BUDGETS: [(&str, &str); 4] =
    [("daily", "a day"), ("weekly", "a week"), ("monthly", "a month"), ("total", "in all")];

/// What has no end.
const TOTAL: &str = "total";

/// From here on a bar warns.
const MUCH: f64 = 0.8;

/// The fields, with what was typed into them.
pub fn fields(typed: &Typed) -> Markup {
    html! {
        fieldset class="numbers" {
            legend { "Requests, at most" }
            @for (unit, label) in RATES {
                label { span { (label) } input name={ "rate_" (unit) } value=(typed.text(&format!("rate_{unit}"))) inputmode="numeric" autocomplete="off"; }
            }
        }
        fieldset class="numbers" {
            legend { "US dollars, at most" }
            @for (period, label) in BUDGETS {
                label { span { (label) } input name={ "budget_" (period) } value=(typed.text(&format!("budget_{period}"))) inputmode="decimal" autocomplete="off"; }
            }
            @for (period, label) in BUDGETS {
                label { span { "said in the log from, " (label) } input name={ "alert_" (period) } value=(typed.text(&format!("alert_{period}"))) inputmode="decimal" autocomplete="off"; }
            }
        }
    }
}

/// Limits as the fields have them; none where nothing is limited.
///
/// # Errors
/// What is no number.
pub fn read(typed: &Typed) -> Result<Option<Quota>> {
    let mut quota = Quota::default();
    for (unit, _) in RATES {
        let field = format!("rate_{unit}");
        if let Some(number) = typed.some(&field) {
            quota.rates.push(rate(unit, number).map_err(|reason| Error::invalid(field, reason))?);
        }
    }
    for (period, label) in BUDGETS {
        let (field, alert) = (format!("budget_{period}"), typed.some(&format!("alert_{period}")));
        match typed.some(&field) {
            Some(amount) => {
                let limit = budget(period, amount, alert).map_err(|reason| Error::invalid(field, reason))?;
                quota.budgets.push(limit);
            }
            None if alert.is_some() => {
                let message =
                    format!("there is no budget {label} of which something could be said in the log");
                return Err(Error::invalid(field, message));
            }
            None => {}
        }
    }
    Ok((quota != Quota::default()).then_some(quota))
}

/// The fields as they would be typed for these limits.
pub fn typed(quota: Option<&Quota>, mut typed: Typed) -> Typed {
    let Some(quota) = quota else { return typed };
    for rate in &quota.rates {
        typed = typed.with(&format!("rate_{}", unit_word(rate.unit())), rate.requests.to_string());
    }
    for budget in &quota.budgets {
        let period = reset_word(budget.reset()).unwrap_or(TOTAL);
        typed = typed.with(&format!("budget_{period}"), budget.usd.to_string());
        if let Some(alert) = budget.alert_usd {
            typed = typed.with(&format!("alert_{period}"), alert.to_string());
        }
    }
    typed
}

/// The limits of one of `uses`, or, where nobody may see what was used, only the limits.
pub fn of(subject: &str, name: &str, quota: Option<&Quota>, uses: &[QuotaUse]) -> Markup {
    let own: Vec<_> = uses.iter().filter(|one| one.subject == subject && one.name == name).collect();
    html! {
        @if own.is_empty() { (all_words(quota)) }
        @else { ul class="uses" { @for one in own { li { (used(one)) } } } }
    }
}

/// How much of a limit has been used.
pub fn used(quota: &QuotaUse) -> Markup {
    let Some(limit) = &quota.limit else { return Markup::default() };
    let (used, flying, most) = match limit {
        Limit::Rate(rate) => (quota.requests as f64, 0.0, rate.requests as f64),
        Limit::Budget(budget) => (quota.usd, quota.reserved_usd, budget.usd),
    };
    let kind = if quota.exhausted {
        "bad"
    } else if used + flying >= most * MUCH {
        "warning"
    } else {
        "good"
    };
    let parts = [(kind, 0.0, used.min(most)), ("waiting", used.min(most), flying.min(most - used.min(most)))];
    let parts: Vec<_> = parts.into_iter().filter(|(_, _, width)| *width > 0.0).collect();
    html! {
        span class="use" {
            @match limit {
                Limit::Rate(_) => { (quota.requests) " of " (words(limit)) },
                Limit::Budget(_) => {
                    (usd(Some(quota.usd), false)) " of " (words(limit))
                    @if flying > 0.0 { ", " (usd(Some(flying), false)) " in flight" }
                },
            }
            @if quota.exhausted { ", " span class="bad" { "all used" } }
        }
        (bars(&parts, most.max(f64::MIN_POSITIVE)))
        @if let Some(resets) = quota.resets_unix_ms {
            span class="hint" { "begins anew " (layout::time(resets, &date(resets))) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{Budget, RateLimit, RateUnit};

    fn quota() -> Quota {
        Quota {
            rates: vec![RateLimit { unit: RateUnit::Minute.into(), requests: 60 }],
            budgets: vec![Budget { usd: 12.5, alert_usd: Some(10.0), ..Default::default() }],
        }
    }

    #[test]
    fn limits_are_typed_as_they_are_read() {
        let known = typed(Some(&quota()), Typed::default());
        assert_eq!((known.text("rate_rpm"), known.text("alert_total")), ("60", "10"));
        assert_eq!(read(&known).unwrap(), Some(quota()));
        assert_eq!(read(&Typed::default()).unwrap(), None);
        assert!(fields(&known).0.contains(r#"name="budget_total" value="12.5""#));
        for (field, value) in
            [("rate_rpm", "many"), ("rate_rpw", "-1"), ("budget_daily", "x"), ("alert_daily", "5")]
        {
            assert!(read(&Typed::default().with(field, value)).is_err(), "{field}");
        }
    }

    #[test]
    fn what_was_used_is_drawn_and_written() {
        let limit = Some(Limit::Budget(Budget { usd: 10.0, ..Default::default() }));
        let half = QuotaUse { limit, usd: 5.0, reserved_usd: 1.0, ..Default::default() };
        let drawn = used(&half).0;
        assert!(drawn.contains("$5.0000 of $10.0000 total, $1.0000 in flight"), "{drawn}");
        assert!(drawn.contains(r#"class="good" x="0.0" y="2" width="500.0""#), "{drawn}");
        assert!(drawn.contains(r#"class="waiting" x="500.0" y="2" width="100.0""#), "{drawn}");
        let spent = used(&QuotaUse { usd: 11.0, exhausted: true, ..half.clone() }).0;
        assert!(
            spent.contains("all used") && spent.contains(r#"class="bad" x="0.0" y="2" width="1000.0""#),
            "{spent}"
        );
        assert!(used(&QuotaUse { usd: 8.0, ..half }).0.contains(r#"class="warning""#));
    }

    #[test]
    fn who_may_not_see_what_was_used_sees_the_limits() {
        let shown = of("virtual_key", "a", Some(&quota()), &[]).0;
        assert_eq!(shown, "60 rpm, $12.5000 total");
    }
}
