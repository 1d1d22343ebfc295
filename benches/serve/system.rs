//! What is compared: the processes of each system, how they are started and what they have used.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::Instant;

/// What is measured, unless another one is given.
static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Time that a process may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// Time that a process has to end by itself. A build that counts what runs (container/binary) says so at its end.
const FAREWELL: Duration = Duration::from_secs(10);

/// Of the kernel's time stamps in `/proc`, on every Linux that there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// A system to measure.
#[derive(Clone, Debug)]
pub enum Kind {
    /// hyper's server and client, copying.
    Proxy,
    /// nginx, copying, with one process.
    Nginx,
    /// Portkey's gateway, of the package in this folder.
    Portkey(PathBuf),
    /// `imagegate serve`.
    Serve,
    /// The same without log line and request log.
    Silent,
    /// The same with both, and every trace sent to a collector.
    Traced,
    /// Shim and router in one process, so many workers in others.
    Apart(usize),
    /// Shim, router and worker apart.
    Split,
    /// The same with certificates on all sides.
    SplitTls,
    /// `serve` of another build.
    Other(PathBuf),
}

/// Measures this binary from now on, instead of the one that was built with this program.
pub fn measure(binary: PathBuf) {
    BINARY.set(binary).expect("said once");
}

/// The binary that is measured.
pub fn binary() -> &'static Path {
    BINARY.get_or_init(|| env!("CARGO_BIN_EXE_imagegate").into())
}

/// Lines of the log.
#[derive(Clone, Copy, Debug)]
enum Lines {
    /// What it says unless told otherwise: one a request.
    All,
    /// Where it listens.
    Start,
}

/// The provider that everything stands in front of.
#[derive(Debug)]
pub struct Mock {
    _processes: [Process; 2],
    /// Its address.
    pub plain: String,
    /// That of the same one with TLS.
    pub tls: String,
    /// Who has signed its certificate.
    ca: PathBuf,
}

/// A running system.
#[derive(Debug)]
pub struct System {
    /// By their roles.
    processes: Vec<(&'static str, Process)>,
    /// Where clients go.
    pub address: String,
    /// From the start of the first process until clients can be served.
    pub started: Duration,
}

/// Dropped, it is told to end, and killed if it does not.
#[derive(Debug)]
pub struct Process(Child);

impl Kind {
    /// For the table.
    pub fn name(&self) -> String {
        match self {
            Self::Proxy => "plain proxy".into(),
            Self::Nginx => "nginx".into(),
            Self::Portkey(_) => "Portkey".into(),
            Self::Serve => "serve".into(),
            Self::Silent => "serve, silent".into(),
            Self::Traced => "serve, traced".into(),
            Self::Apart(1) => "shim and router, worker".into(),
            Self::Apart(workers) => format!("shim and router, {workers} workers"),
            Self::Split => "shim, router, worker".into(),
            Self::SplitTls => "the same with mTLS".into(),
            Self::Other(binary) => {
                format!("serve of {}", binary.file_name().unwrap_or_default().to_string_lossy())
            }
        }
    }

    /// Whether it differs from `serve` only in what is said of requests.
    pub const fn is_of_watching(&self) -> bool {
        matches!(self, Self::Silent | Self::Traced)
    }

    /// Starts it in front of a provider. `folder` is for its files.
    pub async fn start(&self, mock: &Mock, folder: &Path) -> Result<System> {
        let folder = tempfile::tempdir_in(folder)?.keep();
        let begun = Instant::now();
        let (processes, address) = self.processes(mock, &folder).await?;
        Ok(System { processes, address, started: begun.elapsed() })
    }

