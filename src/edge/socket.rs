//! From a back end's 101 to a tunnel, and never before it.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::edge::admission::Permit;
use crate::edge::carrier::{Carrier, Http2Client};
use crate::edge::client_io::ClientIo;
use crate::edge::client_stream::ClientStream;
use crate::edge::connection::Connection;
use crate::edge::finish::Journey;
use crate::edge::stall;
use crate::edge::tunnel_stream::TunnelStream;
use crate::edge::worker::Worker;
use crate::http::body::Body;
use crate::tunnel::register::Entry;
use crate::tunnel::{self, Early, Policy};
use crate::upstream::Switched;
use crate::upstream::connect::BackEndStream;
use crate::upstream::http::Load;

/// How long hyper may take to write the answer out and let go of the connection or the stream.
const HANDOVER: Duration = Duration::from_secs(10);

/// Answers 101, or 200 on HTTP/2, and joins client and back end once it is written. The tunnel is a task of its own
/// that holds two streams, a policy, a register entry and what its closing log line needs: no route, no site, no
/// snapshot.
pub fn join(
    connection: Rc<Connection>,
    mut journey: Journey,
    switched: Switched,
    upgrade: Option<OnUpgrade>,
) -> Response<Body> {
    let Switched { response, stream, leftover, back_end, load } = switched;
    let answer = response.map(|()| Body::Empty);
    let answer = if connection.is_http1() { switching(answer) } else { accepted(answer) };
    journey.open_socket(&back_end, answer.status());
    let Some(upgrade) = upgrade else {
        tracing::error!("hyper offers no upgrade for a handshake");
        return answer;
    };
    let (policy, entry) = journey.tunnel(back_end);
    // hyper's leftover keeps its whole read buffer alive; a copy of nothing keeps nothing.
    let early = Early { to_back_end: Bytes::new(), to_client: Bytes::copy_from_slice(&leftover) };
    let worker = connection.worker.clone();
    let half = Half { back_end: stream, early, policy, entry, load, journey };
    let tunnels = worker.clone();
    if connection.is_http1() {
        tunnels.spawn_tunnel(async move {
            let Some(upgraded) = handed_over(upgrade).await else { return };
            drop(connection);
            half.join_http1(&worker, upgraded);
        });
    } else {
        let carrier = Rc::new(Carrier::new(connection.facts.clone()));
        stall::leave_carrier(carrier.clone());
        tunnels.spawn_tunnel(async move {
            let Some(upgraded) = handed_over(upgrade).await else { return };
            drop(connection);
            half.join(&worker, Http2Client::new(upgraded, carrier), None);
        });
    }
    answer
}

/// RFC 9110, section 7.8: "A server MUST generate an Upgrade header field in a 101 (Switching Protocols)".
fn switching(mut answer: Response<Body>) -> Response<Body> {
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer
}

/// RFC 8441, section 5: Upgrade, Connection and Sec-WebSocket-Accept are HTTP/1.1's, and a 2xx takes their place.
fn accepted(mut answer: Response<Body>) -> Response<Body> {
    *answer.status_mut() = StatusCode::OK;
    answer.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    answer
}

async fn handed_over(upgrade: OnUpgrade) -> Option<Upgraded> {
    match tokio::time::timeout(HANDOVER, upgrade).await {
        Ok(Ok(upgraded)) => return Some(upgraded),
        Ok(Err(error)) => tracing::debug!("the client left during the handshake: {error}"),
        Err(_) => tracing::debug!("the client did not take the answer to its handshake"),
    }
    None
}

/// A tunnel that waits for its client.
struct Half {
    back_end: BackEndStream,
    early: Early,
    policy: Policy,
    entry: Entry,
    load: Load,
    journey: Journey,
}

impl Half {
    fn join_http1(mut self, worker: &Worker, upgraded: Upgraded) {
        let Ok(parts) = upgraded.downcast::<TokioIo<ClientIo>>() else {
            return tracing::error!("the upgraded stream is not the client's");
        };
        let (client, held) = parts.io.into_inner().into_parts();
        let to_back_end = if held.is_empty() { parts.read_buf } else { [&parts.read_buf[..], &held].concat().into() };
        self.early.to_back_end = Bytes::copy_from_slice(&to_back_end);
        let ClientStream { transport, permit } = client;
        match TunnelStream::of_client(transport, &worker.poller) {
            Ok(client) => self.join(worker, client, Some(permit)),
            Err(error) => tracing::error!("a tunnel cannot be watched: {error}"),
        }
    }

    /// `permit` is the client's, where the tunnel has the connection for itself.
    fn join(self, worker: &Worker, client: impl AsyncRead + AsyncWrite + Unpin + 'static, permit: Option<Permit>) {
        let Half { back_end, early, policy, entry, load, journey } = self;
        let back_end = match TunnelStream::of_back_end(back_end, &worker.poller) {
            Ok(back_end) => back_end,
            Err(error) => return tracing::error!("a tunnel cannot be watched: {error}"),
        };
        let farewell = journey.into_farewell(&worker.farewells, load, permit);
        let tunnel = tunnel::run_then(client, back_end, early, policy, entry, move |outcome| farewell.write(&outcome));
        worker.spawn_tunnel(tunnel);
    }
}
