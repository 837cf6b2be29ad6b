//! `doorward cert list`: every certificate that is served or awaited, with what is known about its future.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::live::Live;
use super::plan::Planned;
use super::settings::Settings;
use super::state::State;
use crate::base::certified_name::CertifiedName;
use crate::base::clock::{date, minute};
use crate::keys::Keys;
use crate::store::{Storage, live_files};
use crate::tls::local_ca;
use crate::tls::store::CertificateStatus;

const DAY: Duration = Duration::from_secs(86_400);

/// A paragraph for each certificate. `automatic` are those of `[acme]`.
pub(super) fn list(
    statuses: &[CertificateStatus],
    automatic: Option<(&Settings, &[Planned])>,
    keys: &dyn Keys,
    now: SystemTime,
) -> String {
    if statuses.is_empty() {
        return "no site of the file has a certificate".to_owned();
    }
    let storage = automatic.and_then(|(settings, _)| Storage::open_if_there(&settings.storage).ok().flatten());
    let mut text = String::new();
    for status in statuses {
        let planned = automatic.and_then(|(settings, planned)| {
            let file = |planned: &&Planned| status.files.cert.ends_with(tail_of(planned));
            Some((settings, planned.iter().find(file)?))
        });
        let state = planned.map(|(_, planned)| read_state(storage.as_ref(), planned));
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to memory does not fail.
        let _ = paragraph(&mut text, status, planned, state.as_ref(), keys, now);
    }
    text
}

fn paragraph(
    text: &mut String,
    status: &CertificateStatus,
    planned: Option<(&Settings, &Planned)>,
    state: Option<&State>,
    keys: &dyn Keys,
    now: SystemTime,
) -> std::fmt::Result {
    let names = match planned {
        Some((_, planned)) => &planned.names,
        None => &status.names,
    };
    let names: Vec<String> = names.iter().map(CertifiedName::to_string).collect();
    let title = if names.is_empty() { status.files.cert.display().to_string() } else { names.join(", ") };
    writeln!(text, "{title}")?;
    writeln!(text, "  sites    {}", status.sites.join(", "))?;
    let from = state.and_then(|state| state.authority.clone());
    match (planned, from) {
        (None, _) => writeln!(text, "  from     {}", status.files.cert.display())?,
        (Some(_), Some(authority)) => writeln!(text, "  from     {authority}")?,
        (Some((settings, _)), None) => {
            let first = settings.authorities.first().map(|authority| authority.directory.as_str());
            writeln!(text, "  from     {}, nothing yet", first.unwrap_or_default())?;
        }
    }
    if let Some(issuer) = &status.issuer {
        writeln!(text, "  issuer   {issuer}")?;
    }
    match status.valid {
        Some((begin, end)) => writeln!(text, "  valid    {} to {}, {}", date(begin), date(end), left(end, now))?,
        None => writeln!(text, "  valid    never: there is none, and handshakes are refused")?,
    }
    match (planned, state) {
        (Some((settings, _)), Some(state)) => {
            let live = Live::read(keys, &status.files).ok().flatten();
            if let Some(live) = live {
                let renewal = live.shown(state, settings);
                writeln!(text, "  renewal  {}, {}", minute(renewal.at.time()), renewal.why)?;
            }
            if let Some(failure) = &state.failure {
                let (at, next) = (minute(failure.at.time()), minute(failure.next.time()));
                writeln!(text, "  failed   {at}: {}", failure.why)?;
                writeln!(text, "           next try {next}")?;
            }
        }
        _ if status.files.cert.parent().is_some_and(|folder| folder.ends_with(local_ca::FOLDER)) => {
            writeln!(text, "  renewal  30 days before its end, by itself")?;
        }
        _ => writeln!(text, "  renewal  by whoever writes the file; a change is taken over")?,
    }
    if let Some(problem) = &status.problem {
        writeln!(text, "  problem  {problem}")?;
    }
    Ok(())
}

fn read_state(storage: Option<&Storage>, planned: &Planned) -> State {
    let bytes = storage.and_then(|storage| storage.certificate(&planned.label()).read_state().ok().flatten());
    State::parse(bytes.as_deref())
}

/// How the path of its chain ends.
fn tail_of(planned: &Planned) -> PathBuf {
    live_files(Path::new(""), &planned.label()).0
}

fn left(end: SystemTime, now: SystemTime) -> String {
    match end.duration_since(now) {
        Ok(left) if left < DAY * 2 => format!("{} hours left", left.as_secs() / 3600),
        Ok(left) => format!("{} days left", left.as_secs() / DAY.as_secs()),
        Err(_) => "EXPIRED".to_owned(),
    }
}
