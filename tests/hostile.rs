//! What is thrown at an edge server, byte for byte, against the real binary: nothing is smuggled, nothing hangs.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test ends where a step fails")]

#[path = "hostile/back_end.rs"]
mod back_end;
#[path = "hostile/edge.rs"]
mod edge;
#[path = "hostile/h1.rs"]
mod h1;
#[path = "hostile/h2.rs"]
mod h2;
#[path = "hostile/life.rs"]
mod life;
