//! `include = ["sites/*.toml"]`: which files a pattern names, and `load`.

use std::path::{Path, PathBuf};

use super::model::Config;
use super::problem::{Problem, Problems};
use super::reading::{Refusal, Source};

/// Reads the file at `path` and all that it includes. Messages name the file as `path` does.
///
/// # Errors
/// Every problem of the files, sorted by file and place.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Problems> {
    let name = path.display().to_string();
    let refuse = |message: String, help: &str| Problems(vec![Problem::of_file(&name, message, help)]);
    let text = read(path).map_err(|(message, help)| refuse(message, &help))?;
    let whole = std::path::absolute(path).map_err(|why| refuse(format!("the folder is not known: {why}"), ""))?;
    let folder = whole.parent().unwrap_or(Path::new("/")).to_owned();
    let beside = path.parent().unwrap_or(Path::new(""));
    let main = Source { name: name.clone(), path: whole, text };
    super::assemble(main, &|pattern| find(&folder, beside, pattern), &folder, env)
}

/// The files that [`load`] would read, as far as they can be told: to notice that one has changed. `patterns` are those
/// of the main file's `include`, see [`include_patterns`]. A file that is named without `*` is there even if it is not.
pub fn files(path: &Path, patterns: &[String]) -> Vec<PathBuf> {
    let mut files = vec![path.to_owned()];
    let folder = path.parent().unwrap_or(Path::new(""));
    for (parent, last) in patterns.iter().filter_map(|pattern| split(pattern).ok()) {
        let within = folder.join(parent);
        if last.contains('*') {
            let names = names(&within, last).unwrap_or_default();
            files.extend(names.iter().map(|name| within.join(name)));
        } else {
            files.push(within.join(last));
        }
    }
    files
}

/// The patterns of `include` in the file at `path`; `None` while it cannot be read.
pub fn include_patterns(path: &Path) -> Option<Vec<String>> {
    let table: toml::Table = std::fs::read_to_string(path).ok()?.parse().ok()?;
    let list = |value: &toml::Value| match value {
        toml::Value::String(one) => vec![one.clone()],
        toml::Value::Array(all) => all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    Some(table.get("include").map(list).unwrap_or_default())
}

fn read(path: &Path) -> Result<String, Refusal> {
    let bytes = std::fs::read(path).map_err(|why| {
        let help = match why.kind() {
            std::io::ErrorKind::NotFound => "name the file with -c, or create it; proxy.example.toml is a start",
            std::io::ErrorKind::PermissionDenied => "give the account that doorward runs under the right to read it",
            _ => "",
        };
        (format!("cannot be read: {}", plain(&why)), help.to_owned())
    })?;
    String::from_utf8(bytes).map_err(|_| ("is not UTF-8".to_owned(), "save it as UTF-8 text".to_owned()))
}

/// The error without its number.
fn plain(why: &std::io::Error) -> String {
    let text = why.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// The files of one pattern, sorted by name. A pattern without `*` must name a file.
fn find(folder: &Path, beside: &Path, pattern: &str) -> Result<Vec<Source>, Refusal> {
    let (parent, last) = split(pattern)?;
    let source = |name: &str| -> Result<Source, Refusal> {
        let path: PathBuf = folder.join(parent).join(name).components().collect();
        let text = read(&path).map_err(|(why, help)| (format!("{} {why}", path.display()), help))?;
        Ok(Source { name: beside.join(parent).join(name).display().to_string(), path, text })
    };
    if !last.contains('*') {
        return Ok(vec![source(last)?]);
    }
    let within = folder.join(parent);
    let names = names(&within, last).map_err(|why| {
        (
            format!("the folder {} cannot be read: {}", within.display(), plain(&why)),
            "create it, or remove the pattern".to_owned(),
        )
    })?;
    names.iter().map(|name| source(name)).collect()
}

/// The names in a folder that are of `pattern`, sorted.
fn names(folder: &Path, pattern: &str) -> std::io::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| matches(pattern, name))
        .collect();
    names.sort();
    Ok(names)
}

/// The folder and the last component of a pattern. Only the last may have a `*`.
pub(super) fn split(pattern: &str) -> Result<(&str, &str), Refusal> {
    let (parent, last) = match pattern.rfind('/') {
        Some(at) => pattern.split_at(at + 1),
        None => ("", pattern),
    };
    if parent.contains('*') || last.contains("**") {
        let help = "write a pattern such as \"sites/*.toml\" for each folder".to_owned();
        return Err((format!("\"{pattern}\": `*` may stand in the last part only"), help));
    }
    if last.is_empty() {
        return Err((format!("\"{pattern}\" is not the name of a file"), "write \"sites/*.toml\"".to_owned()));
    }
    Ok((parent, last))
}

/// Whether `name` is of `pattern`; `*` stands for any characters, but no leading dot.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else { return false };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_are_read_are_known_also_when_the_main_one_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.toml");
        std::fs::create_dir(folder.path().join("sites")).unwrap();
        for name in ["sites/b.toml", "sites/a.toml", "sites/.a.toml.swp", "sites/a.toml~"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(include_patterns(&path), None);
        std::fs::write(&path, "include = [\"sites/*.toml\", \"more.toml\", \"no/*.toml\"]\n[site.app]\n").unwrap();
        let patterns = include_patterns(&path).unwrap();
        let names = ["proxy.toml", "sites/a.toml", "sites/b.toml", "more.toml"];
        assert_eq!(files(&path, &patterns), names.map(|name| folder.path().join(name)));
        std::fs::write(&path, "include = [").unwrap();
        assert_eq!(include_patterns(&path), None);
    }

    #[test]
    fn a_star_stands_for_any_characters_but_no_leading_dot() {
        for (pattern, name, is) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", false),
            ("*.toml", ".a.toml", false),
            ("*.toml", "a.toml.bak", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxc", false),
            ("ab*ba", "aba", false),
            ("a.toml", "a.toml", true),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
        assert!(split("*/a.toml").is_err());
        assert!(split("sites/").is_err());
        assert_eq!(split("sites/*.toml").unwrap(), ("sites/", "*.toml"));
    }
}
