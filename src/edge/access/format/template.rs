//! Lines of the operator's own.

use super::Record;
use super::field::{Field, push_text};

/// A line of the operator's own: text with `{name}` for each field. `{{` and `}}` are braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// There is no field of this name.
    #[error("there is no field {{{0}}}")]
    Name(String),
    /// A brace without its other half.
    #[error("a brace is not closed; write {{{{ or }}}} for the brace itself")]
    Brace,
    /// No field at all: every line would be the same.
    #[error("a template has at least one field, such as {{target}}")]
    NoField,
    /// A line feed or another control character.
    #[error("a template is one line without control characters")]
    Control,
}

impl Template {
    /// Reads a template as it is written in `log.format`.
    pub fn parse(text: &str) -> Result<Template, InvalidTemplate> {
        if text.chars().any(char::is_control) {
            return Err(InvalidTemplate::Control);
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(brace) = rest.find(['{', '}']) {
            let (before, from_brace) = rest.split_at(brace);
            literal.push_str(before);
            if let Some(after) = from_brace.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = from_brace.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else {
                let inside = from_brace.strip_prefix('{').and_then(|inside| inside.split_once('}'));
                let (name, after) = inside.ok_or(InvalidTemplate::Brace)?;
                let (_, field) = Field::NAMED
                    .into_iter()
                    .find(|(known, _)| *known == name)
                    .ok_or_else(|| InvalidTemplate::Name(name.to_owned()))?;
                parts.push(Part::Text(std::mem::take(&mut literal)));
                parts.push(Part::Field(field));
                rest = after;
            }
        }
        literal.push_str(rest);
        parts.push(Part::Text(literal));
        parts.retain(|part| *part != Part::Text(String::new()));
        if !parts.iter().any(|part| matches!(part, Part::Field(_))) {
            return Err(InvalidTemplate::NoField);
        }
        Ok(Template(parts))
    }

    pub(super) fn write(&self, record: &Record<'_>, mask: &[String], out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Field(field) => push_text(*field, record, mask, out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{line, record};
    use super::super::{Field, Format};
    use super::*;

    #[test]
    fn a_template_shows_its_fields() {
        let template = Template::parse("{{{site}}} {client} \"{request}\" {status} {duration} {user} é").unwrap();
        assert_eq!(
            line(Format::Template(template), &record()),
            "{app} 192.0.2.7 \"GET /socket.io/?EIO=4&token=*** HTTP/1.1\" 200 12.346 - é\n"
        );
        assert_eq!(Template::parse("{tarket}"), Err(InvalidTemplate::Name("tarket".to_owned())));
        assert_eq!(Template::parse("{target"), Err(InvalidTemplate::Brace));
        assert_eq!(Template::parse("target}"), Err(InvalidTemplate::Brace));
        assert_eq!(Template::parse("target {{x}}"), Err(InvalidTemplate::NoField));
        assert_eq!(Template::parse("{target}\n"), Err(InvalidTemplate::Control));
        for (name, _) in Field::NAMED {
            assert!(Template::parse(&format!("{{{name}}}")).is_ok());
        }
        assert_eq!(InvalidTemplate::Name("x".into()).to_string(), "there is no field {x}");
    }
}
