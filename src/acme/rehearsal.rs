//! `doorward cert test`: an order from its begin to its end, whose certificate nobody uses.

use std::time::SystemTime;

use super::desk::Desk;
use super::errand::note;
use super::failure::Failure;
use super::ledger::{Ledger, Outcome};
use super::order::{Wanted, obtain};
use super::plan::Planned;
use super::preflight::preflight;
use super::renewals::Renewals;
use super::settings::{Authority, Settings};
use crate::base::certified_name::CertifiedName;
use crate::base::public_authority;
use crate::tls::pair::with_causes;

/// Looks whether the names lead here, then orders from the rehearsal directory of each authority (one of one's own is its
/// own), with accounts and files of its own in `rehearsal/` of the storage. Tells what was found, a line each.
pub(super) async fn rehearse(real: &Desk, planned: &Planned, renewals: &Renewals) -> Result<String, String> {
    let names: Vec<String> = planned.names.iter().map(CertifiedName::to_string).collect();
    let findings = preflight(&planned.names, 80, renewals.challenges()).await;
    let mut told: Vec<String> = findings.iter().map(|finding| finding.to_string()).collect();
    let settings = Settings { storage: real.settings.storage.join("rehearsal"), ..real.settings.clone() };
    let desk = Desk::open(settings).map_err(|error| with_causes(&error))?;
    let mut failed = false;
    for authority in &desk.settings.authorities {
        let directory = match public_authority::production(&authority.directory) {
            // What it is asked counts, rehearsal or not: that is for the ledger of the real orders.
            None => (authority.directory.clone(), &real.ledger),
            Some(known) => match known.rehearsal {
                Some(rehearsal) => (rehearsal.to_owned(), &desk.ledger),
                None => {
                    let line = "it has no directory for rehearsals, and was not asked";
                    told.push(format!("{}: {line}", authority.directory));
                    continue;
                }
            },
        };
        let (directory, ledger) = directory;
        let authority = Authority { directory, ..authority.clone() };
        match order(&desk, ledger, &authority, planned, renewals).await {
            Ok(()) => told.push(format!("{}: it would certify {}", authority.directory, names.join(", "))),
            Err(failure) => {
                failed = true;
                told.push(format!("{}: {failure}", authority.directory));
            }
        }
    }
    let told = told.join("\n");
    if failed { Err(told) } else { Ok(told) }
}

async fn order(
    desk: &Desk,
    ledger: &Ledger,
    authority: &Authority,
    planned: &Planned,
    renewals: &Renewals,
) -> Result<(), Failure> {
    let (names, url) = (&planned.names, authority.directory.as_str());
    let (keys, challenges) = (renewals.keys(), renewals.challenges());
    let folder = desk.storage.certificate(&planned.label());
    let lock = folder.try_lock().map_err(Failure::storage)?;
    let _lock = lock.ok_or_else(|| Failure::storage("another rehearsal for these names is under way"))?;
    desk.storage.check_room().map_err(Failure::storage)?;
    let client = desk.client(authority).await?;
    let may_order = || Ok(ledger.begin(url, names, true, SystemTime::now())?);
    let wanted = Wanted {
        names: names.clone(),
        key_kind: desk.settings.key_kind,
        challenges: desk.settings.challenges.clone(),
        dns_hook: desk.settings.dns_hook.clone(),
        profile: authority.profile.clone(),
        replaces: None,
    };
    match obtain(&client, &wanted, &folder, keys, challenges, &may_order).await {
        Ok(obtained) => {
            note(ledger, obtained.attempt.as_ref(), Outcome::Issued { due: SystemTime::now() });
            Ok(())
        }
        Err(failure) => {
            note(ledger, failure.attempt.as_deref(), failure.outcome());
            Err(failure)
        }
    }
}
