//! What an application says on its standard error, on its way to the log.

use crate::base::address::Endpoint;
use crate::base::fault::{Fault, Kind};
use crate::upstream::fastcgi::stderr::Lines;

/// What may be said between two parts of the answer: a script that does nothing else never ends.
const MOST: usize = 64 * 1024 * 1024;

/// The complaints of one request. What is left of a line is told when this is dropped.
pub(super) struct Complaints {
    endpoint: Endpoint,
    target: String,
    lines: Lines,
    /// Bytes since the answer has last gone on.
    in_a_row: usize,
}

impl Complaints {
    /// Of the request `target` at `endpoint`, for the log.
    pub fn new(endpoint: Endpoint, target: String) -> Complaints {
        Complaints { endpoint, target, lines: Lines::default(), in_a_row: 0 }
    }

    /// The answer goes on.
    pub fn note_answer(&mut self) {
        self.in_a_row = 0;
    }

    /// More of them. A fault where there is nothing else for too long.
    pub fn push(&mut self, data: &[u8]) -> Result<(), Fault> {
        let Complaints { endpoint, target, lines, in_a_row } = self;
        *in_a_row = in_a_row.saturating_add(data.len());
        lines.push(data, |line| tracing::warn!(back_end = %endpoint, request = %target, "PHP: {line}"));
        if *in_a_row <= MOST {
            return Ok(());
        }
        Err(Fault::new(
            Kind::BadAnswer,
            format!("{endpoint} says more than 64 MiB on standard error, and nothing else"),
        ))
    }

    /// Tells that the application has said more than it announced.
    pub fn note_surplus(&self) {
        let Complaints { endpoint, target, .. } = self;
        tracing::warn!(back_end = %endpoint, request = %target, "more than its Content-Length: the rest is dropped");
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        let Complaints { endpoint, target, lines, .. } = self;
        lines.finish(|line| tracing::warn!(back_end = %endpoint, request = %target, "PHP: {line}"));
    }
}
