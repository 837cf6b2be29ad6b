//! Tests of the storage: what kills, full disks, other users and other processes may do to it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, chown, symlink};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use rustix::io::Errno;
use tempfile::TempDir;

use super::fate::{Blow, during};
use super::*;

/// A folder that is removed, with a storage in it.
fn storage() -> (TempDir, Storage) {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::open(&folder.path().join("acme")).unwrap();
    (folder, storage)
}

/// The same where syncing costs nothing, for those that do it ten thousand times.
fn storage_in_memory() -> (TempDir, Storage) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let storage = Storage::open(&folder.path().join("acme")).unwrap();
    (folder, storage)
}

/// What a renewal does, up to the names of the files.
fn renew(folder: &CertificateFolder, which: &str) -> Result<(), StorageError> {
    let _lock = folder.try_lock()?.expect("nobody else has it");
    let draft = match folder.draft()? {
        Some(draft) => draft,
        None => folder.begin()?,
    };
    if !draft.key_file().exists() {
        fs::write(draft.key_file(), which).map_err(|source| StorageError::of("write", &draft.key_file(), source))?;
    }
    let which = fs::read_to_string(draft.key_file()).unwrap();
    draft.set_note(which.as_bytes())?;
    draft.commit(&which)?;
    folder.write_state(which.as_bytes())
}

/// What is served; key and chain belong together, always.
fn served(folder: &CertificateFolder) -> Option<String> {
    let (chain, key) = folder.live();
    let (chain, key) = (fs::read_to_string(chain).ok(), fs::read_to_string(key).ok());
    assert_eq!(chain, key, "key and chain of different generations");
    chain
}

/// Every path below `folder`, relative, with its mode.
fn tree(folder: &Path) -> Vec<(String, u32)> {
    fn walk(top: &Path, folder: &Path, all: &mut Vec<(String, u32)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            all.push((path.strip_prefix(top).unwrap().display().to_string(), metadata.mode() & 0o7777));
            if metadata.is_dir() {
                walk(top, &path, all);
            }
        }
    }
    let mut all = Vec::new();
    walk(folder, folder, &mut all);
    all.sort();
    all
}

fn generations(folder: &CertificateFolder) -> Vec<String> {
    let names = tree(folder.path()).into_iter().map(|(name, _)| name);
    names.filter(|name| name.starts_with("0000") && !name.contains('/')).collect()
}

fn temporaries(folder: &Path) -> Vec<String> {
    tree(folder).into_iter().map(|(name, _)| name).filter(|name| name.contains(".tmp")).collect()
}

/// This test again, in a process of its own: `command` is followed by the program and its arguments.
fn again(command: &[&str], test: &str, folder: &Path) -> Command {
    let (program, arguments) = command.split_first().unwrap();
    let mut again = Command::new(program);
    again.args(arguments).arg(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("store::tests::{test}"), "--nocapture"]).env("DOORWARD_TEST_FOLDER", folder);
    again
}

/// Set in such a process.
fn folder_of_parent() -> Option<PathBuf> {
    std::env::var_os("DOORWARD_TEST_FOLDER").map(PathBuf::from)
}

fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{command:?}: {told}");
}

#[test]
fn a_renewal_swaps_key_and_chain_as_one_and_keeps_the_pair_before() {
    let (_guard, storage) = storage();
    let folder = storage.certificate("a.example");
    assert_eq!((served(&folder), storage.labels().unwrap()), (None, vec![]));
    for which in ["1", "2", "3", "4"] {
        renew(&folder, which).unwrap();
        assert_eq!(served(&folder).as_deref(), Some(which));
        assert_eq!(folder.read_state().unwrap().as_deref(), Some(which.as_bytes()));
    }
    assert_eq!(fs::read_link(folder.path().join("live")).unwrap(), Path::new("00000004"), "relative");
    assert_eq!(generations(&folder), ["00000003", "00000004"]);
    assert!(folder.draft().unwrap().is_none());
    let moved = storage.root().with_file_name("moved");
    fs::rename(storage.root(), &moved).unwrap();
    assert_eq!(served(&Storage::open(&moved).unwrap().certificate("a.example")).as_deref(), Some("4"));
}

