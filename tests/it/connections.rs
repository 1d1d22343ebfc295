//! What a connection between roles must bear: it is shared by all requests, so that what one does to it happens
//! to all.

use serde_json::json;

use crate::support::{Gateway, Mode, Outcome, Worker, target};

#[tokio::test]
async fn a_connection_bears_thousands_of_answers() {
    let worker = Worker::paint();
    let gateway = Gateway::over(Mode::Connected, &worker, &target("a"));
    // Sixteen at a time, so that calls overlap as they do under load.
    for _ in 0..150 {
        let answers =
            futures::future::join_all((0..16).map(|_| async { gateway.generate(&json!({})).await }));
        for answer in answers.await {
            answer.unwrap();
        }
    }
}

#[tokio::test]
async fn callers_that_go_away_do_not_end_the_connection_of_the_others() {
    let worker = Worker::paint().script("a", vec![Outcome::Silent; 1100]);
    let gateway =
        Gateway::over(Mode::Connected, &worker, &json!({"provider": "paint", "request_timeout": 9000}));
    let silent = json!({"model": "a"});
    for gone in 0..1100 {
        tokio::select! {
            result = gateway.generate(&silent) => panic!("{result:?}"),
            () = worker.is_called(gone + 1) => {}
        }
    }
    gateway.generate(&json!({"model": "b"})).await.unwrap();
}
