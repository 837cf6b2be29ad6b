//! A crowd of clients that has left, and the memory that it leaves behind: in the system's allocator, which AWS-LC asks, on
//! most processors for each connection's keys, and which keeps what is free until it is told; and in what is mapped of the
//! program. jemalloc, which has all the rest, tells itself.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many have to leave to be a crowd: their keys are a megabyte or less.
const CROWD: usize = 512;

/// Crowds may come and go faster.
const AT_MOST_EVERY: Duration = Duration::from_secs(5);

/// The most connections there were since a crowd has last left, and when that was.
#[derive(Debug, Default)]
pub struct Crowd(Mutex<(usize, Option<Instant>)>);

impl Crowd {
    /// Whether a crowd, and half of all, has left since there were the most; `open` are left. Of many who ask at once one
    /// is told, and that at most every 5 s.
    pub fn has_left(&self, open: usize, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (most, told) = &mut *state;
        *most = open.max(*most);
        let left = *most - open;
        let has_left = left >= CROWD && left >= *most / 2;
        if !has_left || told.is_some_and(|told| now.saturating_duration_since(told) < AT_MOST_EVERY) {
            return false;
        }
        *state = (open, Some(now));
        true
    }
}

/// Gives back what only a crowd, or the start, had needed. Takes about a millisecond for each megabyte of the system's
/// allocator, in which threads that want something of it may wait.
pub fn give_back_memory() {
    trim_allocator();
    unmap_program();
}

fn trim_allocator() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "glibc is told by malloc_trim(3), and no other way")]
    // SAFETY: it may be called at any time, from any thread ("MT-Safe"); what is in use stays where it is.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Code and constants that were used once, most of them at the start, stay mapped for ever, with their neighbours to
/// 64 KiB. What is used again comes back with a page fault, from the system's cache.
fn unmap_program() {
    // Of the linker: the program's first byte, and the one behind its code.
    #[allow(unsafe_code, reason = "the linker's symbols are declared so")]
    // SAFETY: both are there wherever ELF is linked; nothing is read from them.
    unsafe extern "C" {
        safe static __executable_start: u8;
        safe static etext: u8;
    }
    let begin = &raw const __executable_start;
    let length = (&raw const etext).addr().saturating_sub(begin.addr());
    #[allow(unsafe_code, reason = "the kernel is told by madvise(2), and no other way")]
    // SAFETY: up to the end of the code the program is mapped from its file, which cannot be written to while it runs, and
    // neither relocated nor written to in memory: what was let go reads the same when it comes back.
    let _ = unsafe { libc::madvise(begin.cast_mut().cast(), length, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_told_once_when_most_of_it_has_left() {
        let crowd = Crowd::default();
        let begun = Instant::now();
        for (second, open, told) in [
            (0, CROWD - 1, false),
            (1, 0, false),
            (2, 9000, false),
            (3, 5000, false),
            (4, 4500, true),
            (5, 0, false),
            (8, 0, false),
            (9, 0, true),
            (15, 0, false),
            (16, 700, false),
            (17, 300, false),
            (18, 100, true),
            (30, 0, false),
        ] {
            assert_eq!(crowd.has_left(open, begun + Duration::from_secs(second)), told, "{second}: {open}");
        }
    }

    /// KiB of this program's code that are mapped.
    fn mapped_code() -> u64 {
        let (maps, program) = (std::fs::read_to_string("/proc/self/smaps").unwrap(), std::env::current_exe().unwrap());
        let is_code = |line: &&str| line.contains(" r-xp ") && line.ends_with(program.to_str().unwrap());
        let mut lines = maps.lines().skip_while(|line| !is_code(line));
        let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_ran_once_does_not_stay_mapped() {
        let before = mapped_code();
        unmap_program();
        assert!(mapped_code() < before);
        assert!(mapped_code() > 0);
    }
}
