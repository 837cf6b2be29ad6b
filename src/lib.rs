//! Doorward: a TLS-terminating, WebSocket-aware edge server.
//!
//! # How to read this house
//!
//! A request is a value that moves one way; its whole journey reads in [`edge::service`]. Imports go down only;
//! `tests/layering.rs` reads the table below and fails on an upward edge.
//!
//! | layer | module | may import |
//! |---:|---|---|
//! | 0 | base | |
//! | 1 | config | base |
//! | 1 | http | base |
//! | 2 | route | base |
//! | 2 | keys | base |
//! | 2 | tunnel | base |
//! | 2 | store | base |
//! | 3 | tls | base, keys |
//! | 3 | upstream | base, http |
//! | 4 | acme | base, keys, store, tls |
//! | 5 | edge | base, config, http, route, keys, tunnel, store, tls, upstream, acme |
//! | 6 | admin | base, config, http, route, keys, tunnel, store, tls, upstream, acme, edge |
//! | 6 | doctor | base, config, http, route, keys, tunnel, store, tls, upstream, acme, edge |
//! | 6 | demo | base, config, http, route, keys, tunnel, store, tls, upstream, acme, edge |
//! | 6 | trust | base, tls |
//! | 6 | run | base, config, http, route, keys, tunnel, store, tls, upstream, acme, edge, admin |
//! | 6 | args | base |
//! | 6 | main | base, config, http, route, keys, tunnel, store, tls, upstream, acme, edge, admin, doctor, demo, trust, run, args |

pub mod acme;
pub mod admin;
pub mod args;
pub mod base;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod edge;
pub mod http;
pub mod keys;
pub mod route;
pub mod run;
pub mod store;
pub mod tls;
pub mod trust;
pub mod tunnel;
pub mod upstream;
