//! Random trees of strategies over targets that fail in random ways: who answers, who was called, and what
//! the caller sees must be what a few lines of interpreter say.

use imagegate::{
    error::{Error, ErrorKind},
    pb::BillingClass,
};
use proptest::{collection::vec, option, prelude::*, sample::select, test_runner::Config};
use serde_json::{Value, json};

use crate::support::{Gateway, Mode, Outcome, Worker, model, report};

/// How a target ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answers,
    BadKey,
    RateLimited,
    Overloaded,
    ServerError,
    Refused,
    Withheld,
    Invalid,
    Html,
    Truncated,
    ConnectionRefused,
    Silent,
    /// It lacks the model: skipped without a call.
    Unsuitable,
}

const FATES: [Fate; 13] = [
    Fate::Answers,
    Fate::BadKey,
    Fate::RateLimited,
    Fate::Overloaded,
    Fate::ServerError,
    Fate::Refused,
    Fate::Withheld,
    Fate::Invalid,
    Fate::Html,
    Fate::Truncated,
    Fate::ConnectionRefused,
    Fate::Silent,
    Fate::Unsuitable,
];

#[derive(Clone, Debug)]
enum Node {
    Leaf(Fate),
    Single(Vec<Node>),
    Fallback { codes: Option<Vec<u16>>, returns_refusals: bool, fails_unsuitable: bool, children: Vec<Node> },
}

/// What the interpreter says about a part of the tree: who answered, or how the failure looks.
type Verdict = Result<String, Fate>;

impl Fate {
    fn outcome(self) -> Outcome {
        let fail = |kind, status| Outcome::Fail(Error::new(kind, "no").with_status(status));
        match self {
            Self::Answers | Self::Unsuitable => Outcome::Good,
            Self::BadKey => fail(ErrorKind::PermissionDenied, 401),
            Self::RateLimited => fail(ErrorKind::RateLimited, 429),
            Self::Overloaded => fail(ErrorKind::Unavailable, 529),
            Self::ServerError => fail(ErrorKind::Unavailable, 500),
            Self::Refused => Outcome::Fail(Error::refused("prompt", "no")),
            Self::Withheld => Outcome::Withheld,
            Self::Invalid => fail(ErrorKind::InvalidRequest, 400),
            Self::Html => Outcome::Html,
            Self::Truncated => Outcome::Truncated,
            Self::ConnectionRefused => Outcome::Fail(Error::transport(
                ErrorKind::Unavailable,
                BillingClass::NotSent,
                "connection refused",
            )),
            Self::Silent => Outcome::Silent,
        }
    }

    /// The status that the caller sees, and others by which configs may mean it.
    fn statuses(self) -> &'static [u16] {
        match self {
            Self::Answers => &[200],
            Self::BadKey => &[401],
            Self::RateLimited => &[429],
            Self::Overloaded => &[529],
            Self::ServerError => &[500],
            Self::Refused | Self::Withheld | Self::Invalid | Self::Unsuitable => &[400],
            Self::Html | Self::Truncated => &[502, 500],
            Self::ConnectionRefused => &[503, 500, 502],
            Self::Silent => &[408, 504],
        }
    }
}

impl Node {
    fn config(&self, outcomes: &mut Vec<(String, Fate)>) -> Value {
        match self {
            Self::Leaf(fate) => {
                let prefix = if *fate == Fate::Unsuitable { "unknown" } else { "m" };
                let name = format!("{prefix}{}", outcomes.len());
                outcomes.push((name.clone(), *fate));
                json!({"provider": "paint", "override_params": {"model": name}})
            }
            Self::Single(children) => {
                let targets: Vec<Value> = children.iter().map(|child| child.config(outcomes)).collect();
                json!({"strategy": {"mode": "single"}, "targets": targets})
            }
            Self::Fallback { codes, returns_refusals, fails_unsuitable, children } => {
                let targets: Vec<Value> = children.iter().map(|child| child.config(outcomes)).collect();
                let mut strategy = json!({
                    "mode": "fallback",
                    "on_refusal": if *returns_refusals { "return" } else { "fallback" },
                    "on_unsupported": if *fails_unsuitable { "fail" } else { "skip" },
                });
                if let Some(codes) = codes {
                    strategy["on_status_codes"] = json!(codes);
                }
                json!({"strategy": strategy, "targets": targets})
            }
        }
    }

