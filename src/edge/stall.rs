//! An HTTP/2 client that takes nothing of an answer. The socket's own deadline does not see it: the client answers
//! pings and grants no window (RFC 9113, section 10.5). hyper asks a body for more only when there is window, so the
//! body cannot see it either; the task that carries the stream can.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::edge::carrier::Carrier;

tokio::task_local! {
    static STREAM: StreamTask;
}

/// What is known within the task of one HTTP/2 stream.
#[derive(Default)]
struct StreamTask {
    /// Since when its client has something to take; `None` while the back end is waited for.
    offered: Cell<Option<Instant>>,
    /// What the stream's tunnel wants to know of the task that hyper is about to start for it.
    carrier: Cell<Option<Rc<Carrier>>>,
}

/// The client has something to take. Nothing happens outside of [`watched`].
pub fn offered() {
    let _ = STREAM.try_with(|stream| stream.offered.set(Some(Instant::now())));
}

/// The client has taken what there was; the back end is to give more.
pub fn taken() {
    let _ = STREAM.try_with(|stream| stream.offered.set(None));
}

/// Leaves `carrier` for the task that is started from within this stream's.
pub fn leave_carrier(carrier: Rc<Carrier>) {
    let _ = STREAM.try_with(|stream| stream.carrier.set(Some(carrier)));
}

/// What [`leave_carrier`] left. `None` as well where no stream's task is running.
pub fn take_carrier() -> Option<Rc<Carrier>> {
    STREAM.try_with(|stream| stream.carrier.take()).ok().flatten()
}

/// Runs `stream` to its end, or until the client takes nothing for `patience`: then it is dropped, which resets the
/// stream and frees the back end. `false` says that it was.
pub async fn watched(stream: impl Future, patience: Duration) -> bool {
    STREAM.scope(StreamTask::default(), run(stream, patience)).await
}

async fn run(stream: impl Future, patience: Duration) -> bool {
    let mut stream = pin!(stream);
    // Made for the first client that is waited for; it may ring early, and is set anew then.
    let mut alarm: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        // Only the stream itself changes this.
        let Some(since) = STREAM.with(|stream| stream.offered.get()) else { return Poll::Pending };
        let due = since + patience;
        let alarm = alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
        while alarm.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(false);
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::time::sleep;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_takes_nothing_is_cut_off() {
        let begun = Instant::now();
        assert!(watched(sleep(PATIENCE * 5), PATIENCE).await, "the back end is slow");
        let steady = async {
            for _ in 0..20 {
                offered();
                sleep(PATIENCE / 2).await;
            }
            taken();
            sleep(PATIENCE * 5).await;
        };
        assert!(watched(steady, PATIENCE).await);
        assert_eq!(begun.elapsed(), PATIENCE * 20);
        let stalled = async {
            sleep(PATIENCE * 2).await;
            offered();
            pending::<()>().await;
        };
        assert!(!watched(stalled, PATIENCE).await);
        assert!(begun.elapsed() >= PATIENCE * 23 && begun.elapsed() <= PATIENCE * 24);
    }
}