#[test]
fn an_unfinished_order_is_found_again_and_nothing_else_is() {
    let (_guard, storage) = storage();
    let folder = storage.certificate("*.a.example");
    assert_eq!(folder.label(), "_.a.example");
    renew(&folder, "1").unwrap();
    let without_note = folder.begin().unwrap();
    fs::write(without_note.key_file(), "key").unwrap();
    let older = folder.begin().unwrap();
    older.set_note(b"older").unwrap();
    let newer = folder.begin().unwrap();
    newer.set_note(b"newer").unwrap();
    newer.set_note(b"newest").unwrap();
    let draft = folder.draft().unwrap().unwrap();
    assert_eq!(draft.note().as_deref(), Some(&b"newest"[..]));
    assert!(!without_note.key_file().exists());
    let all: Vec<_> = folder.drafts().unwrap().into_iter().map(|draft| draft.note().unwrap()).collect();
    assert_eq!(all, [&b"newest"[..], b"older"], "whoever asked several authorities has several");
    older.discard().unwrap();
    assert!(matches!(draft.commit("chain"), Err(StorageError::Incomplete { .. })), "it has no key");
    assert_eq!(served(&folder).as_deref(), Some("1"));
    draft.discard().unwrap();
    assert!(folder.draft().unwrap().is_none());
    assert_eq!(generations(&folder), ["00000001"]);
}

#[test]
fn a_kill_at_any_step_leaves_the_old_pair_or_the_new_one() {
    let is_first = |which: &str| which == "1";
    for old in ["", "1"] {
        let mut last = 0;
        for at in 0.. {
            let (_guard, storage) = storage_in_memory();
            let folder = storage.certificate("a.example");
            if is_first(old) {
                renew(&folder, old).unwrap();
            }
            let (done, was_killed) = during(at, Blow::Kill, || renew(&folder, "2"));
            let live = served(&folder).unwrap_or_default();
            assert!(live == old || live == "2", "killed at {at}: {live:?} is live");
            assert!(done.is_err() || live == "2", "killed at {at}");

            let link = fs::read_link(folder.path().join("live")).ok();
            let storage = Storage::open(storage.root()).unwrap();
            assert_eq!(fs::read_link(folder.path().join("live")).ok(), link, "killed at {at}: cleaning touched `live`");
            assert_eq!(temporaries(storage.root()), [""; 0], "killed at {at}");
            assert_eq!(served(&folder).unwrap_or_default(), live);
            let draft = folder.draft().unwrap();
            assert!(draft.is_none() || live == old, "killed at {at}: a draft after the commit");
            assert!(draft.is_none_or(|draft| draft.note().as_deref() == Some(b"2")), "killed at {at}");

            renew(&folder, "3").unwrap();
            let live = served(&folder).unwrap();
            assert!(live == "2" || live == "3", "killed at {at}: a resumed order keeps its key, {live:?} has not");
            assert!(generations(&folder).len() <= 2, "killed at {at}: {:?}", tree(folder.path()));
            if !was_killed {
                last = at;
                break;
            }
        }
        assert!(last > 20, "{last} steps only");
    }
}

#[test]
fn a_disk_that_fails_at_any_step_loses_nothing_and_says_what_to_do() {
    let reasons = [
        (Errno::NOSPC, "disk is full: make room"),
        (Errno::DQUOT, "disk is full: make room"),
        (Errno::ROFS, "read-only: mount it for writing"),
        (Errno::ACCESS, "give the storage to that user"),
        (Errno::IO, "cannot "),
    ];
    for (errno, reason) in reasons {
        for at in 0.. {
            let (_guard, storage) = storage_in_memory();
            let folder = storage.certificate("a.example");
            renew(&folder, "1").unwrap();
            let (done, has_failed) = during(at, Blow::Fail(errno), || renew(&folder, "2"));
            if let Err(error) = &done {
                let told = error.to_string();
                let path = storage.root().display().to_string();
                assert!(told.contains(reason) && told.contains(&path), "{errno} at {at}: {told}");
                assert_eq!(temporaries(storage.root()), [""; 0], "{errno} at {at}");
            }
            let live = served(&folder).unwrap();
            assert!(live == "2" || live == "1" && done.is_err(), "{errno} at {at}: {live:?} is live");
            Storage::open(storage.root()).unwrap();
            assert_eq!(temporaries(storage.root()), [""; 0], "{errno} at {at}");
            renew(&folder, "2").unwrap();
            assert_eq!(served(&folder).as_deref(), Some("2"));
            if !has_failed {
                assert!(at > 20);
                break;
            }
        }
    }
}

