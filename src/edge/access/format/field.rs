//! What a line can tell of a request.

use std::borrow::Cow;
use std::time::Duration;

#[cfg(doc)]
use super::LONGEST_LINE;
use super::push;
use crate::base::clock;
use crate::edge::access::escape::{mask_query, push_escaped};
use crate::edge::access::{Record, Upgrade};

/// What a line can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// When the request came: `2026-11-21T02:30:21.250Z`.
    Time,
    /// The site's name.
    Site,
    /// The client's address.
    Client,
    /// Who it said it was, in Basic authentication.
    User,
    /// `GET`
    Method,
    /// `https` or `http`
    Scheme,
    /// The host that was asked for.
    Host,
    /// The request target as it was sent, masked.
    Target,
    /// `HTTP/1.1`, `HTTP/2.0`
    Version,
    /// The answer's status.
    Status,
    /// Bytes of the answer's body; of a socket, bytes to the client.
    BytesSent,
    /// Bytes of the request's body; of a socket, bytes from the client.
    BytesReceived,
    /// Seconds, from the request's head to the end of the answer or of the socket.
    Duration,
    /// Referer, masked.
    Referer,
    /// User-Agent
    UserAgent,
    /// The back end.
    Upstream,
    /// `open` or `close` of a socket.
    Upgrade,
    /// The status of the first Close frame of a socket.
    CloseCode,
    /// The id of what went wrong, which the error log and the error page have too.
    Fault,
    /// `TLSv1.3`
    Tls,
    /// The id of the request.
    RequestId,
    /// nginx's `$time_local`; templates only.
    TimeLocal,
    /// Method, target and version; templates only.
    Request,
}

/// What a field has to say of a record.
pub(super) enum Value<'r> {
    Missing,
    Number(u64),
    Seconds(Duration),
    Text(Cow<'r, [u8]>),
}

impl Field {
    /// Every field by its name.
    pub const NAMED: [(&'static str, Field); 23] = [
        ("time", Field::Time),
        ("site", Field::Site),
        ("client", Field::Client),
        ("user", Field::User),
        ("method", Field::Method),
        ("scheme", Field::Scheme),
        ("host", Field::Host),
        ("target", Field::Target),
        ("version", Field::Version),
        ("status", Field::Status),
        ("bytes_sent", Field::BytesSent),
        ("bytes_received", Field::BytesReceived),
        ("duration", Field::Duration),
        ("referer", Field::Referer),
        ("user_agent", Field::UserAgent),
        ("upstream", Field::Upstream),
        ("upgrade", Field::Upgrade),
        ("close_code", Field::CloseCode),
        ("fault", Field::Fault),
        ("tls", Field::Tls),
        ("request_id", Field::RequestId),
        ("time_local", Field::TimeLocal),
        ("request", Field::Request),
    ];

    /// Whether it repeats what other fields say, so that JSON leaves it out.
    pub(super) fn is_for_templates(self) -> bool {
        matches!(self, Field::TimeLocal | Field::Request)
    }

    /// The most bytes of a line that this field may take, escaped. All of a JSON line's together stay below
    /// [`LONGEST_LINE`].
    pub(super) fn cap(self) -> usize {
        match self {
            Field::Target => 4000,
            Field::Request => 4200,
            Field::Referer | Field::UserAgent => 1000,
            Field::Host => 300,
            _ => 128,
        }
    }

    pub(super) fn value<'r>(self, record: &Record<'r>, mask: &[String]) -> Value<'r> {
        let text = |text: &'r str| Value::Text(text.as_bytes().into());
        let maybe = |bytes: Option<&'r [u8]>| bytes.map_or(Value::Missing, |bytes| Value::Text(bytes.into()));
        let or_missing = |name: &'r str| if name.is_empty() { Value::Missing } else { text(name) };
        let owned = |text: String| Value::Text(text.into_bytes().into());
        match self {
            Field::Time => owned(clock::rfc3339_millis(record.time)),
            Field::TimeLocal => owned(clock::time_local(record.time)),
            Field::Site => or_missing(record.site),
            Field::Client => owned(record.client.to_string()),
            Field::User => maybe(record.user),
            Field::Method => or_missing(record.method),
            Field::Scheme => or_missing(record.scheme),
            Field::Host => maybe(record.host),
            Field::Target if record.target.is_empty() => Value::Missing,
            Field::Target => Value::Text(mask_query(record.target, mask)),
            Field::Request => Value::Text(request(record, mask).into()),
            Field::Version => record.version.map_or(Value::Missing, |version| text(version_name(version))),
            Field::Status => Value::Number(u64::from(record.status)),
            Field::BytesSent => Value::Number(record.bytes_sent),
            Field::BytesReceived => Value::Number(record.bytes_received),
            Field::Duration => Value::Seconds(record.duration),
            Field::Referer => record.referer.map_or(Value::Missing, |referer| Value::Text(mask_query(referer, mask))),
            Field::UserAgent => maybe(record.user_agent),
            Field::Upstream => record.upstream.map_or(Value::Missing, text),
            Field::Upgrade => match record.upgrade {
                Upgrade::None => Value::Missing,
                Upgrade::Open => text("open"),
                Upgrade::Close => text("close"),
            },
            Field::CloseCode => record.close_code.map_or(Value::Missing, |code| Value::Number(u64::from(code))),
            Field::Fault => record.fault.map_or(Value::Missing, text),
            Field::Tls => record.tls.map_or(Value::Missing, text),
            Field::RequestId => record.request_id.map_or(Value::Missing, text),
        }
    }
}

/// A field as the text formats show it: `-` where it does not apply.
pub(super) fn push_text(field: Field, record: &Record<'_>, mask: &[String], out: &mut Vec<u8>) {
    match field.value(record, mask) {
        Value::Missing => out.push(b'-'),
        Value::Number(number) => push(out, format_args!("{number}")),
        Value::Seconds(time) => push(out, format_args!("{:.3}", time.as_secs_f64())),
        Value::Text(text) => push_escaped(out, &text, field.cap()),
    }
}

/// The request line; of a malformed one, what there is of it.
fn request(record: &Record<'_>, mask: &[String]) -> Vec<u8> {
    let mut line = record.method.as_bytes().to_vec();
    // The version stays behind a target that has to be cut: readers of `combined` look for it.
    let mut target = mask_query(record.target, mask);
    if target.len() > Field::Target.cap() {
        target.to_mut().truncate(Field::Target.cap() - 3);
        target.to_mut().extend_from_slice(b"...");
    }
    for part in [&*target, record.version.map_or("", version_name).as_bytes()] {
        if !line.is_empty() && !part.is_empty() {
            line.push(b' ');
        }
        line.extend_from_slice(part);
    }
    line
}

fn version_name(version: ::http::Version) -> &'static str {
    match version {
        ::http::Version::HTTP_09 => "HTTP/0.9",
        ::http::Version::HTTP_10 => "HTTP/1.0",
        ::http::Version::HTTP_2 => "HTTP/2.0",
        ::http::Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}
