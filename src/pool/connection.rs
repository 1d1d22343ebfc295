//! One HTTP/2 connection to an endpoint: its calls, whether it still lives, and its end.
//!
//! Written on h2 itself, because only there is it known whether a call that failed had been sent at all.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, RecvStream, SendStream, client};
use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::transport;

/// Calls of one connection before another one is opened: as many as servers commonly allow.
pub const CALLS_PER_CONNECTION: usize = 100;

/// A connection is replaced after this, so that load follows endpoints that came later, and names that moved.
const LONGEST_LIFE: Duration = Duration::from_secs(600);

/// By how much lives differ, as a share: connections that began together must not end together.
const LIFE_SPREAD: f64 = 0.2;

/// How long a connection with calls may be silent before it is asked whether it lives. No more than three times
/// in a row: servers built on gRPC's C core end a connection that asks more often without having anything to say.
const SILENCES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];

/// How long it may take to say so. An upload may stand before the question.
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// What a connection runs over.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Wire for T {}

/// A connection that has answered at least once.
#[derive(Debug)]
pub struct Connection {
    requests: client::SendRequest<Bytes>,
    state: Arc<State>,
    retires: Instant,
    /// Of the certificates that it was made with.
    pub generation: u64,
    /// Ends with the last call, see [`Connection::retire`].
    driver: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct State {
    begun: Instant,
    calls: AtomicUsize,
    /// When the other side was last heard, or the first of the present calls was sent, in ms since it began.
    heard: AtomicU64,
    busy: Notify,
    /// It takes no more calls. Those that it has may go on.
    ended: AtomicBool,
}

/// A call's place on a connection. Keeps the connection alive.
#[derive(Debug)]
pub struct Seat(Arc<Connection>);

/// Why there is no answer to a call.
#[derive(Debug)]
pub enum Failure {
    /// The other side has not begun to work on it: it may be sent to another endpoint.
    NotSent(String),
    /// It was sent, and nobody knows what became of it.
    Broken(String),
}

impl Connection {
    /// Speaks HTTP/2 over a wire and waits until the other side answers. `ended` is called when it is over.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub async fn open(
        wire: impl Wire,
        generation: u64,
        luck: f64,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, String> {
        let (requests, mut connection) =
            transport::client().handshake(wire).await.map_err(|error| explain(&error))?;
        let mut ping = connection.ping_pong().ok_or("HTTP/2 without PING")?;
        // Whoever refuses our certificate says so only after we have believed to be connected.
        {
            let mut connection = pin!(&mut connection);
            tokio::select! {
                end = &mut connection => {
                    return Err(end.err().map_or_else(closed, |error| explain(&error)));
                }
                pong = ping.ping(Ping::opaque()) => pong.map_err(|error| explain(&error))?,
            };
        }
        let now = Instant::now();
        let state = Arc::new(State {
            begun: now,
            calls: AtomicUsize::new(0),
            heard: AtomicU64::new(0),
            busy: Notify::new(),
            ended: AtomicBool::new(false),
        });
        let driven = Arc::clone(&state);
        let drive = async move {
            tokio::select! {
                _ = connection => {}
                () = silence(ping, &driven) => {}
            }
            driven.ended.store(true, Ordering::Release);
            ended();
        };
        #[expect(clippy::disallowed_methods, reason = "a connection belongs to no request")]
        let driver = AbortOnDropHandle::new(tokio::spawn(drive));
        let life = LONGEST_LIFE.mul_f64(1.0 - LIFE_SPREAD * luck);
        Ok(Arc::new(Self { requests, state, retires: now + life, generation, driver }))
    }

    /// Whether new calls can be put on it.
    pub fn is_open(&self) -> bool {
        !self.state.ended.load(Ordering::Acquire) && !self.driver.is_finished()
    }

    /// Whether it should be replaced for its age.
    pub fn is_old(&self, now: Instant) -> bool {
        now >= self.retires
    }

    /// When it will be old.
    pub fn retires(&self) -> Instant {
        self.retires
    }

