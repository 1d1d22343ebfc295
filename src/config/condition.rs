//! Queries over a request, as conditional routing writes them: read and checked once, evaluated per request.
//!
//! The operators are the reference's with their documented meaning (docs/compatibility.md lists where its
//! implementation differs). A query that could never be true, or never be evaluated, is refused here.

mod comparison;
mod words;

use std::fmt;

use fancy_regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

pub use self::comparison::Comparison;
use super::{read::Problems, yaml::join};
use crate::{params, pb};

/// Steps that a regular expression with look-around may take on one text before it counts as not matching.
const BACKTRACK_LIMIT: usize = 100_000;

/// A checked query.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Every one holds; of none, that is true.
    All(Vec<Condition>),
    /// At least one holds.
    Any(Vec<Condition>),
    /// A field passes a test.
    Field(Field, Test),
}

/// What a query asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `metadata.…`: what the caller says about the request.
    Metadata(String),
    /// `params.…`: the request's parameters, before any override.
    Params(String),
    /// `url.pathname`: the operation's path in OpenAI's API.
    Pathname,
}

/// One operator with its operand.
#[derive(Clone, Debug)]
pub enum Test {
    /// `$eq`, or the bare value. None stands for a parameter left to the model, which is how `auto` is kept.
    Is(Option<Value>),
    /// `$ne`. A field that is not there passes no test.
    IsNot(Option<Value>),
    /// `$gt`, `$gte`, `$lt`, `$lte`: both sides as numbers.
    Compares(Comparison, f64),
    /// `$in`
    In(Vec<Option<Value>>),
    /// `$nin`
    NotIn(Vec<Option<Value>>),
    /// `$regex`: unanchored, case-sensitive.
    Matches(Pattern),
}

/// A compiled regular expression.
#[derive(Clone)]
pub struct Pattern(Regex);

/// What queries are evaluated over.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The caller's metadata; null if it sent none.
    pub metadata: &'a Value,
    /// The request before any override.
    pub request: &'a pb::ImageRequest,
}

impl Condition {
    /// Reads a query. None if anything is wrong with it, which is then among the problems.
    pub fn read(value: &Value, path: &str, problems: &Problems) -> Option<Self> {
        let Value::Object(fields) = value else {
            problems.add(path, "a query is an object of fields and operators");
            return None;
        };
        let parts = fields.iter().map(|(name, value)| {
            let path = join(path, name);
            match name.as_str() {
                "$and" => Some(Self::All(read_list(value, &path, problems)?)),
                "$or" => Some(Self::Any(read_list(value, &path, problems)?)),
                operator if operator.starts_with('$') => {
                    problems.add(path, unsupported(operator));
                    None
                }
                field => read_field(field, value, &path, problems),
            }
        });
        // All of them are read before the first failure counts, so that every problem is found.
        let mut parts = parts.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()?;
        Some(if parts.len() == 1 { parts.swap_remove(0) } else { Self::All(parts) })
    }

    /// Whether a request fulfils it of which some fields are hidden.
    ///
    /// # Errors
    /// The hidden field that it depends on.
    pub fn decide(&self, facts: Facts<'_>, is_hidden: &dyn Fn(&Field) -> bool) -> Result<bool, &Field> {
        match self {
            Self::All(parts) => settle(parts, false, facts, is_hidden),
            Self::Any(parts) => settle(parts, true, facts, is_hidden),
            Self::Field(field, _) if is_hidden(field) => Err(field),
            Self::Field(field, test) => Ok(test.passes(facts.get(field).as_ref())),
        }
    }
}

impl Field {
    /// Reads a dotted path.
    ///
    /// # Errors
    /// Which roots there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('.') {
            Some(("metadata", rest)) if !rest.is_empty() => Ok(Self::Metadata(rest.to_owned())),
            Some(("params", rest)) if !rest.is_empty() => Ok(Self::Params(rest.to_owned())),
            Some(("url", "pathname")) => Ok(Self::Pathname),
            _ => Err(format!(
                "\"{text}\" is not a field of a request; allowed: metadata.NAME, params.NAME, url.pathname"
            )),
        }
    }

    /// An operand as the request would hold it: `hd` is kept as `high`, `auto` as nothing.
    fn operand(&self, value: &Value) -> Result<Option<Value>, String> {
        if value.is_array() || value.is_object() {
            return Err("the value to compare with is a text, a number, true, false or null".to_owned());
        }
        let Self::Params(name) = self else { return Ok(Some(value.clone())) };
        let mut request = pb::ImageRequest::default();
        // `model: null` and the like: a parameter that is not there.
        if value.is_null() {
            return Ok(None);
        }
        params::set(&mut request, name, value).map_err(|error| error.message.clone())?;
        Ok(params::get(&request, name))
    }
}

