//! What FPM has not read yet of what was sent, as the kernel counts it.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use crate::upstream::fastcgi::record::HEADER;

/// Whether nothing that was sent on the unix socket `stream` is unread, or no more than one record without content that was
/// a write of its own. False where the kernel does not say.
pub(super) fn is_at_most_an_empty_record(stream: &impl AsFd) -> bool {
    // What the kernel keeps beside the bytes of a write counts, and differs between kernels: it is found out once.
    static EMPTY_RECORD: OnceLock<Option<i32>> = OnceLock::new();
    let most = *EMPTY_RECORD.get_or_init(|| {
        let (mut ours, _theirs) = UnixStream::pair().ok()?;
        ours.write_all(&[0; HEADER]).ok()?;
        unread(&ours)
    });
    matches!((unread(stream), most), (Some(unread), Some(most)) if unread <= most)
}

/// Memory that is taken by what the other side of a unix socket has not read.
fn unread(stream: &impl AsFd) -> Option<i32> {
    let mut bytes: libc::c_int = 0;
    #[allow(unsafe_code, reason = "the kernel tells it by ioctl(2), and no other way")]
    // SAFETY: SIOCOUTQ (which has the number of TIOCOUTQ) writes one `int` to where the pointer leads, and `bytes` is one.
    let told = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (told == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_empty_record_may_be_left_and_nothing_else() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(is_at_most_an_empty_record(&ours));
        for length in [624, 40_000] {
            ours.write_all(&vec![0; length]).unwrap();
            assert!(!is_at_most_an_empty_record(&ours), "{length} bytes");
            ours.write_all(&[0; HEADER]).unwrap();
            assert!(!is_at_most_an_empty_record(&ours), "{length} bytes and a record");
            theirs.read_exact(&mut vec![0; length - 1]).unwrap();
            assert!(!is_at_most_an_empty_record(&ours), "one byte and a record");
            theirs.read_exact(&mut [0]).unwrap();
            assert!(is_at_most_an_empty_record(&ours), "a record");
            theirs.read_exact(&mut [0; HEADER]).unwrap();
            assert!(is_at_most_an_empty_record(&ours), "nothing");
        }
    }
}
