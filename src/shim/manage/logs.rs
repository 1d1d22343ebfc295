//! `/v1/logs`: the request log, searched and exported.

use axum::{
    Json,
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::{Asked, PAGE_AT_MOST, filter, record, text, told, whole};
use crate::{
    error::{Error, ErrorKind, Result},
    pb,
    shim::files::describe,
};

/// Requests that an export holds at a time.
const EXPORT_PAGE: u32 = 500;

/// How an export is written.
#[derive(Clone, Copy, Debug)]
enum Format {
    Ndjson,
    Csv,
}

/// `GET /v1/logs`
pub async fn list(asked: Asked) -> Result<Json<Value>> {
    let message = asked.query(&filter::REFUSED, |query| pb::ListRequestsRequest {
        filter: Some(filter::read(query)),
        page_size: whole(query, "page_size", 1, PAGE_AT_MOST)
            .and_then(|size| size.try_into().ok())
            .unwrap_or_default(),
        page_token: text(query, "page_token"),
    })?;
    let listed = told(asked.admin.list_requests(asked.to(message)).await)?;
    Ok(Json(json!({
        "success": true,
        "object": "list",
        "data": listed.requests.iter().map(record::describe).collect::<Vec<_>>(),
        "next_page_token": super::some(&listed.next_page_token),
    })))
}

/// `GET /v1/logs/{id}`
pub async fn get(asked: Asked) -> Result<Json<Value>> {
    let message = pb::GetRequestRequest { id: asked.path("id") };
    let got = told(asked.admin.get_request(asked.to(message)).await)?;
    Ok(Json(json!({"success": true, "data": record::describe_all(&got.request.unwrap_or_default())})))
}

/// `GET /v1/logs/{id}/images/{index}`
pub async fn image(asked: Asked) -> Result<Response> {
    let full = asked.query(&[super::WORKSPACE], |query| {
        query.choice("size", &[("thumbnail", false), ("full", true)]).unwrap_or_default()
    })?;
    let said = asked.path("index");
    let index = said.parse().map_err(|_| {
        Error::new(ErrorKind::NotFound, format!("'{said}' is no number of an image; the first is 0"))
    })?;
    let message = pb::GetRequestImageRequest { id: asked.path("id"), index, full };
    let got = told(asked.admin.get_request_image(asked.to(message)).await)?;
    let format = got.format();
    let mut response = Body::from(got.data).into_response();
    describe(response.headers_mut(), format);
    Ok(response)
}

/// `GET /v1/logs/export`: all that a search finds, as a file. The first page is waited for, so that a failure before
/// anything was written has its own status; a later one breaks the connection, so that half a file is not taken for one.
pub async fn export(asked: Asked) -> Result<Response> {
    let (format, search) = asked.query(&filter::REFUSED, |query| {
        let format = query.choice("format", &[("ndjson", Format::Ndjson), ("csv", Format::Csv)]);
        (format.unwrap_or(Format::Ndjson), filter::read(query))
    })?;
    let first = page(&asked, &search, String::new()).await?;
    let (head, media_type, file) = match format {
        Format::Ndjson => (String::new(), "application/x-ndjson", "attachment; filename=\"requests.ndjson\""),
        Format::Csv => {
            (record::csv_head(), "text/csv; charset=utf-8", "attachment; filename=\"requests.csv\"")
        }
    };
    let next = first.next_page_token.clone();
    let rest = stream::try_unfold((asked, search, next), |(asked, search, next)| async move {
        if next.is_empty() {
            return Ok::<_, Error>(None);
        }
        let page = page(&asked, &search, next).await?;
        let next = page.next_page_token.clone();
        Ok(Some((page, (asked, search, next))))
    });
    let pages = stream::iter([Ok(first)])
        .chain(rest)
        .map_ok(move |page| Bytes::from(written(&page.requests, format)));
    let whole = stream::iter([Ok(Bytes::from(head))])
        .chain(pages)
        .map_err(|error| std::io::Error::other(error.to_string()));
    let mut response = Body::from_stream(whole).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_static(file));
    Ok(response)
}

async fn page(
    asked: &Asked,
    filter: &pb::RequestFilter,
    page_token: String,
) -> Result<pb::ListRequestsResponse> {
    let message =
        pb::ListRequestsRequest { filter: Some(filter.clone()), page_size: EXPORT_PAGE, page_token };
    told(asked.admin.list_requests(asked.to(message)).await)
}

