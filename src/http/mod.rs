//! Layer 1: the HTTP that is ours: pure, no I/O. From a request as hyper parsed it to one that may be believed
//! ([`request::ClientRequest`]), from there to one that a back end may get ([`request::UpstreamRequest`]), and the
//! one table that turns a fault into a status ([`reply`]).

pub mod body;
mod fields;
pub mod forwarded;
pub mod forwarded_field;
pub mod frames;
pub mod guard;
pub mod hop;
pub mod path;
pub mod reply;
pub mod request;
