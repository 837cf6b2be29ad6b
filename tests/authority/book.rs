//! What the authority has written down.

use std::collections::HashSet;

use super::Counters;

/// Everything.
#[derive(Debug, Default)]
pub struct Book {
    pub nonces: HashSet<String>,
    pub accounts: Vec<Account>,
    pub orders: Vec<Order>,
    pub authorizations: Vec<Authorization>,
    pub certificates: Vec<Certificate>,
    pub counters: Counters,
}

#[derive(Debug, Clone)]
pub struct Account {
    pub url: String,
    /// An uncompressed point of P-256.
    pub key: Vec<u8>,
    pub thumbprint: String,
    pub contact: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Order {
    pub account: String,
    /// As ordered: `*.a.example` with its asterisk.
    pub names: Vec<Identifier>,
    pub authorizations: Vec<usize>,
    pub profile: Option<String>,
    pub replaces: Option<String>,
    /// How often it says `processing` yet; `None` before it is finalized.
    pub processing: Option<u32>,
    pub certificate: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identifier {
    /// `dns` or `ip`
    pub kind: String,
    pub value: String,
}

#[derive(Debug, Clone)]
pub struct Authorization {
    pub account: String,
    /// Without an asterisk.
    pub name: Identifier,
    pub wildcard: bool,
    pub status: &'static str,
    pub challenges: Vec<Challenge>,
}

#[derive(Debug, Clone)]
pub struct Challenge {
    pub kind: &'static str,
    pub token: String,
    pub status: &'static str,
    /// Type and detail.
    pub error: Option<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct Certificate {
    pub account: String,
    /// base64url of its serial number.
    pub serial: String,
    pub pem: String,
    pub not_before: std::time::SystemTime,
    pub not_after: std::time::SystemTime,
}

impl Book {
    pub fn status(&self, order: &Order, stuck: bool) -> &'static str {
        let mut all_valid = true;
        for index in &order.authorizations {
            match self.authorizations[*index].status {
                "valid" => {}
                "pending" => all_valid = false,
                _ => return "invalid",
            }
        }
        match (order.certificate, order.processing) {
            (Some(_), Some(0)) if !stuck => "valid",
            (_, Some(_)) => "processing",
            _ if all_valid => "ready",
            _ => "pending",
        }
    }
}
