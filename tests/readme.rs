//! What README.md says is so: its configurations are taken, and its list of dependencies is the one in Cargo.toml.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use doorward::config;

const README: &str = include_str!("../README.md");
const MANIFEST: &str = include_str!("../Cargo.toml");

#[test]
fn the_table_of_dependencies_is_the_manifest_s() {
    let section = README.split_once("### Dependencies, and why each").expect("the section on dependencies").1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let mut told = BTreeSet::new();
    for row in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (names, why) = row.trim_end_matches(['|', ' ']).split_once(" | ").expect("two columns");
        assert!(why.len() > 3, "no reason for {names}");
        for name in names.split(", ") {
            assert!(told.insert(name.trim_matches('`').to_owned()), "{name} stands there twice");
        }
    }
    assert_eq!(told, dependencies("dependencies"));

    let tests = section.lines().find_map(|line| line.strip_prefix("For tests: ")).expect("the line on tests");
    let told: BTreeSet<String> = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let ours = &dependencies("dev-dependencies") - &dependencies("dependencies");
    assert_eq!(told, ours);
}

/// The names in a table of Cargo.toml.
fn dependencies(table: &str) -> BTreeSet<String> {
    let manifest: toml::Table = MANIFEST.parse().expect("Cargo.toml");
    manifest.get(table).and_then(toml::Value::as_table).expect(table).keys().cloned().collect()
}

#[test]
fn each_configuration_of_the_readme_is_taken() {
    let blocks: Vec<&str> =
        README.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or(rest)).collect();
    let (three_lines, laravel) = (blocks.first().expect("the three lines"), blocks.get(1).expect("the Laravel site"));
    assert_eq!(three_lines.lines().count(), 3, "{three_lines}");
    for block in &blocks {
        // What only adds to a site belongs to the one at the top.
        let whole = block.lines().any(|line| line.starts_with("[site."));
        let text = if whole { (*block).to_owned() } else { format!("{laravel}\n{block}") };
        assert_taken("README.md", &text);
    }
}

#[test]
fn each_configuration_of_the_scenarios_is_taken() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut taken = 0;
    for entry in std::fs::read_dir(&folder).expect("tests/scenarios") {
        let path = entry.expect("a scenario").path();
        if path.extension().is_some_and(|e| e == "toml") {
            assert_taken(&path.display().to_string(), &std::fs::read_to_string(&path).expect("a scenario"));
            taken += 1;
        }
    }
    assert!(taken >= 4, "{taken} scenarios");
}

/// Reads a whole configuration. Where it asks the environment, a port stands for each variable.
#[track_caller]
fn assert_taken(name: &str, text: &str) {
    let env = |_: &str| Some("8443".to_owned());
    if let Err(problems) = config::parse(Path::new("/etc/doorward"), &[("proxy.toml", text)], &env) {
        panic!("{name} has a configuration that is refused:\n{text}\n{problems}");
    }
}

/// "uses it by itself, through profile/rustc".
#[test]
fn the_profile_is_for_code_that_is_optimized_for_speed() {
    let config: toml::Table = include_str!("../.cargo/config.toml").parse().expect("a table");
    let wrapper = config.get("build").and_then(|build| build.get("rustc-wrapper")).and_then(toml::Value::as_str);
    let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join(wrapper.expect("the wrapper"));
    let given = |arguments: &[&str], records: bool| {
        let mut command = std::process::Command::new(&wrapper);
        command.arg("echo").args(arguments).env_remove("DOORWARD_RECORD");
        command.envs(records.then_some(("DOORWARD_RECORD", "1")));
        let output = command.output().expect("the wrapper runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let fast = ["--crate-name", "some thing", "-C", "opt-level=3"];
    let said = given(&fast, false);
    let used = said.split_once(" -Cprofile-use=").expect("the profile").1;
    let profile = used.split(" -C").next().expect("its path");
    assert!(std::fs::metadata(profile).expect("the profile").len() > 100_000, "{profile}");
    assert!(given(&fast, true).ends_with("opt-level=3 -Cprofile-generate\n"));
    for other in [&["-vV"][..], &["--crate-name", "x"], &["-C", "opt-level=1"], &["rustc", "-", "--print=cfg"]] {
        assert_eq!(given(other, false), format!("{}\n", other.join(" ")));
    }
}