#[test]
fn a_draft_whose_commit_failed_can_be_committed_again() {
    let (_guard, storage) = storage();
    let folder = storage.certificate("a.example");
    renew(&folder, "1").unwrap();
    let draft = folder.begin().unwrap();
    fs::write(draft.key_file(), "2").unwrap();
    for at in [1, 5, 8] {
        let (committed, _) = during(at, Blow::Fail(Errno::NOSPC), || draft.commit("2"));
        assert!(matches!(committed, Err(StorageError::Full { .. })), "{at}: {committed:?}");
        assert_eq!(served(&folder).as_deref(), Some("1"));
    }
    draft.commit("2").unwrap();
    assert_eq!(served(&folder).as_deref(), Some("2"));
}

#[test]
fn a_process_killed_at_random_leaves_a_whole_store() {
    if let Some(root) = folder_of_parent() {
        let storage = Storage::open(&root).unwrap();
        println!("\nopen");
        for number in 0_u64.. {
            renew(&storage.certificate("a.example"), &number.to_string()).unwrap();
            storage.write("accounts/ca.json", &vec![b'x'; 8192]).unwrap();
        }
    }
    let (_guard, storage) = storage();
    let folder = storage.certificate("a.example");
    renew(&folder, "first").unwrap();
    for round in 0..25_u64 {
        let mut command = again(&["env"], "a_process_killed_at_random_leaves_a_whole_store", storage.root());
        let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        child.wait_for("open");
        // Any moment will do: a different one each time.
        thread::sleep(Duration::from_micros(round * 1717 % 20_000));
        drop(child);
        assert!(served(&folder).is_some(), "round {round}");
        let storage = Storage::open(storage.root()).unwrap();
        assert_eq!(temporaries(storage.root()), [""; 0], "round {round}");
        assert!(generations(&folder).len() <= 3, "round {round}: {:?}", tree(storage.root()));
        let account = storage.read("accounts/ca.json").unwrap();
        assert!(account.is_none_or(|account| account.len() == 8192), "round {round}");
    }
}

#[test]
fn folders_are_0700_and_files_0600_whatever_the_umask() {
    let body = |root: &Path| {
        let storage = Storage::open(root).unwrap();
        storage.write("accounts/ca.json", b"{}").unwrap();
        storage.beside("ledger").write(b"{}").unwrap();
        storage.check_room().unwrap();
        drop(storage.lock("ledger.lock").unwrap());
        let folder = storage.certificate("a.example");
        let _lock = folder.try_lock().unwrap();
        let draft = folder.begin().unwrap();
        draft.set_note(b"{}").unwrap();
        fs::write(draft.key_file(), "made by Keys").unwrap();
        fs::set_permissions(draft.key_file(), fs::Permissions::from_mode(0o600)).unwrap();
        draft.commit("chain").unwrap();
        folder.write_state(b"{}").unwrap();
    };
    if let Some(root) = folder_of_parent() {
        return body(&root);
    }
    // Without any right for ourselves only root gets further; with 0277 everybody does.
    for umask in ["0000", "0022", "0077", "0277"] {
        let guard = tempfile::tempdir().unwrap();
        let root = guard.path().join("new/acme");
        let shell = format!("umask {umask}; exec \"$0\" \"$@\"");
        succeed(again(&["sh", "-c", &shell], "folders_are_0700_and_files_0600_whatever_the_umask", &root));
        for (name, mode) in tree(guard.path()) {
            let path = guard.path().join(&name);
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let expected = if kind.is_dir() { 0o700 } else { 0o600 };
            assert!(kind.is_symlink() || mode == expected, "umask {umask}: {name} is {mode:o}");
        }
        assert!(guard.path().join("new/acme.ledger").exists());
    }
}

