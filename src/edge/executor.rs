//! Where hyper's HTTP/2 puts the tasks of its streams.

use std::time::Duration;

use crate::edge::stall;

/// Streams of an HTTP/2 connection stay on its worker.
#[derive(Clone, Copy)]
pub struct LocalExecutor {
    /// How long a client may take nothing of an answer.
    pub write: Duration,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        let LocalExecutor { write } = *self;
        // Once in a place of its own: each future around it would else hold it again.
        let future = Box::pin(future);
        // A stream's task comes from the connection's; one that a stream's task starts carries the bytes of its tunnel.
        if let Some(carrier) = stall::take_carrier() {
            tokio::task::spawn_local(carrier.run(future, write));
            return;
        }
        tokio::task::spawn_local(async move {
            if !stall::watched(future, write).await {
                tracing::debug!("an HTTP/2 client took nothing of an answer for timeouts.write");
            }
        });
    }
}
