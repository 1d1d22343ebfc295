//! What is said on the way, then the answer: one stream out of a channel and a future.
//!
//! No task runs beside it: the future makes progress when the stream is polled, and stops when it is dropped.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use futures::{Stream, future::BoxFuture};
use tokio::sync::mpsc::Receiver;

/// The channel's items in their order, and after them the future's, whatever the timing. They are in boxes because a channel has
/// room for 32 of them from the beginning, and most answers have nothing to say before they are there.
pub fn merge<'a, T: Send + 'a>(
    on_the_way: Receiver<Box<T>>,
    answer: impl Future<Output = Vec<T>> + Send + 'a,
) -> impl Stream<Item = T> + Send + 'a {
    Merged { on_the_way, answer: State::Running(Box::pin(answer)) }
}

struct Merged<'a, T> {
    on_the_way: Receiver<Box<T>>,
    answer: State<'a, T>,
}

enum State<'a, T> {
    Running(BoxFuture<'a, Vec<T>>),
    Finished(vec::IntoIter<T>),
}

// Nothing in it is pinned in place: the future is in a box of its own.
impl<T> Unpin for Merged<'_, T> {}

impl<T> Stream for Merged<'_, T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = &mut *self;
        loop {
            if let Poll::Ready(Some(item)) = this.on_the_way.poll_recv(cx) {
                return Poll::Ready(Some(*item));
            }
            match &mut this.answer {
                // `poll_recv` also says pending when the task has used up its turn; `try_recv` does not.
                State::Finished(items) => {
                    let waiting = this.on_the_way.try_recv().ok();
                    return Poll::Ready(waiting.map(|item| *item).or_else(|| items.next()));
                }
                State::Running(answer) => match answer.as_mut().poll(cx) {
                    // It may have said something more just before it finished.
                    Poll::Ready(items) => this.answer = State::Finished(items.into_iter()),
                    Poll::Pending => {
                        // And it may have said something before it had to wait.
                        return match this.on_the_way.poll_recv(cx) {
                            Poll::Ready(Some(item)) => Poll::Ready(Some(*item)),
                            Poll::Ready(None) | Poll::Pending => Poll::Pending,
                        };
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_is_said_on_the_way_comes_before_the_answer() {
        let (sender, receiver) = mpsc::channel(1);
        let answer = async move {
            for i in 0..5 {
                sender.send(Box::new(i)).await.unwrap();
                if i % 2 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            vec![100, 101]
        };
        let items: Vec<i32> = merge(receiver, answer).collect().await;
        assert_eq!(items, [0, 1, 2, 3, 4, 100, 101]);
    }
}