#[test]
fn a_directory_that_others_could_have_written_to_is_refused() {
    let guard = tempfile::tempdir().unwrap();
    let root = guard.path().join("acme");
    for (mode, expected) in [(0o777, None), (0o770, None), (0o702, None), (0o755, Some(0o700)), (0o500, Some(0o500))] {
        let _ = fs::create_dir(&root);
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
        let opened = Storage::open(&root);
        let now = fs::metadata(&root).unwrap().mode() & 0o777;
        match expected {
            None => {
                let told = opened.unwrap_err().to_string();
                assert!(told.contains("chmod 700") && told.contains(&format!("{mode:04o}")), "{told}");
                assert_eq!(now, mode, "changed although refused");
            }
            Some(expected) => assert_eq!((opened.is_ok(), now), (true, expected), "{mode:o}"),
        }
    }
    // Or what is in it could not be removed.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let guard = tempfile::tempdir().unwrap();
    let is_root = rustix::process::geteuid().is_root();
    // Only root can give a folder away; all others have root's to look at.
    let foreign = if is_root { guard.path().join("acme") } else { PathBuf::from("/usr/lib") };
    if is_root {
        fs::create_dir(&foreign).unwrap();
        chown(&foreign, Some(65_534), None).unwrap();
    }
    let told = Storage::open(&foreign).unwrap_err();
    assert!(matches!(told, StorageError::Foreign { .. }) && told.to_string().contains("chown -R"), "{told}");
    if is_root {
        assert_eq!(tree(&foreign), [], "written into although refused");
        let (_guard, storage) = storage();
        storage.write("accounts/ca.json", b"x").unwrap();
        chown(storage.root().join("accounts"), Some(65_534), None).unwrap();
        assert!(matches!(storage.write("accounts/ca.json", b"x"), Err(StorageError::Foreign { .. })));
        chown(storage.root().join("accounts/ca.json"), Some(65_534), None).unwrap();
        assert!(matches!(storage.read("accounts/ca.json"), Err(StorageError::Foreign { .. })));
    }
}

#[test]
fn planted_links_are_never_followed() {
    let (guard, storage) = storage();
    let outside = guard.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let victim = outside.join("victim");
    let root = storage.root();

    symlink(&victim, root.join("ledger.json")).unwrap();
    assert!(matches!(storage.read("ledger.json"), Err(StorageError::NoFile { .. })));
    // A process with our number may have been killed, or planted, right here.
    symlink(&victim, root.join(format!(".ledger.json.{}-0.tmp", std::process::id()))).unwrap();
    storage.write("ledger.json", b"ours").unwrap();
    assert_eq!(storage.read("ledger.json").unwrap().as_deref(), Some(&b"ours"[..]));
    symlink(&victim, storage.beside("ledger").path()).unwrap();
    storage.beside("ledger").write(b"ours").unwrap();

    symlink(&victim, root.join("ledger.lock")).unwrap();
    assert!(matches!(storage.lock("ledger.lock"), Err(StorageError::NoFile { .. })));
    symlink(&outside, root.join("accounts")).unwrap();
    assert!(matches!(storage.write("accounts/x", b"ours"), Err(StorageError::NoFolder { .. })));
    symlink(&outside, root.join("certificates")).unwrap();
    assert!(matches!(storage.certificate("a").begin(), Err(StorageError::NoFolder { .. })));
    assert!(storage.labels().unwrap().is_empty());
    fs::remove_file(root.join("certificates")).unwrap();

    let folder = storage.certificate("a.example");
    renew(&folder, "1").unwrap();
    symlink(&outside, folder.path().join("00000007")).unwrap();
    symlink(&outside, folder.path().join(".00000003.1-0.tmp")).unwrap();
    symlink(&outside, root.join(".x.1-0.tmp")).unwrap();
    let storage = Storage::open(root).unwrap();
    assert_eq!(temporaries(root), [""; 0]);
    renew(&storage.certificate("a.example"), "2").unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(tree(&outside).len(), 1, "{:?}", tree(&outside));
}

