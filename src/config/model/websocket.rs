//! `[site.NAME.websocket]`.

use std::time::Duration;

use super::upstream::HttpUpstream;
use crate::base::network::Networks;
use crate::base::pattern::PathPattern;

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
