//! Request parameters by the names of OpenAI's API.

use serde_json::Value;

/// A protobuf value as JSON.
pub fn to_json(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        // JSON has one kind of number, protobuf's Struct only doubles: whole ones are written as integers.
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => {
            (*value as i64).into()
        }
        Some(Kind::NumberValue(value)) => {
            serde_json::Number::from_f64(*value).map_or(Value::Null, Value::Number)
        }
        Some(Kind::StringValue(value)) => Value::String(value.clone()),
        Some(Kind::StructValue(value)) => {
            Value::Object(value.fields.iter().map(|(name, value)| (name.clone(), to_json(value))).collect())
        }
        Some(Kind::ListValue(value)) => Value::Array(value.values.iter().map(to_json).collect()),
    }
}

/// JSON as a protobuf value.
pub fn from_json(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(from_json).collect() })
        }
        Value::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields.iter().map(|(name, value)| (name.clone(), from_json(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}
