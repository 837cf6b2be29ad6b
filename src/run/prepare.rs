//! From a file that has been read to everything that it needs, before anything of it is in force.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use crate::acme::plan::Planned;
use crate::acme::settings::Settings;
use crate::base::address::ListenAddress;
use crate::config::Config;
use crate::edge::access::AccessLog;
use crate::edge::gate::Gate;
use crate::edge::generation::Generation;
use crate::edge::snapshot::{Snapshot, Surroundings};
use crate::run::automatic::{self, LocalFault};
use crate::run::listeners::{self, Bound, Inherited};
use crate::run::privilege::Standing;
use crate::run::refused::Refused;
use crate::tls::pair::CertificateFiles;
use crate::tls::policy;
use crate::tls::store::{CertStore, CertificateProblem, Prepared};
use crate::tls::tickets::Tickets;
use crate::upstream::http::BackEndRegister;

/// A configuration that has everything it needs, and is not yet in force.
pub(super) struct Ready {
    pub(super) snapshot: Snapshot,
    pub(super) certificates: Prepared,
    pub(super) automatic: Option<(Settings, Vec<Planned>)>,
    pub(super) problems: Vec<CertificateProblem>,
    pub(super) local: Vec<LocalFault>,
    pub(super) bound: Bound,
}

/// What outlives reloads and is needed to prepare one.
pub(super) struct Shared<'a> {
    pub(super) certificates: &'a Arc<CertStore>,
    pub(super) tickets: &'a Arc<Tickets>,
    pub(super) back_ends: &'a BackEndRegister,
    pub(super) gate: &'a Arc<Gate>,
    pub(super) access: &'a AccessLog,
}

/// With the rights of the start ports are bound, and `client_ca` is read, and pairs that the account may not
/// read and could not have put there; everything else is done with those that `standing` leaves.
pub(super) fn prepare(
    config: &Config,
    shared: Shared<'_>,
    generation: u64,
    listening: &HashMap<ListenAddress, u16>,
    inherited: Vec<Inherited>,
    standing: &mut Standing,
) -> Result<Ready, Refused> {
    let bound = listeners::bind(&config.server, listening, inherited)?;
    // What it has written itself counts only for whoever owns it.
    let wanted = standing.as_account(|| automatic::wanted(config))??;
    let local = standing.as_account(|| automatic::make_local(config))?;
    let (mut certificates, mut problems) = standing.as_account(|| shared.certificates.prepare(wanted.stored))?;
    if standing.is_ahead() && problems.iter().any(CertificateProblem::is_denied) {
        // Elsewhere the account could have put a link to anything.
        let is_meant = |files: &CertificateFiles| {
            [&files.cert, &files.key].into_iter().all(|file| {
                standing.as_account(|| File::open(file).is_ok()).unwrap_or(false) || standing.is_roots_to_read(file)
            })
        };
        problems = shared.certificates.read_denied(&mut certificates, is_meant);
    }
    let tls = policy::server_config(&automatic::policy(config), shared.certificates.clone(), shared.tickets)?;
    standing.drop_rights(config)?;
    let generation = Generation::new(generation);
    let surroundings = Surroundings {
        ports: &bound.ports,
        back_ends: shared.back_ends,
        gate: shared.gate,
        tls,
        access: Some(shared.access),
        generation,
    };
    let snapshot = Snapshot::build(config, surroundings)?;
    Ok(Ready { snapshot, certificates, automatic: wanted.automatic, problems, local, bound })
}
