//! Futures in boxes.

use std::pin::Pin;

/// `Box::pin(make())`, with the room taken first, so that the future is built there. `Box::pin` builds it on the stack and
/// copies all of it, some kilobytes, of which only what it was made of has been written. Measured with rustc 1.95.
pub fn in_place<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    let room = Box::new_uninit();
    Box::into_pin(Box::write(room, make()))
}
