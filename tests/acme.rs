//! The ACME client against an authority of the tests' own, in all its moods.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected has to fail"
)]

#[path = "hostile/anyone.rs"]
mod anyone;
mod authority;

#[path = "acme/house.rs"]
mod house;

#[path = "acme/account.rs"]
mod account;
#[path = "acme/faults.rs"]
mod faults;
#[path = "acme/kill.rs"]
mod kill;
#[path = "acme/order.rs"]
mod order;
#[path = "acme/proof.rs"]
mod proof;
