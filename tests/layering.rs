//! Holds the source against the layer table in `src/lib.rs`: which room may look into which.
//!
//! What is scanned is the code itself: comments, texts and the tests at the bottom of a file are taken out first.
//! A test may reach where it likes; the house may not.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The longest that a file may be before its tests.
const LONGEST: usize = 400;

#[test]
fn the_house_keeps_its_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &src, &mut files);
    files.sort();
    let library = &files.iter().find(|(name, _)| name == "lib.rs").expect("src/lib.rs").1;
    let table = read_table(library).expect("the layer table in the docs of src/lib.rs");
    let problems = check(&table, &files);
    assert!(problems.is_empty(), "{} problem(s):\n\n{}\n", problems.len(), problems.join("\n"));
}

/// One row of the table.
struct Room {
    layer: u32,
    may_import: BTreeSet<String>,
}

type Table = BTreeMap<String, Room>;

/// Everything that is wrong with `files` (name below src, text), in sentences.
fn check(table: &Table, files: &[(String, String)]) -> Vec<String> {
    let mut problems = check_table(table);
    let mut edges: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (file, text) in files {
        let text = without_tests(file, text);
        let code = blank(text);
        problems.extend(check_text(file, text, &code));
        if file == "lib.rs" {
            continue;
        }
        let room = room_of(file);
        if !table.contains_key(room) {
            problems.push(format!("src/{file}: the room `{room}` is missing in the layer table of src/lib.rs"));
            continue;
        }
        for (line, target) in imports(file, &code, table) {
            let place = format!("src/{file}:{line}");
            if target == "*" {
                problems.push(format!("{place}: takes the whole crate; name the room (`use crate::room::Thing`)"));
            } else if target != room {
                problems.extend(check_edge(table, &place, file, room, &target));
                edges.entry(room.to_owned()).or_default().entry(target).or_insert(place);
            }
        }
    }
    problems.extend(find_cycle(&edges));
    problems
}

/// The table's own rules: a room imports what lies lower. `run` and `main` alone may look at their neighbours.
fn check_table(table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, room) in table {
        for target in &room.may_import {
            match table.get(target) {
                None => problems.push(format!("src/lib.rs: `{name}` may import `{target}`, which has no row")),
                Some(other) if other.layer < room.layer => {}
                Some(other) if other.layer == room.layer && (name == "run" || name == "main") => {}
                Some(other) => problems.push(format!(
                    "src/lib.rs: the table lets `{name}` (layer {}) import `{target}` (layer {}), which does not lie lower",
                    room.layer, other.layer
                )),
            }
        }
    }
    problems
}

fn check_edge(table: &Table, place: &str, file: &str, room: &str, target: &str) -> Option<String> {
    let (from, to) = (&table[room], &table[target]);
    let is_snapshot = file == "edge/snapshot.rs" || file.starts_with("edge/snapshot/");
    if room == "edge" && target == "config" && !is_snapshot {
        return Some(format!("{place}: `edge` sees `config` in edge/snapshot only; take the value from the snapshot"));
    }
    if from.may_import.contains(target) {
        return None;
    }
    let kind = match to.layer.cmp(&from.layer) {
        std::cmp::Ordering::Greater => "an upward import",
        std::cmp::Ordering::Equal => "a sideways import",
        std::cmp::Ordering::Less => "an import that the table does not allow",
    };
    Some(format!("{place}: {kind}: `{room}` (layer {}) uses `{target}` (layer {})", from.layer, to.layer))
}

/// What a file may not hold or be, whatever it imports.
fn check_text(file: &str, text: &str, code: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let length = text.lines().count();
    if length > LONGEST {
        problems.push(format!(
            "src/{file}: {length} lines before its tests; {LONGEST} is the most: what is it really two of?"
        ));
    }
    let written: Vec<&str> = text.lines().collect();
    let tokens = tokens(code);
    for (at, (line, token)) in tokens.iter().enumerate() {
        let next = tokens.get(at + 1).map(|(_, t)| *t);
        match (*token, next) {
            ("static", Some("mut")) => {
                problems.push(format!("src/{file}:{line}: `static mut`; state belongs to Process or Worker"))
            }
            ("todo" | "unimplemented", Some("!")) => {
                problems.push(format!("src/{file}:{line}: `{token}!`; what does not exist is refused, not left open"));
            }
            ("unsafe", _) => {
                let explained =
                    (line.saturating_sub(6)..*line).any(|l| written.get(l).is_some_and(|l| l.contains("// SAFETY:")));
                if !explained {
                    problems.push(format!("src/{file}:{line}: `unsafe` without a `// SAFETY:` comment above it"));
                }
            }
            _ => {}
        }
    }
    problems
}

