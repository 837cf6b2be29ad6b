//! An application's complaints as lines that a log can take: no control character reaches a terminal, no script fills
//! the disk.

/// The most bytes of one line.
const MAX_LINE: usize = 8 * 1024;
/// The most bytes of one request.
const MAX_TOTAL: usize = 64 * 1024;

/// Cuts a stream of bytes into log lines.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    /// Bytes of this line that were over its limit.
    over: usize,
    total: usize,
    dropped: usize,
}

impl Lines {
    /// Takes the next part and gives each line that it completes to `log`.
    pub fn push(&mut self, data: &[u8], mut log: impl FnMut(&str)) {
        let room = MAX_TOTAL.saturating_sub(self.total).min(data.len());
        let (data, over) = data.split_at_checked(room).unwrap_or((data, &[]));
        self.total += data.len();
        self.dropped = self.dropped.saturating_add(over.len());
        let mut rest = data;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (line, next) = rest.split_at_checked(at).unwrap_or((rest, &[]));
            self.hold(line);
            self.flush(&mut log);
            rest = next.get(1..).unwrap_or_default();
        }
        self.hold(rest);
    }

    /// Gives what is left to `log`, and how much was dropped.
    pub fn finish(&mut self, mut log: impl FnMut(&str)) {
        self.flush(&mut log);
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            log(&format!("({dropped} more bytes on stderr were dropped)"));
        }
    }

    fn hold(&mut self, data: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len()).min(data.len());
        let (data, over) = data.split_at_checked(room).unwrap_or((data, &[]));
        self.line.extend_from_slice(data);
        self.over += over.len();
    }

    fn flush(&mut self, log: &mut impl FnMut(&str)) {
        let mut text = escape(self.line.trim_ascii_end());
        if self.over > 0 {
            text.push_str(&format!(" ({} more bytes)", self.over));
        }
        if !text.is_empty() {
            log(&text);
        }
        self.line.clear();
        self.over = 0;
    }
}

/// The text with every control character written out.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\t' => text.push_str("\\t"),
                // U+2028 and the overrides of direction rearrange what a terminal shows.
                '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => text.extend(character.escape_unicode()),
                c if c.is_ascii_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if c.is_control() => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(parts: &[&[u8]]) -> Vec<String> {
        let (mut reader, mut out) = (Lines::default(), Vec::new());
        for part in parts {
            reader.push(part, |line| out.push(line.to_owned()));
        }
        reader.finish(|line| out.push(line.to_owned()));
        out
    }

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(
            lines(&["a\x1b[31m\rb\tü\u{9b}\u{202e}\n".as_bytes(), b"\xff"]),
            ["a\\x1b[31m\\x0db\\tü\\u{9b}\\u{202e}", "\\xff"]
        );
    }

    #[test]
    fn lines_are_joined_over_parts_and_empty_ones_are_dropped() {
        assert_eq!(lines(&[b"PHP mess", b"age: x\n\n", b"tail"]), ["PHP message: x", "tail"]);
    }

    #[test]
    fn a_line_and_a_request_have_their_limits() {
        let long = vec![b'x'; 70 * 1024];
        let out = lines(&[&long]);
        assert_eq!(out.len(), 2);
        assert!(out[0].starts_with("xxx") && out[0].len() < MAX_LINE + 40 && out[0].ends_with("more bytes)"));
        assert!(out[1].contains("6144 more bytes"));
    }
}
