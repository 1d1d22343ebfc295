//! The load: connections that each send a request as soon as the last one is answered.
//!
//! Written by hand, because it runs on the same cores as what it measures.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

const READ_BYTES: usize = 256 << 10;

/// The end of an event, or of several.
const EVENT_ENDS: &[u8] = b"\n\n";

/// When a connection stops.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// The answer that is under way is finished first.
    Elapsed(Duration),
    /// So many answers.
    Answered(usize),
}

/// What to send where.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address and port.
    address: String,
    /// The whole request.
    request: Vec<u8>,
}

/// What became of a load.
#[derive(Debug)]
pub struct Ran {
    /// Of each answer, or of the first event of one in events, the shortest first.
    pub latencies: Vec<Duration>,
    pub took: Duration,
}

impl Ran {
    /// The latency that this share of the answers did not exceed.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

impl Target {
    /// A request with a body of JSON. Each of `headers` is a line.
    pub fn new(address: &str, path: &str, headers: &str, body: &str) -> Self {
        Self::of_type(address, path, headers, "application/json", body.as_bytes())
    }

    /// The same with a body of another type.
    pub fn of_type(address: &str, path: &str, headers: &str, content_type: &str, body: &[u8]) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\n{headers}content-type: {content_type}\r\n\
             content-length: {}\r\n\r\n",
            body.len(),
        );
        Self { address: address.to_owned(), request: [head.as_bytes(), body].concat() }
    }

    /// Sends one request and gives the answer's body.
    pub async fn once(&self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        Connection::open(self).await?.exchange(|piece| body.extend_from_slice(piece)).await?;
        Ok(body)
    }

    /// Keeps `connections` busy. An answer that is not a 200 of `length` bytes ends it all.
    pub async fn run(&self, connections: usize, until: Until, length: usize) -> Result<Ran> {
        let started = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..connections {
            let target = self.clone();
            running.spawn(async move {
                let mut connection = Connection::open(&target).await?;
                let mut latencies = Vec::new();
                while match until {
                    Until::Elapsed(limit) => started.elapsed() < limit,
                    Until::Answered(limit) => latencies.len() < limit,
                } {
                    let (sent, mut received) = (Instant::now(), 0);
                    let mut first = None;
                    connection
                        .exchange(|piece| {
                            received += piece.len();
                            if first.is_none() && piece.ends_with(EVENT_ENDS) {
                                first = Some(sent.elapsed());
                            }
                        })
                        .await?;
                    ensure!(received == length, "an answer of {received} bytes instead of {length}");
                    latencies.push(first.unwrap_or_else(|| sent.elapsed()));
                }
                Ok(latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(finished) = running.join_next().await {
            latencies.extend(finished??);
        }
        let took = started.elapsed();
        latencies.sort_unstable();
        Ok(Ran { latencies, took })
    }
}

struct Connection<'a> {
    stream: TcpStream,
    target: &'a Target,
    buffer: Vec<u8>,
    /// The other side has said that it will close it.
    is_over: bool,
}

impl<'a> Connection<'a> {
    async fn open(target: &'a Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, target, buffer: vec![0; READ_BYTES], is_over: false })
    }

    async fn exchange(&mut self, mut body: impl FnMut(&[u8])) -> Result<()> {
        if self.is_over {
            *self = Self::open(self.target).await?;
        }
        self.stream.write_all(&self.target.request).await?;
        let mut filled = 0;
        let head = loop {
            filled += self.read(filled).await?;
            if let Some(end) = self.buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status = text.lines().next().unwrap_or_default();
        if !status.starts_with("HTTP/1.1 200 ") {
            bail!("{status}: {}", String::from_utf8_lossy(&self.buffer[head..filled]));
        }
        let header = |wanted: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then_some(value.trim())
            })
        };
        self.is_over = header("connection") == Some("close");
        if header("transfer-encoding") == Some("chunked") {
            let (mut chunks, mut from) = (Chunks::default(), head);
            while !chunks.push(&self.buffer[from..filled], &mut body)? {
                from = 0;
                filled = self.read(0).await?;
            }
            return Ok(());
        }
        let mut missing: usize =
            header("content-length").context("an answer without content-length")?.parse()?;
        let mut from = head;
        loop {
            ensure!(filled - from <= missing, "an answer longer than it said");
            body(&self.buffer[from..filled]);
            missing -= filled - from;
            if missing == 0 {
                return Ok(());
            }
            from = 0;
            filled = self.read(0).await?;
        }
    }

    async fn read(&mut self, at: usize) -> Result<usize> {
        let read = self.stream.read(&mut self.buffer[at..]).await?;
        ensure!(read > 0, "the connection was closed");
        Ok(read)
    }
}

/// Takes away what is around the pieces of an answer whose length is not known before.
#[derive(Default)]
struct Chunks {
    /// What is missing of a piece.
    missing: usize,
    /// As much of a line as there is.
    line: Vec<u8>,
    is_last: bool,
}

impl Chunks {
    /// True: that was all of it.
    fn push(&mut self, mut bytes: &[u8], mut body: impl FnMut(&[u8])) -> Result<bool> {
        while !bytes.is_empty() {
            if self.missing > 0 {
                let (piece, rest) = bytes.split_at(self.missing.min(bytes.len()));
                body(piece);
                self.missing -= piece.len();
                bytes = rest;
                continue;
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.line.extend_from_slice(line);
            bytes = rest;
            if end.is_none() {
                break;
            }
            let line = std::mem::take(&mut self.line);
            match std::str::from_utf8(&line)?.trim() {
                "" if self.is_last => return Ok(true),
                // Behind a piece.
                "" => {}
                size => {
                    self.missing = usize::from_str_radix(size, 16)?;
                    self.is_last = self.missing == 0;
                }
            }
        }
        Ok(false)
    }
}
