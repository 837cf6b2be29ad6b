//! Layer 6: starting, the one writer of the snapshot, signals, and what an init system wants to hear.

pub mod account;
pub mod automatic;
pub mod confine;
pub mod explain;
mod follow;
pub mod handover;
pub mod house;
mod leaving;
mod leftover;
pub mod listeners;
pub mod logs;
mod open_files;
mod password_files;
mod prepare;
pub mod privilege;
mod probes;
mod refused;
mod serve;
mod signals;
pub mod source;
pub mod start;
pub mod systemd;
pub mod upgrade;