/// As a config writes it.
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata(name) => write!(f, "metadata.{name}"),
            Self::Params(name) => write!(f, "params.{name}"),
            Self::Pathname => f.write_str("url.pathname"),
        }
    }
}

impl Facts<'_> {
    /// The value of a field, if the request has it.
    pub fn get(&self, field: &Field) -> Option<Value> {
        match field {
            Field::Metadata(path) => descend(self.metadata, path).cloned(),
            Field::Params(path) => {
                if let Some(value) = params::get(self.request, path) {
                    return Some(value);
                }
                let (name, rest) = path.split_once('.')?;
                descend(&params::get(self.request, name)?, rest).cloned()
            }
            Field::Pathname => Some(self.request.effective_operation().pathname().into()),
        }
    }
}

impl Test {
    fn passes(&self, value: Option<&Value>) -> bool {
        let is = |operand: &Option<Value>| match (operand, value) {
            (Some(operand), Some(value)) => equal(operand, value),
            (None, None) => true,
            _ => false,
        };
        match self {
            Self::Is(operand) => is(operand),
            Self::IsNot(operand) => value.is_some() && !is(operand),
            Self::Compares(comparison, operand) => value
                .and_then(number)
                .and_then(|value| value.partial_cmp(operand))
                .is_some_and(|ordering| comparison.holds(ordering)),
            Self::In(operands) => operands.iter().any(is),
            Self::NotIn(operands) => value.is_some() && !operands.iter().any(is),
            Self::Matches(pattern) => value.and_then(text).is_some_and(|text| pattern.matches(&text)),
        }
    }
}

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        self.0.is_match(text).unwrap_or_else(|error| {
            tracing::warn!(pattern = self.0.as_str(), %error, "a regular expression was given up");
            false
        })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.0.as_str())
    }
}

/// Whether any of the parts is as `settled`, which settles all of them; whatever is hidden then does not matter.
fn settle<'a>(
    parts: &'a [Condition],
    settled: bool,
    facts: Facts<'_>,
    is_hidden: &dyn Fn(&Field) -> bool,
) -> Result<bool, &'a Field> {
    let mut hidden = None;
    for part in parts {
        match part.decide(facts, is_hidden) {
            Ok(holds) if holds == settled => return Ok(settled),
            Ok(_) => {}
            Err(field) => hidden = hidden.or(Some(field)),
        }
    }
    hidden.map_or(Ok(!settled), Err)
}

fn unsupported(operator: &str) -> String {
    format!(
        "Unsupported operator used in the query router: {operator}; allowed: $eq, $ne, $gt, $gte, $lt, $lte, $in, \
         $nin, $regex, $and, $or"
    )
}

fn read_list(value: &Value, path: &str, problems: &Problems) -> Option<Vec<Condition>> {
    let queries = value.as_array().filter(|queries| !queries.is_empty());
    let Some(queries) = queries else {
        problems.add(path, "a list of at least one query is required");
        return None;
    };
    let read = queries
        .iter()
        .enumerate()
        .map(|(i, query)| Condition::read(query, &join(path, &i.to_string()), problems));
    read.collect::<Vec<_>>().into_iter().collect()
}

fn read_field(name: &str, value: &Value, path: &str, problems: &Problems) -> Option<Condition> {
    let field = Field::parse(name).map_err(|message| problems.add(path, message)).ok()?;
    let Value::Object(operators) = value else {
        let operand = field.operand(value).map_err(|message| problems.add(path, message)).ok()?;
        return Some(Condition::Field(field, Test::Is(operand)));
    };
    let tests = read_operators(&field, operators, path, problems)?;
    Some(Condition::All(tests.into_iter().map(|test| Condition::Field(field.clone(), test)).collect()))
}

fn read_operators(
    field: &Field,
    operators: &Map<String, Value>,
    path: &str,
    problems: &Problems,
) -> Option<Vec<Test>> {
    let read = operators.iter().map(|(operator, operand)| {
        read_test(field, operator, operand)
            .map_err(|message| problems.add(join(path, operator), message))
            .ok()
    });
    read.collect::<Vec<_>>().into_iter().collect()
}

