//! Layer 6: starting, the one writer of the snapshot, signals, and what an init system wants to hear.

pub mod automatic;
pub mod explain;
pub mod house;
mod leaving;
pub mod logs;
pub mod source;
pub mod start;
pub mod systemd;
