//! A future beside another one that is polled far more often.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A future that is polled only after it was woken, however often its task is: what waits for rare news costs the rest of
/// a task next to nothing.
pub struct Bell<F> {
    inner: F,
    cord: Arc<Cord>,
    /// Rings.
    waker: Waker,
    /// The task's, as the cord has it.
    task: Waker,
}

/// What rings.
struct Cord {
    rung: AtomicBool,
    /// The task's.
    task: Mutex<Waker>,
}

impl<F: Future + Unpin> Bell<F> {
    /// Waits for `inner`.
    pub fn new(inner: F) -> Bell<F> {
        let cord = Arc::new(Cord { rung: AtomicBool::new(true), task: Mutex::new(Waker::noop().clone()) });
        let waker = Waker::from(Arc::clone(&cord));
        Bell { inner, cord, waker, task: Waker::noop().clone() }
    }
}

impl<F: Future + Unpin> Future for Bell<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        // First the waker, then the flag: who rings in between wakes the task once too often, and never not at all.
        if !this.task.will_wake(cx.waker()) {
            this.task.clone_from(cx.waker());
            this.cord.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&this.task);
        }
        // Nearly always not: a look is cheaper than an exchange.
        if !this.cord.rung.load(Ordering::Acquire) || !this.cord.rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        Pin::new(&mut this.inner).poll(&mut Context::from_waker(&this.waker))
    }
}

impl Wake for Cord {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_when_its_task_was() {
        let (news, polls) = (Notify::new(), Cell::new(0));
        let mut notified = std::pin::pin!(news.notified());
        let mut bell = Bell::new(poll_fn(|cx| {
            polls.set(polls.get() + 1);
            notified.as_mut().poll(cx)
        }));
        for _ in 0..10 {
            let polled = tokio::time::timeout(Duration::ZERO, &mut bell).await;
            assert!(polled.is_err());
        }
        assert_eq!(polls.get(), 1);
        news.notify_one();
        tokio::time::timeout(Duration::from_secs(20), &mut bell).await.unwrap();
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test]
    async fn the_task_that_polled_it_last_is_woken() {
        let news = Arc::new(Notify::new());
        let waits = Arc::clone(&news);
        let mut bell = Bell::new(Box::pin(async move { waits.notified().await }));
        assert!(Pin::new(&mut bell).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let task = tokio::spawn(bell);
        tokio::task::yield_now().await;
        news.notify_one();
        tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
    }
}
