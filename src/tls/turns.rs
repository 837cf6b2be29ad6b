//! Handshakes take turns on a worker. One costs up to a millisecond of arithmetic, and a thousand clients that connect at
//! once would be a second in which nobody else is answered.

use tokio::sync::Semaphore;

/// Whose turn it is, of those who have said hello.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Turns {
        Turns(Semaphore::const_new(1))
    }
}

impl Turns {
    /// Waits for a turn, first come, first served. Whoever has one computes before it awaits anything; the next is woken
    /// then, and stands behind all that has become ready meanwhile.
    pub async fn wait(&self) {
        // Nobody closes it.
        let Ok(turn) = self.0.acquire().await else { return };
        tokio::task::yield_now().await;
        drop(turn);
    }
}
