//! What a config would have done with requests of the log, in the words of `imagegate configs dry-run`.

use maud::{Markup, html};

use crate::{
    cli::{
        dry_run::{SHOWN, UNDECIDED, changes, costs, count, requests, shares},
        table::{Heading, Table},
        times::date,
    },
    dashboard::{Dashboard, failure::Failure, layout, session::Visitor},
    pb::{DryRunConfigRequest, DryRunConfigResponse, DryRunReason},
};

/// Tries a config on the newest requests.
///
/// # Errors
/// Everything that is wrong with it.
pub async fn tried(dashboard: &Dashboard, visitor: &Visitor, config_json: &str) -> Result<Markup, Failure> {
    let request = DryRunConfigRequest { config_json: config_json.to_owned(), ..Default::default() };
    let tried = dashboard.admin.dry_run_config(visitor.ask(request)).await?.into_inner();
    Ok(shown(&tried))
}

fn shown(tried: &DryRunConfigResponse) -> Markup {
    let summary = tried.summary.clone().unwrap_or_default();
    let (Some(last), Some(first)) = (tried.requests.first(), tried.requests.last()) else {
        return html! { p class="notice" role="status" { "Valid. No request in the log to try it on." } };
    };
    let changed: Vec<_> = tried.requests.iter().filter(|request| request.changed).collect();
    let left_out = changed.len().saturating_sub(SHOWN);
    html! {
        div class="notice" role="status" {
            p {
                "As it is below, on " (count(summary.requests, "request")) ", " (date(first.created_unix_ms)) " to "
                (date(last.created_unix_ms)) ":"
            }
            ul {
                li { (changes(&summary)) }
                li { (costs(&summary)) }
                @for note in &summary.notes { li { (note) } }
            }
            (table("Where requests go first", &shares(&summary)))
            (reasons("refused", &summary.refusals))
            (reasons(UNDECIDED, &summary.open_questions))
            @if !changed.is_empty() {
                details {
                    summary { "What changes" }
                    (table("Requests that change", &requests(&changed[..changed.len() - left_out])))
                    @if left_out > 0 { p { "and " (left_out) " more" } }
                }
            }
        }
    }
}

fn table(name: &str, table: &Table) -> Markup {
    let class = |heading: &Heading| matches!(heading, Heading::Right(_)).then_some("number");
    let cells = html! {
        table {
            thead {
                tr { @for heading in table.headings() { th scope="col" class=[class(heading)] { (quiet(heading.text())) } } }
            }
            tbody {
                @for row in table.rows() {
                    tr { @for (cell, heading) in row.iter().zip(table.headings()) { td class=[class(heading)] { (cell) } } }
                }
            }
        }
    };
    layout::scroll(name, &cells)
}

/// A terminal's heading as a page has it.
fn quiet(heading: &str) -> String {
    let (first, rest) = heading.split_at(1);
    format!("{first}{}", rest.to_lowercase())
}

fn reasons(title: &str, reasons: &[DryRunReason]) -> Markup {
    html! {
        @if !reasons.is_empty() {
            p { (title) }
            ul { @for reason in reasons { li { (reason.requests) " × " (reason.reason) ": " (reason.message) } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{DryRunRequest, DryRunShare, DryRunSummary};

    #[test]
    fn a_try_is_told_as_the_command_tells_it() {
        let share =
            DryRunShare { provider: "openai".into(), model: "<m>".into(), requests: 1, ..Default::default() };
        let reason =
            DryRunReason { reason: "unsupported mask".into(), message: "no mask".into(), requests: 2 };
        let summary = DryRunSummary {
            requests: 3,
            refused: 2,
            changed: 1,
            shares: vec![share],
            refusals: vec![reason],
            notes: vec!["caches are taken to be empty".into()],
            ..Default::default()
        };
        let requests = vec![DryRunRequest { id: "r-1".into(), changed: true, ..Default::default() }];
        let told = shown(&DryRunConfigResponse { summary: Some(summary), requests }).0;
        for piece in [
            "on 3 requests",
            "1 of 3 would go another way",
            "if every first target answers",
            r#"<th scope="col">First called</th>"#,
            r#"<td>openai/&lt;m&gt;</td>"#,
            "2 × unsupported mask: no mask",
            "caches are taken to be empty",
            "<td>r-1</td>",
        ] {
            assert!(told.contains(piece), "{piece}: {told}");
        }
        assert!(shown(&DryRunConfigResponse::default()).0.contains("No request"));
    }
}
