//! What every test stands on.

mod backend;
mod curl;
mod neighbour;
mod process;
mod proxy;
mod raw;
mod wait;
mod websocket;
mod world;

pub use backend::BackEnd;
pub use curl::Curl;
pub use neighbour::{Fpm, Node, Redis, Waiting, program, run_node};
pub use process::{Finished, Running, finish};
pub use proxy::{Proxy, binary, doorward};
pub use raw::{Raw, status};
pub use wait::{SOON, wait_for, wait_until};
pub use websocket::Socket;
pub use world::{Pair, World, free_port};
