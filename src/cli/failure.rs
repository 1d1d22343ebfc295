//! The last word of a command that fails, for a person or, with `--json`, for a program.

use std::{
    ffi::OsString,
    io::{Write as _, stderr},
};

use serde_json::{Value, json};

use super::{connect::Unreachable, json};
use crate::{
    config::{Problem, Rejected},
    error::{Error, ErrorKind},
    pb::attempts_text,
};

/// The kind of an error in how the command was called.
const USAGE: &str = "usage";

/// The kind of an error in a configuration, with all of its problems.
const INVALID_CONFIG: &str = "invalid_config";

/// The kind of any other error on this side of the connection.
const FAILED: &str = "failed";

/// Whether somebody wants JSON. Also a command line that cannot be read tells.
pub fn wants_json(args: &[OsString]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}

/// Says why a command failed, on standard error. That nobody can read it changes nothing.
pub fn tell(error: &anyhow::Error, as_json: bool) {
    _ = if as_json {
        writeln!(stderr(), "{}", to_json(error))
    } else {
        writeln!(stderr(), "{}", words(error))
    };
}

/// Says how a command should have been called.
pub fn tell_usage(error: &clap::Error, as_json: bool) {
    if as_json && error.use_stderr() {
        let text = error.to_string();
        let is_advice = |part: &&str| part.starts_with("Usage:") || part.starts_with("For more information");
        let parts: Vec<_> = text.trim().split("\n\n").filter(|part| !is_advice(part)).collect();
        let message = parts.join("\n");
        let message = message.trim_start_matches("error: ");
        _ = writeln!(stderr(), "{}", json!({"error": {"kind": USAGE, "message": message}}));
    } else {
        _ = error.print();
    }
}

fn words(error: &anyhow::Error) -> String {
    let report = error.downcast_ref::<Error>().and_then(|error| error.report.as_ref());
    let tried = report.map(|report| attempts_text(&report.attempts)).unwrap_or_default();
    let tried = if tried.is_empty() { tried } else { format!("\n  tried: {tried}") };
    format!("error: {error:#}{tried}")
}

fn to_json(error: &anyhow::Error) -> Value {
    let mut shown = if let Some(error) = error.downcast_ref::<Error>() {
        answered(error)
    } else if let Some(rejected) = error.downcast_ref::<Rejected>() {
        let problems: Vec<_> = rejected.problems.iter().map(problem).collect();
        json!({"kind": INVALID_CONFIG, "file": rejected.name, "problems": problems})
    } else if error.is::<Unreachable>() {
        json!({"kind": ErrorKind::Unavailable.name()})
    } else {
        json!({"kind": FAILED})
    };
    shown["message"] = format!("{error:#}").into();
    json!({ "error": shown })
}

/// What a router, or the router in this process, answered.
fn answered(error: &Error) -> Value {
    let mut shown = json!({"kind": error.kind.name(), "status": error.status});
    if let Some(code) = error.openai_code() {
        shown["code"] = code.into();
    }
    if let Some(param) = &error.param {
        shown["param"] = param.as_str().into();
    }
    if let Some(report) = error.report.as_ref().filter(|report| !report.attempts.is_empty()) {
        shown["attempts"] = report.attempts.iter().map(json::attempt).collect();
    }
    shown
}

fn problem(problem: &Problem) -> Value {
    let (line, column) = problem.place.unzip();
    json!({"path": problem.path, "message": problem.message, "line": line, "column": column})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    #[test]
    fn json_is_wanted_where_the_flag_is_one() {
        let wants = |args: &[&str]| wants_json(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(wants(&["imagegate", "logs", "--json"]) && wants(&["imagegate", "--json", "nonsense"]));
        assert!(!wants(&["imagegate", "logs"]) && !wants(&["imagegate", "generate", "--", "--json"]));
    }

    #[test]
    fn an_error_of_a_router_tells_its_kind_and_what_was_tried() {
        let mut error = Error::missing("config", "x");
        let attempt =
            pb::Attempt { target: "config".into(), outcome: "timeout".into(), ..Default::default() };
        error.report = Some(Box::new(pb::RouteReport { attempts: vec![attempt], ..Default::default() }));
        let error = anyhow::Error::new(error).context("while asking");
        let shown = &to_json(&error)["error"];
        assert_eq!(shown["kind"], "not_found");
        assert_eq!((&shown["code"], &shown["status"]), (&json!("config_not_found"), &json!(404)));
        assert_eq!(shown["message"], "while asking: config \"x\" does not exist");
        assert_eq!(shown["attempts"][0]["outcome"], "timeout");
        let words = words(&error);
        assert!(
            words.starts_with("error: while asking: config \"x\" does not exist\n  tried: config "),
            "{words}"
        );
    }

    #[test]
    fn an_invalid_file_has_all_its_problems_with_their_places() {
        let problem = |place| Problem { place, ..Problem::new("configs.a", "wrong") };
        let problems = vec![problem(Some((3, 5))), problem(None)];
        let shown = to_json(&Rejected { name: "x.yaml".into(), problems }.into());
        assert_eq!(shown["error"]["kind"], "invalid_config");
        let first = json!({"path": "configs.a", "message": "wrong", "line": 3, "column": 5});
        assert_eq!(shown["error"]["problems"][0], first);
        assert_eq!(shown["error"]["problems"][1]["line"], Value::Null);
    }
}
