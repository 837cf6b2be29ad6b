//! Layer 6: talking to a running process.

pub mod control;
