//! From a back end's 101 to a tunnel, and never before it.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::edge::client_io::ClientIo;
use crate::edge::connection::Connection;
use crate::edge::finish::Journey;
use crate::http::body::Body;
use crate::tunnel::{self, Early};
use crate::upstream::Switched;

/// How long hyper may take to write the 101 out and let go of the connection.
const HANDOVER: Duration = Duration::from_secs(10);

/// Answers 101 and joins client and back end once it is written. The tunnel is a task of its own that holds two
/// streams, a policy, a register entry and what its closing log line needs: no route, no site, no snapshot.
pub fn join(
    connection: Rc<Connection>,
    mut journey: Journey,
    switched: Switched,
    upgrade: Option<OnUpgrade>,
) -> Response<Body> {
    let Switched { response, stream, leftover, back_end, load } = switched;
    let mut answer = response.map(|()| Body::Empty);
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    // RFC 9110, section 7.8: "A server MUST generate an Upgrade header field in a 101 (Switching Protocols)".
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    journey.open_socket(&back_end);
    let Some(upgrade) = upgrade else {
        tracing::error!("hyper offers no upgrade for a handshake");
        return answer;
    };
    let (policy, entry) = journey.tunnel(&back_end);
    let worker = connection.worker.clone();
    let tunnels = worker.clone();
    tunnels.spawn_tunnel(async move {
        let taken = match tokio::time::timeout(HANDOVER, upgrade).await {
            Ok(Ok(upgraded)) => upgraded.downcast::<TokioIo<ClientIo>>(),
            Ok(Err(error)) => return tracing::debug!("the client left during the handshake: {error}"),
            Err(_) => return tracing::debug!("the client did not take the 101"),
        };
        let Ok(parts) = taken else { return tracing::error!("the upgraded stream is not the client's") };
        let (client, held) = parts.io.into_inner().into_parts();
        let to_back_end = if held.is_empty() { parts.read_buf } else { [&parts.read_buf[..], &held].concat().into() };
        // hyper's leftover keeps its whole read buffer alive; a copy of nothing keeps nothing.
        let to_back_end = Bytes::copy_from_slice(&to_back_end);
        let early = Early { to_back_end, to_client: Bytes::copy_from_slice(&leftover) };
        drop((leftover, connection));
        worker.spawn_tunnel(async move {
            let outcome = tunnel::run(client, stream, early, policy, entry).await;
            drop(load);
            journey.close_socket(&outcome);
        });
    });
    answer
}
