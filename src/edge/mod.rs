//! Layer 5: the path of one request, from the accepted socket to the answer. [`service`] is the whole journey.

pub mod accel;
pub mod access;
pub mod admission;
pub mod carrier;
pub mod challenge;
mod client_body;
pub mod client_io;
pub mod client_stream;
pub mod compress;
pub mod connection;
pub mod facts;
pub mod finish;
pub mod generation;
pub mod handshake;
pub mod listener;
pub mod places;
pub mod process;
pub mod redirect;
pub mod refusal;
pub mod refusals;
pub mod service;
pub mod site;
pub mod snapshot;
pub mod socket;
pub mod stall;
mod tunnel_stream;
pub mod worker;
