//! The body of an answer, which holds its place on the connection until it has been read or given up.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame};
use tonic::Status;

use super::{
    Service,
    connection::{Seat, explain},
    endpoint::Calling,
};

/// The body of an answer.
#[derive(Debug)]
pub struct Answer {
    body: RecvStream,
    seat: Seat,
    calling: Calling,
    /// Only trailers are left.
    is_read: bool,
    service: Arc<Service>,
}

impl Answer {
    /// The rest of an answer whose head is there.
    pub fn new(body: RecvStream, seat: Seat, calling: Calling, service: Arc<Service>) -> Self {
        Self { body, seat, calling, is_read: false, service }
    }

    fn failed(&mut self, error: &h2::Error) -> Status {
        // A call that is reset was given up by its server, which lives.
        if !error.is_reset() {
            self.calling.broken();
        }
        self.service.broken(&explain(error))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.is_read {
            match ready!(this.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.seat.heard();
                    // More may come. If not, the stream says so itself.
                    _ = this.body.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(this.failed(&error)))),
                None => this.is_read = true,
            }
        }
        match ready!(this.body.poll_trailers(cx)) {
            Ok(trailers) => {
                this.seat.heard();
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => Poll::Ready(Some(Err(this.failed(&error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
