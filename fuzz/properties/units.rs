//! What is written of a duration, a size or an address reads back as the same value.

use doorward::base::address::{HttpBackEnd, ListenAddress, parse_fastcgi};
use doorward::base::units::{format_duration, format_size, parse_duration, parse_size};

pub fn check(input: &[u8]) {
    let Some(text) = super::text(input) else { return };
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }
    if let Ok(size) = parse_size(text) {
        assert_eq!(parse_size(&format_size(size)), Ok(size));
    }
    if let Ok(address) = ListenAddress::parse(text) {
        assert_eq!(ListenAddress::parse(&address.to_string()), Ok(address));
    }
    if let Ok(back_end) = HttpBackEnd::parse(text) {
        assert_eq!(HttpBackEnd::parse(&back_end.to_string()), Ok(back_end));
    }
    if let Ok(endpoint) = parse_fastcgi(text) {
        assert_eq!(parse_fastcgi(&endpoint.to_string()), Ok(endpoint));
    }
}
