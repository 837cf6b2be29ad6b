//! For tests: what may happen between two system calls that change the disk. Of one thread.

use std::cell::Cell;
use std::io;

use rustix::io::Errno;

/// What happens.
#[derive(Debug, Clone, Copy)]
pub enum Blow {
    /// The process is killed: nothing is done from then on, nothing is cleaned up.
    Kill,
    /// This one call fails.
    Fail(Errno),
}

thread_local! {
    static NEXT: Cell<Option<(usize, Blow)>> = const { Cell::new(None) };
    static HAS_STRUCK: Cell<bool> = const { Cell::new(false) };
}

/// Does `act`, with `blow` before its system call number `at`, from 0. Says also whether it came that far.
pub fn during<T>(at: usize, blow: Blow, act: impl FnOnce() -> T) -> (T, bool) {
    HAS_STRUCK.set(false);
    NEXT.set(Some((at, blow)));
    let done = act();
    NEXT.set(None);
    (done, HAS_STRUCK.get())
}

/// Called before each system call that changes the disk.
pub fn step() -> io::Result<()> {
    let Some((left, blow)) = NEXT.get() else { return Ok(()) };
    let Some(left) = left.checked_sub(1) else {
        HAS_STRUCK.set(true);
        return Err(match blow {
            Blow::Kill => io::Error::other("killed"),
            Blow::Fail(error) => {
                NEXT.set(None);
                error.into()
            }
        });
    };
    NEXT.set(Some((left, blow)));
    Ok(())
}
