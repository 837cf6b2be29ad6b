//! How long a client is waited for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::base::cached_time;

/// Behind every deadline. Where the process stood still (SIGSTOP), its timers go off before it sees what came meanwhile:
/// by the end of another timer it has asked the kernel.
const LAST_LOOK: Duration = Duration::from_millis(1);

/// What a deadline is about. A new phase starts a new deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The head of this number.
    Head(u64),
    /// What comes behind so many heads.
    Idle(u64),
    /// The client takes something.
    Write,
    /// The client ends its side.
    Linger,
}

/// A deadline that costs nothing until something has to be waited for.
#[derive(Default)]
pub struct Deadline {
    phase: Option<Phase>,
    is_over: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Ready when this phase lasts longer than `patience`. Ask only after a look at what is waited for.
    pub fn poll(&mut self, cx: &mut Context<'_>, phase: Phase, patience: Duration) -> Poll<()> {
        let within = |patience| Instant::from_std(cached_time::now() + patience);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(within(patience))));
        if self.phase != Some(phase) {
            (self.phase, self.is_over) = (Some(phase), false);
            sleep.as_mut().reset(within(patience));
        }
        ready!(sleep.as_mut().poll(cx));
        if !std::mem::replace(&mut self.is_over, true) {
            sleep.as_mut().reset(within(LAST_LOOK));
        }
        sleep.as_mut().poll(cx)
    }

    /// It is waited for no more.
    pub fn stop(&mut self) {
        self.phase = None;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_has_passed_leaves_time_for_one_more_look() {
        let begun = Instant::now();
        let (mut deadline, mut looks) = (Deadline::default(), 0);
        poll_fn(|cx| {
            looks += 1;
            deadline.poll(cx, Phase::Write, Duration::from_secs(2))
        })
        .await;
        // When it is waited for, when the time is over, and once more.
        assert_eq!(looks, 3);
        assert!(begun.elapsed() < Duration::from_millis(2010));
    }
}
