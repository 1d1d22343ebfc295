use std::net::SocketAddr;

use bytes::Bytes;
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{egress::Egress, images::Pieces};

fn upstreams(resolver: Resolver) -> Upstreams {
    _ = rustls::crypto::ring::default_provider().install_default();
    Upstreams::new(resolver, ClientConfig::with_platform_verifier().unwrap())
}

fn trusting() -> Upstreams {
    upstreams(Resolver::trusting())
}

fn post(address: &str, body: &'static [u8]) -> Request<RequestBody> {
    Request::post(address).body(Pieces::from(Bytes::from_static(body)).into()).unwrap()
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Reads a request with a body of `length` bytes.
async fn receive(wire: &mut TcpStream, length: usize) -> String {
    let mut received = Vec::new();
    loop {
        let head = received.windows(4).position(|window| window == b"\r\n\r\n");
        if head.is_some_and(|head| received.len() == head + 4 + length) {
            return String::from_utf8(received).unwrap();
        }
        assert!(wire.read_buf(&mut received).await.unwrap() > 0, "it was closed: {received:?}");
    }
}

async fn answer(wire: &mut TcpStream, body: &str) {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    wire.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

/// Receives a request on a new connection and begins to answer it.
async fn begin(listener: &TcpListener) -> TcpStream {
    let (mut wire, _) = listener.accept().await.unwrap();
    receive(&mut wire, 4).await;
    wire.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun").await.unwrap();
    wire
}

async fn text(mut answer: Response<AnswerBody>) -> String {
    let mut body = Vec::new();
    while let Some(piece) = answer.body_mut().next().await.unwrap() {
        body.extend_from_slice(&piece);
    }
    String::from_utf8(body).unwrap()
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection() {
    let (listener, address) = listen().await;
    let serve = async {
        let (mut wire, _) = listener.accept().await.unwrap();
        let mut heads = Vec::new();
        for i in 0..3 {
            heads.push(receive(&mut wire, 4).await);
            answer(&mut wire, &format!("answer {i}")).await;
        }
        heads
    };
    let upstreams = trusting();
    let ask = async {
        for i in 0..3 {
            let got = upstreams.send(post(&format!("http://{address}/v1?a=b"), b"body")).await.unwrap();
            assert_eq!(text(got).await, format!("answer {i}"));
        }
    };
    let (heads, ()) = tokio::join!(serve, ask);
    for head in heads {
        assert!(head.starts_with("POST /v1?a=b HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("host: {address}\r\n")), "{head}");
        assert!(head.contains("content-length: 4\r\n") && head.ends_with("\r\n\r\nbody"), "{head}");
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_not_used() {
    let (listener, address) = listen().await;
    let upstreams = trusting();
    for i in 0..2 {
        let serve = async {
            let (mut wire, _) = listener.accept().await.unwrap();
            receive(&mut wire, 4).await;
            answer(&mut wire, &format!("answer {i}")).await;
        };
        let ask = async {
            let got = upstreams.send(post(&format!("http://{address}"), b"body")).await.unwrap();
            assert_eq!(text(got).await, format!("answer {i}"));
        };
        tokio::join!(serve, ask);
        // The end is on its way through the kernel.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_may_have_been_received_is_not_sent_again() {
    let (listener, address) = listen().await;
    let upstreams = trusting();
    let serve = async {
        let (mut wire, _) = listener.accept().await.unwrap();
        receive(&mut wire, 4).await;
        answer(&mut wire, "first").await;
        receive(&mut wire, 4).await;
    };
    let ask = async {
        let url = format!("http://{address}");
        assert_eq!(text(upstreams.send(post(&url, b"body")).await.unwrap()).await, "first");
        upstreams.send(post(&url, b"body")).await.unwrap_err()
    };
    let ((), failure) = tokio::join!(serve, ask);
    assert!(matches!(failure, Failure::Broken(_)), "{failure:?}");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_to_its_end_takes_its_connection_along() {
    let (listener, address) = listen().await;
    let upstreams = trusting();
    let url = format!("http://{address}");
    let serve = async {
        let mut wire = begin(&listener).await;
        assert_eq!(wire.read(&mut [0; 16]).await.unwrap(), 0, "it is closed");
    };
    let ask = async {
        let mut answer = upstreams.send(post(&url, b"body")).await.unwrap();
        assert_eq!(answer.body().length(), Some(100));
        assert_eq!(answer.body_mut().next().await.unwrap().unwrap(), "begun");
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error() {
    let (listener, address) = listen().await;
    let upstreams = trusting();
    let url = format!("http://{address}");
    let serve = async { drop(begin(&listener).await) };
    let ask = async {
        let mut answer = upstreams.send(post(&url, b"body")).await.unwrap();
        assert_eq!(answer.body_mut().next().await.unwrap().unwrap(), "begun");
        answer.body_mut().next().await.unwrap_err();
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn an_answer_before_the_end_of_a_large_request_is_heard() {
    static LARGE: [u8; 8 << 20] = [7; 8 << 20];
    let (listener, address) = listen().await;
    let upstreams = trusting();
    let url = format!("http://{address}");
    let serve = async {
        let (mut wire, _) = listener.accept().await.unwrap();
        wire.read_exact(&mut [0; 1000]).await.unwrap();
        wire.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        // Whoever closes with something unread resets, and the answer may be lost.
        let mut rest = vec![0; 1 << 20];
        while wire.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    };
    let ask = async {
        let answer = upstreams.send(post(&url, &LARGE)).await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(text(answer).await, "no");
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn nobody_there_is_known_before_anything_is_sent() {
    let (listener, address) = listen().await;
    drop(listener);
    let failure = trusting().send(post(&format!("http://{address}"), b"body")).await.unwrap_err();
    assert!(matches!(failure, Failure::Connect(_)), "{failure:?}");
}

#[tokio::test]
async fn a_name_is_resolved_to_permitted_addresses_only() {
    let (listener, address) = listen().await;
    let egress = Arc::new(arc_swap::ArcSwap::from_pointee(Egress::default()));
    let guarded = upstreams(Resolver::guarded(egress));
    let url = format!("http://localhost:{}", address.port());
    let failure = guarded.send(post(&url, b"body")).await.unwrap_err();
    assert!(matches!(failure, Failure::Forbidden), "{failure:?}");
    drop(listener);
}

#[tokio::test]
async fn what_nobody_uses_is_closed_after_a_while() {
    let (listener, address) = listen().await;
    let upstreams = trusting();
    let url = format!("http://{address}");
    let serve = async {
        let (mut wire, _) = listener.accept().await.unwrap();
        receive(&mut wire, 4).await;
        answer(&mut wire, "answer").await;
        wire
    };
    let ask = async { text(upstreams.send(post(&url, b"body")).await.unwrap()).await };
    let (mut wire, _) = tokio::join!(serve, ask);
    tokio::time::pause();
    let closed = async {
        assert_eq!(wire.read(&mut [0; 16]).await.unwrap(), 0);
    };
    tokio::select! {
        () = closed => {}
        () = upstreams.tidy() => {}
    }
    assert!(upstreams.idle.lock().is_empty());
}
