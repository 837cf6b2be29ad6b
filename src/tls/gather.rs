//! What is encrypted together: head and body in one record and one send.

use std::io::IoSlice;

/// Bytes of plaintext that are encrypted at a time.
pub(super) const SENT: usize = 64 * 1024;

/// The bytes of one write: those of the one slice that has any, or of several together.
pub(super) fn gather<'b>(slices: &'b [IoSlice<'_>], gathered: &'b mut Vec<u8>) -> &'b [u8] {
    let mut with_bytes = slices.iter().filter(|slice| !slice.is_empty());
    match (with_bytes.next(), with_bytes.next()) {
        (None, _) => &[],
        (Some(only), None) => only.get(..SENT).unwrap_or(only),
        (Some(_), Some(_)) => {
            gathered.clear();
            for slice in slices {
                let room = SENT - gathered.len();
                gathered.extend_from_slice(slice.get(..room).unwrap_or(slice));
            }
            gathered
        }
    }
}
