//! Asks back ends how they are, as the configuration in force wants it. For as long as it is polled: a process that only
//! finishes asks nobody.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::edge::process::Process;

/// Probes that are under way at once; more wait.
const AT_ONCE: usize = 32;

/// How long a probe rests that has panicked.
const REST: Duration = Duration::from_secs(10);

/// Within a [`LocalSet`](tokio::task::LocalSet). Whoever is asked the same before and after a reload notices nothing of it.
pub(super) async fn watch(process: &Process) {
    let places = Rc::new(Semaphore::new(AT_ONCE));
    let mut probes = Probes::default();
    loop {
        let watches = process.snapshot.load().watches.clone();
        process.back_ends.watch(&watches);
        probes.keep_only(|key| watches.iter().any(|watch| watch.key() == key));
        for watch in watches {
            let (key, places) = (Arc::clone(watch.key()), Rc::clone(&places));
            probes.begin(key, async move { watch.run(&places).await });
        }
        tokio::select! {
            () = process.replaced.notified() => {}
            () = probes.lost() => {}
        }
    }
}

/// What runs, by its key.
#[derive(Default)]
struct Probes {
    tasks: JoinSet<()>,
    running: HashMap<Arc<str>, AbortHandle>,
    /// Of the next that is begun.
    rest: HashMap<Arc<str>, Duration>,
}

impl Probes {
    fn keep_only(&mut self, wanted: impl Fn(&Arc<str>) -> bool) {
        self.running.retain(|key, task| {
            let stays = wanted(key);
            if !stays {
                task.abort();
            }
            stays
        });
        self.rest.retain(|key, _| wanted(key));
    }

    /// Unless it runs already.
    fn begin(&mut self, key: Arc<str>, probe: impl Future<Output = ()> + 'static) {
        if self.running.contains_key(&key) {
            return;
        }
        let rest = self.rest.remove(&key).unwrap_or_default();
        let task = self.tasks.spawn_local(async move {
            tokio::time::sleep(rest).await;
            probe.await;
        });
        self.running.insert(key, task);
    }

    /// Waits until one has panicked; it is to be begun again. Cancelling this loses none.
    async fn lost(&mut self) {
        loop {
            let Some(ended) = self.tasks.join_next().await else { return std::future::pending().await };
            let Err(error) = ended else { continue };
            // One that was aborted has left the list.
            let gone = self.running.iter().find(|(_, task)| task.id() == error.id()).map(|(key, _)| Arc::clone(key));
            if let Some(key) = gone {
                tracing::error!("a probe has failed and begins again in {REST:?}: {error}");
                self.running.remove(&key);
                self.rest.insert(key, REST);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_panics_is_begun_again_and_the_others_go_on() {
        let begun = Rc::new(Cell::new(0));
        let work = async {
            let mut probes = Probes::default();
            for round in 0..4 {
                let own = Rc::clone(&begun);
                probes.begin("sick".into(), async move {
                    own.set(own.get() + 1);
                    assert!(own.get() > 3, "a fault of ours");
                    std::future::pending().await
                });
                probes.begin("well".into(), std::future::pending());
                let lost = tokio::time::timeout(2 * REST, probes.lost()).await;
                assert_eq!(lost.is_ok(), round < 3);
                assert_eq!(probes.running.len(), if round < 3 { 1 } else { 2 });
            }
            probes.keep_only(|_| false);
            tokio::time::timeout(REST, probes.lost()).await.unwrap_err();
        };
        LocalSet::new().run_until(work).await;
        assert_eq!(begun.get(), 4);
    }
}