fn written(requests: &[pb::RequestRecord], format: Format) -> String {
    let line = |request: &pb::RequestRecord| match format {
        Format::Ndjson => format!("{}\n", record::describe(request)),
        Format::Csv => record::csv_line(request),
    };
    requests.iter().map(line).collect()
}

/// `/v1/logs/exports`: the reference's export jobs.
pub async fn no_export_jobs(_: Asked) -> Result<Response> {
    let message =
        "there are no export jobs; GET /v1/logs/export?format=ndjson answers with the export itself";
    Err(Error::new(ErrorKind::NotFound, message))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tonic::Status;

    use crate::{
        pb,
        shim::manage::fake::{Fake, json, send},
    };

    fn page(ids: &[&str], next: &str) -> pb::ListRequestsResponse {
        let record = |id: &&str| pb::RequestRecord {
            id: (*id).into(),
            trace_id: "=1+1".into(),
            outcome: "ok".into(),
            status: 200,
            metadata: [("user".into(), "a, b".into())].into(),
            ..Default::default()
        };
        pb::ListRequestsResponse { requests: ids.iter().map(record).collect(), next_page_token: next.into() }
    }

    #[tokio::test]
    async fn a_search_has_our_names_and_the_references() {
        let memory = Arc::new(Fake::default());
        let searches = [
            "from_unix_ms=1000&until_unix_ms=2000&provider=openai&model=dall-e-3&config=pc-a&caller=id-1&virtual_key=v\
             &statuses=429&statuses=500&success=false&metadata=%7B%22user%22%3A%22mia%22%7D&cache_status=semantic_hit&page_size=10&page_token=t",
            "time_of_generation_min=1970-01-01T00:00:01Z&time_of_generation_max=1970-01-01T00:00:02Z\
             &ai_org_model=openai__dall-e-3&configs=pc-a&api_key_ids=id-1&virtual_keys=v&status_code=429,500\
             &success=false&metadata=%7B%22user%22%3A%22mia%22%7D&cache_status=SEMANTIC+HIT&page_size=10&page_token=t",
        ];
        for search in searches {
            memory.answers("list_requests", page(&["r-1"], "next"));
            let (status, body) = json(&memory, "GET", &format!("/v1/logs?{search}"), None).await;
            assert_eq!((status, &body["next_page_token"]), (200, &json!("next")), "{body}");
            assert_eq!(body["data"][0]["is_success"], true);
            let message: pb::ListRequestsRequest = memory.asked();
            let expected = pb::RequestFilter {
                from_unix_ms: Some(1000),
                until_unix_ms: Some(2000),
                provider: "openai".into(),
                model: "dall-e-3".into(),
                config: "pc-a".into(),
                caller: "id-1".into(),
                virtual_key: "v".into(),
                statuses: vec![429, 500],
                success: Some(false),
                metadata: [("user".into(), "mia".into())].into(),
                cache_status: "semantic_hit".into(),
                ..Default::default()
            };
            assert_eq!(message.filter, Some(expected));
            assert_eq!((message.page_size, message.page_token.as_str()), (10, "t"));
        }
    }

    #[tokio::test]
    async fn a_search_that_means_nothing_is_refused() {
        let memory = Arc::new(Fake::default());
        for search in [
            "from=1",
            "page_size=0",
            "page_size=1001",
            "page_size=x",
            "statuses=42",
            "success=maybe",
            "metadata=x",
            "configs=a,b",
            "configs=a&configs=b",
            "provider=a&provider=b",
            "config=a&configs=b",
            "cost_min=1",
            "min_cost_usd=cheap",
            "time_of_generation_min=yesterday",
            "from_unix_ms=1&time_of_generation_min=1970-01-01",
            "ai_org_model=openai",
            "cache_status=disabled",
            "workspace_slug=w",
        ] {
            let (status, body) = json(&memory, "GET", &format!("/v1/logs?{search}"), None).await;
            assert_eq!(status, 400, "{search}: {body}");
        }
        assert!(memory.was_not_asked());
    }

    #[tokio::test]
    async fn one_request_is_shown_with_its_report() {
        let memory = Arc::new(Fake::default());
        let attempt = pb::Attempt {
            target: "config.targets[0]".into(),
            outcome: "timeout".into(),
            ..Default::default()
        };
        let request = pb::RequestRecord {
            id: "r-1".into(),
            asked: Some(pb::ImageRequest { model: "m".into(), seed: Some(7), ..Default::default() }),
            report: Some(pb::RouteReport { attempts: vec![attempt], ..Default::default() }),
            timings: Some(pb::Timings {
                total_us: 9000,
                routing_us: 500,
                cache_us: 250,
                waiting_us: 1000,
                upstream_us: 6000,
                verifying_us: 750,
                first_preview_us: None,
            }),
            ..Default::default()
        };
        memory.answers("get_request", pb::GetRequestResponse { request: Some(request) });
        let (_, body) = json(&memory, "GET", "/v1/logs/r-1", None).await;
        assert_eq!(body["data"]["asked"], json!({"model": "m", "seed": 7}));
        assert_eq!(body["data"]["report"]["attempts"][0]["outcome"], "timeout");
        for (name, ms) in [
            ("request_parsing", json!(0.5)),
            ("pre_processing", json!(0.5)),
            ("cache_processing", json!(0.25)),
            ("waiting", json!(1.0)),
            ("upstream_response", json!(6.0)),
            ("response_parsing", json!(0.75)),
            ("gateway_processing", json!(3.0)),
            ("first_preview", json!(null)),
        ] {
            assert_eq!(body["data"][name], ms, "{name}");
        }
        assert_eq!(memory.asked::<pb::GetRequestRequest>().id, "r-1");
    }

    #[tokio::test]
    async fn an_image_is_shown_as_what_it_is() {
        let memory = Arc::new(Fake::default());
        for (query, full) in [("", false), ("?size=thumbnail", false), ("?size=full", true)] {
            let format = pb::ImageFormat::Svg.into();
            let data = b"<svg/>".as_slice().into();
            memory.answers("get_request_image", pb::GetRequestImageResponse { data, format });
            let answer = send(&memory, "GET", &format!("/v1/logs/r-1/images/2{query}"), None).await;
            assert_eq!(answer, (200, "<svg/>".into()));
            let expected = pb::GetRequestImageRequest { id: "r-1".into(), index: 2, full };
            assert_eq!(memory.asked::<pb::GetRequestImageRequest>(), expected);
        }
        for (path, status) in [("x", 404), ("-1", 404), ("0?size=huge", 400), ("0?from=1", 400)] {
            let path = format!("/v1/logs/r-1/images/{path}");
            assert_eq!(send(&memory, "GET", &path, None).await.0, status, "{path}");
        }
        assert!(memory.was_not_asked());
    }

    #[tokio::test]
    async fn an_export_asks_page_after_page() {
        let memory = Arc::new(Fake::default());
        for format in ["ndjson", "csv"] {
            memory.answers("list_requests", page(&["r-3", "r-2"], "more"));
            memory.answers("list_requests", page(&["r-1"], ""));
            let path = format!("/v1/logs/export?format={format}&model=m");
            let (status, body) = send(&memory, "GET", &path, None).await;
            assert_eq!(status, 200, "{body}");
            let mut lines: Vec<_> = body.lines().collect();
            if format == "csv" {
                assert!(lines.remove(0).starts_with("id,trace_id,created_at,"), "{body}");
                // A spreadsheet computes nothing that a caller wrote.
                assert!(lines[0].starts_with("r-3,'=1+1,1970-01-01T00:00:00Z,"), "{body}");
                assert!(lines[0].ends_with(r#","{""user"":""a, b""}""#), "{body}");
            } else {
                let last: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
                assert_eq!((&last["id"], &last["trace_id"]), (&json!("r-1"), &json!("=1+1")));
            }
            assert_eq!(lines.len(), 3);
            for token in ["", "more"] {
                let message: pb::ListRequestsRequest = memory.asked();
                assert_eq!(
                    (message.page_token.as_str(), message.filter.unwrap().model.as_str()),
                    (token, "m")
                );
            }
        }
    }

    #[tokio::test]
    async fn an_export_that_fails_is_no_shorter_export() {
        let memory = Arc::new(Fake::default());
        memory.fails("list_requests", Status::unavailable("away"));
        assert_eq!(send(&memory, "GET", "/v1/logs/export", None).await.0, 503);
        memory.answers("list_requests", page(&["r-1"], "more"));
        memory.fails("list_requests", Status::unavailable("away"));
        assert_eq!(send(&memory, "GET", "/v1/logs/export", None).await, (200, "broken off".into()));
        assert_eq!(send(&memory, "GET", "/v1/logs/exports", None).await.0, 404);
    }
}
