//! Asks back ends how they are, as the configuration in force wants it. For as long as it is polled: a process that only
//! finishes asks nobody.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::edge::process::Process;

/// Probes that are under way at once; more wait.
const AT_ONCE: usize = 32;

/// Within a [`LocalSet`](tokio::task::LocalSet). Whoever is asked the same before and after a reload notices nothing of it.
pub(super) async fn watch(process: &Process) {
    let places = Rc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Arc<str>, AbortHandle> = HashMap::new();
    loop {
        let watches = process.snapshot.load().watches.clone();
        process.back_ends.watch(&watches);
        running.retain(|key, task| {
            let stays = watches.iter().any(|watch| watch.key() == key);
            if !stays {
                task.abort();
            }
            stays
        });
        for watch in watches {
            if !running.contains_key(watch.key()) {
                let places = Rc::clone(&places);
                let key = Arc::clone(watch.key());
                running.insert(key, tasks.spawn_local(async move { watch.run(&places).await }));
            }
        }
        loop {
            tokio::select! {
                () = process.replaced.notified() => break,
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                    Err(error) if error.is_panic() => tracing::error!("a probe panicked: {error}"),
                    _ => {}
                },
            }
        }
    }
}
