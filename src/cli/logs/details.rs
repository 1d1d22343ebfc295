//! `imagegate logs show`: all that is known about one request, for a person.

use std::io::Write;

use anyhow::Result;

use crate::{
    cli::{
        report,
        table::{Heading, Table, plain, usd},
        times::{date, short},
    },
    digest::hex,
    pb::{self, RequestRecord},
};

/// Prints all that is known about a request.
pub fn print(out: &mut impl Write, record: &RequestRecord) -> Result<()> {
    let config = match record.config_version {
        0 => record.config.clone(),
        version => format!("{} (version {version})", record.config),
    };
    let asked = record.asked.as_ref().map(asked).unwrap_or_default();
    let mut metadata: Vec<String> =
        record.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
    metadata.sort();
    let lines = [
        ("request", record.id.clone()),
        ("trace", record.trace_id.clone()),
        ("time", date(record.created_unix_ms)),
        ("duration", short(record.duration_ms)),
        ("time spent", record.timings.as_ref().map(time_spent).unwrap_or_default()),
        ("outcome", format!("{} {}", record.status, record.outcome)),
        ("error", record.error_message.clone()),
        ("operation", record.operation().name().to_owned()),
        ("asked for", asked),
        ("prompt", record.prompt.clone()),
        ("answered by", record.answered_by()),
        ("target", record.target.clone()),
        ("virtual key", record.virtual_key.clone()),
        ("config", config),
        ("caller", record.caller.clone()),
        ("images", record.images.to_string()),
        ("cost", usd(record.cost_usd, record.cost_unknown)),
        ("badges", record.badges().join(" ")),
        ("metadata", metadata.join(" ")),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{name:<12} {}", plain(value))?;
    }
    for feedback in &record.feedback {
        writeln!(out, "{:<12} {} (weight {})", "feedback", feedback.value, feedback.weight)?;
    }
    if !record.images_made.is_empty() {
        writeln!(out, "\nimages")?;
        images_made(&record.images_made).print(out)?;
    }
    let Some(report) = &record.report else { return Ok(()) };
    report::attempts(out, &report.attempts)?;
    report::costs_and_changes(out, report)
}

/// `upstream 812ms, gateway 3.4ms: routing 0.2ms, waiting 2.0ms`, with those phases that took any time.
fn time_spent(timings: &pb::Timings) -> String {
    let shown = |micros: u64| match micros {
        0..100_000 => format!("{:.1}ms", micros as f64 / 1000.0),
        _ => short(micros / 1000),
    };
    let phases = [
        ("routing", timings.routing_us),
        ("cache", timings.cache_us),
        ("waiting", timings.waiting_us),
        ("choosing", timings.rest_us()),
        ("verifying", timings.verifying_us),
    ];
    let phases = phases.iter().filter(|(_, micros)| *micros >= 50);
    let phases: Vec<String> = phases.map(|(name, micros)| format!("{name} {}", shown(*micros))).collect();
    let (upstream, gateway) = (shown(timings.upstream_us), shown(timings.gateway_us()));
    format!("upstream {upstream}, gateway {gateway}: {}", phases.join(", ")).trim_end_matches(": ").to_owned()
}

fn asked(request: &pb::ImageRequest) -> String {
    let size = request.size.as_ref().map(pb::Size::text);
    let number = request.n.map(|n| format!("n={n}"));
    let model = Some(request.model.clone()).filter(|model| !model.is_empty());
    [model, size, number].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn images_made(images: &[pb::LoggedImage]) -> Table {
    let mut table = Table::new([
        Heading::Right("#"),
        Heading::Left("FORMAT"),
        Heading::Left("SIZE"),
        Heading::Right("BYTES"),
        Heading::Left("KEPT"),
        Heading::Left("SHA-256"),
    ]);
    for (index, image) in images.iter().enumerate() {
        let kept = match (image.full, image.thumbnail) {
            (true, _) => "full",
            (false, true) => "thumbnail",
            (false, false) => "-",
        };
        table.row([
            index.to_string(),
            image.format().name().to_owned(),
            format!("{}x{}", image.width, image.height),
            image.bytes.to_string(),
            kept.to_owned(),
            hex(&image.sha256),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_leave_out_what_is_not_known() {
        let mut out = Vec::new();
        let attempt = pb::Attempt {
            number: 1,
            outcome: "skipped".into(),
            reason: "breaker_open".into(),
            ..Default::default()
        };
        let report = pb::RouteReport { attempts: vec![attempt], ..Default::default() };
        let sha256 = vec![0xab; 32].into();
        let image = pb::LoggedImage { width: 64, height: 48, bytes: 123, sha256, ..Default::default() };
        let record = RequestRecord {
            cost_usd: Some(0.04),
            report: Some(report),
            images_made: vec![image],
            ..Default::default()
        };
        print(&mut out, &record).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("64x48") && text.contains(&"ab".repeat(32)), "{text}");
        assert!(text.contains("skipped (breaker_open)") && text.contains("$0.0400"), "{text}");
        assert!(
            !text.contains("prompt") && !text.contains("virtual key") && !text.contains("cost lines"),
            "{text}"
        );
    }

    #[test]
    fn time_is_said_where_it_was_spent() {
        let timings = pb::Timings {
            total_us: 815_400,
            routing_us: 200,
            waiting_us: 2000,
            upstream_us: 812_000,
            ..Default::default()
        };
        let expected = "upstream 812ms, gateway 3.4ms: routing 0.2ms, waiting 2.0ms, choosing 1.2ms";
        assert_eq!(time_spent(&timings), expected);
        assert_eq!(time_spent(&pb::Timings::default()), "upstream 0.0ms, gateway 0.0ms");
    }
}