    async fn processes(&self, mock: &Mock, folder: &Path) -> Result<Processes> {
        match self {
            Self::Proxy => {
                let (process, address) = Process::of_this_program(&["proxy", &mock.plain])?;
                Ok((vec![("proxy", process)], address))
            }
            Self::Nginx => nginx(mock, folder).await,
            Self::Portkey(package) => {
                let (address, port) = free_address()?;
                let mut command = Command::new("node");
                command
                    .arg(package.join("build/start-server.js"))
                    .args(["--headless", &format!("--port={port}")]);
                command.env("NODE_ENV", "production").env("NODE_EXTRA_CA_CERTS", &mock.ca);
                let process = Process::of_others(command, folder, &address).await?;
                Ok((vec![("gateway", process)], address))
            }
            Self::Serve => serve(binary(), mock, folder, "", Lines::All).await,
            Self::Silent => serve(binary(), mock, folder, "store: off\n", Lines::Start).await,
            Self::Traced => {
                let otlp = format!("otlp: {{ endpoint: \"http://{}\", protocol: http }}\n", mock.plain);
                serve(binary(), mock, folder, &otlp, Lines::All).await
            }
            Self::Other(binary) => serve(binary, mock, folder, "", Lines::All).await,
            Self::Apart(workers) => apart(*workers, mock, folder).await,
            Self::Split => split(mock, folder, false).await,
            Self::SplitTls => split(mock, folder, true).await,
        }
    }
}

/// By their roles, and where clients go.
type Processes = (Vec<(&'static str, Process)>, String);

/// Where the whole gateway listens.
const LISTEN: &str = "http: 127.0.0.1:0, grpc: 127.0.0.1:0, admin: 127.0.0.1:0";

async fn serve(binary: &Path, mock: &Mock, folder: &Path, more: &str, lines: Lines) -> Result<Processes> {
    let config = write_config(folder, mock, LISTEN, "", more)?;
    let arguments = ["serve", "--config", &config];
    let (process, address) = Process::of_ours(binary, folder, "http", &arguments, lines, mock).await?;
    Ok((vec![("serve", process)], address))
}

async fn apart(count: usize, mock: &Mock, folder: &Path) -> Result<Processes> {
    let binary = binary();
    let (workers, processes) = workers(count, mock, folder, "http", "").await?;
    let config = write_config(folder, mock, LISTEN, &workers, "")?;
    let arguments = ["serve", "--config", &config];
    let (serve, address) = Process::of_ours(binary, folder, "http", &arguments, Lines::All, mock).await?;
    Ok(([("shim and router", serve)].into_iter().chain(processes).collect(), address))
}

/// Workers of all providers that are asked, and where the router finds them.
async fn workers(
    count: usize,
    mock: &Mock,
    folder: &Path,
    scheme: &str,
    more: &str,
) -> Result<(String, Vec<(&'static str, Process)>)> {
    let plain = write_config(folder, mock, "", "", more)?;
    let mut arguments = vec!["worker", "--listen", "127.0.0.1:0", "--config", &plain];
    arguments.extend(["--provider", "openai", "--provider", "stability-ai"]);
    let (mut processes, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let binary = binary();
        let (worker, address) =
            Process::of_ours(binary, folder, "worker", &arguments, Lines::All, mock).await?;
        processes.push(("worker", worker));
        addresses.push(format!("{scheme}://{address}"));
    }
    let addresses = addresses.join(", ");
    Ok((format!("openai: [{addresses}], stability-ai: [{addresses}]"), processes))
}

/// As a bare proxy that looks at nothing, with room in memory for whole answers.
async fn nginx(mock: &Mock, folder: &Path) -> Result<Processes> {
    let (address, _) = free_address()?;
    let here = folder.display();
    let text = format!(
        "daemon off; master_process off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         access_log off; keepalive_requests 100000000; client_max_body_size 32m;\n\
         client_body_temp_path {here}/b; proxy_temp_path {here}/p; fastcgi_temp_path {here}/f;\n\
         uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n\
         upstream mock {{ server {}; keepalive 256; keepalive_requests 100000000; }}\n\
         upstream tls {{ server {}; keepalive 256; keepalive_requests 100000000; }}\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 512k; proxy_max_temp_file_size 0;\n\
         server {{\n\
         listen {address} backlog=4096;\n\
         location / {{ proxy_pass http://mock; }}\n\
         location /fallback/ {{ proxy_intercept_errors on; error_page 500 = @second;\n\
         rewrite ^ /0/500/v1/images/generations break; proxy_pass http://mock; }}\n\
         location @second {{ rewrite ^ /0/2m/v1/images/generations break; proxy_pass http://mock; }}\n\
         location /tls/ {{ rewrite ^/tls(.*) $1 break; proxy_pass https://tls; }}\n\
         location /0/preview/ {{ proxy_buffering off; proxy_pass http://mock; }}\n\
         }}\n\
         }}\n",
        mock.plain, mock.tls
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(path);
    let process = Process::of_others(command, folder, &address).await?;
    Ok((vec![("nginx", process)], address))
}

/// One that nobody listens at, and its port.
fn free_address() -> Result<(String, u16)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok((address.to_string(), address.port()))
}

async fn split(mock: &Mock, folder: &Path, tls: bool) -> Result<Processes> {
    let binary = binary();
    if tls {
        super::tls::write(folder)?;
    }
    let scheme = if tls { "https" } else { "http" };
    let more = if tls {
        "tls: { certificate: tls.crt, key: tls.key, ca: ca.crt, clients: [localhost] }\n"
    } else {
        ""
    };
    let (workers, processes) = workers(1, mock, folder, scheme, more).await?;
    let config = write_config(folder, mock, "grpc: 127.0.0.1:0, admin: 127.0.0.1:0", &workers, more)?;
    let arguments = ["router", "--config", &config];
    let (router, address) = Process::of_ours(binary, folder, "grpc", &arguments, Lines::All, mock).await?;
    let uri = format!("{scheme}://{address}");
    let mut arguments = vec!["shim", "--router", &uri, "--listen", "127.0.0.1:0"];
    if tls {
        arguments.extend(["--tls-certificate", "tls.crt", "--tls-key", "tls.key", "--tls-ca", "ca.crt"]);
    }
    let (shim, address) = Process::of_ours(binary, folder, "http", &arguments, Lines::All, mock).await?;
    Ok(([("shim", shim), ("router", router)].into_iter().chain(processes).collect(), address))
}

/// The gateway's file.
fn write_config(folder: &Path, mock: &Mock, listen: &str, workers: &str, more: &str) -> Result<String> {
    let text = format!(
        "{more}listen: {{ {listen} }}\nworkers: {{ {workers} }}\ndata_dir: {}\n{}",
        folder.display(),
        super::workload::settings(mock),
    );
    let path = tempfile::Builder::new().suffix(".yaml").tempfile_in(folder)?.into_temp_path().keep()?;
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

impl Mock {
    /// Starts it. `folder` is for its certificate.
    pub fn start(folder: &Path) -> Result<Self> {
        super::tls::write(folder)?;
        let (plain_process, plain) = Process::of_this_program(&["mock"])?;
        let certificate = folder.to_str().context("a folder without a name")?;
        let (tls_process, tls) = Process::of_this_program(&["mock", certificate])?;
        Ok(Self { _processes: [plain_process, tls_process], plain, tls, ca: folder.join("ca.crt") })
    }
}

impl System {
    /// The roles of its processes, in the order of the figures below.
    pub fn roles(&self) -> Vec<&'static str> {
        self.processes.iter().map(|(role, _)| *role).collect()
    }

    /// CPU time so far, of all threads of each process.
    pub fn cpu(&self) -> Result<Vec<Duration>> {
        self.processes.iter().map(|(_, process)| process.cpu()).collect()
    }

    /// Largest resident memory of each process in bytes since the start or the last reset.
    pub fn peak_memory(&self) -> Result<Vec<u64>> {
        self.processes.iter().map(|(_, process)| process.memory("VmHWM:")).collect()
    }

    /// Resident memory of all processes in bytes.
    pub fn memory(&self) -> Result<u64> {
        self.processes.iter().map(|(_, process)| process.memory("VmRSS:")).sum()
    }

    /// How many there are of something that `/proc` has a folder of, of all processes.
    pub fn count(&self, folder: &str) -> Result<usize> {
        let of_one = |(_, process): &(_, Process)| {
            Ok(fs::read_dir(format!("/proc/{}/{folder}", process.0.id()))?.count())
        };
        self.processes.iter().map(of_one).sum()
    }

    /// Begins the peak anew.
    pub fn reset_peak(&self) -> Result<()> {
        self.processes.iter().try_for_each(|(_, process)| {
            fs::write(format!("/proc/{}/clear_refs", process.0.id()), "5").context("the peak cannot be reset")
        })
    }
}

impl Process {
    /// This program in another role, which says its address.
    pub fn of_this_program(arguments: &[&str]) -> Result<(Self, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        // It ends when its input does, so it cannot outlive this process.
        let child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut process = Self(child);
        let stdout = process.0.stdout.take().context("no output")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        Ok((process, address.trim().to_owned()))
    }

    /// Somebody else's, once it listens.
    async fn of_others(mut command: Command, folder: &Path, address: &str) -> Result<Self> {
        let log = folder.join("other.log");
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let name = command.get_program().display().to_string();
        let mut process = Self(command.spawn().with_context(|| format!("{name} cannot be started"))?);
        process.until(&name, &log, |_| TcpStream::connect(address).ok()).await?;
        Ok(process)
    }

    async fn of_ours(
        binary: &Path,
        folder: &Path,
        role: &str,
        arguments: &[&str],
        lines: Lines,
        mock: &Mock,
    ) -> Result<(Self, String)> {
        let log = folder.join(format!("{}.log", arguments[0]));
        let mut command = Command::new(binary);
        command.args(arguments).current_dir(folder).stdin(Stdio::null()).stderr(File::create(&log)?);
        command.env("IMAGEGATE_LOG_FORMAT", "json").env_remove("RUST_LOG").env("SSL_CERT_FILE", &mock.ca);
        if let Lines::Start = lines {
            command.env("RUST_LOG", "warn,imagegate::serve=info");
        }
        let mut process = Self(command.spawn()?);
        let name = format!("{} {}", binary.display(), arguments.join(" "));
        let listening = |text: &str| {
            text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
                let fields = &line["fields"];
                let listening = fields["message"] == "listening" && fields["role"] == role;
                listening.then(|| fields["address"].as_str().map(str::to_owned))?
            })
        };
        let address = process.until(&name, &log, listening).await?;
        Ok((process, address))
    }

    /// Looks again and again for a sign that it listens, also in what it has written.
    async fn until<T>(&mut self, name: &str, log: &Path, look: impl Fn(&str) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            let text = fs::read_to_string(log)?;
            if let Some(found) = look(&text) {
                return Ok(found);
            }
            if self.0.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                bail!("{name} does not listen: {text}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // The name before it may hold anything.
        let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
        let ticks: f64 = ticks.sum::<Result<f64, _>>()?;
        Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
    }

    /// One of the sizes in `/proc`.
    fn memory(&self, name: &'static str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let asked = Instant::now();
        // The number of one that has been waited for may be somebody else's by now.
        if matches!(self.0.try_wait(), Ok(None)) {
            _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        }
        while matches!(self.0.try_wait(), Ok(None)) && asked.elapsed() < FAREWELL {
            std::thread::sleep(Duration::from_millis(10));
        }
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
