//! The time at which a worker last took up work. To read the clock takes some 50 ns, and a request would ask for it
//! fifteen times and more; nginx keeps the time in the same way.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::time::{Duration, Instant};

thread_local! {
    /// `None` outside of [`keep`].
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time at which this worker last took up work: it is late by what the tasks before this one have done since, a few
/// milliseconds at most. For deadlines and ages, not for measuring how long something takes that does not wait.
/// On other threads it is the time.
pub fn now() -> Instant {
    NOW.get().unwrap_or_else(|| tokio::time::Instant::now().into_std())
}

/// How long ago `past` was; zero where another worker has come upon it since this one took up work.
pub fn since(past: Instant) -> Duration {
    now().saturating_duration_since(past)
}

/// Does `work`, within which all tasks of this worker have to run, and looks at the clock each time before it goes on.
pub async fn keep<F: Future>(work: F) -> F::Output {
    /// The thread may do other things behind it.
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            NOW.set(None);
        }
    }
    let _forget = Forget;
    let mut work = pin!(work);
    poll_fn(|cx| {
        NOW.set(Some(tokio::time::Instant::now().into_std()));
        work.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn time_stands_still_until_the_worker_goes_on() {
        let kept = keep(async {
            let before = now();
            while Instant::now() <= before {}
            assert_eq!(now(), before);
            yield_now().await;
            assert!(now() > before && since(before) > Duration::ZERO);
            assert_eq!(since(Instant::now() + Duration::from_secs(1)), Duration::ZERO);
            now()
        })
        .await;
        while Instant::now() <= kept {}
        assert!(now() > kept, "behind it time goes on");
    }
}
