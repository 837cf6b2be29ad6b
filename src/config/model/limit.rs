//! `[limit.NAME]`.

use crate::base::rate::Rate;

/// `[limit.NAME]`: how often one client may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// The table's name.
    pub name: String,
    /// What tells clients apart.
    pub key: LimitKey,
    /// How often, in the long run.
    pub rate: Rate,
    /// So many at once beyond it.
    pub burst: u32,
    /// What is answered beyond that.
    pub status: u16,
}

/// What tells clients apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitKey {
    /// The client's address, IPv6 by /64.
    ClientIp,
    /// The value of this field, lower case; a request without it counts by its address.
    Header(String),
}