/// One cycle among the rooms, told with the place of each step.
fn find_cycle(edges: &BTreeMap<String, BTreeMap<String, String>>) -> Option<String> {
    fn walk<'e>(
        room: &'e str,
        edges: &'e BTreeMap<String, BTreeMap<String, String>>,
        path: &mut Vec<&'e str>,
        done: &mut BTreeSet<&'e str>,
    ) -> Option<Vec<&'e str>> {
        if let Some(at) = path.iter().position(|r| *r == room) {
            return Some(path[at..].to_vec());
        }
        if !done.insert(room) {
            return None;
        }
        path.push(room);
        let found = edges.get(room).into_iter().flat_map(BTreeMap::keys).find_map(|next| walk(next, edges, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    let cycle = edges.keys().find_map(|room| walk(room, edges, &mut Vec::new(), &mut done))?;
    let mut told = String::from("a cycle:");
    for (at, room) in cycle.iter().enumerate() {
        let next = cycle[(at + 1) % cycle.len()];
        let _ = write!(told, "\n    {room} -> {next} at {}", edges[*room][next]);
    }
    Some(told)
}

/// Reads `//! | layer | module | may import |` rows.
fn read_table(library: &str) -> Option<Table> {
    let mut table = Table::new();
    for line in library.lines().filter_map(|l| l.strip_prefix("//! |")) {
        let cells: Vec<&str> = line.trim_end().trim_end_matches('|').split('|').map(str::trim).collect();
        let [layer, name, may_import] = cells[..] else { continue };
        let Ok(layer) = layer.parse() else { continue };
        let may_import = may_import.split(',').map(|m| m.trim().to_owned()).filter(|m| !m.is_empty()).collect();
        table.insert(name.to_owned(), Room { layer, may_import });
    }
    (!table.is_empty()).then_some(table)
}

/// `edge/service.rs` and `edge/mod.rs` are of room `edge`; `args.rs` is room `args`.
fn room_of(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// The text in front of the tests at the bottom; nothing of a file that is all tests.
fn without_tests<'t>(file: &str, text: &'t str) -> &'t str {
    if file.ends_with("/tests.rs") {
        return "";
    }
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = start + line.len();
        let module = text[end..].trim_start();
        let module = module.strip_prefix("pub(super) ").unwrap_or(module);
        let tests = module.strip_prefix("mod tests").is_some_and(|r| r.starts_with([' ', ';']));
        if line.trim_end() == "#[cfg(test)]" && tests {
            return &text[..start];
        }
        start = end;
    }
    text
}

/// The rooms that `code` names, with the lines: `crate::x`, `crate::{x, y::z}`, `doorward::x` (the binary's way to
/// say it), and `super::` where it climbs out of the room. `*` stands for the crate as a whole.
fn imports(file: &str, code: &str, table: &Table) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let word = |at: usize| tokens.get(at).map_or("", |(_, t)| *t);
    // edge/service.rs is two modules deep, edge/mod.rs and args.rs one.
    let depth = file.trim_end_matches("/mod.rs").split('/').count();
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let line = tokens[at].0;
        let previous = at.checked_sub(1).map_or("", word);
        let mut after = at + 1;
        let root = match word(at) {
            // `pub(crate)` and paths that only end in these words are none.
            "crate" => word(at + 1) == "::" || previous == "use" || word(at + 1) == "as",
            "doorward" => word(at + 1) == "::" && !matches!(previous, "." | "::" | "mod"),
            "super" if previous != "::" => {
                let mut climbed = 1;
                while word(after) == "::" && word(after + 1) == "super" {
                    climbed += 1;
                    after += 2;
                }
                climbed >= depth
                    && word(after) == "::"
                    && (word(after + 1) == "{" || table.contains_key(word(after + 1)))
            }
            _ => false,
        };
        at = after;
        if !root {
            continue;
        }
        if word(after) != "::" {
            found.push((line, "*".to_owned()));
        } else if word(after + 1) == "{" {
            found.extend(group(&tokens, after + 1));
        } else {
            let target = word(after + 1);
            // What is no room is a macro or an item of lib.rs itself.
            if target == "*" || table.contains_key(target) {
                found.push((line, target.to_owned()));
            }
        }
    }
    found
}

