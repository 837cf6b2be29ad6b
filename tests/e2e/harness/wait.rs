//! Waiting on a condition with a deadline: the only way a test waits.

use std::time::{Duration, Instant};

/// How long a step that normally takes milliseconds may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `condition` gives a value; fails the test with `what` when it has not within `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}
