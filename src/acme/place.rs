//! Placing an order.

use instant_acme::{CertificateIdentifier, Error, Identifier, NewOrder, Order};

use super::account::Client;
use super::call::call;
use super::failure::{self, Failure, FailureKind};
use super::order::Wanted;
use crate::base::certified_name::CertifiedName;

/// How many profiles are told, and how much of each, in characters.
const MOST_PROFILES: usize = 20;
const LONGEST_PROFILE: usize = 200;

/// Whether the authority has the profile that is wanted: it says so in its directory, so it need not be asked.
pub(super) fn check_profile(client: &Client, wanted: &Wanted) -> Result<(), Failure> {
    let Some(wanted) = wanted.profile.as_deref() else { return Ok(()) };
    let mut offered: Vec<&str> = client.account().profiles().map(|profile| profile.name).collect();
    offered.sort_unstable();
    if offered.contains(&wanted) {
        return Ok(());
    }
    let offered: Vec<String> =
        offered.into_iter().take(MOST_PROFILES).map(|name| failure::one_line(name, LONGEST_PROFILE)).collect();
    let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
    let what = format!("{} offers no profile \"{wanted}\" (it offers: {offered})", client.host());
    let mut failure = Failure::new(FailureKind::Refused, what);
    failure.problem = Some("invalidProfile".into());
    Err(failure)
}

/// Places the order. What the authority says of the certificate that is replaced is no reason to do without a new one.
pub(super) async fn place(client: &Client, wanted: &Wanted) -> Result<Order, Failure> {
    let identifiers: Vec<Identifier> = wanted.names.iter().map(identifier).collect();
    let plain = || match wanted.profile.as_deref() {
        Some(profile) => NewOrder::new(&identifiers).profile(profile),
        None => NewOrder::new(&identifiers),
    };
    let account = client.account();
    let replaced: Option<CertificateIdentifier<'_>> = wanted.replaces.as_ref().and_then(|leaf| leaf.try_into().ok());
    if let Some(replaced) = replaced {
        let placed = call!(client.asking("an order"), {
            match account.new_order(&plain().replaces(replaced.clone())).await {
                Err(error) if may_be_about_replacing(&error) => {
                    tracing::debug!(%error, "the order is placed without \"replaces\"");
                    Ok(None)
                }
                placed => placed.map(Some),
            }
        });
        if let Some(order) = placed? {
            return Ok(order);
        }
    }
    call!(client.asking("an order"), account.new_order(&plain()).await)
}

/// Whether the same order without `replaces` may be taken. RFC 9773, section 5, has "alreadyReplaced"; authorities
/// refuse what they did not issue, or have no renewal information, and then were not asked. Only what surely placed no
/// order: the ledger knows of one.
fn may_be_about_replacing(error: &Error) -> bool {
    match error {
        Error::Unsupported(_) => true,
        Error::Other(cause) => failure::is_about_request(cause.as_ref()),
        _ => false,
    }
}

fn identifier(name: &CertifiedName) -> Identifier {
    match name {
        CertifiedName::Dns(name) => Identifier::Dns(name.clone()),
        CertifiedName::Address(address) => Identifier::Ip(*address),
    }
}
