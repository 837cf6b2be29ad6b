//! Rates as they are written in the file: `50/s`, `600/m`.

use std::fmt;
use std::time::Duration;

/// So many per second or per minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least 1.
    pub count: u32,
    /// In which time: a second or a minute.
    pub per: Duration,
}

/// Why a text is not a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rate is a number from 1 to 1000000, `/`, and s or m")]
pub struct InvalidRate;

impl Rate {
    /// Reads `50/s` or `600/m`.
    pub fn parse(text: &str) -> Result<Rate, InvalidRate> {
        let (count, unit) = text.split_once('/').ok_or(InvalidRate)?;
        let per = match unit {
            "s" => Duration::from_secs(1),
            "m" | "min" => Duration::from_secs(60),
            _ => return Err(InvalidRate),
        };
        let digits = count.bytes().all(|b| b.is_ascii_digit());
        let count = count.parse().ok().filter(|count| digits && (1..=1_000_000).contains(count)).ok_or(InvalidRate)?;
        Ok(Rate { count, per })
    }

    /// The time that one takes.
    pub fn interval(&self) -> Duration {
        self.per / self.count.max(1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, if self.per.as_secs() == 60 { "m" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_reads_back_as_it_is_written() {
        for text in ["1/s", "50/s", "600/m", "1000000/s"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Rate::parse("600/m").unwrap().interval(), Duration::from_millis(100));
        for text in ["", "50", "0/s", "50/h", "+5/s", "-1/s", "5 /s", "/s", "1000001/s", "99999999999/s", "5/s/s"] {
            assert_eq!(Rate::parse(text), Err(InvalidRate), "{text}");
        }
    }
}
