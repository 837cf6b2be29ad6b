//! Doorward in front of its real neighbours: PHP-FPM, Node, Redis, curl, Chromium. `tests/run` installs them.
//!
//! One area: `cargo test --test e2e php::`. The long transfers take 1 GiB with `DOORWARD_FULL=1`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that meets the unexpected has to fail"
)]

#[path = "../hostile/anyone.rs"]
mod anyone;
#[path = "../authority/mod.rs"]
mod authority;
#[allow(dead_code, reason = "tests/hostile uses the rest")]
#[path = "../hostile/h2_client.rs"]
mod h2_client;
mod harness;
#[path = "../hostile/tls_client.rs"]
mod tls_client;

mod access_rules;
mod acme;
mod acme_authority;
mod ambiguous;
mod back_ends;
mod backend;
mod browser;
mod browser_sockets;
mod bulk;
mod certificate_faults;
mod certificates;
mod client_address;
mod commands;
mod conformance;
mod demo;
mod dns_hook;
mod echo;
mod faults;
mod files;
mod fpm_load;
mod health;
mod laravel;
mod limits;
mod live_sockets;
mod logs;
mod machine_limits;
mod neighbours;
mod php;
mod php_corpus;
mod plain;
mod privilege;
mod rate_limits;
mod reload;
mod scenarios;
mod signals;
mod socket_rules;
mod socketio;
mod sockets;
mod sockets_at_scale;
mod sockets_h2;
mod sticky;
mod stream;
mod systemd;
mod trust;
mod upgrade;
mod watch;
