//! TOML → a tree of our own in which every value knows its place, the keys stand in file order and `${…}` is replaced.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Bytes `start..end` of the file with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub file: usize,
    pub start: usize,
    pub end: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub at: Place,
    pub value: Value,
}

impl Node {
    /// Whether this is the string `text`.
    pub fn value_is(&self, text: &str) -> bool {
        matches!(&self.value, Value::Text(value) if value == text)
    }

    /// Whether this is a list of nothing.
    pub fn value_is_empty_list(&self) -> bool {
        matches!(&self.value, Value::List(list) if list.is_empty())
    }
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    /// A number with a fraction or one too large, as written.
    Float,
    Flag(bool),
    Date,
    List(Vec<Node>),
    Table(Vec<Entry>),
}

impl Value {
    /// The kind in the words of the messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "a number",
            Value::Float => "a number with a fraction",
            Value::Flag(_) => "true or false",
            Value::Date => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub key_at: Place,
    pub node: Node,
}

/// Something that is wrong with the text itself.
#[derive(Debug)]
pub(super) struct Fault {
    pub at: Place,
    pub message: String,
    pub label: String,
    pub help: String,
    /// What follows this place in the file may be misread.
    pub derails: bool,
    /// The value that has lost its meaning by it: other problems with that one are not worth telling.
    pub spoils: Option<Place>,
}

/// Reads one file. The tree is whole when no fault derails; `${…}` is replaced in string values only, after the
/// syntax is known, so that no value of the environment can become syntax.
pub(super) fn read(file: usize, text: &str, env: &dyn Fn(&str) -> Option<String>) -> (Vec<Entry>, Vec<Fault>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { file, text, env, faults: Vec::new() };
    for error in errors {
        reader.syntax(&error);
    }
    let entries = reader.table(table.into_inner());
    (entries, reader.faults)
}

struct Reader<'a> {
    file: usize,
    text: &'a str,
    env: &'a dyn Fn(&str) -> Option<String>,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn place(&self, span: std::ops::Range<usize>) -> Place {
        Place { file: self.file, start: span.start, end: span.end }
    }

    /// Puts the parser's error into words. After one that derails, only the first tells the truth.
    fn syntax(&mut self, error: &toml::de::Error) {
        if self.faults.iter().any(|fault| fault.derails) {
            return;
        }
        let at = self.place(error.span().unwrap_or_default());
        let written = self.text.get(at.start..at.end).unwrap_or_default();
        let said = error.message();
        let (message, help, derails) = if said.starts_with("string values must be quoted") {
            ("this text needs quotes".to_owned(), format!("write \"{written}\""), false)
        } else if said == "duplicate key" {
            (format!("`{written}` is here a second time"), "keep one of the two".to_owned(), false)
        } else {
            let help = HELP.iter().find(|(start, _)| said.starts_with(start)).map_or("", |(_, help)| help);
            let message =
                if said.starts_with("missing escaped") { "`\\` begins an escape here, and this is none" } else { said };
            let local = ["invalid ", "missing escaped"].iter().any(|start| said.starts_with(start));
            (message.to_owned(), help.to_owned(), !local)
        };
        self.faults.push(Fault { at, message, label: String::new(), help, derails, spoils: None });
    }

    fn table(&mut self, table: DeTable<'_>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = table
            .into_iter()
            .map(|(key, node)| Entry {
                key_at: self.place(key.span()),
                key: key.into_inner().into_owned(),
                node: self.node(node),
            })
            .collect();
        entries.sort_by_key(|entry| (entry.key_at.start, entry.node.at.start));
        entries
    }

    fn node(&mut self, node: Spanned<DeValue<'_>>) -> Node {
        let at = self.place(node.span());
        let value = match node.into_inner() {
            DeValue::String(text) => Value::Text(self.expand(&text, at)),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Float,
            },
            DeValue::Float(_) => Value::Float,
            DeValue::Boolean(flag) => Value::Flag(flag),
            DeValue::Datetime(_) => Value::Date,
            DeValue::Array(list) => Value::List(list.into_iter().map(|node| self.node(node)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { at, value }
    }

    /// Replaces `${NAME}` and `${NAME:-fallback}`; `$${` stands for `${`.
    fn expand(&mut self, text: &str, at: Place) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            let (before, found) = rest.split_at(dollar);
            out.push_str(before);
            if let Some(after) = found.strip_prefix("$${") {
                out.push_str("${");
                rest = after;
            } else if let Some(inner) = found.strip_prefix("${") {
                let Some((reference, after)) = inner.split_once('}') else {
                    self.reference(
                        at,
                        "${",
                        "`${` is not closed",
                        "write ${NAME}, or $${ for the two characters themselves",
                    );
                    return out;
                };
                out.push_str(&self.variable(reference, at));
                rest = after;
            } else {
                out.push('$');
                rest = found.get(1..).unwrap_or_default();
            }
        }
        out.push_str(rest);
        out
    }

    fn variable(&mut self, reference: &str, at: Place) -> String {
        let (name, fallback) = match reference.split_once(":-") {
            Some((name, fallback)) => (name, Some(fallback)),
            None => (reference, None),
        };
        let sound = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(sound) {
            let message = format!("`{name}` is not the name of an environment variable");
            self.reference(
                at,
                "${",
                &message,
                "write ${NAME} or ${NAME:-fallback}, or $${ for the two characters themselves",
            );
            return String::new();
        }
        match ((self.env)(name).filter(|value| !value.is_empty() || fallback.is_none()), fallback) {
            (Some(value), _) => value,
            (None, Some(fallback)) => fallback.to_owned(),
            (None, None) => {
                let message = format!("the environment variable {name} is not set");
                let help = format!("set it, or give a fallback: ${{{name}:-value}}");
                self.reference(at, &format!("${{{name}"), &message, &help);
                String::new()
            }
        }
    }

    /// A fault inside a string; the caret goes to the reference where it can be found in the written text.
    fn reference(&mut self, at: Place, written: &str, message: &str, help: &str) {
        let spoils = Some(at);
        let slice = self.text.get(at.start..at.end).unwrap_or_default();
        let at = slice.find(written).map_or(at, |offset| {
            let length = slice.get(offset..).and_then(|rest| rest.find('}')).map_or(written.len(), |end| end + 1);
            Place { start: at.start + offset, end: at.start + offset + length, ..at }
        });
        let (message, help) = (message.to_owned(), help.to_owned());
        self.faults.push(Fault { at, message, label: String::new(), help, derails: false, spoils });
    }
}

