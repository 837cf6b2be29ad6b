//! Layer 2: from (host, path, method, upgrade?) to what the file says about it. Pure and generic: it knows neither
//! sites nor upstreams.

mod hosts;
mod paths;

pub use hosts::HostTable;
pub use paths::{Asked, Matcher, Rule, RuleTable};
