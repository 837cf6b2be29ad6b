//! What is to be done to a machine so that it trusts an authority, or trusts it no more. Pure.

use std::fmt;
use std::path::Path;

use super::machine::{Database, Layout, Machine, java_alias};
use super::step::Step;
use crate::tls::local_ca::{self, CaCertificate};

/// What is wanted of a machine.
#[derive(Debug, Clone, Default)]
pub struct Wish<'a> {
    /// The authority that it is to trust, and the file that its certificate is in.
    pub add: Option<(&'a Path, &'a CaCertificate)>,
    /// Those that it is to trust no more.
    pub remove: Vec<CaCertificate>,
    /// Whether it is to trust nothing more that bears our name.
    pub remove_all: bool,
}

impl Wish<'_> {
    fn removes(&self, certificate: &CaCertificate) -> bool {
        self.remove_all || self.remove.iter().any(|ca| ca.der == certificate.der)
    }

    fn removes_label(&self, label: &str) -> bool {
        self.remove_all || self.remove.iter().any(|ca| ca.label.as_deref() == Some(label))
    }
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Store by store.
    pub changes: Vec<Change>,
    /// What we cannot do, and somebody else has to.
    pub undone: Vec<String>,
    /// The stores that are already as is wished.
    pub settled: Vec<String>,
    /// What stays trusted and bears our name.
    pub others: Vec<String>,
}

/// What is to be done to one store.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// The store, for people.
    pub store: String,
    /// Whether programs read it only when they start.
    pub is_browser: bool,
    /// The commands. When one fails, the rest is not to be run.
    pub steps: Vec<Step>,
}

/// What `wish` takes on `machine`. The plan for a machine that is as is wished has no changes.
pub fn plan(machine: &Machine, wish: &Wish<'_>) -> Plan {
    let mut plan = Plan::default();
    if let Some(layout) = machine.layout() {
        system(machine, layout, wish, &mut plan);
    }
    browsers(machine, wish, &mut plan);
    plan
}

fn system(machine: &Machine, layout: &Layout, wish: &Wish<'_>, plan: &mut Plan) {
    let store = format!("the system's store, which most programs read: {}", layout.bundle);
    // What comes of the anchors counts: an earlier run may have stopped half-way.
    let believes = |ca: &CaCertificate| match &machine.bundle {
        Some(bundle) => bundle.iter().any(|held| held.der == ca.der),
        None => machine.anchors.iter().filter_map(|anchor| anchor.certificate.as_ref()).any(|held| held.der == ca.der),
    };
    let mut steps = Vec::new();
    if let Some((file, ca)) = wish.add.filter(|(_, ca)| !believes(ca)) {
        let to = layout.file(ca.label.as_deref().unwrap_or_default());
        steps.push(Step::new("install").args(&["-m", "644"]).arg(file).arg(to));
    }
    let goes = |held: &Option<CaCertificate>| held.as_ref().map_or(wish.remove_all, |held| wish.removes(held));
    let (going, staying): (Vec<_>, Vec<_>) = machine.anchors.iter().partition(|anchor| goes(&anchor.certificate));
    steps.extend(going.iter().map(|anchor| Step::new("rm").arg("-f").arg(&anchor.path)));
    let lingers = machine.bundle.iter().flatten().any(|held| wish.removes(held));
    let (command, arguments) = if going.is_empty() && !lingers { layout.refresh } else { layout.refresh_without };
    if !steps.is_empty() || lingers {
        let program = machine.commands.get(command).map_or(Path::new(command), |path| path);
        steps.push(Step::new(program).args(arguments));
    }
    let gone = machine.java.iter().filter(|label| wish.removes_label(label));
    if let Some(store) = layout.java {
        let keytool = machine.commands.get("keytool").map_or(Path::new("keytool"), |path| path);
        // The password is everybody's: it keeps nobody out.
        let delete = ["-delete", "-noprompt", "-storepass", "changeit", "-keystore", store, "-alias"];
        steps.extend(gone.map(|label| Step::new(keytool).args(&delete).arg(java_alias(label))));
    }
    let is_added = |anchor: &CaCertificate| wish.add.is_some_and(|(_, ca)| ca.der == anchor.der);
    let others = staying.iter().filter(|anchor| !anchor.certificate.as_ref().is_some_and(is_added));
    plan.others.extend(others.map(|anchor| anchor.path.display().to_string()));

    if steps.is_empty() {
        return plan.settled.push(store);
    }
    match machine.commands.get("sudo") {
        _ if machine.is_root => plan.changes.push(Change { store, is_browser: false, steps }),
        Some(sudo) => {
            let steps = steps.into_iter().map(|step| step.through(sudo)).collect();
            plan.changes.push(Change { store, is_browser: false, steps });
        }
        None => {
            let lines: Vec<String> = steps.iter().map(|step| format!("\n  {step}")).collect();
            plan.undone.push(format!("{store}: this takes root, and there is no sudo. As root:{}", lines.concat()));
        }
    }
}