#[test]
fn what_is_no_file_is_told_and_never_waited_for() {
    let (_guard, storage) = storage();
    rustix::fs::mkfifoat(rustix::fs::CWD, storage.root().join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    assert!(fs::metadata(storage.root().join("fifo")).unwrap().file_type().is_fifo());
    fs::create_dir(storage.root().join("folder")).unwrap();
    for name in ["fifo", "folder"] {
        assert!(matches!(storage.read(name), Err(StorageError::NoFile { .. })), "{name}");
    }
    for name in ["", "..", "../x", "a/../../x", "/etc/passwd", "."] {
        assert!(matches!(storage.read(name), Err(StorageError::Outside { .. })), "{name}");
        assert!(matches!(storage.write(name, b""), Err(StorageError::Outside { .. })), "{name}");
    }
    assert!(storage.certificate("../../etc").path().starts_with(storage.root().join("certificates")));
    let long = fs::File::create(storage.root().join("long")).unwrap();
    long.set_len((32 << 20) + 1).unwrap();
    assert!(matches!(storage.read("long"), Err(StorageError::TooLong { .. })));
}

#[test]
fn a_file_in_place_of_a_folder_is_told() {
    let (guard, storage) = storage();
    storage.write("certificates", b"a file").unwrap();
    let told = storage.certificate("a.example").begin().unwrap_err();
    assert!(matches!(told, StorageError::NoFolder { .. }), "{told}");
    assert!(matches!(storage.certificate("a.example").try_lock(), Err(StorageError::NoFolder { .. })));
    fs::write(guard.path().join("file"), "").unwrap();
    for root in ["file", "file/acme", "file/acme/deeper"] {
        let told = Storage::open(&guard.path().join(root)).unwrap_err();
        assert!(matches!(told, StorageError::NoFolder { .. }), "{root}: {told}");
    }
    symlink(guard.path().join("absent"), guard.path().join("dangling")).unwrap();
    assert!(Storage::open(&guard.path().join("dangling")).is_err());
    assert!(Storage::open(Path::new("/")).is_err());
}

#[test]
fn leftovers_are_cleaned_but_not_under_a_writer_and_nothing_of_others() {
    let (guard, storage) = storage();
    let folder = storage.certificate("a.example");
    renew(&folder, "1").unwrap();
    renew(&folder, "2").unwrap();
    let root = storage.root();
    let leftovers = [
        root.join(".ledger.json.7-0.tmp"),
        root.join("accounts/.ca.json.7-0.tmp"),
        folder.path().join(".live.7-0.tmp"),
        folder.path().join("00000002/.order.json.7-0.tmp"),
        guard.path().join(".acme.ledger.7-0.tmp"),
    ];
    let others = [
        guard.path().join(".acme2.ledger.7-0.tmp"),
        guard.path().join(".notes.tmp"),
        guard.path().join(".acme.ledger.tmp"),
        guard.path().join(".acme.ledger.old-0.tmp"),
        guard.path().join(".acme.json.7-0.tmp"),
        guard.path().join(".acme.backup.tmp/precious"),
        guard.path().join(".acme.ledger.8-0.tmp/precious"),
        guard.path().join("acme.tmp"),
        root.join("ledger.json"),
        folder.path().join("notes.txt"),
    ];
    for path in leftovers.iter().chain(&others) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    for path in leftovers.iter().chain(&others) {
        fs::write(path, "x").unwrap();
    }
    // A generation on its way out, one that never got a note, and one with a name that is none.
    for name in [".00000001.7-0.tmp", "00000009", "9"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("privkey.pem"), "x").unwrap();
    }
    let writing = storage.writing().unwrap();
    Storage::open(root).unwrap();
    assert!(leftovers.iter().all(|path| path.exists()), "another process is writing");
    drop(writing);
    let ordering = folder.try_lock().unwrap().unwrap();
    Storage::open(root).unwrap();
    assert!(folder.path().join("00000009").exists(), "another process is ordering");
    drop(ordering);
    Storage::open(root).unwrap();
    assert_eq!(temporaries(root), [""; 0]);
    assert!(leftovers.iter().all(|path| !path.exists()));
    assert!(others.iter().all(|path| path.exists()));
    assert!(!folder.path().join("00000009").exists() && folder.path().join("9").exists());
    assert_eq!(served(&folder).as_deref(), Some("2"));
    assert!(folder.path().join("00000001").exists(), "the pair before");
}

