//! `/v1/feedback`: what somebody thinks of an answer.

use axum::Json;
use serde_json::{Map, Value, json};

use super::{Asked, read_fields, required, told};
use crate::{
    config::read::Object,
    error::{Error, Result},
    pb,
};

/// `POST /v1/feedback`: one, or a list of them.
pub async fn create(asked: Asked) -> Result<Json<Value>> {
    let messages = match &asked.body {
        Some(Value::Array(several)) => {
            let read = |(i, one): (usize, &Value)| {
                let nothing = Map::new();
                let fields = one.as_object().unwrap_or(&nothing);
                read_fields(fields, &[], read_new).map_err(|error| {
                    Error::invalid(format!("{i}"), format!("feedback {i}: {}", error.message))
                })
            };
            several.iter().enumerate().map(read).collect::<Result<Vec<_>>>()?
        }
        _ => vec![asked.body(&[], read_new)?],
    };
    let mut ids = Vec::with_capacity(messages.len());
    for message in messages {
        match told(asked.admin.create_feedback(asked.to(message)).await) {
            Ok(saved) => ids.push(saved.feedback.unwrap_or_default().id),
            Err(mut error) => {
                if !ids.is_empty() {
                    error.message = format!("{} (saved before that: {})", error.message, ids.join(", "));
                }
                return Err(error);
            }
        }
    }
    Ok(saved("Feedback successfully saved", ids))
}

/// `PUT /v1/feedback/{id}`
pub async fn update(asked: Asked) -> Result<Json<Value>> {
    let id = asked.path("id");
    let message = asked.body(&[], |body| pb::UpdateFeedbackRequest {
        value: value(body),
        weight: body.between("weight", 0.0, 1.0),
        metadata_json: metadata(body),
        id: id.clone(),
    })?;
    let updated = told(asked.admin.update_feedback(asked.to(message)).await)?;
    Ok(saved("Feedback successfully updated", vec![updated.feedback.unwrap_or_default().id]))
}

fn saved(message: &str, ids: Vec<String>) -> Json<Value> {
    Json(json!({"success": true, "status": "success", "message": message, "feedback_ids": ids}))
}

fn read_new(body: &mut Object<'_>) -> pb::CreateFeedbackRequest {
    body.required("value");
    pb::CreateFeedbackRequest {
        trace_id: required(body, "trace_id"),
        value: value(body).unwrap_or_default(),
        weight: body.between("weight", 0.0, 1.0),
        metadata_json: metadata(body).unwrap_or_default(),
    }
}

fn value(body: &mut Object<'_>) -> Option<i32> {
    let value = body.between("value", -10.0, 10.0)?;
    if value.fract() != 0.0 {
        body.problem("value", format!("{value} is not allowed; allowed: a whole number from -10 to 10"));
    }
    Some(value as i32)
}

fn metadata(body: &mut Object<'_>) -> Option<String> {
    let metadata = body.map("metadata")?;
    Some(serde_json::to_string(metadata).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tonic::Status;

    use crate::{
        pb,
        shim::manage::fake::{Fake, json},
    };

    #[tokio::test]
    async fn one_and_several_are_saved() {
        let memory = Arc::new(Fake::default());
        let one = json!({"trace_id": "t", "value": -10, "weight": 0.5, "metadata": {"by": "mia"}});
        for body in [one.clone(), json!([one, one])] {
            for id in ["f-1", "f-2"] {
                let feedback = Some(pb::Feedback { id: id.into(), ..Default::default() });
                memory.answers("create_feedback", pb::CreateFeedbackResponse { feedback });
            }
            let several = body.is_array();
            let (status, body) = json(&memory, "POST", "/v1/feedback", Some(body)).await;
            assert_eq!((status, &body["status"]), (200, &json!("success")));
            let saved = body["feedback_ids"].as_array().unwrap().len();
            assert_eq!(saved, if several { 2 } else { 1 });
            for _ in 0..saved {
                let message: pb::CreateFeedbackRequest = memory.asked();
                assert_eq!((message.value, message.weight), (-10, Some(0.5)));
                assert_eq!(
                    (message.trace_id.as_str(), message.metadata_json.as_str()),
                    ("t", r#"{"by":"mia"}"#)
                );
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_saved_of_a_list_with_a_mistake() {
        let memory = Arc::new(Fake::default());
        let good = json!({"trace_id": "t", "value": 1});
        for bad in [
            json!({"trace_id": "t", "value": 11}),
            json!({"value": 1}),
            json!(3),
            json!({"trace_id": "t", "value": 0.5}),
        ] {
            let (status, body) = json(&memory, "POST", "/v1/feedback", Some(json!([good, bad]))).await;
            let message = body["error"]["message"].as_str().unwrap();
            assert!(status == 400 && message.starts_with("feedback 1: "), "{message}");
        }
        assert!(memory.was_not_asked());
    }

    #[tokio::test]
    async fn a_failure_in_the_middle_tells_what_was_saved() {
        let memory = Arc::new(Fake::default());
        let feedback = Some(pb::Feedback { id: "f-1".into(), ..Default::default() });
        memory.answers("create_feedback", pb::CreateFeedbackResponse { feedback });
        memory.fails("create_feedback", Status::unavailable("away"));
        let good = json!({"trace_id": "t", "value": 1});
        let (status, body) = json(&memory, "POST", "/v1/feedback", Some(json!([good, good]))).await;
        assert_eq!((status, &body["error"]["message"]), (503, &json!("away (saved before that: f-1)")));
    }

    #[tokio::test]
    async fn an_update_says_what_changes() {
        let memory = Arc::new(Fake::default());
        memory.answers("update_feedback", pb::UpdateFeedbackResponse::default());
        assert_eq!(json(&memory, "PUT", "/v1/feedback/f-1", Some(json!({"value": 3}))).await.0, 200);
        let message: pb::UpdateFeedbackRequest = memory.asked();
        let expected = pb::UpdateFeedbackRequest { id: "f-1".into(), value: Some(3), ..Default::default() };
        assert_eq!(message, expected);
    }
}
