//! What every command keeps to, by clap's own list of them.

use std::process::{Command as Process, Output, Stdio};

use clap::{Arg, Command, CommandFactory as _};
use imagegate::cli::Cli;
use serde_json::Value;

/// Those that have no result to tell: they run until they are stopped, or print what another program reads.
const WITHOUT_JSON: [&str; 6] = ["serve", "router", "worker", "shim", "completions", "man"];

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1";

/// Every command that does something itself, with the words that call it.
fn commands() -> Vec<(Vec<String>, Command)> {
    fn collect(path: &[String], command: &Command, all: &mut Vec<(Vec<String>, Command)>) {
        if !command.is_subcommand_required_set() && !path.is_empty() {
            all.push((path.to_vec(), command.clone()));
        }
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            collect(&[path, &[inner.get_name().to_owned()]].concat(), inner, all);
        }
    }
    let mut root = Cli::command();
    root.build();
    let mut all = Vec::new();
    collect(&[], &root, &mut all);
    all
}

fn has_json(command: &Command) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some("json"))
}

/// A command line that can be read and comes to nothing: there is no such file, provider, worker or router.
fn in_vain(path: &[String], command: &Command) -> Vec<String> {
    let mut line = path.to_vec();
    let flag = |arg: &Arg| {
        arg.get_long().map(|name| format!("--{name}")).or(arg.get_short().map(|c| format!("-{c}")))
    };
    for arg in command.get_arguments() {
        if arg.is_required_set() || arg.is_positional() {
            line.extend(flag(arg));
            line.push("1".into());
        }
        if arg.get_long() == Some("router") {
            line.extend(["--router".into(), NOBODY.into()]);
        }
    }
    line
}

fn run(line: &[String], more: &[&str]) -> Output {
    let mut process = Process::new(env!("CARGO_BIN_EXE_imagegate"));
    let folder = tempfile::tempdir().unwrap();
    process.args(line).args(more).current_dir(&folder).env_clear().stdin(Stdio::null()).output().unwrap()
}

/// The one error on standard error.
fn error(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["error"]["kind"].is_string() && document["error"]["message"].is_string(), "{text}");
    document["error"].clone()
}

#[test]
fn every_command_that_tells_something_tells_it_to_programs_too() {
    let all = commands();
    assert!(all.len() > 30, "{}", all.len());
    for (path, command) in all {
        let may_lack_it = WITHOUT_JSON.contains(&path[0].as_str());
        assert_eq!(has_json(&command), !may_lack_it, "{path:?}");
    }
}

#[test]
fn with_json_an_error_is_an_object_and_the_exit_code_the_same() {
    for (path, command) in commands().iter().filter(|(_, command)| has_json(command)) {
        let line = in_vain(path, command);
        let (plain, json) = (run(&line, &[]), run(&line, &["--json"]));
        let told = String::from_utf8_lossy(&plain.stderr);
        assert!(told.lines().any(|line| line.starts_with("error: ")), "{line:?} {plain:?}");
        assert_ne!(plain.status.code(), Some(0), "{line:?}");
        assert_eq!(plain.status.code(), json.status.code(), "{line:?}");
        assert!(json.stdout.is_empty(), "{line:?} {json:?}");
        assert_ne!(error(&json)["kind"], "usage", "{line:?}");
    }
}

#[test]
fn a_command_line_that_cannot_be_read_is_an_error_like_others() {
    for line in [&["usage", "--since", "soon"][..], &["keys", "add"], &["nonsense"], &["serve", "--nonsense"]]
    {
        let line: Vec<_> = line.iter().map(ToString::to_string).collect();
        let output = run(&line, &["--json"]);
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        assert_eq!(error(&output)["kind"], "usage");
    }
    let help = run(&["logs".into(), "--help".into()], &["--json"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Usage:"), "{help:?}");
}
