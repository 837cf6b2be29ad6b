//! `tests/threats.md` has a row for everything that is known to have bitten an edge server, and each row names tests that
//! exist.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

const TABLE: &str = include_str!("threats.md");
/// Rows there have to be.
const ROWS: usize = 97;

#[test]
fn every_known_attack_has_a_row_and_every_row_a_test_that_exists() {
    let rows: Vec<Vec<&str>> = TABLE
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| # "))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let numbers: Vec<usize> =
        rows.iter().map(|row| row.first().and_then(|number| number.parse().ok()).expect("a number")).collect();
    assert_eq!(numbers, (1..=ROWS).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for row in &rows {
        let [number, what, answer, tests] = row.as_slice() else { panic!("not four columns: {row:?}") };
        assert!(!what.is_empty() && !answer.is_empty(), "row {number} says nothing");
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("row {number} ({what}) has no test"));
        }
        wrong.extend(
            names.iter().filter(|name| !exists(name)).map(|name| format!("row {number}: there is no test {name}")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a test of this name, `target::module::function`, is in the tree.
fn exists(name: &str) -> bool {
    let mut parts: Vec<&str> = name.split("::").collect();
    let Some(function) = parts.pop() else { return false };
    let Some((target, modules)) = parts.split_first() else { return false };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (folder, top) = match *target {
        "lib" => (root.join("src"), root.join("src/lib.rs")),
        target => (root.join("tests").join(target), root.join(format!("tests/{target}.rs"))),
    };
    let wanted = format!("fn {function}(");
    candidates(&folder, &top, modules).iter().any(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // What is before the function, up to the item before it, has the attribute.
        text.match_indices(&wanted).any(|(at, _)| {
            let before: Vec<&str> = text.get(..at).unwrap_or_default().lines().rev().take(6).collect();
            before.iter().any(|line| matches!(line.trim(), "#[test]" | "#[tokio::test]") || line.contains("::test("))
        })
    })
}

/// The files that a module path may stand for: modules within a file share it. Each is named by a `mod` of the one above it,
/// else it is no part of the target.
fn candidates(folder: &Path, top: &Path, modules: &[&str]) -> Vec<PathBuf> {
    let mut files = vec![top.to_owned(), folder.join("main.rs")];
    let mut path = folder.to_owned();
    for module in modules {
        let item = format!("mod {module};");
        let names = |line: &str| !line.trim_start().starts_with("//") && line.ends_with(&item);
        let is_named = |file: &PathBuf| std::fs::read_to_string(file).is_ok_and(|text| text.lines().any(names));
        if !files.iter().any(is_named) {
            break;
        }
        path.push(module);
        files = vec![path.with_extension("rs"), path.join("mod.rs")];
    }
    files
}

#[test]
fn a_file_that_no_module_names_holds_no_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    let found = |top: &str, module| candidates(&folder, &folder.with_file_name(top), &[module]);
    assert!(found("hostile.rs", "h1").contains(&folder.join("h1.rs")));
    assert!(!found("threats.rs", "h1").contains(&folder.join("h1.rs")));
}
