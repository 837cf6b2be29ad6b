//! What is thrown at an edge server, byte for byte, against the real binary: nothing is smuggled, nothing hangs.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test ends where a step fails, and says what it measured"
)]

#[path = "hostile/anyone.rs"]
mod anyone;
#[path = "hostile/attack.rs"]
mod attack;
#[path = "hostile/attack_h2.rs"]
mod attack_h2;
#[path = "hostile/back_end.rs"]
mod back_end;
#[path = "hostile/corpus.rs"]
mod corpus;
#[path = "hostile/edge.rs"]
mod edge;
#[path = "hostile/floods.rs"]
mod floods;
#[path = "hostile/h1.rs"]
mod h1;
#[path = "hostile/h2.rs"]
mod h2;
#[path = "hostile/h2_client.rs"]
mod h2_client;
#[path = "hostile/life.rs"]
mod life;
#[path = "e2e/harness/machine.rs"]
mod machine;
#[path = "hostile/peers.rs"]
mod peers;
#[path = "hostile/room.rs"]
mod room;
#[path = "hostile/room_crowds.rs"]
mod room_crowds;
#[path = "hostile/tls.rs"]
mod tls;
#[path = "hostile/tls_client.rs"]
mod tls_client;
