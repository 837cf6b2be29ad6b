//! A short run of everything in `fuzz/`: each property over its seeds, over what becomes of them when they are damaged,
//! and over bytes that mean nothing. The long run is `fuzz/run`.
//!
//! What fails is printed shortened; it belongs into `fuzz/seeds` with what mends it. `DOORWARD_FULL=1` makes a hundred
//! times as many inputs.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test ends where a step fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

#[path = "../fuzz/properties/mod.rs"]
mod properties;

/// A test for each property, so that they run side by side.
macro_rules! short_runs {
    ($($name:ident)*) => {
        const RUN: &[&str] = &[$(stringify!($name)),*];
        mod short_run {
            $(#[test]
            fn $name() {
                super::run(stringify!($name));
            })*
        }
    };
}

short_runs! {
    accel answer_head back_end_answer cgi_environment cgi_headers chunks conditions config cookie credentials
    fastcgi_record forwarded fpm_stderr guard h2_frames host htpasswd log_line origin path proxy_head range request sid
    tls_records tls_stream units ws_frames ws_rules
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The names in a folder, without what they end with.
fn names(folder: &Path, ending: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = fuzz().join("seeds").join(name);
    names(&folder, "").iter().map(|seed| std::fs::read(folder.join(seed)).expect("a seed")).collect()
}

#[test]
fn every_property_has_a_target_seeds_and_a_short_run() {
    let all: BTreeSet<String> = properties::ALL.iter().map(|property| property.name.to_owned()).collect();
    assert_eq!(all.len(), properties::ALL.len(), "a name stands twice");
    assert_eq!(all, RUN.iter().map(|name| (*name).to_owned()).collect());
    let mut files = names(&fuzz().join("properties"), ".rs");
    assert!(files.remove("mod"));
    assert_eq!(all, files);
    assert_eq!(all, names(&fuzz().join("fuzz_targets"), ".rs"));
    assert_eq!(all, names(&fuzz().join("seeds"), ""));
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).expect("the manifest");
    for name in &all {
        assert!(seeds(name).len() >= 2, "{name} has no seeds to speak of");
        let target = std::fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).expect("a target");
        assert!(target.contains(&format!("properties::{name}::check(input)")), "{name}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in the manifest");
    }
}

#[test]
fn what_must_be_fuzzed_is() {
    for name in [
        "answer_head",
        "chunks",
        "fastcgi_record",
        "cgi_headers",
        "ws_frames",
        "proxy_head",
        "path",
        "forwarded",
        "config",
        "tls_records",
        "tls_stream",
    ] {
        assert!(RUN.contains(&name), "{name}");
    }
}

fn run(name: &str) {
    let property = properties::ALL.iter().find(|property| property.name == name).expect("a property");
    let seeds = seeds(name);
    for seed in &seeds {
        (property.check)(seed);
        for cut in 0..seed.len().min(200) {
            (property.check)(&seed[..cut]);
        }
    }
    // The seeds are the memory of what was found.
    let times =
        if std::env::var("DOORWARD_FULL").is_ok_and(|value| !matches!(value.as_str(), "" | "0")) { 100 } else { 1 };
    let config = Config { cases: property.cases * times, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&input(seeds), |input| {
        (property.check)(&input);
        Ok::<(), TestCaseError>(())
    });
    if let Err(TestError::Fail(why, input)) = outcome {
        panic!("{name}: {why}\n{} bytes: b\"{}\"", input.len(), input.escape_ascii());
    }
}

/// What is done to a seed.
#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Truncate(Index),
    /// Goes on like another seed.
    Splice(Index, Vec<u8>),
}

fn input(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (prop::sample::select(seeds.clone()), prop::collection::vec(damage(seeds), 1..6));
    prop_oneof![
        8 => damaged.prop_map(|(seed, damages)| damages.into_iter().fold(seed, apply)),
        1 => prop::collection::vec(any::<u8>(), 0..300),
    ]
}

fn damage(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Damage> {
    // What tends to matter to somebody.
    let tokens: Vec<&[u8]> = vec![
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
        b";",
        b",",
        b"=",
        b"\"",
        b"/",
        b"..",
        b"%2e",
        b"%00",
        b"\\",
        b" ",
        b"\t",
        b"*",
        b"0",
        b"-1",
        b"18446744073709551616",
        b"\x7f",
        b"\x80",
        b"\xff\xff\xff\xff",
        b"\xc3\xa9",
        b"\x1b[31m",
    ];
    let byte = prop_oneof![any::<u8>(), prop::sample::select(vec![0, 1, 10, 13, 32, 126, 127, 128, 254, 255])];
    let piece =
        prop_oneof![prop::sample::select(tokens).prop_map(<[u8]>::to_vec), prop::collection::vec(any::<u8>(), 1..8)];
    let at = any::<Index>();
    prop_oneof![
        (at.clone(), byte).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at.clone(), piece).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        (at.clone(), 1..20usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        (at.clone(), 1..20usize, 1..30usize).prop_map(|(at, length, times)| Damage::Repeat(at, length, times)),
        at.clone().prop_map(Damage::Truncate),
        (at, prop::sample::select(seeds)).prop_map(|(at, other)| Damage::Splice(at, other)),
    ]
}

fn apply(mut bytes: Vec<u8>, damage: Damage) -> Vec<u8> {
    let place = |at: Index| at.index(bytes.len() + 1);
    match damage {
        Damage::Set(at, byte) => {
            let at = place(at);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        Damage::Insert(at, piece) => {
            let at = place(at);
            bytes.splice(at..at, piece);
        }
        Damage::Remove(at, length) => {
            let at = place(at);
            bytes.drain(at..bytes.len().min(at + length));
        }
        Damage::Repeat(at, length, times) => {
            let at = place(at);
            let piece = bytes[at..bytes.len().min(at + length)].repeat(times);
            bytes.splice(at..at, piece);
        }
        Damage::Truncate(at) => bytes.truncate(place(at)),
        Damage::Splice(at, other) => {
            let at = place(at);
            let tail = other.get(at..).unwrap_or_default().to_vec();
            bytes.truncate(at);
            bytes.extend(tail);
        }
    }
    bytes
}
