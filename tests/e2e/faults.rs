//! What breaks around the proxy while clients go on. Each fault is brought about under the feet of the real binary: the
//! client that it hits gets the right answer, the log says it, nobody else notices, and all is well soon after it is
//! mended. Every test leaves rows for the table in tests/faults.md.
//!
//! Other faults have tests beside what they are about: `certificate_faults`, `machine_limits`, `health`, `fpm_load`,
//! `back_ends`, `reload`, `upgrade`, `watch`, and the target `acme`.

mod back_ends;
mod clock;
mod disks;
mod ends;
mod php;
mod pipes;
pub mod scene;
mod sick;