/// The first word of each element of a `{…}` group that opens at `open`.
fn group(tokens: &[(usize, &str)], open: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut depth, mut first) = (0, false);
    for (line, token) in &tokens[open..] {
        match *token {
            "{" => {
                depth += 1;
                first = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            "," if depth == 1 => first = true,
            name if depth == 1 && first => {
                first = false;
                found.push((*line, if name == "self" { "*".to_owned() } else { name.to_owned() }));
            }
            _ => {}
        }
    }
    found
}

/// Words, `::` and single characters, with their line numbers from 1.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, tail) = rest.split_at(length);
            found.push((number + 1, token));
            rest = tail.trim_start();
        }
    }
    found
}

/// The same text with comments, texts and characters blanked; line breaks stay where they are.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match at(i) {
            '/' if at(i + 1) == '/' => (i..chars.len()).find(|j| at(*j) == '\n').unwrap_or(chars.len()),
            '/' if at(i + 1) == '*' => end_of_block_comment(&chars, i),
            '"' => end_of_quoted(&chars, i, '"'),
            'r' if !is_word(i.checked_sub(1).map_or(' ', at)) || at(i.wrapping_sub(1)) == 'b' => {
                end_of_raw(&chars, i).unwrap_or(i)
            }
            // 'a' and '\n' are characters, 'a in <'a> is a lifetime.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => end_of_quoted(&chars, i, '\''),
            _ => i,
        };
        if end == i {
            code.push(at(i));
            i += 1;
        } else {
            code.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn end_of_quoted(chars: &[char], start: usize, quote: char) -> usize {
    let mut i = start + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            c if c == quote => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// The end of `r"…"` or `r#"…"#`; `None` where the `r` starts no raw text.
fn end_of_raw(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let close =
        |i: &usize| chars[*i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    Some((open + 1..chars.len()).find(close).map_or(chars.len(), |i| i + 1 + hashes))
}

fn collect(top: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of src") {
        let path = entry.expect("an entry of src").path();
        if path.is_dir() {
            collect(top, &path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(top).expect("below src").to_string_lossy().replace('\\', "/");
            files.push((name, fs::read_to_string(&path).expect("a source file")));
        }
    }
}

mod scanner {
    use super::*;

    const TABLE: &str = "//! | layer | module | may import |\n//! |---:|---|---|\n//! | 0 | base | |\n\
        //! | 1 | config | base |\n//! | 1 | http | base |\n//! | 3 | upstream | base, http |\n\
        //! | 5 | edge | base, config, http, upstream |\n//! | 6 | admin | base, edge |\n\
        //! | 6 | run | base, edge, admin |\n//! | 6 | main | base, run |\n";

    /// The problems of one file on top of a house in order.
    fn problems(file: &str, text: &str) -> Vec<String> {
        check(&read_table(TABLE).unwrap(), &[(file.to_owned(), text.to_owned())])
    }

    #[track_caller]
    fn refused(file: &str, text: &str, message: &str) {
        let problems = problems(file, text);
        assert!(problems.iter().any(|p| p.contains(message)), "{file}: {text}\nsays {problems:?}, not {message:?}");
    }

    #[track_caller]
    fn allowed(file: &str, text: &str) {
        assert_eq!(problems(file, text), Vec::<String>::new(), "{file}: {text}");
    }

    #[test]
    fn downward_imports_are_allowed() {
        allowed("edge/service.rs", "use crate::http::reply;\nuse crate::{base::host::Host, upstream};\n");
        allowed("edge/snapshot.rs", "use crate::config::Config;\n");
        allowed("run/mod.rs", "use crate::admin::Status;\n");
        allowed("main.rs", "fn main() { doorward::run::start() }\n");
        allowed("base/host.rs", "use super::address::Port;\nuse super::*;\npub(crate) fn f() {}\n");
        allowed("http/hop.rs", "fn f(m: &http::HeaderMap, n: ::http::Method) {}\n");
    }

    #[test]
    fn upward_and_sideways_imports_are_refused() {
        refused("base/host.rs", "use crate::http::reply;\n", "src/base/host.rs:1: an upward import: `base` (layer 0)");
        refused("http/hop.rs", "use crate::config::Config;\n", "a sideways import: `http` (layer 1) uses `config`");
        refused("admin/mod.rs", "use crate::http::reply;\n", "an import that the table does not allow");
        refused("admin/mod.rs", "fn f() { crate::run::start() }\n", "a sideways import");
    }

    #[test]
    fn imports_are_seen_however_they_are_written() {
        refused(
            "base/host.rs",
            "use crate::{\n    base::x,\n    edge::{self, y},\n};\n",
            "src/base/host.rs:3: an upward",
        );
        refused("base/host.rs", "use crate :: edge;\n", "upward");
        refused("base/host.rs", "pub use crate::edge as e;\n", "upward");
        refused("base/host.rs", "fn f() -> crate::edge::X { g::<crate::base::Y>() }\n", "upward");
        refused("base/host.rs", "use super::super::edge::X;\n", "upward");
        refused("base/mod.rs", "use super::edge::X;\n", "upward");
        refused("base/mod.rs", "use super::{edge::X};\n", "upward");
        refused("admin/mod.rs", "use doorward::run::X;\n", "sideways");
        refused("base/host.rs", "macro_rules! m { () => { $crate::edge::x() } }\n", "upward");
        refused("base/host.rs", "use crate::*;\n", "takes the whole crate");
        refused("base/host.rs", "use crate as c;\n", "takes the whole crate");
        refused("base/host.rs", "use crate::{self as c};\n", "takes the whole crate");
    }

    #[test]
    fn comments_texts_and_tests_are_no_imports() {
        allowed("base/host.rs", "//! [`crate::edge`]\n/* crate::edge /* crate::edge */ unsafe */ // todo!()\n");
        allowed(
            "base/host.rs",
            "const T: &str = \"crate::edge \\\" unsafe\";\nconst R: &str = r#\"crate::edge\" todo!()\"#;\n",
        );
        allowed(
            "base/host.rs",
            "const C: char = '\"';\n// crate::edge\nconst D: char = '\\'';\nfn f<'a>(x: &'a str) {}\n",
        );
        allowed("base/host.rs", "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::edge;\n}\n");
        refused("base/host.rs", "#[cfg(test)]\nuse x;\nuse crate::edge;\n", "upward");
        refused("base/host.rs", "const C: char = '\"'; use crate::edge; const D: char = '\"';\n", "upward");
    }

    #[test]
    fn config_is_seen_by_the_snapshot_alone() {
        refused("edge/service.rs", "use crate::config::Config;\n", "edge/snapshot only");
        allowed("edge/snapshot/rules.rs", "use crate::config::Config;\n");
    }

    #[test]
    fn a_cycle_is_told_with_its_places() {
        let table = TABLE.replace("| 6 | admin | base, edge |", "| 6 | admin | base, edge, run |");
        let files = [("admin/mod.rs", "use crate::run::X;\n"), ("run/mod.rs", "use crate::admin::Y;\n")];
        let files = files.map(|(n, t)| (n.to_owned(), t.to_owned()));
        let problems = check(&read_table(&table).unwrap(), &files).join("\n");
        assert!(problems.contains("the table lets `admin` (layer 6) import `run`"), "{problems}");
        assert!(problems.contains("admin -> run at src/admin/mod.rs:1"), "{problems}");
        assert!(problems.contains("run -> admin at src/run/mod.rs:1"), "{problems}");
    }

    #[test]
    fn a_room_without_a_row_is_refused() {
        refused("cellar/mod.rs", "", "the room `cellar` is missing");
        refused("helper.rs", "", "the room `helper` is missing");
        assert!(read_table("//! no table\n").is_none());
    }

    #[test]
    fn a_file_is_measured_without_its_tests() {
        let long = "fn f() {}\n".repeat(LONGEST + 1);
        refused("base/host.rs", &long, "401 lines before its tests");
        let tests = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        allowed("base/host.rs", &tests);
    }

    #[test]
    fn what_a_room_may_not_hold_is_refused() {
        refused("base/host.rs", "static mut X: u8 = 0;\n", "`static mut`");
        refused("base/host.rs", "fn f() { todo!() }\n", "`todo!`");
        refused("base/host.rs", "fn f() {\n    unimplemented!(\"x\")\n}\n", "src/base/host.rs:2: `unimplemented!`");
        refused("base/host.rs", "fn f() { unsafe { g() } }\n", "`unsafe` without");
        refused("base/host.rs", "// SAFETY: far away.\n\n\n\n\n\n\n\nfn f() { unsafe { g() } }\n", "`unsafe` without");
        allowed("base/host.rs", "// SAFETY: g asks for nothing.\nfn f() { unsafe { g() } }\n#![deny(unsafe_code)]\n");
    }
}