fn browsers(machine: &Machine, wish: &Wish<'_>, plan: &mut Plan) {
    let missing = machine.missing_database().filter(|_| wish.add.is_some());
    let Some(certutil) = machine.commands.get("certutil") else {
        let stores = machine.databases.iter().map(|database| title(database.browser, &database.folder));
        let stores: Vec<String> = stores.chain(missing.map(|folder| title("Chromium", &folder))).collect();
        if !stores.is_empty() {
            plan.undone.push(format!(
                "{}: this takes certutil. Install it (Debian and Ubuntu: libnss3-tools, Fedora: nss-tools, Arch: nss, \
                 openSUSE: mozilla-nss-tools) and run this again",
                stores.join("; ")
            ));
        }
        return;
    };
    let on = |folder: &Path| Step::new(certutil).arg("-d").arg(sql(folder));
    let add = |folder: &Path| {
        wish.add.map(|(file, ca)| {
            let nickname = local_ca::name(ca.label.as_deref().unwrap_or_default());
            // C: believed when it vouches for servers, and for nothing else.
            on(folder).args(&["-A", "-t", "C,,", "-n", &nickname, "-i"]).arg(file)
        })
    };
    for Database { folder, browser, entries } in &machine.databases {
        let store = title(browser, folder);
        let entries = match entries {
            Ok(entries) => entries,
            Err(reason) => {
                plan.undone.push(format!("{store}: cannot look into it: {reason}"));
                continue;
            }
        };
        let is_added = |held: &CaCertificate| wish.add.is_some_and(|(_, ca)| ca.der == held.der);
        let has = entries.iter().any(|entry| entry.is_trusted && is_added(&entry.certificate));
        let (going, staying): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| wish.removes(&entry.certificate));
        let mut steps: Vec<Step> = if has { None } else { add(folder) }.into_iter().collect();
        steps.extend(going.iter().map(|entry| on(folder).args(&["-D", "-n", &entry.nickname])));
        let others = staying.iter().filter(|entry| !is_added(&entry.certificate));
        plan.others.extend(others.map(|entry| format!("{} in {}", entry.nickname, folder.display())));
        if steps.is_empty() {
            plan.settled.push(store);
        } else {
            plan.changes.push(Change { store, is_browser: true, steps });
        }
    }
    if let Some(folder) = missing {
        let mut steps = vec![
            Step::new("mkdir").args(&["-p", "-m", "700"]).arg(&folder),
            on(&folder).args(&["-N", "--empty-password"]),
        ];
        steps.extend(add(&folder));
        plan.changes.push(Change { store: title("Chromium", &folder), is_browser: true, steps });
    }
}

fn title(browser: &str, folder: &Path) -> String {
    format!("{browser}: {}", folder.display())
}

