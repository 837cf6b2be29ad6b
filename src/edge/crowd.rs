//! A crowd of clients that has left, and the memory that it leaves in the system's allocator: AWS-LC asks that one for
//! each connection's keys, and it keeps what is free until it is told. jemalloc, which has all the rest, tells itself.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// So many have to leave to be a crowd: their keys are a megabyte or less.
const CROWD: usize = 512;

/// The most connections there were since a crowd has last left.
#[derive(Debug, Default)]
pub struct Crowd {
    most: AtomicUsize,
}

impl Crowd {
    /// Whether a crowd, and half of all, has left since there were the most; `open` are left. Of many who ask at once one
    /// is told.
    pub fn has_left(&self, open: usize) -> bool {
        let most = self.most.fetch_max(open, Relaxed).max(open);
        let left = most - open;
        left >= CROWD && left >= most / 2 && self.most.compare_exchange(most, open, Relaxed, Relaxed).is_ok()
    }
}

/// Gives the system's allocator's free pages back. Takes about a millisecond for each megabyte, in which threads that
/// want something of that allocator may wait.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "glibc is told by malloc_trim(3), and no other way")]
    // SAFETY: it may be called at any time, from any thread ("MT-Safe"); what is in use stays where it is.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_told_once_when_most_of_it_has_left() {
        let crowd = Crowd::default();
        for (open, told) in [
            (CROWD - 1, false),
            (0, false),
            (9000, false),
            (5000, false),
            (4500, true),
            (4500, false),
            (4000, false),
            (1000, true),
            (3, true),
            (0, false),
            (700, false),
            (0, true),
        ] {
            assert_eq!(crowd.has_left(open), told, "{open}");
        }
    }
}
