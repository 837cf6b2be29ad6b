//! One value of the file and the typed readings of it; a reading that fails records why and what to write.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::block::Block;
use super::reading::Reading;
use super::tree::{Node, Place, Value};
use super::words::closest;
use crate::base::units::{format_size, parse_duration, parse_size};

/// One value and the key that it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    pub reading: &'a Reading<'a>,
    pub key: &'static str,
    pub key_at: Place,
    pub node: &'a Node,
}

impl<'a> Item<'a> {
    /// Records a problem with this value.
    pub fn problem(&self, message: impl Into<String>, help: &str) {
        self.reading.problem(self.node.at, message, "", help);
    }

    /// Records that the value is of another kind than `expected`.
    pub fn wrong(&self, expected: &str, help: &str) {
        let message = format!("`{}` is {}, but must be {expected}", self.key, self.node.value.kind());
        self.reading.problem(self.node.at, message, format!("expected {expected}"), help);
    }

    pub fn flag(&self) -> Option<bool> {
        match &self.node.value {
            Value::Flag(flag) => Some(*flag),
            Value::Text(text) if text == "true" || text == "false" => {
                self.wrong("true or false", &format!("write {} = {text}, without quotes", self.key));
                None
            }
            _ => {
                self.wrong("true or false", &format!("write {} = true or {} = false", self.key, self.key));
                None
            }
        }
    }