/// How NSS names a database of today's format.
pub(super) fn sql(folder: &Path) -> std::ffi::OsString {
    let mut name = std::ffi::OsString::from("sql:");
    name.push(folder);
    name
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "  # {}", change.store)?;
            for step in &change.steps {
                writeln!(f, "  {step}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use super::*;
    use crate::base::host::HostPattern;
    use crate::trust::machine::{Anchor, Entry, LAYOUTS};

    const CA: &str = "/srv/app/certs-dev/ca.pem";
    const REDHAT: usize = 0;
    const SUSE: usize = 1;
    const ARCH: usize = 2;
    const DEBIAN: usize = 3;

    fn authority() -> CaCertificate {
        let folder = tempfile::tempdir().unwrap();
        local_ca::issue(folder.path(), "app", &[], &[HostPattern::parse("localhost").unwrap()]).unwrap();
        CaCertificate::current(folder.path()).unwrap().unwrap()
    }

    /// The authority of the file; making one takes a key.
    fn ours() -> &'static CaCertificate {
        static OURS: OnceLock<CaCertificate> = OnceLock::new();
        OURS.get_or_init(authority)
    }

    fn label(ca: &CaCertificate) -> &str {
        ca.label.as_deref().unwrap()
    }

    fn machine(layout: usize, is_root: bool, commands: &[&'static str]) -> Machine {
        let layout = &LAYOUTS[layout];
        let all = commands.iter().chain([&layout.refresh.0]);
        Machine {
            is_root,
            home: Some(PathBuf::from("/home/u")),
            commands: all.map(|name| (*name, Path::new("/bin").join(name))).collect::<BTreeMap<_, _>>(),
            folders: BTreeSet::from([layout.anchors]),
            bundle: Some(Vec::new()),
            ..Machine::default()
        }
    }

    fn with_database(mut machine: Machine, browser: &'static str, folder: &str, entries: Vec<Entry>) -> Machine {
        machine.databases.push(Database { folder: PathBuf::from(folder), browser, entries: Ok(entries) });
        machine
    }

    /// The same machine after `doorward trust`, in the system's store.
    fn with_anchor(mut machine: Machine, ca: &CaCertificate) -> Machine {
        let path = machine.layout().unwrap().file(label(ca));
        machine.anchors.push(Anchor { path, certificate: Some(ca.clone()) });
        machine.bundle.as_mut().unwrap().push(ca.clone());
        machine
    }

    fn entry(ca: &CaCertificate) -> Entry {
        Entry { nickname: local_ca::name(label(ca)), certificate: ca.clone(), is_trusted: true }
    }

    fn trust(machine: &Machine, former: &[&CaCertificate]) -> Plan {
        let remove = former.iter().map(|ca| (*ca).clone()).collect();
        plan(machine, &Wish { add: Some((Path::new(CA), ours())), remove, remove_all: false })
    }

    fn untrust(machine: &Machine) -> Plan {
        plan(machine, &Wish { remove: vec![ours().clone()], ..Wish::default() })
    }

    fn steps(plan: &Plan) -> Vec<String> {
        plan.changes.iter().flat_map(|change| change.steps.iter().map(Step::to_string)).collect()
    }

    #[test]
    fn each_system_has_its_folder_and_its_command() {
        let label = label(ours());
        for (layout, file, refresh, refresh_without) in [
            (
                DEBIAN,
                format!("/usr/local/share/ca-certificates/doorward-{label}.crt"),
                "/bin/update-ca-certificates",
                "/bin/update-ca-certificates --fresh",
            ),
            (
                REDHAT,
                format!("/etc/pki/ca-trust/source/anchors/doorward-{label}.pem"),
                "/bin/update-ca-trust extract",
                "/bin/update-ca-trust extract",
            ),
            (
                ARCH,
                format!("/etc/ca-certificates/trust-source/anchors/doorward-{label}.crt"),
                "/bin/trust extract-compat",
                "/bin/trust extract-compat",
            ),
            (
                SUSE,
                format!("/etc/pki/trust/anchors/doorward-{label}.pem"),
                "/bin/update-ca-certificates",
                "/bin/update-ca-certificates",
            ),
        ] {
            let bare = machine(layout, true, &[]);
            assert_eq!(steps(&trust(&bare, &[])), [format!("install -m 644 {CA} {file}"), refresh.to_owned()]);
            assert_eq!(untrust(&bare).changes, []);
            let done = with_anchor(bare, ours());
            let again = trust(&done, &[]);
            assert!(again.changes.is_empty() && again.settled.len() == 1, "{again:?}");
            assert_eq!(steps(&untrust(&done)), [format!("rm -f {file}"), refresh_without.to_owned()]);
        }
    }

    #[test]
    fn a_folder_without_its_command_is_no_store() {
        // Debian with p11-kit has Arch's command, and a container may have the folder alone.
        let mut odd = machine(DEBIAN, true, &["trust"]);
        assert_eq!(odd.layout(), Some(&LAYOUTS[DEBIAN]));
        odd.commands.remove("update-ca-certificates");
        assert_eq!(trust(&odd, &[]), Plan::default());
    }

    #[test]
    fn whoever_is_not_root_goes_through_sudo() {
        let plan = trust(&machine(DEBIAN, false, &["sudo"]), &[]);
        assert!(steps(&plan).iter().all(|step| step.starts_with("/bin/sudo ")), "{:?}", steps(&plan));
        assert_eq!((steps(&plan).len(), plan.undone.len()), (2, 0));

        // Without sudo the rest is done, and the commands are told.
        let alone = with_database(machine(DEBIAN, false, &["certutil"]), "Firefox", "/home/u/x", Vec::new());
        let plan = trust(&alone, &[]);
        assert!(steps(&plan).iter().all(|step| step.starts_with("/bin/certutil ")), "{:?}", steps(&plan));
        assert!(plan.undone[0].contains("As root:\n  install -m 644"), "{:?}", plan.undone);
    }

    #[test]
    fn browsers_get_it_through_certutil_and_without_sudo() {
        let name = local_ca::name(label(ours()));
        let found = machine(REDHAT, false, &["sudo", "certutil"]);
        let found = with_database(found, "Chromium", "/home/u/.pki/nssdb", Vec::new());
        let found = with_database(found, "Firefox", "/home/u/.mozilla/firefox/a b.default", Vec::new());
        let plan = trust(&found, &[]);
        let added: Vec<_> = steps(&plan).into_iter().filter(|step| step.contains("certutil")).collect();
        assert_eq!(
            added,
            [
                format!("/bin/certutil -d sql:/home/u/.pki/nssdb -A -t C,, -n '{name}' -i {CA}"),
                format!("/bin/certutil -d 'sql:/home/u/.mozilla/firefox/a b.default' -A -t C,, -n '{name}' -i {CA}"),
            ]
        );
        assert!(plan.to_string().contains("  # Firefox: /home/u/.mozilla/firefox/a b.default\n"), "{plan}");

        let done = with_database(machine(REDHAT, false, &["certutil"]), "Firefox", "/f", vec![entry(ours())]);
        assert!(!steps(&trust(&done, &[])).iter().any(|step| step.contains("certutil")));
        assert_eq!(steps(&untrust(&done)), [format!("/bin/certutil -d sql:/f -D -n '{name}'")]);
        // It may be there and be believed no more.
        let distrusted = vec![Entry { is_trusted: false, ..entry(ours()) }];
        let distrusted = with_database(machine(REDHAT, true, &["certutil"]), "Firefox", "/f", distrusted);
        assert!(steps(&trust(&distrusted, &[])).iter().any(|step| step.contains("-A -t C,,")));
    }

    #[test]
    fn a_chromium_that_was_never_started_gets_a_database() {
        let folder = "/home/u/.pki/nssdb";
        let found = machine(ARCH, true, &["certutil", "chromium"]);
        let plan = trust(&found, &[]);
        let made = [format!("mkdir -p -m 700 {folder}"), format!("/bin/certutil -d sql:{folder} -N --empty-password")];
        assert_eq!(steps(&plan)[2..4], made);
        assert!(steps(&plan)[4].contains(" -A -t C,, "));
        assert_eq!(untrust(&found).changes, []);
        for folder in [folder, "/home/u/.local/share/pki/nssdb"] {
            let found = with_database(found.clone(), "Chromium", folder, Vec::new());
            assert!(!trust(&found, &[]).to_string().contains("mkdir"), "{folder}");
        }
        // None for who has no home of their own, and none for a snap, whose home is another.
        let mut homeless = found.clone();
        homeless.home = None;
        let mut snap = found;
        snap.commands.insert("chromium", PathBuf::from("/snap/bin/chromium"));
        for machine in [homeless, snap, machine(ARCH, true, &["certutil"])] {
            assert_eq!(steps(&trust(&machine, &[])).len(), 2);
        }
    }

    #[test]
    fn browsers_without_certutil_are_told_of_and_the_rest_is_done() {
        let found = with_database(machine(DEBIAN, true, &[]), "Firefox", "/home/u/f", Vec::new());
        let plan = trust(&found, &[]);
        assert_eq!(plan.changes.len(), 1);
        assert!(plan.undone[0].contains("Firefox: /home/u/f") && plan.undone[0].contains("libnss3-tools"));
        assert!(trust(&machine(DEBIAN, true, &["chromium"]), &[]).undone[0].contains("/home/u/.pki/nssdb"));
        assert_eq!(trust(&machine(DEBIAN, true, &[]), &[]).undone, Vec::<String>::new());
        // Nor does a database that cannot be read keep others.
        let mut damaged = with_database(machine(DEBIAN, true, &["certutil"]), "Firefox", "/f", Vec::new());
        damaged.databases[0].entries = Err("SEC_ERROR_BAD_DATABASE".to_owned());
        let plan = trust(&damaged, &[]);
        assert_eq!((plan.changes.len(), plan.undone.len()), (1, 1));
        assert!(plan.undone[0].contains("SEC_ERROR_BAD_DATABASE"));
    }

    #[test]
    fn what_stopped_half_way_is_finished() {
        let mut installed = with_anchor(machine(DEBIAN, true, &[]), ours());
        installed.bundle = Some(Vec::new());
        assert_eq!(steps(&trust(&installed, &[])).len(), 2);
        let mut removed = with_anchor(machine(DEBIAN, true, &[]), ours());
        removed.anchors.clear();
        assert_eq!(steps(&untrust(&removed)), ["/bin/update-ca-certificates --fresh"]);
        // Where the bundle cannot be read, the anchors have to do.
        let mut blind = with_anchor(machine(DEBIAN, true, &[]), ours());
        blind.bundle = None;
        assert!(trust(&blind, &[]).changes.is_empty() && untrust(&blind).changes.len() == 1);
    }

    #[test]
    fn java_lets_go_of_it_too() {
        let mut found = with_anchor(machine(DEBIAN, true, &["keytool"]), ours());
        found.java = BTreeSet::from(["00000000".to_owned(), label(ours()).to_owned()]);
        let delete = "/bin/keytool -delete -noprompt -storepass changeit -keystore /etc/ssl/certs/java/cacerts -alias";
        let steps_now = steps(&untrust(&found));
        assert_eq!(steps_now[2..], [format!("{delete} debian:doorward-{}.pem", label(ours()))]);
        let all = plan(&found, &Wish { remove_all: true, ..Wish::default() });
        assert_eq!(steps(&all).len(), 4);
        assert!(trust(&found, &[]).changes.is_empty());
        // Where all else has been done before.
        let mut left = machine(DEBIAN, true, &["keytool"]);
        left.java = found.java;
        assert_eq!(steps(&untrust(&left)).len(), 1);
    }

    #[test]
    fn the_authority_before_goes_and_those_of_others_stay() {
        let (former, stranger) = (authority(), authority());
        let found = with_anchor(with_anchor(machine(DEBIAN, true, &["certutil"]), &former), &stranger);
        let entries = vec![entry(&former), entry(&stranger)];
        let found = with_database(found, "Firefox", "/f", entries);
        let plan = trust(&found, &[&former]);
        let said = plan.to_string();
        assert!(said.contains(&format!("rm -f /usr/local/share/ca-certificates/doorward-{}.crt", label(&former))));
        assert!(said.contains(&format!("-D -n '{}'", local_ca::name(label(&former)))), "{said}");
        assert!(said.contains("update-ca-certificates --fresh"), "{said}");
        assert!(!said.contains(label(&stranger)), "{said}");

        let found = with_anchor(found, ours());
        let plan = untrust(&found);
        let gone = format!("rm -f /usr/local/share/ca-certificates/doorward-{}.crt", label(ours()));
        assert_eq!(steps(&plan), [gone, "/bin/update-ca-certificates --fresh".to_owned()]);
        assert_eq!(plan.others.len(), 4, "{:?}", plan.others);
        // All of them, when that is asked for; also a file that is no certificate any more.
        let mut found = found;
        let path = LAYOUTS[DEBIAN].file("00000000");
        found.anchors.push(Anchor { path, certificate: None });
        let all = super::plan(&found, &Wish { remove_all: true, ..Wish::default() });
        assert_eq!((steps(&all).len(), all.others.len()), (7, 0), "{:?}", steps(&all));
    }

    #[test]
    fn files_of_ours_are_known_by_their_names() {
        let layout = &LAYOUTS[DEBIAN];
        assert!(layout.is_ours("doorward-0a1b2c3d.crt"));
        for other in
            ["doorward-dev.crt", "doorward-0a1b2c3d.pem", "doorward-0a1b2c3d", "x-0a1b2c3d.crt", "doorward-.crt"]
        {
            assert!(!layout.is_ours(other), "{other}");
        }
    }
}
