//! Calls to a service with several endpoints, which answer, refuse, leave, break or fall silent as a script says.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use imagegate::{
    error::{Error, ErrorKind},
    pb::BillingClass,
    pool::{Address, Pool, Service},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpListener,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tonic::{Status, body::Body};
use tower::ServiceExt as _;

/// What an endpoint does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Answers at once.
    Answer,
    /// Answers after a while.
    Slowly(Duration),
    /// Says that it has not begun (REFUSED_STREAM).
    Refuse,
    /// Says that it leaves, having begun none of what comes now (GOAWAY), and goes.
    Leave,
    /// Is gone.
    Break,
    /// Says nothing, but lives.
    Hold,
    /// Does not even live.
    Freeze,
}

/// One endpoint.
struct Peer {
    address: SocketAddr,
    act: Mutex<Act>,
    calls: AtomicUsize,
    connections: AtomicUsize,
}

impl Peer {
    fn acts(&self, act: Act) {
        *self.act.lock().unwrap() = act;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address,
            act: Mutex::new(Act::Answer),
            calls: AtomicUsize::default(),
            connections: AtomicUsize::default(),
        })
    }

    async fn serve(self: Arc<Self>, wire: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let mut builder = h2::server::Builder::new();
        let Ok(mut connection) = builder.max_concurrent_streams(1000).handshake::<_, Bytes>(wire).await
        else {
            return;
        };
        let mut held = Vec::new();
        let mut answering = JoinSet::new();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let act = *self.act.lock().unwrap();
            let answer = move |mut respond: h2::server::SendResponse<Bytes>, pause| async move {
                tokio::time::sleep(pause).await;
                if let Ok(mut stream) = respond.send_response(Response::new(()), false) {
                    _ = stream.send_data(Bytes::from_static(b"image"), true);
                }
            };
            match act {
                Act::Answer => _ = answering.spawn(answer(respond, Duration::ZERO)),
                Act::Slowly(pause) => _ = answering.spawn(answer(respond, pause)),
                Act::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
                Act::Leave => {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    connection.graceful_shutdown();
                }
                Act::Break => return,
                Act::Hold => held.push(respond),
                Act::Freeze => std::future::pending().await,
            }
        }
        answering.join_all().await;
    }
}

/// Endpoints on sockets of this machine.
struct Peers {
    peers: Vec<Arc<Peer>>,
    tasks: JoinSet<()>,
}

impl Peers {
    async fn new(count: usize) -> Self {
        let mut all = Self { peers: Vec::new(), tasks: JoinSet::new() };
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            all.peers.push(Peer::new(listener.local_addr().unwrap()));
            all.listen(listener, all.peers.len() - 1);
        }
        all
    }

    fn listen(&mut self, listener: TcpListener, peer: usize) -> AbortHandle {
        let peer = Arc::clone(&self.peers[peer]);
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((wire, _)) = listener.accept().await {
                connections.spawn(Arc::clone(&peer).serve(wire));
            }
        })
    }

    fn pool(&self) -> Pool {
        let uris: Vec<String> = self.peers.iter().map(|peer| format!("http://{}", peer.address)).collect();
        Pool::new(Service::Worker("paint".into()), Address::parse_all(&uris).unwrap(), None)
    }

    /// Calls until all endpoints are connected to.
    async fn warmed(&self) -> Pool {
        let pool = self.pool();
        while self.peers.iter().any(|peer| peer.calls() == 0) {
            call(&pool).await.unwrap();
        }
        self.peers.iter().for_each(|peer| peer.calls.store(0, Ordering::Relaxed));
        pool
    }
}

async fn call(pool: &Pool) -> Result<Bytes, Status> {
    ask(pool, Request::post("/paint").body(Body::empty()).unwrap()).await
}

async fn call_within(pool: &Pool, limit: Duration) -> Result<Bytes, Status> {
    let timeout = format!("{}m", limit.as_millis());
    ask(pool, Request::post("/paint").header("grpc-timeout", timeout).body(Body::empty()).unwrap()).await
}

