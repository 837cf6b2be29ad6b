//! Times as logs write them. Always UTC: a log that needs no time zone file reads the same on every machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `21/Nov/2026:02:30:21 +0000`: nginx's `$time_local`.
pub fn time_local(time: SystemTime) -> String {
    let t = Civil::of(time);
    let (month, hour, minute, second) = (t.month_name(), t.hour, t.minute, t.second);
    format!("{:02}/{month}/{:04}:{hour:02}:{minute:02}:{second:02} +0000", t.day, t.year)
}

/// `2026-11-21T02:30:21Z` (RFC 3339).
pub fn rfc3339(time: SystemTime) -> String {
    Civil::of(time).rfc3339("")
}

/// `2026-11-21T02:30:21.250Z` (RFC 3339).
pub fn rfc3339_millis(time: SystemTime) -> String {
    let t = Civil::of(time);
    t.rfc3339(&format!(".{:03}", t.millisecond))
}

/// `2026-11-21`.
pub fn date(time: SystemTime) -> String {
    let t = Civil::of(time);
    format!("{:04}-{:02}-{:02}", t.year, t.month, t.day)
}

/// `2026-11-21 02:30 UTC`.
pub fn minute(time: SystemTime) -> String {
    let t = Civil::of(time);
    format!("{} {:02}:{:02} UTC", date(time), t.hour, t.minute)
}

/// `Nov 21 02:30:21`: the time stamp of a syslog line (RFC 3164 section 4.1.2), in UTC.
pub fn rfc3164(time: SystemTime) -> String {
    let t = Civil::of(time);
    format!("{} {:2} {:02}:{:02}:{:02}", t.month_name(), t.day, t.hour, t.minute, t.second)
}

struct Civil {
    year: u64,
    /// 1 to 12
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    millisecond: u32,
}

impl Civil {
    fn of(time: SystemTime) -> Civil {
        // A clock before 1970 is a broken clock; the log shows that as 1970.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = since.as_secs();
        let (year, month, day) = gregorian(seconds / 86_400);
        let of_day = seconds % 86_400;
        Civil {
            year,
            month,
            day,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            millisecond: since.subsec_millis(),
        }
    }

    fn month_name(&self) -> &'static str {
        usize::try_from(self.month).ok().and_then(|month| MONTHS.get(month.wrapping_sub(1)).copied()).unwrap_or("Jan")
    }

    fn rfc3339(&self, fraction: &str) -> String {
        let (hour, minute, second) = (self.hour, self.minute, self.second);
        format!("{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z", self.year, self.month, self.day)
    }
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar. Years begin in March here, so
/// that the leap day is the last of a year; 719 468 days lie between 0000-03-01 and 1970-01-01.
fn gregorian(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_are_written_as_each_log_wants_them() {
        let time = at(1_795_228_221) + Duration::from_millis(250);
        assert_eq!(time_local(time), "21/Nov/2026:02:30:21 +0000");
        assert_eq!(rfc3339(time), "2026-11-21T02:30:21Z");
        assert_eq!(rfc3339_millis(time), "2026-11-21T02:30:21.250Z");
        assert_eq!(date(time), "2026-11-21");
        assert_eq!(minute(time), "2026-11-21 02:30 UTC");
        assert_eq!(rfc3164(time), "Nov 21 02:30:21");
        assert_eq!(rfc3164(at(0)), "Jan  1 00:00:00");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(5)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn every_day_of_four_centuries_agrees_with_another_implementation() {
        for day in (0..146_097).chain([1_000_000]) {
            let time = at(day * 86_400 + 86_399);
            let other = httpdate::fmt_http_date(time);
            // "Sun, 06 Nov 1994 08:49:37 GMT"
            let parts: Vec<&str> = other.split(' ').collect();
            assert_eq!(time_local(time), format!("{}/{}/{}:23:59:59 +0000", parts[1], parts[2], parts[3]));
        }
    }
}
