//! What every test stands on.

mod backend;
mod crowd;
mod curl;
mod load;
mod machine;
mod name_server;
mod neighbour;
mod pebble;
mod process;
mod proxy;
mod raw;
mod wait;
mod websocket;
mod world;

pub use backend::{BackEnd, Seen};
pub use crowd::{Crowd, EchoServer, Manner, per_second};
pub use curl::Curl;
pub use load::{Asking, Load};
pub use machine::{is_full, is_root_for, not_run, promised};
pub use name_server::NameServer;
pub use neighbour::{Fpm, Node, Redis, Waiting, program, run_node};
pub use pebble::{Pebble, Temper};
pub use process::{Finished, Running, finish};
pub use proxy::{Proxy, binary, doorward, doorward_bound_by_modes, is_running};
pub use raw::{Raw, client_config, status};
pub use wait::{SOON, wait_for, wait_until};
pub use websocket::Socket;
pub use world::{Issued, Pair, World, free_port};