fn read_test(field: &Field, operator: &str, operand: &Value) -> Result<Test, String> {
    let compares = |comparison| {
        let operand = number(operand).ok_or_else(|| format!("{operand} is not a number"))?;
        Ok(Test::Compares(comparison, operand))
    };
    let operands = || -> Result<Vec<Option<Value>>, String> {
        let list =
            operand.as_array().filter(|list| !list.is_empty()).ok_or("a list of values is required")?;
        list.iter().map(|value| field.operand(value)).collect()
    };
    match operator {
        "$eq" => Ok(Test::Is(field.operand(operand)?)),
        "$ne" => Ok(Test::IsNot(field.operand(operand)?)),
        "$gt" => compares(Comparison::Above),
        "$gte" => compares(Comparison::AtLeast),
        "$lt" => compares(Comparison::Below),
        "$lte" => compares(Comparison::AtMost),
        "$in" => Ok(Test::In(operands()?)),
        "$nin" => Ok(Test::NotIn(operands()?)),
        "$regex" => {
            let pattern = operand.as_str().ok_or_else(|| format!("{operand} is not a text"))?;
            let regex = RegexBuilder::new(pattern).backtrack_limit(BACKTRACK_LIMIT).build();
            regex
                .map(|regex| Test::Matches(Pattern(regex)))
                .map_err(|error| format!("\"{pattern}\": {error}"))
        }
        other => Err(unsupported(other)),
    }
}

/// The value below a dotted path. A name that has dots itself is found as a whole first.
fn descend<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let inner = |name: &str| match value {
        Value::Object(fields) => fields.get(name),
        Value::Array(values) => values.get(name.parse::<usize>().ok()?),
        _ => None,
    };
    inner(path).or_else(|| {
        let (name, rest) = path.split_once('.')?;
        descend(inner(name)?, rest)
    })
}

