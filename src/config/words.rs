//! "Did you mean": by spelling, and by what nginx, Caddy, HAProxy and Traefik call the same thing.

/// The choice that `word` was probably meant to be: by spelling, or because another server calls it so.
pub(super) fn closest<'c>(word: &str, choices: impl Iterator<Item = &'c str> + Clone) -> Option<&'c str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let translated = WORDS.iter().filter(|(theirs, _)| *theirs == word);
    if let Some(choice) = translated.flat_map(|(_, ours)| choices.clone().find(|choice| choice == ours)).next() {
        return Some(choice);
    }
    choices
        .map(|choice| (strsim::jaro_winkler(&word, choice), choice))
        .filter(|(likeness, choice)| {
            *likeness > 0.82 || (choice.len() > 3 && strsim::damerau_levenshtein(&word, choice) == 1)
        })
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, choice)| choice)
}

/// What others call it, and what it is here. A word may stand several times; the one that the block knows counts.
const WORDS: &[(&str, &str)] = &[
    ("soketi", "pusher"),
    ("sockudo", "pusher"),
    ("reverb", "pusher"),
    ("laravel_websockets", "pusher"),
    ("echo", "socket.io"),
    ("echo_server", "socket.io"),
    ("laravel_echo_server", "socket.io"),
    ("server_name", "hosts"),
    ("server_names", "hosts"),
    ("domain", "hosts"),
    ("domains", "hosts"),
    ("name", "hosts"),
    ("host", "hosts"),
    ("hostname", "hosts"),
    ("listen", "https"),
    ("bind", "https"),
    ("port", "https"),
    ("proxy_pass", "upstream"),
    ("proxy_pass", "to"),
    ("upstream", "to"),
    ("backend", "upstream"),
    ("backend", "to"),
    ("backends", "to"),
    ("proxy", "upstream"),
    ("server", "to"),
    ("servers", "to"),
    ("fastcgi_pass", "php"),
    ("fpm", "php"),
    ("location", "route"),
    ("locations", "route"),
    ("routes", "route"),
    ("redirects", "redirect"),
    ("letsencrypt", "acme"),
    ("certbot", "acme"),
    ("auto", "acme"),
    ("internal", "self-signed"),
    ("server", "directory"),
    ("ca_server", "directory"),
    ("caserver", "directory"),
    ("acme_ca", "directory"),
    ("ca", "directory"),
    ("directory", "url"),
    ("uri", "url"),
    ("preferred_challenges", "challenges"),
    ("manual_auth_hook", "dns_hook"),
    ("hook", "dns_hook"),
    ("preferred_profile", "profile"),
    ("config_dir", "storage"),
    ("elliptic_curve", "key_type"),
    ("p256", "ecdsa-p256"),
    ("ec256", "ecdsa-p256"),
    ("ecdsa", "ecdsa-p256"),
    ("p384", "ecdsa-p384"),
    ("ec384", "ecdsa-p384"),
    ("rsa", "rsa-2048"),
    ("alpn", "tls-alpn-01"),
    ("sites", "site"),
    ("vhost", "site"),
    ("http", "server"),
    ("global", "server"),
    ("ssl", "tls"),
    ("certificate", "tls"),
    ("ssl_certificate", "tls"),
    ("ssl_certificate", "cert"),
    ("certificate", "cert"),
    ("ssl_certificate_key", "key"),
    ("ssl_protocols", "min_version"),
    ("client_max_body_size", "max_body"),
    ("document_root", "root"),
    ("docroot", "root"),
    ("public", "root"),
    ("websockets", "websocket"),
    ("ws", "websocket"),
    ("socket", "websocket"),
    ("realtime", "websocket"),
    ("timeout", "read_timeout"),
    ("timeout", "idle_timeout"),
    ("proxy_read_timeout", "read_timeout"),
    ("proxy_read_timeout", "read"),
    ("proxy_read_timeout", "idle_timeout"),
    ("fastcgi_read_timeout", "read_timeout"),
    ("keepalive_timeout", "keepalive"),
    ("send_timeout", "write"),
    ("client_header_timeout", "header"),
    ("client_body_timeout", "body"),
    ("proxy_connect_timeout", "connect"),
    ("gzip", "compress"),
    ("expires", "assets"),
    ("add_header", "response_headers"),
    ("headers", "response_headers"),
    ("proxy_set_header", "request_headers"),
    ("access_log", "access"),
    ("access_log", "log"),
    ("error_log", "output"),
    ("fastcgi_param", "params"),
    ("fastcgi_index", "index"),
    ("balance", "upstream_balance"),
    ("sticky", "upstream_sticky"),
    ("cookie", "upstream_cookie"),
    ("health", "upstream_health"),
    ("allowed_origins", "origins"),
    ("origin", "origins"),
    ("max_message_size", "max_message"),
    ("max_payload", "max_message"),
    ("rate", "message_rate"),
    ("heartbeat", "ping_interval"),
    ("ping", "ping_interval"),
    ("worker_connections", "max_connections"),
    ("limit_conn", "max_connections"),
    ("min_body_rate", "min_rate"),
    ("worker_shutdown_timeout", "shutdown_grace"),
    ("path", "paths"),
    ("code", "status"),
    ("return", "respond"),
    ("deny", "allow"),
    ("set_real_ip_from", "trusted_proxies"),
    ("real_ip_header", "client_ip_header"),
    ("worker_processes", "workers"),
    ("pid", "pid_file"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_key_is_found_by_spelling_and_by_other_servers_words() {
        let keys = ["hosts", "upstream", "root", "read_timeout", "tls"];
        let closest = |word| closest(word, keys.iter().copied());
        assert_eq!(closest("upstrem"), Some("upstream"));
        assert_eq!(closest("server_name"), Some("hosts"));
        assert_eq!(closest("proxy-pass"), Some("upstream"));
        assert_eq!(closest("Root"), Some("root"));
        assert_eq!(closest("banana"), None);
    }
}
