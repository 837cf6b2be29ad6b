//! A process that serves nothing, to be asked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::config;
use crate::edge::access::AccessLog;
use crate::edge::admission::{Admission, Limits};
use crate::edge::gate::Gate;
use crate::edge::generation::Generation;
use crate::edge::process::Process;
use crate::edge::snapshot::{Snapshot, Surroundings};
use crate::keys::LocalKeys;
use crate::tls::policy::{self, MinVersion, Policy};
use crate::tls::store::CertStore;
use crate::tls::tickets::Tickets;
use crate::upstream::http::BackEndRegister;

pub(crate) fn process() -> Arc<Process> {
    let text = "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = []\n[site.a]\nhosts = [\"a.test\"]\nhttp = \"serve\"\n\
                tls = \"off\"\nupstream = \"http://127.0.0.1:9\"\n";
    let config = config::parse(Path::new("/"), &[("a.toml", text)], &|_| None).unwrap();
    let certificates = Arc::new(CertStore::new(Arc::new(LocalKeys::new())));
    let (tickets, back_ends) = (Arc::new(Tickets::new()), Arc::new(BackEndRegister::new()));
    let policy = Policy { h1: true, h2: true, min_version: MinVersion::Tls12, client_ca: None };
    let surroundings = Surroundings {
        ports: &HashMap::new(),
        back_ends: &back_ends,
        gate: &Gate::new(),
        tls: policy::server_config(&policy, certificates.clone(), &tickets).unwrap(),
        access: None,
        generation: Generation::new(1),
    };
    let snapshot = Snapshot::build(&config, surroundings).unwrap();
    let access = AccessLog::start().unwrap();
    let admission = Admission::new(Limits::new(0, 0, 20_000, 36));
    Arc::new(Process::new(snapshot, certificates, Arc::default(), tickets, back_ends, access, admission))
}
