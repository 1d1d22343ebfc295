//! What is compared: the processes of each system, how they are started and what they have used.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::time::Instant;

const IMAGEGATE: &str = env!("CARGO_BIN_EXE_imagegate");

/// Time that a process may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of the kernel's time stamps in `/proc`, on every Linux that there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// A system to measure.
#[derive(Clone, Debug)]
pub enum Kind {
    /// hyper's server and client, copying.
    Proxy,
    /// `imagegate serve`.
    Serve,
    /// The same without log line and request log.
    Silent,
    /// The same with both, and every trace sent to a collector.
    Traced,
    /// Shim, router and worker apart.
    Split,
    /// The same with certificates on all sides.
    SplitTls,
    /// `serve` of another build.
    Other(PathBuf),
}

/// Lines of the log.
#[derive(Clone, Copy, Debug)]
enum Lines {
    /// What it says unless told otherwise: one a request.
    All,
    /// Where it listens.
    Start,
}

/// A running system.
#[derive(Debug)]
pub struct System {
    /// By their roles.
    processes: Vec<(&'static str, Process)>,
    /// Where clients go.
    pub address: String,
}

/// Dropped, it is killed.
#[derive(Debug)]
pub struct Process(Child);

impl Kind {
    /// For the table.
    pub fn name(&self) -> String {
        match self {
            Self::Proxy => "plain proxy".into(),
            Self::Serve => "serve".into(),
            Self::Silent => "serve, silent".into(),
            Self::Traced => "serve, traced".into(),
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
    pub async fn start(&self, mock: &str, folder: &Path) -> Result<System> {
        let folder = tempfile::tempdir_in(folder)?.keep();
        match self {
            Self::Proxy => {
                let (process, address) = Process::of_this_program(&["proxy", mock])?;
                Ok(System { processes: vec![("proxy", process)], address })
            }
            Self::Serve => serve(Path::new(IMAGEGATE), mock, &folder, "", Lines::All).await,
            Self::Silent => serve(Path::new(IMAGEGATE), mock, &folder, "store: off\n", Lines::Start).await,
            Self::Traced => {
                let otlp = format!("otlp: {{ endpoint: \"http://{mock}\", protocol: http }}\n");
                serve(Path::new(IMAGEGATE), mock, &folder, &otlp, Lines::All).await
            }
            Self::Other(binary) => serve(binary, mock, &folder, "", Lines::All).await,
            Self::Split => split(mock, &folder, false).await,
            Self::SplitTls => split(mock, &folder, true).await,
        }
    }
}

async fn serve(binary: &Path, mock: &str, folder: &Path, more: &str, lines: Lines) -> Result<System> {
    let listen = "http: 127.0.0.1:0, grpc: 127.0.0.1:0, admin: 127.0.0.1:0";
    let config = write_config(folder, mock, listen, "", more)?;
    let arguments = ["serve", "--config", &config];
    let (process, address) = Process::of_ours(binary, folder, "http", &arguments, lines).await?;
    Ok(System { processes: vec![("serve", process)], address })
}

async fn split(mock: &str, folder: &Path, tls: bool) -> Result<System> {
    let binary = Path::new(IMAGEGATE);
    if tls {
        super::tls::write(folder)?;
    }
    let scheme = if tls { "https" } else { "http" };
    let more = if tls {
        "tls: { certificate: tls.crt, key: tls.key, ca: ca.crt, clients: [localhost] }\n"
    } else {
        ""
    };
    let plain = write_config(folder, mock, "", "", more)?;
    let arguments = ["worker", "--provider", "openai", "--listen", "127.0.0.1:0", "--config", &plain];
    let (worker, address) = Process::of_ours(binary, folder, "worker", &arguments, Lines::All).await?;
    let workers = format!("openai: {scheme}://{address}");
    let config = write_config(folder, mock, "grpc: 127.0.0.1:0, admin: 127.0.0.1:0", &workers, more)?;
    let arguments = ["router", "--config", &config];
    let (router, address) = Process::of_ours(binary, folder, "grpc", &arguments, Lines::All).await?;
    let uri = format!("{scheme}://{address}");
    let mut arguments = vec!["shim", "--router", &uri, "--listen", "127.0.0.1:0"];
    if tls {
        arguments.extend(["--tls-certificate", "tls.crt", "--tls-key", "tls.key", "--tls-ca", "ca.crt"]);
    }
    let (shim, address) = Process::of_ours(binary, folder, "http", &arguments, Lines::All).await?;
    Ok(System { processes: vec![("shim", shim), ("router", router), ("worker", worker)], address })
}

/// One virtual key for each thing that the mock does.
fn write_config(folder: &Path, mock: &str, listen: &str, workers: &str, more: &str) -> Result<String> {
    let key = |id: &str, path: &str| {
        format!("  {id}: {{ provider: openai, api_key: none, base_url: \"http://{mock}/{path}/v1\" }}\n")
    };
    let keys = super::WORKLOADS.iter().map(|workload| key(workload.virtual_key, workload.upstream));
    let text = format!(
        "{more}listen: {{ {listen} }}\nworkers: {{ {workers} }}\ndata_dir: {}\nvirtual_keys:\n{}",
        folder.display(),
        keys.collect::<String>(),
    );
    let path = tempfile::Builder::new().suffix(".yaml").tempfile_in(folder)?.into_temp_path().keep()?;
    fs::write(&path, text)?;
    Ok(path.display().to_string())
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
        self.processes.iter().map(|(_, process)| process.peak_memory()).collect()
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

    async fn of_ours(
        binary: &Path,
        folder: &Path,
        role: &str,
        arguments: &[&str],
        lines: Lines,
    ) -> Result<(Self, String)> {
        let log = folder.join(format!("{}.log", arguments[0]));
        let mut command = Command::new(binary);
        command.args(arguments).current_dir(folder).stdin(Stdio::null()).stderr(File::create(&log)?);
        command.env("IMAGEGATE_LOG_FORMAT", "json").env_remove("RUST_LOG");
        if let Lines::Start = lines {
            command.env("RUST_LOG", "warn,imagegate::serve=info");
        }
        let mut process = Self(command.spawn()?);
        let started = Instant::now();
        loop {
            let text = fs::read_to_string(&log)?;
            let address =
                text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
                    let fields = &line["fields"];
                    let listening = fields["message"] == "listening" && fields["role"] == role;
                    listening.then(|| fields["address"].as_str().map(str::to_owned))?
                });
            if let Some(address) = address {
                return Ok((process, address));
            }
            if process.0.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                bail!("{} {} does not listen: {text}", binary.display(), arguments.join(" "));
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

    fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
