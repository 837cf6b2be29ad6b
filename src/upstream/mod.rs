//! Layer 3: the ways out. A kind of destination takes an [`UpstreamRequest`](crate::http::request::UpstreamRequest)
//! with its body and gives a [`Reply`] or a fault.

use std::sync::Arc;

use ::http::Response;
use bytes::Bytes;

use crate::http::body::Body;

pub mod connect;
pub mod fastcgi;
pub mod files;
pub mod http;
pub mod php;
pub mod resolve;
pub mod source;
pub mod spool;

/// What a destination gives back.
pub enum Reply {
    /// An ordinary answer, and the name of the HTTP back end that gave it, for logs.
    Response(Response<Body>, Option<Arc<str>>),
    /// The back end answered 101: what follows on its stream belongs to the tunnel.
    Switched(Box<Switched>),
}

impl From<Response<Body>> for Reply {
    /// An answer that no HTTP back end gave.
    fn from(response: Response<Body>) -> Reply {
        Reply::Response(response, None)
    }
}

/// A back end that has switched to the WebSocket protocol.
pub struct Switched {
    /// The 101 as the client may get it: hop-by-hop fields gone, `Sec-WebSocket-*` kept.
    pub response: Response<()>,
    /// The raw stream to the back end.
    pub stream: connect::BackEndStream,
    /// Bytes that the back end sent right behind its 101.
    pub leftover: Bytes,
    /// The back end's name for logs: `http://127.0.0.1:3444`.
    pub back_end: Arc<str>,
    /// Counts the tunnel as load on its back end until dropped.
    pub load: http::Load,
}