/// What mends the parser's errors, by how they begin.
const HELP: &[(&str, &str)] = &[
    ("key with no value", "a line is `key = value`, a [table] or a # comment"),
    ("missing comma between array elements", "put a comma between the elements, or close the list with ]"),
    ("unclosed array", "close the list with ]"),
    ("unclosed table", "close the table's name with ]"),
    ("unclosed inline table", "close the table with }"),
    ("missing comma between key-value pairs", "put a comma between `key = value` and the next one"),
    ("invalid basic string", "close the string with \" on the same line"),
    ("invalid literal string", "close the string with ' on the same line"),
    ("invalid escape", "double the backslash, or use 'single quotes', in which it is an ordinary character"),
    ("missing escaped value", "double the backslash, or use 'single quotes', in which it is an ordinary character"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> (String, usize) {
        let env = |name: &str| match name {
            "SET" => Some("\"x\"\ny = 1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let (entries, faults) = read(0, &format!("k = '{text}'"), &env);
        match &entries[0].node.value {
            Value::Text(text) => (text.clone(), faults.len()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn references_are_replaced_and_cannot_become_syntax() {
        assert_eq!(expand("a${SET}b"), ("a\"x\"\ny = 1b".to_owned(), 0));
        assert_eq!(expand("${UNSET:-f}${EMPTY:-g}${EMPTY}"), ("fg".to_owned(), 0));
        assert_eq!(expand("$${SET} $ ^/v$"), ("${SET} $ ^/v$".to_owned(), 0));
        assert_eq!(expand("${UNSET}").1, 1);
        assert_eq!(expand("${un closed").1, 1);
        assert_eq!(expand("${}").1, 1);
    }

    #[test]
    fn keys_stand_in_file_order() {
        let (entries, faults) = read(0, "[z]\nb = 1\na = 2\n[c]\n", &|_| None);
        assert!(faults.is_empty());
        assert_eq!(entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["z", "c"]);
    }
}
