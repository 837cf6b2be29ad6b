//! `[site.NAME.websocket]`.

use std::time::Duration;

use super::upstream::HttpUpstream;
use crate::base::network::Networks;
use crate::base::origin::OriginPattern;
use crate::base::pattern::PathPattern;
use crate::base::rate::Rate;

/// One `[site.x.websocket]`, its preset expanded.
#[derive(Debug, Clone, PartialEq)]
pub struct WebSocket {
    /// The preset that it was written with.
    pub preset: Preset,
    /// The socket servers.
    pub upstream: HttpUpstream,
    /// The paths that are theirs.
    pub paths: Vec<PathPattern>,
    /// What `Upgrade` has to do with it.
    pub upgrade: UpgradeRule,
    /// Preset pusher: who may use `/apps/*`.
    pub api: Api,
    /// How long a tunnel may be silent.
    pub idle_timeout: Duration,
    /// Bytes of one message from a client, over all its fragments; `None` is no limit.
    pub max_message: Option<u64>,
    /// Messages from one client; `None` is no limit.
    pub message_rate: Option<Rate>,
    /// How long a client may be silent before it is asked whether it lives; `None` never asks.
    pub ping_interval: Option<Duration>,
    /// Sockets at once; 0 is no limit.
    pub max_connections: usize,
    /// Sockets of one client address at once, IPv6 by /64; 0 is no limit.
    pub max_connections_per_ip: usize,
    /// The pages that may open sockets; empty is all.
    pub origins: Vec<OriginPattern>,
    /// Whether sockets are taken over HTTP/2 as well (RFC 8441).
    pub http2: bool,
    /// The `[limit.*]` that handshakes are held to.
    pub limit: Option<String>,
}

/// What a socket server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// `/socket.io/*`; cookie stickiness for lists.
    SocketIo,
    /// `/app/*` public, `/apps/*` closed.
    Pusher,
    /// Every `Upgrade: websocket`, whatever its path.
    Any,
    /// `paths` say it all.
    None,
}

/// What `Upgrade` has to do with a websocket block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpgradeRule {
    /// The path decides; plain requests go there too.
    Optional,
    /// Path and `Upgrade: websocket`.
    Required,
    /// The path, and every `Upgrade: websocket` on other paths.
    Any,
}

/// Who may use the publishing API of the Pusher protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Api {
    /// Nobody: 404.
    Closed,
    /// Everybody.
    Open,
    /// These; others get 403.
    Only(Networks),
}
