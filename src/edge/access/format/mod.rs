//! One line of the access log, in the format that the file asks for.

use std::io::Write as _;

use self::field::{Value, push_text};
use super::escape::push_json;
use super::{Record, Upgrade};

mod field;
mod template;

pub use self::field::Field;
pub use self::template::{InvalidTemplate, Template};

/// The longest line, its line feed included. Long values are cut so that every format stays whole within it.
pub const LONGEST_LINE: usize = 8192;

/// How a line looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// nginx's `combined`, byte for byte:
    /// `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"`,
    /// the time in UTC. A socket has a line when it opens and one when it closes, both with status 101; the second has
    /// the bytes to the client as bytes sent, and behind the user agent
    /// ` ws=close code=1000 up=123 down=456 dur=12.345`: the status of the Close frame (`-` without one), bytes to the
    /// back end and to the client, seconds. Programs that read `combined` read both.
    Combined,
    /// `combined` without Referer and User-Agent.
    Common,
    /// One JSON object a line: the fields of [`Field::NAMED`] up to `request_id`, without those that do not apply.
    Json,
    /// The operator's own.
    Template(Template),
}

impl Format {
    /// Appends the line of `record` with its line feed. `mask` names the query parameters whose values are not shown,
    /// in the target and in the Referer.
    pub fn write(&self, record: &Record<'_>, mask: &[String], out: &mut Vec<u8>) {
        let start = out.len();
        match self {
            Format::Combined => {
                write_common(record, mask, out);
                for field in [Field::Referer, Field::UserAgent] {
                    out.extend_from_slice(b" \"");
                    push_text(field, record, mask, out);
                    out.push(b'"');
                }
                write_socket_end(record, out);
            }
            Format::Common => {
                write_common(record, mask, out);
                write_socket_end(record, out);
            }
            Format::Json => write_json(record, mask, out),
            Format::Template(template) => template.write(record, mask, out),
        }
        out.truncate(start + LONGEST_LINE - 1);
        out.push(b'\n');
    }
}

fn write_common(record: &Record<'_>, mask: &[String], out: &mut Vec<u8>) {
    push_text(Field::Client, record, mask, out);
    out.extend_from_slice(b" - ");
    push_text(Field::User, record, mask, out);
    out.extend_from_slice(b" [");
    push_text(Field::TimeLocal, record, mask, out);
    out.extend_from_slice(b"] \"");
    push_text(Field::Request, record, mask, out);
    push(out, format_args!("\" {} {}", record.status, record.bytes_sent));
}

fn write_socket_end(record: &Record<'_>, out: &mut Vec<u8>) {
    if record.upgrade != Upgrade::Close {
        return;
    }
    match record.close_code {
        Some(code) => push(out, format_args!(" ws=close code={code}")),
        None => out.extend_from_slice(b" ws=close code=-"),
    }
    let (up, down) = (record.bytes_received, record.bytes_sent);
    push(out, format_args!(" up={up} down={down} dur={:.3}", record.duration.as_secs_f64()));
}

