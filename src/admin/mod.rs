//! Layer 6: talking to a running process.

pub mod control;
pub mod sockets;
#[cfg(test)]
pub(crate) mod testing;
pub mod upstreams;
