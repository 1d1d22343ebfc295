//! Starts the real binary, reads its log in the background, and ends it. Knows nothing of roles.

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::Instant;

use crate::{scenario::eventually, site::Place};

/// The build of this test run; `IMAGEGATE_BIN` names another.
const IMAGEGATE: &str = env!("CARGO_BIN_EXE_imagegate");

/// Time that a process may take until it listens.
const START: Duration = Duration::from_secs(20);

/// Lines of a log that an assertion shows.
const SHOWN_LINES: usize = 30;

/// A running process. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts the binary at a place, with its files in `folder`.
    pub fn start(place: &Place, folder: &Path, arguments: &[String]) -> Self {
        let binary = env::var_os("IMAGEGATE_BIN").unwrap_or_else(|| OsString::from(IMAGEGATE));
        let mut command = match &place.namespace {
            // It becomes the binary: signals reach that, not a process around it.
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.args(arguments).current_dir(folder).env_clear().env("IMAGEGATE_LOG_FORMAT", "json");
        let kept = ["PATH", "HOME", "LLVM_PROFILE_FILE"];
        command.envs(env::vars().filter(|(name, _)| kept.contains(&name.as_str())));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        read(child.stdout.take().unwrap(), &lines);
        read(child.stderr.take().unwrap(), &lines);
        Self { child, command: arguments.join(" "), lines }
    }

    /// Where it listens in this role.
    pub async fn address(&mut self, role: &str) -> SocketAddr {
        eventually("listening", START, async || {
            let found = self.events().into_iter().find_map(|event| {
                let fields = &event["fields"];
                let listening = fields["message"] == "listening" && fields["role"] == role;
                listening.then(|| fields["address"].as_str()?.parse().ok())?
            });
            assert!(found.is_some() || self.is_running(), "{role}: {}", self.shown());
            found.ok_or_else(|| self.shown())
        })
        .await
    }

    /// Log lines so far that are JSON.
    pub fn events(&self) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Fields of all log lines so far with this message.
    pub fn said(&self, message: &str) -> Vec<Value> {
        let events = self.events().into_iter();
        events.map(|mut event| event["fields"].take()).filter(|fields| fields["message"] == message).collect()
    }

    /// Everything written so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// For an assertion: the command and the end of its log.
    pub fn shown(&self) -> String {
        let lines = self.lines.lock().unwrap();
        let from = lines.len().saturating_sub(SHOWN_LINES);
        format!("`imagegate {}` wrote at last:\n{}", self.command, lines[from..].join("\n"))
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end and gives the exit code. A signal's is `None`.
    pub async fn ended(&mut self, within: Duration) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < within, "it still runs after {within:?}: {}", self.shown());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Ends with the pipe.
fn read(pipe: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            lines.lock().unwrap().push(line);
        }
    });
}
