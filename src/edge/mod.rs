//! Layer 5: the path of one request, from the accepted socket to the answer. [`service`] is the whole journey.

pub mod accel;
pub mod access;
pub mod challenge;
mod client_body;
pub mod client_io;
pub mod compress;
pub mod connection;
pub mod facts;
pub mod finish;
pub mod listener;
pub mod process;
pub mod redirect;
pub mod service;
pub mod site;
pub mod snapshot;
pub mod socket;
pub mod stall;
pub mod worker;
