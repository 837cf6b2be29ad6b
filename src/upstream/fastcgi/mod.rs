//! The FastCGI protocol, as far as a web server speaks it to PHP-FPM: pure functions over bytes, no I/O.
//!
//! [`record`] frames, [`params`] encodes the request's variables, [`answer`] reads the CGI head from the application's
//! output, [`stderr`] turns its complaints into log lines.

pub mod answer;
pub mod params;
pub mod record;
pub mod stderr;
