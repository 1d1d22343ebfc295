//! A memory that answers what it is told to, and keeps what it was asked.

use std::{
    any::Any,
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use axum::{
    body::Body,
    http::{Request as HttpRequest, header},
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tonic::{Request, Response, Status};
use tower::ServiceExt as _;

use crate::{
    admin::for_each_call,
    admission::Admission,
    config::images::ImagesSettings,
    objects::Objects,
    pb::{self, admin_service_server::AdminService},
    pool::{Pool, Service},
    router::remote::Remote,
    shim::{Files, Shim},
};

type Message = Box<dyn Any + Send>;
type Answers = VecDeque<Result<Message, Status>>;

/// See above.
#[derive(Default)]
pub struct Fake {
    answers: Mutex<HashMap<&'static str, Answers>>,
    asked: Mutex<Vec<(&'static str, Message)>>,
}

impl Fake {
    /// Answers the next such call.
    pub fn answers<T: Send + 'static>(&self, call: &'static str, answer: T) {
        self.answers.lock().unwrap().entry(call).or_default().push_back(Ok(Box::new(answer)));
    }

    /// Fails the next such call.
    pub fn fails(&self, call: &'static str, status: Status) {
        self.answers.lock().unwrap().entry(call).or_default().push_back(Err(status));
    }

    /// The oldest message that nobody looked at.
    pub fn asked<T: 'static>(&self) -> T {
        let (call, message) = self.asked.lock().unwrap().remove(0);
        *message.downcast().unwrap_or_else(|_| panic!("{call} was asked"))
    }

    /// Whether every message was looked at.
    pub fn was_not_asked(&self) -> bool {
        self.asked.lock().unwrap().is_empty()
    }

    fn answer<T: 'static>(
        &self,
        call: &'static str,
        message: impl Any + Send,
    ) -> Result<Response<T>, Status> {
        self.asked.lock().unwrap().push((call, Box::new(message)));
        let next = self.answers.lock().unwrap().get_mut(call).and_then(VecDeque::pop_front);
        let answer = next.unwrap_or_else(|| Err(Status::unimplemented(call)))?;
        Ok(Response::new(*answer.downcast().unwrap_or_else(|_| panic!("{call} answers otherwise"))))
    }
}

macro_rules! calls {
    ($($call:ident: $request:ident => $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl AdminService for Fake {
            $(async fn $call(&self, request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                self.answer(stringify!($call), request.into_inner())
            })*
        }
    };
}

for_each_call!(calls);

/// Calls a shim in front of the memory: status and body.
pub async fn send(memory: &Arc<Fake>, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
    let mut request = HttpRequest::builder().method(method).uri(path);
    let body = match body {
        None => Body::empty(),
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Body::from(body.to_string())
        }
    };
    answer(memory, request.body(body).unwrap()).await
}

/// The same with a request of one's own.
pub async fn answer(memory: &Arc<Fake>, request: HttpRequest<Body>) -> (u16, String) {
    let nowhere = Remote::new(Pool::new(Service::Router, Vec::new(), None));
    let objects = Objects::open(&ImagesSettings::below(&std::env::temp_dir())).unwrap();
    let files = Arc::new(Files::new(objects, std::time::Duration::from_secs(1)));
    let shim = Shim::new(
        Arc::new(nowhere),
        Arc::<Fake>::clone(memory),
        files,
        None,
        1 << 20,
        Admission::new(1 << 30),
    );
    let response = shim.routes().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    // A body that breaks off is no body.
    let body = response.into_body().collect().await.map(|body| body.to_bytes());
    (status, body.map_or_else(|_| "broken off".into(), |body| String::from_utf8(body.into()).unwrap()))
}

/// The same, with a body that is JSON.
pub async fn json(memory: &Arc<Fake>, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let (status, body) = send(memory, method, path, body).await;
    (status, serde_json::from_str(&body).unwrap())
}