    pub fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Integer(number) => {
                self.wrong("a string", &format!("write {} = \"{number}\"", self.key));
                None
            }
            _ => {
                self.wrong("a string", &format!("write {} = \"…\"", self.key));
                None
            }
        }
    }

    /// A path, absolute. Empty is none.
    pub fn path(&self) -> Option<PathBuf> {
        let text = self.text().filter(|text| !text.is_empty())?;
        if text.starts_with('~') {
            self.problem("`~` is not replaced here", "write the whole path: \"/home/name/…\"");
        }
        if text.contains('\0') {
            self.problem("a path has no NUL character", "");
        }
        // `.` is dropped; `..` stays, for behind a symlink it is not the folder that the text suggests.
        Some(self.reading.folder.join(text).components().collect())
    }

    pub fn duration(&self) -> Option<Duration> {
        const UNITS: &str = "the units are ms, s, m, h, d";
        match &self.node.value {
            Value::Integer(number) => {
                let days = number / 86_400;
                let whole = if days > 0 && number % 86_400 == 0 { format!("{days}d") } else { format!("{number}s") };
                let help = format!("write {} = \"{whole}\"", self.key);
                let message = format!("`{}` is a number without a unit", self.key);
                self.reading.problem(self.node.at, message, UNITS, help);
                None
            }
            Value::Text(text) => match parse_duration(text) {
                Ok(duration) => Some(duration),
                Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                    let message = format!("`{}` has no unit", self.key);
                    self.reading.problem(self.node.at, message, UNITS, format!("write {} = \"{text}s\"", self.key));
                    None
                }
                Err(why) => {
                    self.problem(
                        format!("`{}` is not a duration: {why}", self.key),
                        "write a whole number and its unit: \"60s\", \"500ms\", \"1h\"",
                    );
                    None
                }
            },
            _ => {
                self.wrong("a duration", &format!("write {} = \"60s\"", self.key));
                None
            }
        }
    }

    /// A size in bytes; 0 needs no unit.
    pub fn size(&self) -> Option<u64> {
        const UNITS: &str = "the units are KB, MB, GB (1000) and KiB, MiB, GiB (1024)";
        let suggest = |number: u64| match number {
            // Nobody means so few bytes: the number was meant in megabytes or kilobytes.
            0..=1023 => format!("{number}MiB"),
            _ => format_size(number),
        };
        match &self.node.value {
            Value::Integer(0) => Some(0),
            Value::Integer(number) => {
                let meant = u64::try_from(*number).map_or_else(|_| "20MiB".to_owned(), suggest);
                let message = format!("`{}` is a number without a unit", self.key);
                self.reading.problem(self.node.at, message, UNITS, format!("write {} = \"{meant}\"", self.key));
                None
            }
            Value::Text(text) => match (parse_size(text), text.parse::<u64>()) {
                (Ok(size), _) => Some(size),
                (Err(_), Ok(number)) => {
                    let help = format!("write {} = \"{}\"", self.key, suggest(number));
                    self.reading.problem(self.node.at, format!("`{}` has no unit", self.key), UNITS, help);
                    None
                }
                (Err(why), _) => {
                    self.problem(
                        format!("`{}` is not a size: {why}", self.key),
                        "write a whole number and its unit: \"20MiB\", \"64KB\"",
                    );
                    None
                }
            },
            _ => {
                self.wrong("a size", &format!("write {} = \"20MiB\"", self.key));
                None
            }
        }
    }

    pub fn integer(&self, range: RangeInclusive<usize>) -> Option<usize> {
        match &self.node.value {
            Value::Integer(number) => match usize::try_from(*number).ok().filter(|n| range.contains(n)) {
                Some(number) => Some(number),
                None => {
                    self.problem(format!("`{}` must be from {} to {}", self.key, range.start(), range.end()), "");
                    None
                }
            },
            Value::Text(text) if text.parse::<usize>().is_ok() => {
                self.wrong("a number", &format!("write {} = {text}, without quotes", self.key));
                None
            }
            _ => {
                self.wrong("a whole number", &format!("write {} = {}", self.key, range.start()));
                None
            }
        }
    }

    pub fn one_of<T: Clone>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let Value::Text(text) = &self.node.value else {
            self.wrong("a string", &format!("write one of {names}"));
            return None;
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| name == text) {
            return Some(value.clone());
        }
        let help = match closest(text, choices.iter().map(|(name, _)| *name)) {
            Some(name) => format!("did you mean \"{name}\"? `{}` is one of {names}", self.key),
            None => format!("write one of {names}"),
        };
        self.problem(format!("\"{text}\" is not a value of `{}`", self.key), &help);
        None
    }

    /// The elements of a list.
    pub fn items(&self) -> Option<Vec<Item<'a>>> {
        match &self.node.value {
            Value::List(nodes) => Some(nodes.iter().map(|node| Item { node, ..*self }).collect()),
            Value::Text(text) => {
                self.wrong("a list", &format!("write {} = [\"{text}\"]", self.key));
                None
            }
            _ => {
                self.wrong("a list", &format!("write {} = [\"…\"]", self.key));
                None
            }
        }
    }

    /// The elements of a list, or the one string that stands for a list of one.
    pub fn one_or_many(&self) -> Option<Vec<Item<'a>>> {
        match &self.node.value {
            Value::Text(_) => Some(vec![*self]),
            Value::List(nodes) if nodes.is_empty() => {
                self.problem(format!("`{}` is empty", self.key), "name at least one");
                None
            }
            Value::List(_) => self.items(),
            Value::Integer(port) => {
                let host = if self.key == "php" { "127.0.0.1" } else { "http://127.0.0.1" };
                self.wrong("a string or a list of strings", &format!("write {} = \"{host}:{port}\"", self.key));
                None
            }
            _ => {
                self.wrong(
                    "a string or a list of strings",
                    &format!("write {} = \"…\" or {} = [\"…\", \"…\"]", self.key, self.key),
                );
                None
            }
        }
    }

    /// Each string of a list through `read`.
    pub fn list<T>(&self, read: impl Fn(&Item<'a>, &'a str) -> Option<T>) -> Option<Vec<T>> {
        Some(self.items()?.iter().filter_map(|item| read(item, item.element()?)).collect())
    }

    /// This element of a list as a string.
    pub fn element(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            other => {
                let message = format!("`{}` holds {} where a string must be", self.key, other.kind());
                self.reading.problem(self.node.at, message, "expected a string", "put it in quotes");
                None
            }
        }
    }

    pub fn table(&self, name: &str) -> Option<Block<'a>> {
        match &self.node.value {
            Value::Table(entries) => Some(Block::new(self.reading, name.to_owned(), self.node.at, entries)),
            _ => {
                self.wrong("a table", &format!("write {} = {{ … }}, or a {name} of its own", self.key));
                None
            }
        }
    }
}
