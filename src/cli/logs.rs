//! `imagegate logs`: the request log, for a person or a program.

use std::{
    collections::HashMap,
    io::{Write, stderr, stdout},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Subcommand;

use super::{
    connect::{Memory, RouterArgs, Unreachable},
    filter::FilterArgs,
    json,
    table::{Heading, Table, plain, usd},
    times::{date, short},
};
use crate::{
    admin::remote::Remote,
    digest::hex,
    pb::{self, RequestFilter, RequestRecord, admin_service_server::AdminService as _},
};

/// Most of what the router gives at once.
const PAGE: u32 = 1000;

/// How often `-f` looks.
const POLL: Duration = Duration::from_secs(1);

/// How long a request may have taken for `-f` to show it, in milliseconds: the log has it once it is over, under the
/// time when it came.
const LONGEST_MS: i64 = 15 * 60 * 1000;

/// How late the log may have a request that is over: routers write in batches, and their clocks differ.
const LATE_MS: i64 = 10_000;

/// Show the request log
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(subcommand)]
    command: Option<Command>,

    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,

    /// The last so many requests
    #[arg(short, value_name = "N", default_value_t = 50)]
    n: usize,

    #[command(flatten)]
    filter: FilterArgs,

    /// For programs: a JSON document a line
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    router: RouterArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all that is known about one request
    #[command(after_help = "Example:\n  imagegate logs show 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55")]
    Show {
        /// As `imagegate logs` and x-imagegate-request-id tell it
        id: String,
    },
    /// Save an image of a request, or its thumbnail, where the log keeps them
    #[command(
        after_help = "Example:\n  imagegate logs image 0197d8e2-6f0c-7b36-9d51-2f7f6a1c4e55 0 -o fox.jpeg"
    )]
    Image {
        /// As `imagegate logs` and x-imagegate-request-id tell it
        id: String,
        /// Which one, from 0
        index: u32,
        /// The image itself instead of its thumbnail
        #[arg(long)]
        full: bool,
        /// Where to write it; `-` is standard output
        #[arg(short, value_name = "FILE")]
        output: PathBuf,
    },
}

impl Logs {
    /// Prints what there is, and with `-f` what comes.
    pub async fn run(self) -> Result<()> {
        let memory = self.router.memory()?;
        match &self.command {
            None => {}
            Some(Command::Show { id }) => return self.show(&memory, id).await,
            Some(Command::Image { id, index, full, output }) => {
                let request = pb::GetRequestImageRequest { id: id.clone(), index: *index, full: *full };
                let ask = async |admin: &Remote, request| admin.get_request_image(request).await;
                let image = memory.ask(request, ask).await?.data;
                if output.as_os_str() == "-" {
                    return Ok(stdout().write_all(&image)?);
                }
                return std::fs::write(output, image)
                    .with_context(|| format!("{} cannot be written", output.display()));
            }
        }
        // More than are shown, so that what was there before is not taken for new.
        let shown = if self.follow { self.n.max(PAGE as usize) } else { self.n };
        let last = self.records(&memory, self.filter.to_message(), shown).await?;
        for record in last.iter().take(self.n).rev() {
            self.print(record)?;
        }
        if self.follow {
            self.follow(&memory, Seen::new(&last)).await?;
        }
        Ok(())
    }