fn write_json(record: &Record<'_>, mask: &[String], out: &mut Vec<u8>) {
    out.push(b'{');
    let mut comma = "";
    for (name, field) in Field::NAMED {
        let value = field.value(record, mask);
        if field.is_for_templates() || matches!(value, Value::Missing) {
            continue;
        }
        push(out, format_args!("{comma}\"{name}\":"));
        comma = ",";
        match value {
            Value::Missing => {}
            Value::Number(number) => push(out, format_args!("{number}")),
            Value::Seconds(time) => push(out, format_args!("{:.6}", time.as_secs_f64())),
            Value::Text(text) => {
                out.push(b'"');
                push_json(out, &text, field.cap());
                out.push(b'"');
            }
        }
    }
    out.push(b'}');
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing into memory does not fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    pub(crate) fn record() -> Record<'static> {
        Record {
            time: UNIX_EPOCH + Duration::from_millis(1_795_228_221_250),
            client: "192.0.2.7".parse().unwrap(),
            site: "app",
            scheme: "https",
            host: Some(b"example.com"),
            method: "GET",
            target: b"/socket.io/?EIO=4&token=secret",
            path: b"/socket.io/",
            version: Some(::http::Version::HTTP_11),
            status: 200,
            bytes_sent: 456,
            bytes_received: 123,
            duration: Duration::from_micros(12_345_678),
            referer: Some(b"https://example.com/?token=x"),
            user_agent: Some(b"Mozilla/5.0 (X11)"),
            user: None,
            upstream: Some("http://127.0.0.1:3444"),
            upgrade: Upgrade::None,
            close_code: None,
            fault: None,
            tls: Some("TLSv1.3"),
            request_id: None,
        }
    }

    pub(super) fn line(format: Format, record: &Record<'_>) -> String {
        let mut out = Vec::new();
        format.write(record, &["token".to_owned()], &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn combined_and_common_are_nginx_s() {
        let mut record = record();
        record.user = Some(b"ann");
        let common =
            "192.0.2.7 - ann [21/Nov/2026:02:30:21 +0000] \"GET /socket.io/?EIO=4&token=*** HTTP/1.1\" 200 456";
        assert_eq!(line(Format::Common, &record), format!("{common}\n"));
        let tail = " \"https://example.com/?token=***\" \"Mozilla/5.0 (X11)\"\n";
        assert_eq!(line(Format::Combined, &record), format!("{common}{tail}"));
    }

    #[test]
    fn a_hostile_client_cannot_leave_its_quotes() {
        let mut record = record();
        record.user_agent = Some(b"x\" 200 1 \"-\"\r\n10.0.0.1 - - \\ \x1b[2J\xff");
        record.referer = None;
        record.target = b"/";
        record.version = Some(::http::Version::HTTP_2);
        assert_eq!(
            line(Format::Combined, &record),
            "192.0.2.7 - - [21/Nov/2026:02:30:21 +0000] \"GET / HTTP/2.0\" 200 456 \"-\" \
             \"x\\x22 200 1 \\x22-\\x22\\x0D\\x0A10.0.0.1 - - \\x5C \\x1B[2J\\xFF\"\n"
        );
    }

    #[test]
    fn a_request_that_was_not_one_has_an_empty_request_line() {
        let record =
            Record { method: "", target: b"", version: None, user_agent: None, referer: None, status: 400, ..record() };
        let text = line(Format::Combined, &record);
        assert!(text.ends_with("\"\" 400 456 \"-\" \"-\"\n"), "{text}");
    }

    #[test]
    fn a_socket_s_end_stands_behind_the_combined_line() {
        let mut record = Record { status: 101, upgrade: Upgrade::Close, close_code: Some(1000), ..record() };
        let text = line(Format::Combined, &record);
        assert!(text.ends_with("\" 101 456 \"https://example.com/?token=***\" \"Mozilla/5.0 (X11)\" ws=close code=1000 up=123 down=456 dur=12.346\n"), "{text}");
        record.close_code = None;
        assert!(line(Format::Common, &record).ends_with(" 101 456 ws=close code=- up=123 down=456 dur=12.346\n"));
        record.upgrade = Upgrade::Open;
        assert!(line(Format::Common, &record).ends_with(" 101 456\n"));
    }

    #[test]
    fn json_has_what_applies() {
        let mut record = Record { upgrade: Upgrade::Close, close_code: Some(1001), fault: Some("f-1"), ..record() };
        record.user_agent = Some("Zoë \"\u{9b}31m\n".as_bytes());
        assert_eq!(
            line(Format::Json, &record),
            "{\"time\":\"2026-11-21T02:30:21.250Z\",\"site\":\"app\",\"client\":\"192.0.2.7\",\"method\":\"GET\",\
             \"scheme\":\"https\",\"host\":\"example.com\",\"target\":\"/socket.io/?EIO=4&token=***\",\
             \"version\":\"HTTP/1.1\",\"status\":200,\"bytes_sent\":456,\"bytes_received\":123,\"duration\":12.345678,\
             \"referer\":\"https://example.com/?token=***\",\"user_agent\":\"Zoë \\\"\\u009B31m\\u000A\",\
             \"upstream\":\"http://127.0.0.1:3444\",\"upgrade\":\"close\",\"close_code\":1001,\"fault\":\"f-1\",\
             \"tls\":\"TLSv1.3\"}\n"
        );
    }

    #[test]
    fn every_format_is_whole_and_capped_whatever_comes() {
        let long = vec![0xFF; 20_000];
        let long_name = "\u{1}".repeat(20_000);
        let record = Record {
            method: &long_name,
            target: &long,
            host: Some(&long),
            site: &long_name,
            referer: Some(&long),
            user_agent: Some(&long),
            user: Some(&long),
            upstream: Some(&long_name),
            fault: Some(&long_name),
            request_id: Some(&long_name),
            tls: Some(&long_name),
            scheme: &long_name,
            upgrade: Upgrade::Close,
            close_code: Some(4999),
            ..record()
        };
        let json = line(Format::Json, &record);
        assert!(json.len() <= LONGEST_LINE, "{}", json.len());
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
        let combined = line(Format::Combined, &record);
        assert!(combined.len() <= LONGEST_LINE && combined.contains("\" ws=close code=4999"), "{}", combined.len());
        let template = Template::parse(&"{target}".repeat(9)).unwrap();
        assert_eq!(line(Format::Template(template), &record).len(), LONGEST_LINE);
    }
}
