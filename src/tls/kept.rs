//! What a connection keeps between two calls, to the byte.

use tokio::io::ReadBuf;

/// Bytes that could not go on.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    /// How many of them have gone on since.
    at: usize,
}

impl Kept {
    /// What is left.
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Puts `more` behind it.
    pub(super) fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// Gives what was decrypted to the reader, in order, and keeps what it has no room for.
    pub(super) fn hand(&mut self, payload: &[u8], wanted: Option<&mut ReadBuf<'_>>) {
        let mut rest = payload;
        if let Some(buf) = wanted.filter(|_| self.rest().is_empty()) {
            let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
            buf.put_slice(now);
            rest = later;
        }
        if !rest.is_empty() {
            self.push(rest);
        }
    }

    /// Behind the last of them no memory is held.
    pub(super) fn advance(&mut self, count: usize) {
        self.at += count;
        if self.at >= self.bytes.len() {
            *self = Kept::default();
        }
    }

    /// Bytes of memory that are held for it.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}
