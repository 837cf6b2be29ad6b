//! What is wrong with a file, told so that it can be mended: the place, the line with a caret, and what to write.

use std::fmt;

/// One problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named on the command line, or relative to that one.
    pub file: String,
    /// The line, from 1; 0 where the file itself is the problem.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What stands beside the caret; may be empty.
    pub label: String,
    /// What to write instead; may be empty.
    pub help: String,
    /// The line of the file.
    pub source: String,
    /// How many characters of the line are meant.
    pub width: usize,
}

/// A line longer than this is shown in part.
const LONGEST_LINE: usize = 120;
/// How much of a long line is shown in front of the caret.
const LEAD: usize = 40;

impl Problem {
    /// A problem with a file as a whole, such as one that cannot be read.
    pub fn of_file(file: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem {
            file: file.into(),
            line: 0,
            column: 0,
            message: message.into(),
            label: String::new(),
            help: help.into(),
            source: String::new(),
            width: 0,
        }
    }

    /// A problem at the bytes `start..end` of `text`. Places outside the text are moved to its end.
    pub fn at(
        file: &str,
        text: &str,
        start: usize,
        end: usize,
        message: String,
        label: String,
        help: String,
    ) -> Problem {
        let before = text.get(..start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = text.get(line_start..).unwrap_or_default();
        let line = line.split('\n').next().unwrap_or_default().trim_end_matches('\r');
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        let shown = line.chars().count();
        let meant = text.get(start..end).unwrap_or_default().split('\n').next().unwrap_or_default();
        Problem {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: column + 1,
            message,
            label,
            help,
            source: line.to_owned(),
            width: meant.trim_end().chars().count().min(shown.saturating_sub(column)).max(1),
        }
    }

    /// The line as it is shown, and the column of the caret in it, from 0.
    fn window(&self) -> (String, usize) {
        let caret = self.column.saturating_sub(1);
        let length = self.source.chars().count();
        if length <= LONGEST_LINE {
            return (self.source.clone(), caret);
        }
        let start = caret.saturating_sub(LEAD);
        let mut shown: String = self.source.chars().skip(start).take(LONGEST_LINE).collect();
        if start + LONGEST_LINE < length {
            shown.push('…');
        }
        if start == 0 { (shown, caret) } else { (format!("…{shown}"), caret - start + 1) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            writeln!(f, "{}: {}", self.file, self.message)?;
        } else {
            writeln!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
            let (shown, caret) = self.window();
            // A tab under a tab keeps the caret below its character whatever the terminal makes of it.
            let lead: String = shown.chars().take(caret).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let room = shown.chars().count().saturating_sub(caret).max(1);
            writeln!(f, "{:>5} | {shown}", self.line)?;
            let label = if self.label.is_empty() { String::new() } else { format!(" {}", self.label) };
            writeln!(f, "      | {lead}{}{label}", "^".repeat(self.width.min(room)))?;
        }
        for (at, line) in self.help.lines().enumerate() {
            writeln!(f, "{}{line}", if at == 0 { "help: " } else { "      " })?;
        }
        Ok(())
    }
}

/// All problems of a configuration, by file and place. Never empty when it is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut files: Vec<&str> = Vec::new();
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
            if !files.contains(&problem.file.as_str()) {
                files.push(&problem.file);
            }
        }
        let many = if self.0.len() == 1 { "problem" } else { "problems" };
        write!(f, "{} {many} in {}", self.0.len(), files.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_below_what_is_meant() {
        let text = "a = 1\n\theader = 60 # x\n";
        let start = text.find("60").unwrap();
        let problem =
            Problem::at("p.toml", text, start, start + 2, "no unit".into(), "here".into(), "write\n\"60s\"".into());
        assert_eq!(
            problem.to_string(),
            "p.toml:2:11: no unit\n    2 | \theader = 60 # x\n      | \t         ^^ here\nhelp: write\n      \"60s\"\n"
        );
    }

    #[test]
    fn a_long_line_is_shown_around_its_caret() {
        let text = format!("{}X{}", "a".repeat(300), "b".repeat(300));
        let shown = Problem::at("p", &text, 300, 301, "m".into(), String::new(), String::new()).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        let caret = lines[2].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[1].chars().nth(caret), Some('X'));
        assert!(lines[1].chars().count() < 140);
    }

    #[test]
    fn places_outside_the_text_are_no_panic() {
        let problem = Problem::at("p", "ä\n", 1, 99, "m".into(), String::new(), String::new());
        assert!(problem.to_string().starts_with("p:"));
    }
}
