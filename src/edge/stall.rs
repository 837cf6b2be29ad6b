//! An HTTP/2 client that takes nothing of an answer. The socket's own deadline does not see it: the client answers
//! pings and grants no window (RFC 9113, section 10.5). hyper asks a body for more only when there is window, so the
//! body cannot see it either; the task that carries the stream can.

use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

tokio::task_local! {
    /// Since when this task's client has something to take; `None` while the back end is waited for.
    static OFFERED: Cell<Option<Instant>>;
}

/// The client has something to take. Nothing happens outside of [`watched`].
pub fn offered() {
    let _ = OFFERED.try_with(|offered| offered.set(Some(Instant::now())));
}

/// The client has taken what there was; the back end is to give more.
pub fn taken() {
    let _ = OFFERED.try_with(|offered| offered.set(None));
}

/// Runs `stream` to its end, or until the client takes nothing for `patience`: then it is dropped, which resets the
/// stream and frees the back end. `false` says that it was.
pub async fn watched(stream: impl Future, patience: Duration) -> bool {
    OFFERED.scope(Cell::new(None), run(stream, patience)).await
}

async fn run(stream: impl Future, patience: Duration) -> bool {
    let mut stream = pin!(stream);
    let mut look = Instant::now() + patience;
    while timeout_at(look, stream.as_mut()).await.is_err() {
        let now = Instant::now();
        look = OFFERED.with(Cell::get).unwrap_or(now) + patience;
        if look <= now {
            return false;
        }
    }
    true
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
