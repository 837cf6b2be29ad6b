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
    let entries = std::fs::read_dir(&within).map_err(|why| {
        (
            format!("the folder {} cannot be read: {}", within.display(), plain(&why)),
            "create it, or remove the pattern".to_owned(),
        )
    })?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| matches(last, name))
        .collect();
    names.sort();
    names.iter().map(|name| source(name)).collect()
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
