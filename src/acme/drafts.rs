//! Which draft an order goes on with, and what drafts tell each other.

use std::sync::Arc;
use std::time::SystemTime;

use super::account::Client;
use super::failure::{Failure, FailureKind};
use super::hook::Hook;
use super::note::Note;
use super::order::Wanted;
use crate::base::certified_name::CertifiedName;
use crate::keys::{KeyKind, Keys};
use crate::store::{CertificateFolder, Draft};

/// Whether a draft of `folder` has an order at the authority `directory` that [`obtain`](super::order::obtain) would go
/// on with: it costs the authority no other.
///
/// # Errors
/// `Storage`.
pub fn is_open(directory: &str, wanted: &Wanted, folder: &CertificateFolder) -> Result<bool, Failure> {
    let (fresh, now) = (fresh(directory, wanted), SystemTime::now());
    let drafts = folder.drafts().map_err(Failure::storage)?;
    let notes = drafts.iter().filter_map(|draft| Note::read(&draft.note()?));
    Ok(notes.into_iter().any(|earlier| earlier.serves(&fresh) && earlier.order(now).is_some()))
}

/// Lets the orders of `folder` know which way `failure` tried `name` in vain, where that is not the folder that it
/// happened in: the next one goes another way. Nothing is done while somebody works on the folder.
///
/// # Errors
/// `Storage`.
pub fn hand_over(failure: &Failure, name: &CertifiedName, folder: &CertificateFolder) -> Result<(), Failure> {
    let kinds: Vec<_> = failure.failed.iter().filter(|(failed, _)| failed == name).map(|(_, kind)| *kind).collect();
    if kinds.is_empty() {
        return Ok(());
    }
    let Some(_lock) = folder.try_lock().map_err(Failure::storage)? else { return Ok(()) };
    let known = folder.draft().map_err(Failure::storage)?;
    let known = known.and_then(|draft| Some((Note::read(&draft.note()?)?, draft)));
    let (mut note, draft) = match known {
        Some(known) => known,
        // Of no authority and without a key: no order goes on with it, but the next one learns from it.
        None => {
            let note = Note::new("", std::slice::from_ref(name), KeyKind::default(), None);
            (note, folder.begin().map_err(Failure::storage)?)
        }
    };
    for kind in kinds {
        note.failed(name, kind);
    }
    note.keep(&draft)
}

/// The draft to go on with, or a new one. It has a key and a note when this returns. An order that is under way at
/// another authority keeps its draft, for the way back.
pub(super) async fn begin(
    client: &Client,
    wanted: &Wanted,
    folder: &CertificateFolder,
    keys: &Arc<dyn Keys>,
) -> Result<(Draft, Note), Failure> {
    let (mut note, now) = (fresh(client.directory(), wanted), SystemTime::now());
    let mut found = None;
    for draft in folder.drafts().map_err(Failure::storage)? {
        if let Some(earlier) = draft.note().as_deref().and_then(Note::read) {
            note.learn_from(&earlier);
            // A key that was half-written when the process died does not load.
            if found.is_none() && earlier.serves(&note) && keys.load(&draft.key_file()).is_ok() {
                found = Some((draft, earlier));
                continue;
            }
            if earlier.is_under_way_elsewhere(&note, now) {
                continue;
            }
            remove_records(client, wanted, &earlier).await;
        }
        draft.discard().map_err(Failure::storage)?;
    }
    if let Some((draft, mut earlier)) = found {
        earlier.learn_from(&note);
        return Ok((draft, earlier));
    }
    let draft = folder.begin().map_err(Failure::storage)?;
    note.keep(&draft)?;
    let (key_file, kind, maker) = (draft.key_file(), wanted.key_kind, Arc::clone(keys));
    // An RSA key takes seconds.
    let made = tokio::task::spawn_blocking(move || maker.generate(&key_file, kind)).await;
    let made = made.map_err(|source| Failure::new(FailureKind::Key, "cannot make a private key").because(source))?;
    made.map_err(|source| Failure::new(FailureKind::Key, "cannot make a private key").because(source))?;
    Ok((draft, note))
}

fn fresh(directory: &str, wanted: &Wanted) -> Note {
    Note::new(directory, &wanted.names, wanted.key_kind, wanted.profile.as_deref())
}

/// With the draft goes the knowledge of the DNS records that it had set.
async fn remove_records(client: &Client, wanted: &Wanted, note: &Note) {
    let Some(command) = &wanted.dns_hook else { return };
    let hook = Hook { command, authority: note.authority(), deadline: client.patience().hook };
    hook.remove_all(&note.records).await;
}