#[test]
fn a_live_link_that_is_not_ours_is_left_alone_until_the_next_commit() {
    let (guard, storage) = storage();
    let folder = storage.certificate("a.example");
    renew(&folder, "1").unwrap();
    renew(&folder, "2").unwrap();
    for target in ["00000009", "absent", "../../x", "/nowhere"] {
        fs::remove_file(folder.path().join("live")).unwrap();
        symlink(target, folder.path().join("live")).unwrap();
        Storage::open(storage.root()).unwrap();
        assert_eq!(fs::read_link(folder.path().join("live")).unwrap(), Path::new(target));
        for whole in ["00000001/fullchain.pem", "00000002/fullchain.pem"] {
            assert!(folder.path().join(whole).exists(), "{target}: {whole} was removed");
        }
        let begun = folder.begin().unwrap();
        fs::write(begun.key_file(), "key").unwrap();
        assert_eq!(fs::read_to_string(folder.live().1).ok(), None, "{target}: a draft is live");
        begun.discard().unwrap();
    }
    fs::remove_file(folder.path().join("live")).unwrap();
    let elsewhere = guard.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, folder.path().join("live")).unwrap();
    renew(&folder, "3").unwrap();
    assert!(served(&folder).is_some());
    assert_eq!(tree(&elsewhere), []);
}

