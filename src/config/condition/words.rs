//! Queries in words, as a person reads them.

use std::fmt;

use serde_json::Value;

use super::{Condition, Test};

/// `metadata.plan = "pro" and (params.n > 1 or params.size = "1024x1024")`
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(parts) if parts.is_empty() => f.write_str("always"),
            Self::All(parts) => joined(f, parts, " and "),
            Self::Any(parts) => joined(f, parts, " or "),
            Self::Field(field, test) => write!(f, "{field} {test}"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(None) => f.write_str("is not given"),
            Self::Is(Some(value)) => write!(f, "= {value}"),
            Self::IsNot(None) => f.write_str("is given"),
            Self::IsNot(Some(value)) => write!(f, "≠ {value}"),
            Self::Compares(comparison, operand) => write!(f, "{comparison} {operand}"),
            Self::In(operands) => write!(f, "is one of {}", listed(operands)),
            Self::NotIn(operands) => write!(f, "is none of {}", listed(operands)),
            Self::Matches(pattern) => write!(f, "matches {pattern:?}"),
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, parts: &[Condition], word: &str) -> fmt::Result {
    for (i, part) in parts.iter().enumerate() {
        f.write_str(if i == 0 { "" } else { word })?;
        match part {
            Condition::All(inner) | Condition::Any(inner) if parts.len() > 1 && inner.len() > 1 => {
                write!(f, "({part})")?;
            }
            part => write!(f, "{part}")?,
        }
    }
    Ok(())
}

fn listed(operands: &[Option<Value>]) -> String {
    let text = |operand: &Option<Value>| operand.as_ref().map_or("nothing".to_owned(), Value::to_string);
    operands.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Condition;
    use crate::config::read::Problems;

    fn words(query: &Value) -> String {
        Condition::read(query, "query", &Problems::default()).unwrap().to_string()
    }

    #[test]
    fn a_query_is_read_as_a_sentence() {
        for (query, expected) in [
            (json!({}), "always"),
            (json!({"metadata.plan": "pro"}), r#"metadata.plan = "pro""#),
            (json!({"params.quality": {"$ne": "hd"}}), r#"params.quality ≠ "high""#),
            (json!({"params.n": {"$gt": 1, "$lte": 4}}), "params.n > 1 and params.n ≤ 4"),
            (
                json!({"params.n": {"$gte": 1.5}, "metadata.a": {"$lt": "2"}}),
                "metadata.a < 2 and params.n ≥ 1.5",
            ),
            (json!({"params.user": null}), "params.user is not given"),
            (json!({"params.user": {"$ne": null}}), "params.user is given"),
            (
                json!({"params.background": {"$in": ["auto", "opaque"]}}),
                r#"params.background is one of nothing, "opaque""#,
            ),
            (json!({"metadata.plan": {"$nin": ["a", "b"]}}), r#"metadata.plan is none of "a", "b""#),
            (json!({"params.prompt": {"$regex": "^cat"}}), "params.prompt matches /^cat/"),
            (
                json!({"$or": [{"metadata.a": 1}, {"metadata.b": 2, "metadata.c": 3}], "url.pathname": "/x"}),
                r#"(metadata.a = 1 or (metadata.b = 2 and metadata.c = 3)) and url.pathname = "/x""#,
            ),
            (
                json!({"$or": [{"$and": [{"metadata.a": 1}, {"metadata.b": 2}]}]}),
                "metadata.a = 1 and metadata.b = 2",
            ),
        ] {
            assert_eq!(words(&query), expected, "{query}");
        }
    }
}
