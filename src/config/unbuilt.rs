//! Keys of the file format whose feature does not exist yet. They are refused, whatever their value: what is
//! accepted and does nothing is worse than what is missing.

use super::block::Block;

/// A key that is refused: its block, its name, what is missing, what to do instead.
struct Unbuilt {
    block: &'static str,
    key: &'static str,
    what: &'static str,
    instead: &'static str,
}

/// Refuses every key of `kind` that is written in `block`.
pub(super) fn refuse(block: &Block<'_>, kind: &str) {
    for unbuilt in UNBUILT.iter().filter(|unbuilt| unbuilt.block == kind) {
        if let Some(at) = block.refuse(unbuilt.key) {
            let message = format!("`{}` is not built yet: {}", unbuilt.key, unbuilt.what);
            block.reading.problem(at, message, "", unbuilt.instead);
        }
    }
}

const fn unbuilt(block: &'static str, key: &'static str, what: &'static str, instead: &'static str) -> Unbuilt {
    Unbuilt { block, key, what, instead }
}

const UNBUILT: &[Unbuilt] = &[unbuilt(
    "root",
    "metrics",
    "there is no metrics listener",
    "remove [metrics]; the access log in json has the figures",
)];
