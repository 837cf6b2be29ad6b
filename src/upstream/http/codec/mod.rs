//! HTTP/1.1 as it is spoken with back ends (RFC 9112): requests are written, answers read. Bytes only, nothing here
//! waits for anything: the socket is the connection's.

pub mod answer_head;
pub mod body_length;
pub mod chunks;
pub mod request_head;
