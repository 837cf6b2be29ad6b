//! What the parts that every request goes through cost by themselves, with friendly input and with hostile: routing,
//! heads, paths, header rules, FastCGI and WebSocket frames.
//!
//! ```sh
//! cargo bench --bench micro               # everything, about a minute
//! cargo bench --bench micro -- routing    # what has the word in its name
//! ```
//!
//! Single functions, on one thread, without the kernel, which has three quarters of a proxied request: a figure tells
//! whether a part has become slower, and how its cost grows, not how fast the proxy is (that is `benches/side-by-side`).
//! Look at the median, and compare only with another run on the same machine. What is hostile should cost about as much
//! as friendly input of the same length, or be refused sooner; what is asked of 10,000 routes about as much as of ten.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that meets the unexpected has to fail"
)]

mod fastcgi;
mod head;
mod routing;
mod websocket;

fn main() {
    divan::main();
}
