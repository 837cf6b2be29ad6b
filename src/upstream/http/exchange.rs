//! One request on one connection: the wait for the answer's head, with the body on its way up.

use std::future::poll_fn;
use std::time::Instant;

use http::response;

use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::upstream::http::connection::{Broken, Connection};
use crate::upstream::http::settings::Timeouts;
use crate::upstream::http::upload::Turn;

/// Waits for the answer's head. The back end is waited for; the client is not: that is the business of its body, which
/// ends in a fault of its own.
pub(super) async fn answer(connection: &mut Connection, timeouts: &Timeouts) -> Result<response::Parts, Broken> {
    // A first look when the shortest wait could be over; each look says when the next one is due.
    let first = if connection.has_upload() { timeouts.read.min(timeouts.send) } else { timeouts.read };
    let mut wake = cached_time::now() + first;
    loop {
        if let Ok(answered) = tokio::time::timeout_at(wake.into(), poll_fn(|cx| connection.poll_head(cx))).await {
            return answered;
        }
        let (turn, since) = connection.waits();
        wake = look(turn, since, timeouts, cached_time::now()).map_err(Broken::Fault)?;
    }
}

/// When to look again, or the fault that nothing has moved since `since`, for too long.
fn look(turn: Turn, since: Instant, timeouts: &Timeouts, now: Instant) -> Result<Instant, Fault> {
    let (due, kind, told) = match turn {
        Turn::Client => return Ok(now + timeouts.read.min(timeouts.send)),
        Turn::BackEnd => (since + timeouts.send, Kind::SendTimeout, "the back end took nothing of the request"),
        Turn::Nobody => (since + timeouts.read, Kind::ReadTimeout, "the back end did not answer"),
    };
    if due <= now { Err(Fault::new(kind, told)) } else { Ok(due) }
}

/// Reads `body` to its end.
#[cfg(test)]
pub(super) async fn collect(mut body: crate::http::body::Body) -> Result<Vec<u8>, Fault> {
    use http_body::Body as _;
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all)
}
