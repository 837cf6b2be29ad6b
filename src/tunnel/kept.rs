//! What a lane has for a writer that does not take it yet.

use tokio::time::Instant;

use super::lane::Due;

/// Bytes that wait for the writer, and a frame that waits for its boundary; one pointer while there are none.
#[derive(Default)]
pub(super) struct Kept(Option<Box<Waiting>>);

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
    /// Since when the writer has taken nothing.
    stalled: Option<Instant>,
    /// A frame of ours for the next boundary.
    due: Option<Due>,
}

impl Kept {
    /// Whether no bytes wait.
    pub(super) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.get_or_insert_default().bytes.extend_from_slice(bytes);
        }
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.0.as_ref().and_then(|waiting| waiting.bytes.get(waiting.sent..)).unwrap_or_default()
    }

    /// The writer has taken so many of them.
    pub(super) fn sent(&mut self, length: usize) {
        if let Some(waiting) = &mut self.0 {
            waiting.sent += length;
            if waiting.sent >= waiting.bytes.len() {
                (waiting.bytes, waiting.sent) = (Vec::new(), 0);
            }
        }
        self.tidy();
    }

    pub(super) fn stalled(&self) -> Option<Instant> {
        self.0.as_ref()?.stalled
    }

    pub(super) fn set_stalled(&mut self, since: Option<Instant>) {
        if since != self.stalled() {
            self.0.get_or_insert_default().stalled = since;
            self.tidy();
        }
    }

    pub(super) fn due(&self) -> Option<Due> {
        self.0.as_ref()?.due
    }

    pub(super) fn set_due(&mut self, due: Due) {
        self.0.get_or_insert_default().due = Some(due);
    }

    pub(super) fn take_due(&mut self) -> Option<Due> {
        let due = self.0.as_mut()?.due.take();
        self.tidy();
        due
    }

    fn tidy(&mut self) {
        self.0.take_if(|waiting| waiting.bytes.is_empty() && waiting.stalled.is_none() && waiting.due.is_none());
    }
}
