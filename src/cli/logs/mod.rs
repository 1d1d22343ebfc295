//! `imagegate logs`: the request log, for a person or a program.

mod details;
mod follow;
pub mod row;

use std::{
    io::{Write as _, stdout},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use serde_json::json;

use self::follow::Seen;
use super::{
    connect::{Memory, RouterArgs},
    filter::FilterArgs,
    json,
};
use crate::{
    admin::remote::Remote,
    pb::{self, RequestFilter, RequestRecord, admin_service_server::AdminService as _},
};

/// Most of what the router gives at once.
const PAGE: u32 = 1000;

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
                return self.save(&memory, request, output).await;
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
            writeln!(stdout(), "{}", row::of_log(record))?;
        }
        Ok(())
    }

    async fn save(
        &self,
        memory: &Memory<'_>,
        request: pb::GetRequestImageRequest,
        output: &Path,
    ) -> Result<()> {
        let is_to_stdout = output == Path::new("-");
        ensure!(!(is_to_stdout && self.json), "-o -: standard output takes the image, and not --json too");
        let ask = async |admin: &Remote, request| admin.get_request_image(request).await;
        let image = memory.ask(request, ask).await?.data;
        if is_to_stdout {
            return Ok(stdout().write_all(&image)?);
        }
        let file = output.display();
        std::fs::write(output, &image).with_context(|| format!("{file} cannot be written"))?;
        if self.json {
            return json::print(&json!({ "file": file.to_string(), "bytes": image.len() }));
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
        details::print(&mut stdout(), &record)
    }
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