async fn ask(pool: &Pool, request: Request<Body>) -> Result<Bytes, Status> {
    let answer = pool.clone().oneshot(request).await?;
    Ok(answer.into_body().collect().await?.to_bytes())
}

async fn together(pool: &Pool, count: usize) -> Vec<Result<Bytes, Status>> {
    futures::future::join_all((0..count).map(|_| call(pool))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_spread_evenly() {
    let peers = Peers::new(3).await;
    let pool = peers.warmed().await;
    peers.peers.iter().for_each(|peer| peer.acts(Act::Slowly(Duration::from_millis(20))));
    for _ in 0..20 {
        assert!(together(&pool, 30).await.iter().all(Result::is_ok));
    }
    let calls: Vec<usize> = peers.peers.iter().map(|peer| peer.calls()).collect();
    assert!(calls.iter().all(|calls| calls.abs_diff(200) < 40), "{calls:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_endpoint_has_not_begun_goes_to_another() {
    let peers = Peers::new(2).await;
    let pool = peers.warmed().await;
    peers.peers[0].acts(Act::Refuse);
    for answer in together(&pool, 100).await {
        assert_eq!(answer.unwrap(), "image");
    }
    assert_eq!(peers.peers[1].calls(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_leaves_takes_no_call_with_it() {
    let peers = Peers::new(3).await;
    let pool = peers.warmed().await;
    peers.peers.iter().for_each(|peer| peer.acts(Act::Slowly(Duration::from_millis(5))));
    let load = async {
        let mut answers = Vec::new();
        for _ in 0..60 {
            answers.extend(together(&pool, 20).await);
        }
        answers
    };
    let leaving = async {
        for round in 0..30 {
            let peer = &peers.peers[round % 3];
            peer.acts(Act::Leave);
            tokio::time::sleep(Duration::from_millis(5)).await;
            peer.acts(Act::Slowly(Duration::from_millis(5)));
        }
    };
    let (answers, ()) = tokio::join!(load, leaving);
    let failed: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of 1200: {:?}", failed.len(), failed[0]);
    assert!(peers.peers.iter().any(|peer| peer.connections.load(Ordering::Relaxed) > 1), "nobody left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_begun_is_not_repeated() {
    let peers = Peers::new(2).await;
    let pool = peers.warmed().await;
    peers.peers.iter().for_each(|peer| peer.acts(Act::Break));
    let error = Error::from_status(&call(&pool).await.unwrap_err());
    assert_eq!((error.kind, error.billing), (ErrorKind::Unavailable, BillingClass::Unknown), "{error}");
    assert!(error.transport);
    assert_eq!(peers.peers.iter().map(|peer| peer.calls()).sum::<usize>(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_nowhere_is_told_at_once_and_found_when_it_comes() {
    let mut peers = Peers::new(1).await;
    peers.tasks.abort_all();
    while peers.tasks.join_next().await.is_some() {}
    let pool = peers.pool();
    let begun = Instant::now();
    let error = Error::from_status(&call(&pool).await.unwrap_err());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!((error.kind, error.billing), (ErrorKind::Unavailable, BillingClass::NotSent));
    assert!(error.message.starts_with("the worker of paint is not reachable: Connection refused"), "{error}");
    let listener = TcpListener::bind(peers.peers[0].address).await.unwrap();
    peers.listen(listener, 0);
    let deadline = Instant::now() + Duration::from_secs(6);
    while call(&pool).await.is_err() {
        assert!(Instant::now() < deadline, "it was not found again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_nothing_is_left_alone_after_a_few_calls() {
    let peers = Peers::new(2).await;
    let pool = peers.warmed().await;
    peers.peers[0].acts(Act::Hold);
    let limit = Duration::from_millis(600);
    let mut late = 0;
    while peers.peers[0].calls() < 3 {
        late += usize::from(call_within(&pool, limit).await.is_err());
    }
    assert_eq!(late, 3);
    let begun = Instant::now();
    for _ in 0..30 {
        call_within(&pool, limit).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert_eq!(peers.peers[0].calls(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_get_more_connections() {
    let peers = Peers::new(1).await;
    let pool = peers.warmed().await;
    peers.peers[0].acts(Act::Slowly(Duration::from_millis(300)));
    assert!(together(&pool, 120).await.iter().all(Result::is_ok));
    assert!(together(&pool, 250).await.iter().all(Result::is_ok));
    let connections = peers.peers[0].connections.load(Ordering::Relaxed);
    assert!((2..=4).contains(&connections), "{connections}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_looked_up() {
    let peers = Peers::new(1).await;
    let uri = format!("http://localhost:{}", peers.peers[0].address.port());
    let pool = Pool::new(Service::Router, Address::parse_all(&[uri]).unwrap(), None);
    assert_eq!(call(&pool).await.unwrap(), "image");
    // No resolver needs to be asked for a label that long.
    let name = "a".repeat(64);
    let nowhere = Address::parse_all(&[format!("http://{name}.invalid:1")]).unwrap();
    let error = Error::from_status(&call(&Pool::new(Service::Router, nowhere, None)).await.unwrap_err());
    assert_eq!(error.billing, BillingClass::NotSent);
    assert!(error.message.contains(&name), "{error}");
}

/// An endpoint on the clock of the test.
fn in_memory(peer: &Arc<Peer>, tasks: &mut JoinSet<()>) -> Pool {
    let (sender, mut connections) = mpsc::unbounded_channel::<DuplexStream>();
    let peer = Arc::clone(peer);
    tasks.spawn(async move {
        let mut serving = JoinSet::new();
        while let Some(wire) = connections.recv().await {
            serving.spawn(Arc::clone(&peer).serve(wire));
        }
    });
    Pool::in_memory(Service::Worker("paint".into()), move || {
        let (here, there) = tokio::io::duplex(64 * 1024);
        sender.send(there).map_err(|_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused))?;
        Ok(here)
    })
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_without_a_word_is_noticed_by_its_calls() {
    let (peer, mut tasks) = (Peer::new(SocketAddr::from(([127, 0, 0, 1], 1))), JoinSet::new());
    let pool = in_memory(&peer, &mut tasks);
    call(&pool).await.unwrap();
    peer.acts(Act::Freeze);
    let begun = Instant::now();
    let error = Error::from_status(&call(&pool).await.unwrap_err());
    // One second of silence, and ten for an answer to the question.
    assert_eq!((error.billing, begun.elapsed().as_secs()), (BillingClass::Unknown, 11));
    peer.acts(Act::Answer);
    call(&pool).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_lives_may_be_silent_for_long() {
    let (peer, mut tasks) = (Peer::new(SocketAddr::from(([127, 0, 0, 1], 1))), JoinSet::new());
    let pool = in_memory(&peer, &mut tasks);
    peer.acts(Act::Slowly(Duration::from_secs(400)));
    call(&pool).await.unwrap();
    assert_eq!(peer.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_replaced_and_its_calls_end_by_themselves() {
    let (peer, mut tasks) = (Peer::new(SocketAddr::from(([127, 0, 0, 1], 1))), JoinSet::new());
    let pool = in_memory(&peer, &mut tasks);
    peer.acts(Act::Slowly(Duration::from_secs(900)));
    let mut old = std::pin::pin!(call(&pool));
    tokio::select! {
        answer = &mut old => panic!("{answer:?}"),
        () = tokio::time::sleep(Duration::from_secs(700)) => {}
    }
    assert_eq!(peer.connections.load(Ordering::Relaxed), 2);
    peer.acts(Act::Answer);
    call(&pool).await.unwrap();
    assert_eq!(old.await.unwrap(), "image");
}
