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
//! | 3 | tls | base, keys |
//! | 3 | upstream | base, http |
//! | 5 | edge | base, config, http, route, keys, tunnel, tls, upstream |
//! | 6 | admin | base, config, http, route, keys, tunnel, tls, upstream, edge |
//! | 6 | doctor | base, config, http, route, keys, tunnel, tls, upstream, edge |
//! | 6 | demo | base, config, http, route, keys, tunnel, tls, upstream, edge |
//! | 6 | run | base, config, http, route, keys, tunnel, tls, upstream, edge, admin |
//! | 6 | args | base |
//! | 6 | main | base, config, http, route, keys, tunnel, tls, upstream, edge, admin, doctor, demo, run, args |

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
pub mod tls;
pub mod tunnel;
pub mod upstream;
