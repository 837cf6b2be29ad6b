//! One reading of a configuration: the files, and every problem found in them so far.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::problem::{Problem, Problems};
use super::tree::{Entry, Place, Value, read};

/// A file's text, the name that messages use for it, and its path.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub name: String,
    pub path: PathBuf,
    pub text: String,
}

/// Finds the files of one `include` pattern, sorted.
pub(super) type Lookup<'a> = dyn Fn(&str) -> Result<Vec<Source>, Refusal> + 'a;

/// Why a pattern of `include` finds nothing: what is wrong, and what to do.
pub(super) type Refusal = (String, String);

struct Complaint {
    at: Place,
    message: String,
    label: String,
    help: String,
    /// It says that something is missing: not to be believed when part of the file was not understood.
    missing: bool,
}

/// The files being read. Problems gather here; reading goes on after each.
pub(super) struct Reading<'a> {
    /// Relative paths are relative to this folder.
    pub folder: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
    sources: Vec<Source>,
    /// For each file, the place after which it was not understood.
    derailed: Vec<Option<usize>>,
    /// Values that lost their meaning: only the reason is told.
    spoiled: Vec<Place>,
    complaints: RefCell<Vec<Complaint>>,
}

impl<'a> Reading<'a> {
    pub fn new(folder: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Reading<'a> {
        Reading {
            folder,
            env,
            sources: Vec::new(),
            derailed: Vec::new(),
            spoiled: Vec::new(),
            complaints: RefCell::default(),
        }
    }

    /// Reads `main` and what it includes into one tree. A table stands in one file only, `site` aside.
    pub fn merge(&mut self, main: Source, lookup: &Lookup<'_>) -> Vec<Entry> {
        let mut root = self.add(main);
        let patterns: Vec<(String, Place)> = root
            .iter()
            .filter(|entry| entry.key == "include")
            .filter_map(|entry| match &entry.node.value {
                Value::List(nodes) => Some(nodes),
                _ => None,
            })
            .flatten()
            .filter_map(|node| match &node.value {
                Value::Text(text) => Some((text.clone(), node.at)),
                _ => None,
            })
            .collect();
        for (pattern, at) in patterns {
            match lookup(&pattern) {
                Ok(found) => {
                    for source in found {
                        if self.sources.iter().all(|known| known.path != source.path) {
                            let entries = self.add(source);
                            self.join(&mut root, entries);
                        }
                    }
                }
                Err((message, help)) => self.problem(at, message, "", help),
            }
        }
        root
    }

    fn add(&mut self, source: Source) -> Vec<Entry> {
        let file = self.sources.len();
        let (entries, faults) = read(file, &source.text, self.env);
        self.sources.push(source);
        self.derailed.push(faults.iter().filter(|fault| fault.derails).map(|fault| fault.at.start).min());
        for fault in faults {
            self.spoiled.extend(fault.spoils);
            self.problem(fault.at, fault.message, fault.label, fault.help);
        }
        entries
    }

    fn join(&self, root: &mut Vec<Entry>, entries: Vec<Entry>) {
        for entry in entries {
            if entry.key == "include" {
                self.problem(
                    entry.key_at,
                    "an included file cannot include others",
                    "",
                    "name all files in the main file",
                );
                continue;
            }
            let Some(known) = root.iter_mut().find(|known| known.key == entry.key) else {
                root.push(entry);
                continue;
            };
            match (&mut known.node.value, entry.node.value) {
                (Value::Table(known), Value::Table(more)) if entry.key == "site" => {
                    for site in more {
                        match known.iter().find(|other| other.key == site.key) {
                            Some(other) => self.twice(&format!("[site.{}]", site.key), site.key_at, other.key_at),
                            None => known.push(site),
                        }
                    }
                }
                _ => self.twice(&format!("[{}]", entry.key), entry.key_at, known.key_at),
            }
        }
    }

    fn twice(&self, what: &str, at: Place, other: Place) {
        let place = self.describe(other);
        self.problem(
            at,
            format!("{what} is in {place} already"),
            "",
            "keep one of the two, or give this one another name",
        );
    }

    /// Records a problem. Label and help may be empty.
    pub fn problem(&self, at: Place, message: impl Into<String>, label: impl Into<String>, help: impl Into<String>) {
        self.record(at, message.into(), label.into(), help.into(), false);
    }

    /// Records that something is not there. `at` is what misses it.
    pub fn missing(&self, at: Place, message: impl Into<String>, help: impl Into<String>) {
        self.record(at, message.into(), String::new(), help.into(), true);
    }

    fn record(&self, at: Place, message: String, label: String, help: String, missing: bool) {
        self.complaints.borrow_mut().push(Complaint { at, message, label, help, missing });
    }

    /// `proxy.toml:12`, for messages that name a second place.
    pub fn describe(&self, at: Place) -> String {
        let Some(source) = self.sources.get(at.file) else { return String::new() };
        let before = source.text.get(..at.start).unwrap_or(&source.text);
        format!("{}:{}", source.name, before.matches('\n').count() + 1)
    }

    /// The paths of all files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.sources.iter().map(|source| source.path.clone()).collect()
    }

    /// Ends the reading: nothing when all is well, else every problem by file and place.
    pub fn finish(self) -> Result<(), Problems> {
        let derailed = self.derailed.iter().any(Option::is_some);
        let spoiled = &self.spoiled;
        let mut complaints = self.complaints.into_inner();
        complaints.retain(|complaint| {
            let behind = self.derailed.get(complaint.at.file).copied().flatten();
            behind.is_none_or(|start| complaint.at.start <= start)
                && !(derailed && complaint.missing)
                && !spoiled.contains(&complaint.at)
        });
        if complaints.is_empty() {
            return Ok(());
        }
        complaints.sort_by_key(|complaint| (complaint.at.file, complaint.at.start));
        let problems = complaints.into_iter().filter_map(|c| {
            let source = self.sources.get(c.at.file)?;
            Some(Problem::at(&source.name, &source.text, c.at.start, c.at.end, c.message, c.label, c.help))
        });
        Err(Problems(problems.collect()))
    }
}
