//! Layer 0: the words everybody shares. Pure but for a look at the clock, no I/O, imports nothing of ours.

pub mod address;
pub mod bell;
pub mod boxed;
pub mod cached_time;
pub mod certified_name;
pub mod ciphers;
pub mod clock;
pub mod fault;
pub mod gcra;
pub mod host;
pub mod network;
pub mod origin;
pub mod pace;
pub mod pattern;
pub mod proxy_head;
pub mod public_authority;
pub mod rate;
pub mod units;
