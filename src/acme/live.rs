//! The certificate that is in the storage now, and whether it is to be replaced.

use std::io;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::plan::Planned;
use super::schedule::{Life, Reason, by_age, within};
use super::settings::Settings;
use super::state::{Renewal, Seconds, State};
use crate::base::certified_name::CertifiedName;
use crate::keys::Keys;
use crate::tls::pair::{CertificateFiles, Pair, PairError};

/// What is read of the files.
#[derive(Debug)]
pub struct Live {
    /// The names in it.
    pub names: Vec<CertifiedName>,
    /// Its period.
    pub life: Life,
    /// The certificate itself, without its chain.
    pub leaf: CertificateDer<'static>,
    /// Different for each certificate, the same after a restart.
    seed: u64,
}

impl Live {
    /// Reads the pair; `None` when its files are not there. Blocks on the disk.
    ///
    /// # Errors
    /// It is there and cannot be served.
    pub fn read(keys: &dyn Keys, files: &CertificateFiles) -> Result<Option<Live>, PairError> {
        let pair = match Pair::load(keys, files) {
            Ok(pair) => pair,
            Err(PairError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let leaf = pair.certified.end_entity_cert();
        let leaf =
            leaf.map_err(|source| PairError::Unusable { path: files.cert.clone(), source })?.clone().into_owned();
        // FNV-1a: jitter wants to be stable, not secret.
        let seed = leaf.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let life = Life { not_before: pair.not_before, not_after: pair.not_after };
        Ok(Some(Live { names: pair.names, life, leaf, seed }))
    }

    /// When it is renewed of itself: the moment in the window that its authority suggested last, else by its age.
    pub fn renewal(&self, state: &State, settings: &Settings) -> (SystemTime, Reason) {
        let window = state.suggestion.as_ref().and_then(|suggestion| suggestion.window());
        match window.and_then(|window| within(window, self.life, self.seed)) {
            Some(chosen) => (chosen, Reason::Window),
            None => (by_age(self.life, settings.renew_before, self.seed), Reason::Age),
        }
    }

    /// Why it is replaced now, if it is.
    pub fn reason(&self, planned: &Planned, state: &State, settings: &Settings, now: SystemTime) -> Option<Reason> {
        let covers = |own: &CertifiedName, name: &CertifiedName| own == name || own.covers(&name.to_string());
        let missing = |name: &&CertifiedName| !self.names.iter().any(|own| covers(own, name));
        let missing: Vec<CertifiedName> = planned.names.iter().filter(missing).cloned().collect();
        if !missing.is_empty() {
            return Some(Reason::Names(missing));
        }
        let known = |authority: &String| settings.authorities.iter().any(|other| other.directory == *authority);
        if state.authority.as_ref().is_some_and(|authority| !known(authority)) {
            return Some(Reason::OtherAuthority);
        }
        let (at, reason) = self.renewal(state, settings);
        (at <= now).then_some(reason)
    }

    /// What `cert list` shows of the next renewal.
    pub fn shown(&self, state: &State, settings: &Settings) -> Renewal {
        let (at, reason) = self.renewal(state, settings);
        let why = match reason {
            Reason::Window => {
                let page = state.suggestion.as_ref().and_then(|suggestion| suggestion.explanation.clone());
                let page = page.map(|page| format!(" ({page})")).unwrap_or_default();
                format!("in the window that the authority suggests{page}")
            }
            _ if settings.renew_before.is_some() => "renew_before its end".to_owned(),
            _ => "after two thirds of its life".to_owned(),
        };
        Renewal { at: Seconds::of(at), why }
    }
}
