//! Layer 6: talking to a running process.

pub mod control;
pub mod sockets;
#[cfg(test)]
mod testing;
pub mod upstreams;