    async fn follow(&self, memory: &Memory<'_>, mut seen: Seen) -> Result<()> {
        let mut is_away = false;
        loop {
            tokio::time::sleep(POLL).await;
            let fresh = match self.fresh(memory, &mut seen).await {
                Ok(fresh) => fresh,
                // It may be starting again; what it remembers is shown then.
                Err(error) if error.is::<Unreachable>() => {
                    if !is_away {
                        writeln!(stderr(), "the router does not answer: trying again until it does")?;
                    }
                    is_away = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if is_away {
                writeln!(stderr(), "the router answers again")?;
            }
            is_away = false;
            for record in fresh.iter().rev() {
                self.print(record)?;
            }
            seen.forget();
        }
    }

    /// What was not there before, the newest first.
    async fn fresh(&self, memory: &Memory<'_>, seen: &mut Seen) -> Result<Vec<RequestRecord>> {
        let mut filter = self.filter.to_message();
        let from = seen.began_ms.saturating_sub(LONGEST_MS);
        filter.from_unix_ms = Some(filter.from_unix_ms.map_or(from, |wanted| wanted.max(from)));
        let mut fresh = Vec::new();
        let mut page_token = String::new();
        loop {
            let page = page(memory, &filter, PAGE, page_token).await?;
            let before = fresh.len();
            fresh.extend(page.requests.into_iter().filter(|record| seen.add(record)));
            // What ends now began lately: behind a page that was all there before lies nothing new.
            if fresh.len() == before || page.next_page_token.is_empty() {
                return Ok(fresh);
            }
            page_token = page.next_page_token;
        }
    }

    /// At most so many, the newest first.
    async fn records(
        &self,
        memory: &Memory<'_>,
        filter: RequestFilter,
        limit: usize,
    ) -> Result<Vec<RequestRecord>> {
        let mut records = Vec::new();
        let mut page_token = String::new();
        while records.len() < limit {
            let page_size = u32::try_from(limit - records.len()).unwrap_or(PAGE).min(PAGE);
            let page = page(memory, &filter, page_size, page_token).await?;
            records.extend(page.requests);
            if page.next_page_token.is_empty() {
                break;
            }
            page_token = page.next_page_token;
        }
        records.truncate(limit);
        Ok(records)
    }

    fn print(&self, record: &RequestRecord) -> Result<()> {
        if self.json {
            writeln!(stdout(), "{}", json::request(record))?;
        } else {
            writeln!(stdout(), "{}", line(record))?;
        }
        Ok(())
    }

    async fn show(&self, memory: &Memory<'_>, id: &str) -> Result<()> {
        let ask = async |admin: &Remote, request| admin.get_request(request).await;
        let answer = memory.ask(pb::GetRequestRequest { id: id.to_owned() }, ask).await?;
        let record = answer.request.unwrap_or_default();
        if self.json {
            writeln!(stdout(), "{}", json::request(&record))?;
            return Ok(());
        }
        details(&mut stdout(), &record)
    }
}

/// What the log has told.
#[derive(Debug)]
struct Seen {
    /// When they came.
    requests: HashMap<String, i64>,
    /// The end of the last request that was there at first: what ended long before it is no news.
    began_ms: i64,
}

impl Seen {
    fn new(records: &[RequestRecord]) -> Self {
        let requests = records.iter().map(|record| (record.id.clone(), record.created_unix_ms)).collect();
        Self { requests, began_ms: records.iter().map(end).max().unwrap_or(0) }
    }

    /// Whether it is new.
    fn add(&mut self, record: &RequestRecord) -> bool {
        let is_unknown = self.requests.insert(record.id.clone(), record.created_unix_ms).is_none();
        is_unknown && end(record) >= self.began_ms.saturating_sub(LATE_MS)
    }

    /// Forgets what came so long ago that it is not asked for again.
    fn forget(&mut self) {
        let Some(newest) = self.requests.values().max().copied() else { return };
        self.began_ms = self.began_ms.max(newest.saturating_sub(LONGEST_MS));
        let oldest = self.began_ms.saturating_sub(LONGEST_MS);
        self.requests.retain(|_, came| *came >= oldest);
    }
}

fn end(record: &RequestRecord) -> i64 {
    record.created_unix_ms.saturating_add_unsigned(record.duration_ms)
}

async fn page(
    memory: &Memory<'_>,
    filter: &RequestFilter,
    page_size: u32,
    page_token: String,
) -> Result<pb::ListRequestsResponse> {
    let request = pb::ListRequestsRequest { filter: Some(filter.clone()), page_size, page_token };
    memory.ask(request, async |admin: &Remote, request| admin.list_requests(request).await).await
}

fn line(record: &RequestRecord) -> String {
    let text = format!(
        "{}  {}  {}  {:<36}  {:>7}  {:>9}  {}",
        date(record.created_unix_ms),
        plain(&record.id),
        record.status,
        plain(&answered_by(record)),
        short(record.duration_ms),
        usd(record.cost_usd, record.cost_unknown),
        badges(record).join(" "),
    );
    text.trim_end().to_owned()
}

fn answered_by(record: &RequestRecord) -> String {
    match (record.provider.as_str(), record.model.as_str()) {
        ("", "") => "-".to_owned(),
        (provider, "") => provider.to_owned(),
        (provider, model) => format!("{provider}/{model}"),
    }
}

/// What is worth a second look.
pub fn badges(record: &RequestRecord) -> Vec<String> {
    let mut badges = Vec::new();
    if record.fallback {
        badges.push("fallback".to_owned());
    }
    // Retries, and calls beside one that was late.
    if record.calls > 1 {
        badges.push(format!("calls:{}", record.calls));
    }
    if record.refused {
        badges.push("refused".to_owned());
    }
    if let Some(status) = record.cache_status().name() {
        badges.push(format!("cache:{status}"));
    }
    badges
}

fn details(out: &mut impl Write, record: &RequestRecord) -> Result<()> {
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
        ("answered by", answered_by(record)),
        ("target", record.target.clone()),
        ("virtual key", record.virtual_key.clone()),
        ("config", config),
        ("caller", record.caller.clone()),
        ("images", record.images.to_string()),
        ("cost", usd(record.cost_usd, record.cost_unknown)),
        ("badges", badges(record).join(" ")),
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
    if !report.attempts.is_empty() {
        writeln!(out, "\nattempts")?;
        attempts(&report.attempts).print(out)?;
    }
    if !report.cost_lines.is_empty() {
        writeln!(out, "\ncost lines")?;
        cost_lines(&report.cost_lines).print(out)?;
    }
    if !report.warnings.is_empty() {
        writeln!(out, "\nwarnings")?;
        for warning in &report.warnings {
            writeln!(out, "{}: {}", plain(&warning.field), plain(&warning.detail))?;
        }
    }
    Ok(())
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

/// What was tried.
pub fn attempts(attempts: &[pb::Attempt]) -> Table {
    let mut table = Table::new([
        Heading::Right("#"),
        Heading::Left("TARGET"),
        Heading::Left("PROVIDER/MODEL"),
        Heading::Left("OUTCOME"),
        Heading::Right("BEGAN"),
        Heading::Right("TOOK"),
        Heading::Left("BILLING"),
        Heading::Left("MESSAGE"),
    ]);
    for attempt in attempts {
        let outcome = match (attempt.status, attempt.reason.as_str()) {
            (0, "") => attempt.outcome.clone(),
            (0, reason) => format!("{} ({reason})", attempt.outcome),
            (status, _) => format!("{} {status}", attempt.outcome),
        };
        table.row([
            attempt.number.to_string(),
            attempt.target.clone(),
            format!("{}/{}", attempt.provider, attempt.model).trim_end_matches('/').to_owned(),
            outcome,
            short(attempt.started_ms),
            short(attempt.duration_ms),
            attempt.billing().name().to_owned(),
            attempt.message.clone(),
        ]);
    }
    table
}

/// What it costs, and how that is known.
pub fn cost_lines(lines: &[pb::CostLine]) -> Table {
    let mut table = Table::new([
        Heading::Right("#"),
        Heading::Left("ITEM"),
        Heading::Left("PROVIDER/MODEL"),
        Heading::Right("QUANTITY"),
        Heading::Right("AMOUNT"),
        Heading::Left("KNOWN BY"),
    ]);
    for line in lines {
        table.row([
            line.attempt.to_string(),
            line.item.clone(),
            format!("{}/{}", line.provider, line.model),
            line.quantity.to_string(),
            usd(line.amount_usd, false),
            json::cost_source(line.source()).to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RequestRecord {
        RequestRecord {
            id: "id-1".into(),
            created_unix_ms: 1_795_780_800_000,
            duration_ms: 1234,
            status: 200,
            outcome: "ok".into(),
            provider: "openai".into(),
            model: "dall-e-3".into(),
            cost_usd: Some(0.04),
            fallback: true,
            calls: 3,
            cache_status: pb::CacheStatus::Miss.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_line_tells_what_happened() {
        let words = line(&record());
        let words: Vec<&str> = words.split_whitespace().collect();
        let expected = [
            "2026-11-27",
            "12:00:00Z",
            "id-1",
            "200",
            "openai/dall-e-3",
            "1.2s",
            "$0.0400",
            "fallback",
            "calls:3",
            "cache:miss",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_request_that_reached_nobody_has_a_line_too() {
        let record = RequestRecord { status: 400, cost_usd: Some(0.0), ..Default::default() };
        assert!(line(&record).contains("  400  -  "));
    }

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
        let record = RequestRecord { report: Some(report), images_made: vec![image], ..record() };
        details(&mut out, &record).unwrap();
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

    #[test]
    fn a_request_is_followed_once_and_only_if_it_is_news() {
        let at = |id: &str, created_unix_ms, duration_ms| RequestRecord {
            id: id.into(),
            created_unix_ms,
            duration_ms,
            ..Default::default()
        };
        let mut seen = Seen::new(&[at("there", 100_000, 1000)]);
        assert!(!seen.add(&at("there", 100_000, 1000)));
        assert!(!seen.add(&at("long over", 50_000, 1000)));
        assert!(seen.add(&at("slow", 50_000, 60_000)) && !seen.add(&at("slow", 50_000, 60_000)));
        assert!(seen.add(&at("written late", 95_000, 1000)));
        seen.add(&at("much later", 100_000 + 3 * LONGEST_MS, 0));
        seen.forget();
        assert_eq!(seen.requests.len(), 1);
    }
}