#[test]
fn the_directory_may_be_a_link_and_is_made_again_when_it_is_lost() {
    let guard = tempfile::tempdir().unwrap();
    fs::create_dir_all(guard.path().join("data/acme")).unwrap();
    symlink(guard.path().join("data/acme"), guard.path().join("acme")).unwrap();
    let storage = Storage::open(&guard.path().join("acme/")).unwrap();
    let real = fs::canonicalize(guard.path().join("data/acme")).unwrap();
    assert_eq!(storage.root(), real);
    storage.beside("ledger").write(b"x").unwrap();
    assert!(guard.path().join("acme.ledger").exists(), "beside the name, so that it outlives what is behind it");
    fs::remove_dir_all(&real).unwrap();
    storage.write("accounts/x", b"x").unwrap();
    renew(&storage.certificate("a.example"), "1").unwrap();
    assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn what_is_set_aside_is_kept_for_a_person() {
    let (_guard, storage) = storage();
    for text in ["one", "two"] {
        storage.write("ledger.json", text.as_bytes()).unwrap();
        let aside = storage.file("ledger.json").unwrap().set_aside().unwrap();
        assert_eq!(aside, storage.root().join("ledger.json.broken"));
        assert_eq!(storage.read("ledger.json").unwrap(), None);
        assert_eq!(fs::read_to_string(aside).unwrap(), text);
    }
}

#[test]
fn a_full_disk_and_a_read_only_one_are_told_before_anything_is_lost() {
    let Some(root) = folder_of_parent() else {
        let guard = tempfile::tempdir().unwrap();
        // Mounts that end with the process. Who is not root is root of a namespace.
        let unshare: &[&str] = if rustix::process::geteuid().is_root() {
            &["unshare", "--mount"]
        } else {
            &["unshare", "--mount", "--map-root-user"]
        };
        return succeed(again(
            unshare,
            "a_full_disk_and_a_read_only_one_are_told_before_anything_is_lost",
            guard.path(),
        ));
    };
    let mount = |arguments: &[&str]| {
        let mounted = Command::new("mount").args(arguments).arg(&root).status().unwrap();
        assert!(mounted.success(), "mount {arguments:?}");
    };
    mount(&["-t", "tmpfs", "-o", "size=160k,mode=0700", "none"]);
    let storage = Storage::open(&root.join("acme")).unwrap();
    storage.check_room().unwrap();
    let folder = storage.certificate("a.example");
    renew(&folder, "1").unwrap();
    storage.write("ledger.json", b"old").unwrap();

    fs::write(root.join("filler"), vec![0; 88 << 10]).unwrap();
    assert!(matches!(storage.check_room(), Err(StorageError::Full { .. })), "room for less than 64 KiB");
    storage.write("ledger.json", b"still fits").unwrap();
    let rest = fs::File::create(root.join("rest")).unwrap();
    while io::Write::write(&mut &rest, &[0; 4096]).is_ok() {}
    for told in [storage.check_room(), storage.write("ledger.json", b"new"), renew(&folder, "2")] {
        assert!(matches!(told, Err(StorageError::Full { .. })), "{told:?}");
    }
    assert_eq!(storage.read("ledger.json").unwrap().as_deref(), Some(&b"still fits"[..]));
    assert_eq!(served(&folder).as_deref(), Some("1"));
    assert_eq!(temporaries(&root), [""; 0]);
    drop(rest);
    fs::remove_file(root.join("rest")).unwrap();
    fs::remove_file(root.join("filler")).unwrap();
    renew(&folder, "2").unwrap();
    storage.check_room().unwrap();

    mount(&["-o", "remount,bind,ro"]);
    let storage = Storage::open(&root.join("acme")).unwrap();
    for told in [storage.check_room(), storage.write("ledger.json", b"new"), renew(&folder, "3")] {
        assert!(matches!(told, Err(StorageError::ReadOnly { .. })), "{told:?}");
    }
    assert!(matches!(Storage::open(&root.join("other")), Err(StorageError::ReadOnly { .. })));
    assert_eq!(served(&folder).as_deref(), Some("2"));
    assert_eq!(storage.read("ledger.json").unwrap().as_deref(), Some(&b"still fits"[..]));
}

#[test]
fn two_processes_do_not_order_for_the_same_certificate() {
    let (_guard, storage) = storage();
    let folder = storage.certificate("a.example");
    let lock = folder.try_lock().unwrap().unwrap();
    let path = folder.path().join("lock");
    let other = || Command::new("flock").arg("-n").arg(&path).arg("true").status().unwrap();
    assert!(!other().success());
    assert!(folder.try_lock().unwrap().is_none(), "nor two tasks of one process");
    assert!(storage.certificate("b.example").try_lock().unwrap().is_some());
    drop(lock);
    assert!(other().success());

    let mut holder = Command::new("flock");
    holder.args(["--no-fork", "-n"]).arg(&path).args(["sh", "-c", "echo held; exec cat"]);
    let mut holder = Running(holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    holder.wait_for("held");
    assert!(folder.try_lock().unwrap().is_none());
    drop(holder);
    assert!(folder.try_lock().unwrap().is_some(), "the lock of a killed process");
}

#[test]
fn a_lock_that_is_never_released_is_told_in_time() {
    let (_guard, storage) = storage();
    let path = storage.root().join("ledger.lock");
    let held = lock::wait(&path, lock::Kind::Exclusive, Duration::ZERO).unwrap();
    let started = Instant::now();
    let told = lock::wait(&path, lock::Kind::Exclusive, Duration::from_millis(30)).unwrap_err();
    assert!(matches!(told, StorageError::Busy { .. }) && started.elapsed() >= Duration::from_millis(30), "{told}");
    let waiting = thread::spawn({
        let storage = storage.clone();
        move || storage.lock("ledger.lock").is_ok()
    });
    drop(held);
    assert!(waiting.join().unwrap());
    let shared = [storage.writing().unwrap(), storage.writing().unwrap()];
    assert!(lock::attempt(&storage.root().join("lock"), lock::Kind::Exclusive).unwrap().is_none());
    drop(shared);
}

#[test]
fn labels_are_told_in_order() {
    let (_guard, storage) = storage();
    for label in ["b.example", "*.a.example", "::1"] {
        drop(storage.certificate(&super::label(label)).try_lock().unwrap());
    }
    fs::write(storage.root().join("certificates/file"), "").unwrap();
    fs::create_dir(storage.root().join("certificates/.x.7-0.tmp")).unwrap();
    fs::create_dir(storage.root().join("certificates/Not A Label")).unwrap();
    let labels: BTreeSet<String> = storage.labels().unwrap().into_iter().collect();
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), storage.labels().unwrap());
    assert_eq!(storage.labels().unwrap(), ["_.a.example", "__1", "b.example"]);
}

/// Killed and awaited when dropped.
struct Running(Child);

impl Running {
    fn wait_for(&mut self, line: &str) {
        let output = BufReader::new(self.0.stdout.take().unwrap());
        assert!(output.lines().map_while(Result::ok).any(|read| read == line), "the process ended without {line:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