    /// Calls on it.
    pub fn calls(&self) -> usize {
        self.state.calls.load(Ordering::Relaxed)
    }

    /// Takes a place for a call.
    pub fn seat(self: &Arc<Self>) -> Seat {
        if self.state.calls.fetch_add(1, Ordering::Relaxed) == 0 {
            self.state.hear();
            self.state.busy.notify_one();
        }
        Seat(Arc::clone(self))
    }
}

impl Seat {
    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// There is none.
    pub async fn send(
        &self,
        request: Request<()>,
        body: Vec<Bytes>,
    ) -> Result<Response<RecvStream>, Failure> {
        // The other side has said that it leaves; it may take long to finish what it has.
        let not_sent = |error: h2::Error| {
            self.0.state.ended.store(true, Ordering::Release);
            Failure::NotSent(explain(&error))
        };
        let mut requests = self.0.requests.clone().ready().await.map_err(not_sent)?;
        if !self.0.is_open() {
            return Err(Failure::NotSent(closed()));
        }
        let (answer, stream) = requests.send_request(request, body.is_empty()).map_err(not_sent)?;
        let mut answer = pin!(answer);
        let mut sending = pin!(send(stream, body));
        let mut is_sent = false;
        let answer = loop {
            tokio::select! {
                answer = &mut answer => break answer,
                // What goes wrong here is told by the answer too, which may come before everything has been sent.
                _ = &mut sending, if !is_sent => is_sent = true,
            }
        };
        match answer {
            Ok(answer) => {
                self.heard();
                if !is_sent && !answer.body().is_end_stream() {
                    _ = sending.await;
                }
                Ok(answer)
            }
            Err(error) if error.is_go_away() && was_not_processed(&error) => Err(not_sent(error)),
            Err(error) if was_not_processed(&error) => Err(Failure::NotSent(explain(&error))),
            Err(error) => Err(Failure::Broken(explain(&error))),
        }
    }

    /// The other side said something.
    pub fn heard(&self) {
        self.0.state.hear();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.state.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    fn hear(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    fn last_heard(&self) -> Instant {
        self.begun + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }
}

/// Ends when the connection has calls, is silent, and does not answer when it is asked.
async fn silence(mut ping: PingPong, state: &State) {
    let mut asked = 0;
    let mut heard = state.last_heard();
    loop {
        if state.calls.load(Ordering::Relaxed) == 0 {
            state.busy.notified().await;
        }
        if state.last_heard() != heard {
            (asked, heard) = (0, state.last_heard());
        }
        let Some(limit) = SILENCES.get(asked) else {
            sleep(SILENCES[SILENCES.len() - 1]).await;
            continue;
        };
        let silent = heard.elapsed();
        if silent < *limit {
            sleep(*limit - silent).await;
            continue;
        }
        match timeout(PONG_WITHIN, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => asked += 1,
            // The connection itself says why it is over.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Sends a body as fast as the other side takes it.
async fn send(mut stream: SendStream<Bytes>, body: Vec<Bytes>) -> Result<(), h2::Error> {
    let count = body.len();
    for (i, mut piece) in body.into_iter().enumerate() {
        let is_last = i + 1 == count;
        loop {
            stream.reserve_capacity(piece.len());
            let room = match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(room) => room?,
                None => return Ok(()),
            };
            let part = piece.split_to(room.min(piece.len()));
            let is_end = is_last && piece.is_empty();
            stream.send_data(part, is_end)?;
            if piece.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

/// The other side says that it has not begun to work on a request (RFC 9113, 6.8 and 8.7).
fn was_not_processed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let leaving = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    refused || leaving
}

fn closed() -> String {
    "the connection was closed".to_owned()
}

/// What happened to a connection, in a few words.
pub fn explain(error: &h2::Error) -> String {
    match error.get_io() {
        Some(io) => crate::tls::explain(io),
        None if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
            "it is about to end".into()
        }
        None => error.to_string(),
    }
}
