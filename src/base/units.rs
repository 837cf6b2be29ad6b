//! Durations and sizes as they are written in the file. A number without a unit is an error, except 0.

use std::time::Duration;

/// Why a text is not a duration or a size; each says what would be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUnit {
    /// No number in front of the unit.
    #[error("no number in front of the unit")]
    Number,
    /// Not a unit of time.
    #[error("the unit of a duration is ms, s, m, h or d")]
    Duration,
    /// Not a unit of size.
    #[error("the unit of a size is B, KB, MB, GB (1000) or KiB, MiB, GiB (1024)")]
    Size,
    /// Larger than can be represented.
    #[error("the value is too large")]
    TooLarge,
}

/// Reads `90s`, `500ms`, `1h`, `30d`, `1y` (365 days); `0` needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidUnit> {
    let (number, unit) = split(text)?;
    let milliseconds = match unit {
        "" if number == 0 => 1,
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "y" => 365 * 86_400_000,
        _ => return Err(InvalidUnit::Duration),
    };
    // A hundred years is longer than any timer of the runtime takes.
    const LONGEST: u64 = 100 * 365 * 86_400_000;
    number.checked_mul(milliseconds).filter(|ms| *ms <= LONGEST).map(Duration::from_millis).ok_or(InvalidUnit::TooLarge)
}

/// Reads `20MiB`, `64KB`, nginx's `8k` and `1m` (1024); `0` needs no unit. In bytes.
pub fn parse_size(text: &str) -> Result<u64, InvalidUnit> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" if number == 0 => 1,
        "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" | "k" | "K" => 1 << 10,
        "MiB" | "m" | "M" => 1 << 20,
        "GiB" | "g" | "G" => 1 << 30,
        _ => return Err(InvalidUnit::Size),
    };
    number.checked_mul(factor).filter(|n| i64::try_from(*n).is_ok()).ok_or(InvalidUnit::TooLarge)
}

/// Writes a duration in its largest whole unit; [`parse_duration`] reads it back unchanged.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms >= factor && ms.is_multiple_of(factor) {
            return format!("{}{unit}", ms / factor);
        }
    }
    if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") }
}

/// Writes a size in its largest whole unit; [`parse_size`] reads it back unchanged.
pub fn format_size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    if bytes == 0 { "0".to_owned() } else { format!("{bytes}B") }
}

fn split(text: &str) -> Result<(u64, &str), InvalidUnit> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(InvalidUnit::Number);
    }
    let number = number.parse().map_err(|_| InvalidUnit::TooLarge)?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_written_back() {
        for text in ["10s", "75s", "1h", "30d", "250ms", "0s", "90s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["20MiB", "32KiB", "0", "1GiB", "1500B"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(parse_size("8k"), Ok(8192));
        assert_eq!(parse_size("1MB"), Ok(1_000_000));
    }

    #[test]
    fn numbers_without_a_unit_are_refused() {
        assert_eq!(parse_duration("60"), Err(InvalidUnit::Duration));
        assert_eq!(parse_size("20"), Err(InvalidUnit::Size));
        assert_eq!(parse_duration("s"), Err(InvalidUnit::Number));
        assert_eq!(parse_duration("99999999999999999999s"), Err(InvalidUnit::TooLarge));
        assert_eq!(parse_size("99999999999GiB"), Err(InvalidUnit::TooLarge));
        assert_eq!(parse_duration("-1s"), Err(InvalidUnit::Number));
    }
}