    /// Adds every target that is reached to `tried`, by its path.
    fn interpret(&self, path: &str, tried: &mut Vec<(String, Fate)>) -> Verdict {
        let child = |i: usize| format!("{path}.targets[{i}]");
        match self {
            Self::Leaf(fate) => {
                tried.push((path.to_owned(), *fate));
                if *fate == Fate::Answers { Ok(path.to_owned()) } else { Err(*fate) }
            }
            Self::Single(children) => children[0].interpret(&child(0), tried),
            Self::Fallback { codes, returns_refusals, fails_unsuitable, children } => {
                let mut shown = None;
                for (i, node) in children.iter().enumerate() {
                    let fate = match node.interpret(&child(i), tried) {
                        Ok(answered) => return Ok(answered),
                        Err(fate) => fate,
                    };
                    if fate != Fate::Unsuitable || shown.is_none() {
                        shown = Some(fate);
                    }
                    let goes_on = match fate {
                        Fate::Unsuitable => !fails_unsuitable,
                        Fate::Refused | Fate::Withheld if *returns_refusals => false,
                        _ => codes
                            .as_ref()
                            .is_none_or(|codes| codes.iter().any(|code| fate.statuses().contains(code))),
                    };
                    if !goes_on {
                        break;
                    }
                }
                Err(shown.unwrap())
            }
        }
    }
}

fn trees() -> impl Strategy<Value = Node> {
    let leaf = select(&FATES[..]).prop_map(Node::Leaf);
    let codes = option::weighted(0.3, vec(select(vec![400, 401, 408, 429, 500, 502, 503, 529]), 0..4));
    leaf.prop_recursive(4, 24, 4, move |node| {
        let fallback = (codes.clone(), any::<[bool; 4]>(), vec(node.clone(), 1..5)).prop_map(
            |(codes, [a, b, c, d], children)| Node::Fallback {
                codes,
                returns_refusals: a && b,
                fails_unsuitable: c && d,
                children,
            },
        );
        prop_oneof![4 => fallback, 1 => vec(node, 1..3).prop_map(Node::Single)]
    })
}

async fn check(mode: Mode, tree: Node) -> Result<(), TestCaseError> {
    let mut leaves = Vec::new();
    let config = tree.config(&mut leaves);
    let worker = Worker::new("paint", vec![model("m*")]);
    for (name, fate) in &leaves {
        worker.script(name, [fate.outcome()]);
    }
    let mut tried = Vec::new();
    let verdict = tree.interpret("config", &mut tried);

    let gateway = Gateway::over(mode, &worker, &config);
    let headers = [("x-portkey-request-timeout", "1000")];
    let answer = gateway.generate_with(&json!({}), &headers).await;

    let happened = match (&answer, &verdict) {
        (Ok(result), Ok(answered)) => {
            prop_assert_eq!(&report(result).target, answered);
            prop_assert_eq!(result.images.len(), 1);
            report(result)
        }
        (Err(error), Err(fate)) => {
            prop_assert_eq!(error.status, fate.statuses()[0], "{:?}", fate);
            error.report.as_deref().unwrap()
        }
        _ => return Err(TestCaseError::fail(format!("{answer:?}, not {verdict:?}"))),
    };
    let paths: Vec<_> = happened.attempts.iter().map(|attempt| attempt.target.as_str()).collect();
    let expected: Vec<_> = tried.iter().map(|(path, _)| path.as_str()).collect();
    prop_assert_eq!(paths, expected);
    for (attempt, (_, fate)) in happened.attempts.iter().zip(&tried) {
        let skipped = *fate == Fate::Unsuitable;
        prop_assert_eq!(attempt.outcome == "skipped", skipped);
        let status = if skipped { 0 } else { fate.statuses()[0] };
        prop_assert_eq!(attempt.status, u32::from(status));
    }
    let calls = tried.iter().filter(|(_, fate)| *fate != Fate::Unsuitable).count();
    prop_assert_eq!(worker.requests().len(), calls);
    Ok(())
}

fn simulate(mode: Mode, cases: u32) {
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    proptest!(config, |(tree in trees())| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().unwrap().block_on(check(mode, tree))?;
    });
}

#[test]
fn any_tree_behaves_as_the_interpreter_says() {
    simulate(Mode::OneProcess, 512);
}

#[test]
fn any_tree_behaves_the_same_across_connections() {
    simulate(Mode::Connected, 64);
}
