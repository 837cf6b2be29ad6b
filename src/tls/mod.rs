//! Layer 3: TLS towards the clients. [`store::CertStore`] owns the certificates, [`watch::watch`] keeps them fresh,
//! [`policy::server_config`] says what is spoken, [`accept::accept`] makes a connection of a socket.

pub mod accept;
pub mod challenges;
mod gather;
pub mod hello;
mod kept;
pub mod local_ca;
mod names;
pub mod pair;
pub mod policy;
pub mod resolver;
mod slot;
mod spare;
pub mod store;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod tickets;
pub mod turns;
pub mod watch;
