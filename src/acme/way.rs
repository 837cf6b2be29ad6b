//! Before the first order for some names: do they lead here?

use std::sync::Arc;

use super::failure::{Failure, FailureKind};
use super::preflight::{Finding, Verdict, preflight};
use super::settings::Authority;
use crate::base::certified_name::CertifiedName;
use crate::base::public_authority;
use crate::tls::challenges::Challenges;

/// Does each of `names` resolve, does port 80 reach this process? Told in one line each. A name without any address
/// would only use up what an authority allows to fail.
///
/// # Errors
/// `Validation`: a public authority would be asked for names that have no address.
pub(super) async fn check(
    names: &[CertifiedName],
    authority: &Authority,
    challenges: &Arc<Challenges>,
) -> Result<(), Failure> {
    if public_authority::rehearsing(&authority.directory).is_some() {
        return Ok(());
    }
    let findings = preflight(names, 80, challenges).await;
    for finding in &findings {
        tracing::info!("before the first order: {finding}");
    }
    let unresolved = |finding: &&Finding| matches!(finding.verdict, Verdict::Unresolved { .. });
    let lost: Vec<&Finding> = findings.iter().filter(unresolved).collect();
    if lost.is_empty() || public_authority::production(&authority.directory).is_none() {
        return Ok(());
    }
    let mut failure = Failure::new(FailureKind::Validation, "nothing was ordered");
    failure.names = lost.iter().map(|lost| (lost.name.clone(), "it has no address".to_owned())).collect();
    Err(failure)
}
