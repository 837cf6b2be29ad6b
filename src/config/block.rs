//! A typed cursor over one table: each getter knows its key, [`Block::finish`] reports the keys that nobody asked for.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::item::Item;
use super::reading::Reading;
use super::tree::{Entry, Place, Value};
use super::words::closest;
use crate::base::units::format_size;

/// One table.
pub(super) struct Block<'a> {
    pub reading: &'a Reading<'a>,
    /// Its name as messages say it: `[site.app]`, `php`.
    pub name: String,
    /// Its header, or the key that it is the value of.
    pub at: Place,
    entries: &'a [Entry],
    known: RefCell<Vec<&'static str>>,
    refused: RefCell<Vec<&'static str>>,
}

impl<'a> Block<'a> {
    pub fn new(reading: &'a Reading<'a>, name: String, at: Place, entries: &'a [Entry]) -> Block<'a> {
        Block { reading, name, at, entries, known: RefCell::default(), refused: RefCell::default() }
    }

    /// The value of a key, where it is written.
    pub fn take(&self, key: &'static str) -> Option<Item<'a>> {
        self.known.borrow_mut().push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(Item { reading: self.reading, key, key_at: entry.key_at, node: &entry.node })
    }

    /// The place of a key that is refused, where it is written. It is not offered in messages.
    pub fn refuse(&self, key: &'static str) -> Option<Place> {
        self.refused.borrow_mut().push(key);
        self.has(key).then(|| self.place(key))
    }

    /// Whether a key that nobody has asked for so far was probably meant to be one of `keys`.
    pub fn misspelt(&self, keys: &[&'static str]) -> bool {
        let known = self.known.borrow();
        let unknown = self.entries.iter().filter(|entry| !known.contains(&entry.key.as_str()));
        unknown.into_iter().any(|entry| closest(&entry.key, keys.iter().copied()).is_some())
    }

    /// Whether a key is written; it does not become known by this.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// The place of a key, or the block's own.
    pub fn place(&self, key: &str) -> Place {
        self.entries.iter().find(|entry| entry.key == key).map_or(self.at, |entry| entry.key_at)
    }

    /// All entries, for tables whose keys are free.
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// Records that a key does nothing here, and why.
    pub fn no_effect(&self, key: &str, why: &str, help: &str) {
        if self.has(key) {
            self.reading.problem(self.place(key), format!("`{key}` has no effect: {why}"), "", help);
        }
    }

    pub fn flag(&self, key: &'static str, default: bool) -> bool {
        self.take(key).and_then(|item| item.flag()).unwrap_or(default)
    }

    pub fn duration(&self, key: &'static str, default: Duration) -> Duration {
        self.take(key).and_then(|item| item.duration()).unwrap_or(default)
    }

    /// A duration that something waits for: 0 is a problem.
    pub fn wait(&self, key: &'static str, default: Duration) -> Duration {
        let Some((item, value)) = self.take(key).and_then(|item| item.duration().map(|value| (item, value))) else {
            return default;
        };
        if value.is_zero() {
            item.problem(
                format!("`{key}` must be longer than 0: every wait has an end"),
                "write a long time, such as \"1h\"",
            );
            return default;
        }
        value
    }

    /// A size of which 0 means none.
    pub fn size_or_none(&self, key: &'static str, default: Option<u64>) -> Option<u64> {
        match self.take(key).and_then(|item| item.size()) {
            Some(0) => None,
            Some(size) => Some(size),
            None => default,
        }
    }

    /// A size within `range`.
    pub fn size(&self, key: &'static str, default: usize, range: RangeInclusive<u64>) -> usize {
        let Some((item, size)) = self.take(key).and_then(|item| item.size().map(|size| (item, size))) else {
            return default;
        };
        if !range.contains(&size) {
            let (least, most) = (format_size(*range.start()), format_size(*range.end()));
            item.problem(
                format!("`{key}` must be from {least} to {most}"),
                &format!("write \"{}\"", format_size(default as u64)),
            );
            return default;
        }
        usize::try_from(size).unwrap_or(default)
    }

    pub fn integer(&self, key: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        self.take(key).and_then(|item| item.integer(range)).unwrap_or(default)
    }

    pub fn one_of<T: Clone>(&self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        self.take(key).and_then(|item| item.one_of(choices)).unwrap_or(default)
    }

    /// A string of which `""` means none.
    pub fn text(&self, key: &'static str) -> Option<&'a str> {
        self.take(key).and_then(|item| item.text()).filter(|text| !text.is_empty())
    }

    /// A path of which `""` means none; relative ones are relative to the folder of the file.
    pub fn path(&self, key: &'static str) -> Option<PathBuf> {
        self.take(key).and_then(|item| item.path())
    }

    /// A duration of which `""` means none.
    pub fn optional_duration(&self, key: &'static str) -> Option<Duration> {
        let item = self.take(key)?;
        if matches!(&item.node.value, Value::Text(text) if text.is_empty()) { None } else { item.duration() }
    }

    /// Each string of a list through `read`; problems with one leave the others.
    pub fn list<T>(&self, key: &'static str, read: impl Fn(&Item<'a>, &'a str) -> Option<T>) -> Option<Vec<T>> {
        self.take(key)?.list(read)
    }

    pub fn table(&self, key: &'static str) -> Option<Block<'a>> {
        self.take(key)?.table(&self.child(key))
    }

    /// A table, or several of the same name.
    pub fn tables(&self, key: &'static str) -> Vec<Block<'a>> {
        let Some(item) = self.take(key) else { return Vec::new() };
        let name = self.child(key);
        match &item.node.value {
            Value::List(nodes) => nodes.iter().filter_map(|node| Item { node, ..item }.table(&name)).collect(),
            _ => item.table(&name).into_iter().collect(),
        }
    }

    fn child(&self, key: &str) -> String {
        match self.name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(name) => format!("[{name}.{key}]"),
            None => format!("[{key}]"),
        }
    }

    /// Reports the keys that are unknown here.
    pub fn finish(self) {
        let mut known = self.known.into_inner();
        let refused = self.refused.into_inner();
        known.sort_unstable();
        known.dedup();
        let unknown = |entry: &&Entry| !known.contains(&entry.key.as_str()) && !refused.contains(&entry.key.as_str());
        for entry in self.entries.iter().filter(unknown) {
            let help = match closest(&entry.key, known.iter().copied()) {
                Some(key) => format!("did you mean `{key}`?"),
                None => wrapped(&format!("its keys are {}", known.join(", "))),
            };
            self.reading.problem(entry.key_at, format!("`{}` is not a key of {}", entry.key, self.name), "", help);
        }
    }
}

/// The text in lines of at most about a hundred characters.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split(' ') {
        if length > 0 && length + word.len() > 100 {
            lines.push('\n');
            length = 0;
        } else if length > 0 {
            lines.push(' ');
        }
        lines.push_str(word);
        length += word.len() + 1;
    }
    lines
}
