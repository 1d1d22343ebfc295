//! What a connection between roles must bear: it is shared by all requests, so that what one does to it happens
//! to all.

use serde_json::json;

use crate::support::{Gateway, Mode, Outcome, Worker, both_ways, elsewhere, model, target};

#[tokio::test]
async fn a_finished_call_ends_by_itself() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        gateway.generate(&json!({})).await.unwrap();
        // A stream that is dropped before its end is reset, and many resets end a connection.
        assert_eq!(worker.dropped(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_bears_thousands_of_answers() {
    let far = Worker::new("far", vec![model("a")]);
    let (runtime, uri) = elsewhere(&far);
    let yaml = format!("workers: {{far: '{uri}'}}\nconfigs: {{it: {{provider: far}}}}\ndefault_config: it\n");
    let gateway = Gateway::new(Mode::OneProcess, &yaml, &[]);
    let caller = async || {
        for _ in 0..200 {
            gateway.generate(&json!({"model": "a"})).await.unwrap();
        }
    };
    // Sixteen at a time, so that one call's end meets another's beginning.
    futures::future::join_all((0..16).map(|_| caller())).await;
    runtime.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_go_away_do_not_end_the_connection_of_the_others() {
    let far = Worker::new("far", vec![model("a"), model("b")]).script("a", vec![Outcome::Silent; 1100]);
    let (runtime, uri) = elsewhere(&far);
    let yaml = format!("workers: {{far: '{uri}'}}\nconfigs: {{it: {{provider: far}}}}\ndefault_config: it\n");
    let gateway = Gateway::new(Mode::OneProcess, &yaml, &[]);
    let silent = json!({"model": "a"});
    for gone in 0..1100 {
        tokio::select! {
            result = gateway.generate(&silent) => panic!("{result:?}"),
            () = far.is_called(gone + 1) => {}
        }
    }
    gateway.generate(&json!({"model": "b"})).await.unwrap();
    runtime.shutdown_background();
}