/// Strict equality, as JavaScript has it: the number 2 is 2.0, and is not the text "2".
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// A number, or a text that is one.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(query: &Value) -> Result<Condition, Vec<String>> {
        let problems = Problems::default();
        let condition = Condition::read(query, "query", &problems);
        let problems: Vec<String> = problems.into_vec().iter().map(ToString::to_string).collect();
        match condition {
            Some(condition) if problems.is_empty() => Ok(condition),
            _ => Err(problems),
        }
    }

    fn request() -> pb::ImageRequest {
        let mut request = pb::ImageRequest::default();
        let fields = json!({
            "prompt": "a cat", "model": "dall-e-3", "n": 2, "size": "1024x1024", "quality": "hd", "strength": 0.7,
            "lora": {"id": "x", "layers": [{"scale": 0.5}]}, "a.b": 1,
        });
        for (name, value) in fields.as_object().unwrap() {
            params::set(&mut request, name, value).unwrap();
        }
        request
    }

    #[test]
    fn what_is_hidden_leaves_open_only_what_depends_on_it() {
        let (yes, no, hidden) =
            (json!({"params.n": 2}), json!({"params.n": 3}), json!({"params.prompt": {"$regex": "cat"}}));
        for (query, expected) in [
            (hidden.clone(), Err("params.prompt".to_owned())),
            (json!({"$and": [hidden, no]}), Ok(false)),
            (json!({"$and": [hidden, yes]}), Err("params.prompt".to_owned())),
            (json!({"$or": [hidden, yes]}), Ok(true)),
            (json!({"$or": [no, hidden]}), Err("params.prompt".to_owned())),
            (json!({"$or": [no, {"$and": [no, hidden]}]}), Ok(false)),
        ] {
            let condition = read(&query).unwrap();
            let facts = Facts { metadata: &Value::Null, request: &request() };
            let decided =
                condition.decide(facts, &|field| matches!(field, Field::Params(name) if name == "prompt"));
            assert_eq!(decided.map_err(ToString::to_string), expected, "{query}");
        }
    }

    fn holds(query: &Value) -> bool {
        let metadata =
            json!({"plan": "pro", "age": "31", "geo": {"country": "de"}, "a.b": true, "none": null});
        let facts = Facts { metadata: &metadata, request: &request() };
        read(query).unwrap().decide(facts, &|_| false).unwrap()
    }

    #[test]
    fn every_operator_means_what_is_documented() {
        for (query, expected) in [
            (json!({}), true),
            (json!({"metadata.plan": "pro"}), true),
            (json!({"metadata.plan": "free"}), false),
            (json!({"params.n": 2}), true),
            (json!({"params.n": 2.0}), true),
            (json!({"metadata.age": 31}), false),
            (json!({"metadata.plan": {"$eq": "pro"}}), true),
            (json!({"metadata.plan": {"$ne": "pro"}}), false),
            (json!({"metadata.plan": {"$ne": "free"}}), true),
            (json!({"metadata.gone": {"$ne": "free"}}), false),
            (json!({"metadata.gone": {"$nin": ["free"]}}), false),
            (json!({"metadata.gone": {"$gt": 1}}), false),
            (json!({"metadata.gone": {"$regex": "undefined"}}), false),
            (json!({"metadata.age": {"$gt": 30}}), true),
            (json!({"metadata.age": {"$gt": 31}}), false),
            (json!({"metadata.age": {"$gte": "31"}}), true),
            (json!({"metadata.age": {"$lt": 31}}), false),
            (json!({"metadata.age": {"$lte": 31}}), true),
            (json!({"metadata.plan": {"$gt": 1}}), false),
            (json!({"params.n": {"$gt": 1, "$lt": 3}}), true),
            (json!({"params.n": {"$gt": 1, "$lt": 2}}), false),
            (json!({"metadata.plan": {"$in": ["free", "pro"]}}), true),
            (json!({"metadata.plan": {"$nin": ["free", "pro"]}}), false),
            (json!({"metadata.plan": {"$nin": ["free"]}}), true),
            (json!({"params.model": {"$regex": "^dall-e-\\d$"}}), true),
            (json!({"params.model": {"$regex": "DALL"}}), false),
            (json!({"params.model": {"$regex": "^(?!gpt)"}}), true),
            (json!({"params.prompt": {"$regex": "cat", "$ne": "a cat"}}), false),
            (json!({"$and": [{"metadata.plan": "pro"}, {"params.n": 2}]}), true),
            (json!({"$or": [{"metadata.plan": "free"}, {"params.n": 2}]}), true),
            (json!({"$or": [{"metadata.plan": "pro"}], "params.n": 3}), false),
            (json!({"$and": [{"$or": [{"params.n": 1}, {"params.n": 2}]}, {"metadata.plan": "pro"}]}), true),
            (json!({"metadata.plan": "pro", "params.n": 1}), false),
            (json!({"metadata.none": null}), true),
            (json!({"url.pathname": "/v1/images/generations"}), true),
        ] {
            assert_eq!(holds(&query), expected, "{query}");
        }
    }

    #[test]
    fn a_path_goes_as_deep_as_the_request() {
        for (query, expected) in [
            (json!({"metadata.geo.country": "de"}), true),
            (json!({"metadata.a.b": true}), true),
            (json!({"params.lora.id": "x"}), true),
            (json!({"params.lora.layers.0.scale": 0.5}), true),
            (json!({"params.lora.layers.1.scale": 0.5}), false),
            (json!({"params.a.b": 1}), true),
        ] {
            assert_eq!(holds(&query), expected, "{query}");
        }
    }

    #[test]
    fn parameters_are_compared_in_any_spelling() {
        for (query, expected) in [
            (json!({"params.quality": "hd"}), true),
            (json!({"params.quality": "high"}), true),
            (json!({"params.quality": {"$in": ["low", "standard"]}}), false),
            (json!({"params.strength": 0.7}), true),
            (json!({"params.size": "1024X1024"}), true),
            (json!({"params.background": "auto"}), true),
            (json!({"params.user": null}), true),
        ] {
            assert_eq!(holds(&query), expected, "{query}");
        }
    }

    #[test]
    fn a_query_that_cannot_work_is_refused() {
        for (query, problem) in [
            (json!([]), "query: a query is an object"),
            (json!({"$nor": []}), "query.$nor: Unsupported operator used in the query router: $nor"),
            (json!({"params.n": {"$exists": true}}), "query.params.n.$exists: Unsupported operator"),
            (json!({"params.n": [1]}), "query.params.n: the value to compare with is"),
            (json!({"params.n": {"$in": 1}}), "query.params.n.$in: a list of values is required"),
            (json!({"params.n": "two"}), "query.params.n: n: \"two\" is not allowed"),
            (json!({"params.size": {"$in": ["big"]}}), "query.params.size.$in: size: \"big\" is not allowed"),
            (json!({"params.n": {"$gt": "many"}}), "query.params.n.$gt: \"many\" is not a number"),
            (json!({"params.model": {"$regex": "("}}), "query.params.model.$regex: \"(\""),
            (json!({"body.n": 1}), "query.body.n: \"body.n\" is not a field of a request"),
            (json!({"params": 1}), "query.params: \"params\" is not a field"),
            (json!({"$or": []}), "query.$or: a list of at least one query"),
            (json!({"$and": [{"x": 1}]}), "query.$and.0.x: \"x\" is not a field"),
        ] {
            let problems = read(&query).unwrap_err();
            assert!(problems[0].starts_with(problem), "{query}: {problems:?}");
        }
    }
}
