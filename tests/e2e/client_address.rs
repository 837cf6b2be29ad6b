//! Who the client is: what untrusted peers claim reaches neither PHP nor a back end nor the log, what trusted proxies say
//! does, and PROXY heads pass in both directions. HAProxy and nginx are the neighbours on either side.
//!
//! Peers are told apart by their loopback addresses: 127.0.0.2 is a proxy that is trusted, the others are strangers.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    BackEnd, Curl, Fpm, Node, Proxy, Raw, Running, SOON, Seen, World, doorward, finish, free_port, program, run_node,
    wait_until,
};
use crate::php;

const SPOOFED: &str = "6.6.6.6";

/// Everything that somebody might read a client's address from.
const SPOOFS: [(&str, &str); 16] = [
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-For", "6.6.6.6, 127.0.0.2"),
    ("Forwarded", "for=6.6.6.6;host=6.6.6.6;proto=http"),
    ("Forwarded", "for=\"6.6.6.6:80\", for=127.0.0.2"),
    ("X-Real-IP", "6.6.6.6"),
    ("CF-Connecting-IP", "6.6.6.6"),
    ("CF-Connecting-IPv6", "::ffff:6.6.6.6"),
    ("True-Client-IP", "6.6.6.6"),
    ("X-Client-IP", "6.6.6.6"),
    ("Client-IP", "6.6.6.6"),
    ("X-Cluster-Client-IP", "6.6.6.6"),
    ("Fastly-Client-IP", "6.6.6.6"),
    ("X-Forwarded-Host", "6.6.6.6"),
    ("X-Original-Forwarded-For", "6.6.6.6"),
    ("X_Forwarded_For", "6.6.6.6"),
    ("X-Forwarded-Server", "6.6.6.6"),
];

/// The usual head with more under `[server]`. 127.0.0.2 is trusted.
fn head(world: &World, server: &str) -> String {
    let server = format!("[server]\ntrusted_proxies = [\"127.0.0.2\"]\n{server}\n");
    world.head().replace("[server]\n", &server)
}

fn with_php(world: &World, server: &str, site: &str) -> (Fpm, Proxy) {
    let fpm = Fpm::unix(world);
    let site = php::site(world, &fpm, &format!("http = \"serve\"\n{site}"));
    (fpm, Proxy::start(world, &format!("{}{site}", head(world, server))))
}

fn with_spoofs(mut curl: Curl) -> Curl {
    for (name, value) in SPOOFS {
        curl = curl.header(&format!("{name}: {value}"));
    }
    curl
}

/// `$_SERVER` of a request from `source`.
fn server_variables(curl: Curl, source: &str) -> Value {
    curl.arg("--interface").arg(source).get("/env").expect(200).json()["server"].clone()
}

/// The lines of the access log, once there are so many.
fn log_lines(proxy: &Proxy, count: usize) -> Vec<String> {
    let lines = || proxy.running.stdout().into_iter().filter(|line| line.contains(" - - [")).collect::<Vec<_>>();
    wait_until("the lines of the access log", SOON, || lines().len() >= count);
    lines()
}

fn handshake(fields: &[(&str, &str)]) -> String {
    let more: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!(
        "GET /live HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

/// A site whose requests and sockets all go to `to`.
fn socket_site(to: &str, site: &str, websocket: &str) -> String {
    format!(
        "[site.app]\nhosts = [\"app.test\"]\nhttp = \"serve\"\nupstream = {to:?}\n{site}\n\
         [site.app.websocket]\npreset = \"any\"\nto = {to:?}\n{websocket}\n"
    )
}

#[test]
fn what_a_stranger_claims_reaches_neither_php_nor_the_log() {
    for field in ["X-Forwarded-For", "Forwarded", "CF-Connecting-IP", "True-Client-IP", "X-Real-IP"] {
        let world = World::new();
        let (_fpm, proxy) = with_php(&world, &format!("client_ip_header = {field:?}"), "forwarded = true");
        let curls = [proxy.curl("app.test"), proxy.curl("app.test").http1(), proxy.plain("app.test")];
        for curl in curls {
            let server = server_variables(with_spoofs(curl), "127.0.0.9");
            assert_eq!(server["REMOTE_ADDR"], "127.0.0.9", "{field}");
            assert_eq!(server["HTTP_X_FORWARDED_FOR"], "127.0.0.9", "{field}");
            assert!(server["HTTP_FORWARDED"].as_str().unwrap().starts_with("for=127.0.0.9;host="), "{server}");
            assert!(!server.to_string().contains(SPOOFED), "{field}: {server}");
        }
        for line in log_lines(&proxy, 3) {
            assert!(line.starts_with("127.0.0.9 ") && !line.contains(SPOOFED), "{field}: {line}");
        }
    }
}

#[test]
fn what_a_stranger_claims_in_a_handshake_reaches_neither_the_back_end_nor_the_log() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = Proxy::start(&world, &format!("{}{}", head(&world, ""), socket_site(&backend.url(), "", "")));
    let mut raw = Raw::plain_from("127.0.0.9", proxy.http());
    assert_eq!(raw.send(handshake(&SPOOFS)).head().0, 101);
    drop(raw);
    let fields: serde_json::Map<String, Value> =
        SPOOFS.iter().map(|(name, value)| (name.to_lowercase(), json!(value))).collect();
    let fields = Value::Object(fields).to_string();
    run_node(&world, "h2-sockets.js", &["--url", &proxy.url("app.test"), "--mode", "refused", "--fields", &fields]);
    let lines = log_lines(&proxy, 4);
    assert!(lines.iter().all(|line| line.starts_with("127.0.0.") && !line.contains(SPOOFED)), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("127.0.0.9 ")), "{lines:?}");
    let seen = backend.seen();
    let seen: Vec<Seen> = seen.into_iter().filter(|seen| seen.field("upgrade").is_some()).collect();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].field("x-forwarded-for"), Some("127.0.0.9"));
    assert_eq!(seen[1].field("x-forwarded-for"), Some("127.0.0.1"));
    assert!(seen.iter().all(|seen| !seen.head.contains(SPOOFED)), "{seen:?}");
}

#[test]
fn of_a_trusted_proxy_the_right_most_untrusted_address_is_the_client() {
    let cases = [
        ("X-Forwarded-For", "X-Forwarded-For: 6.6.6.6, 192.0.2.9, 127.0.0.2"),
        ("X-Forwarded-For", "X-Forwarded-For: 6.6.6.6, 192.0.2.9:4711"),
        ("Forwarded", "Forwarded: for=6.6.6.6;proto=https, for=\"192.0.2.9:4711\";proto=https, for=127.0.0.2"),
        ("True-Client-IP", "True-Client-IP: 192.0.2.9"),
        // Not Cloudflare: its field is nobody else's, and the chain is read.
        ("CF-Connecting-IP", "X-Forwarded-For: 6.6.6.6, 192.0.2.9"),
    ];
    for (field, line) in cases {
        let world = World::new();
        let (_fpm, proxy) = with_php(&world, &format!("client_ip_header = {field:?}"), "");
        let asked = || proxy.curl("app.test").header(line).header("CF-Connecting-IP: 6.6.6.6");
        let server = server_variables(asked(), "127.0.0.2");
        assert_eq!(server["REMOTE_ADDR"], "192.0.2.9", "{line}");
        assert_eq!(server["HTTP_X_REAL_IP"], "192.0.2.9", "{line}");
        assert!(server.get("HTTP_CF_CONNECTING_IP").is_none(), "{server}");
        assert_eq!(server_variables(asked(), "127.0.0.9")["REMOTE_ADDR"], "127.0.0.9", "{line}");
        let lines = log_lines(&proxy, 2);
        assert!(lines[0].starts_with("192.0.2.9 ") && lines[1].starts_with("127.0.0.9 "), "{lines:?}");
    }
}

#[test]
fn what_cannot_be_read_leaves_the_proxy_as_the_client() {
    let world = World::new();
    let (_fpm, proxy) = with_php(&world, "", "");
    for garbage in ["6.6.6.6, unknown", "6.6.6.6, ", "6.6.6.6, x.y", "6.6.6.6, 1.2.3.4.5"] {
        let curl = proxy.curl("app.test").header(&format!("X-Forwarded-For: {garbage}"));
        assert_eq!(server_variables(curl, "127.0.0.2")["REMOTE_ADDR"], "127.0.0.2", "{garbage:?}");
    }
    // Two lines, the last of which is no text but for what the proxy has appended.
    let mut raw = Raw::plain_from("127.0.0.2", proxy.http());
    let request =
        b"GET /env HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: \xe9, 192.0.2.9\r\n\
                    Connection: close\r\n\r\n";
    let answer = raw.send(request).rest();
    assert!(answer.contains("\"REMOTE_ADDR\":\"192.0.2.9\""), "{answer}");
}

#[test]
fn a_head_from_a_stranger_is_no_head() {
    for server in ["", "proxy_protocol = true"] {
        let world = World::new();
        let (_fpm, proxy) = with_php(&world, server, "");
        let v1 = format!("PROXY TCP4 {SPOOFED} 127.0.0.1 4711 443\r\n").into_bytes();
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x06\x06\x06\x06\x7f\0\0\x01\x12\x67\x01\xbb".to_vec();
        for head in [v1, v2] {
            let request = [&head[..], b"GET /env HTTP/1.1\r\nHost: app.test\r\n\r\n"].concat();
            let answer = Raw::plain_from("127.0.0.9", proxy.http()).send(request).rest();
            assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("REMOTE_ADDR"), "{server}: {answer}");
            let tls = Raw::tls_behind(&world, "127.0.0.9", proxy.https(), "app.test", &head);
            assert!(tls.is_err(), "{server}: a handshake behind a head");
        }
        for line in log_lines(&proxy, 2) {
            assert!(line.starts_with("127.0.0.9 ") && !line.contains(SPOOFED), "{line}");
        }
        assert_eq!(server_variables(proxy.curl("app.test"), "127.0.0.9")["REMOTE_ADDR"], "127.0.0.9");
    }
}

#[test]
fn a_trusted_proxys_head_names_the_client_of_its_connection() {
    let world = World::new();
    let (_fpm, proxy) = with_php(&world, "proxy_protocol = true", "");
    let ask = |head: &[u8]| {
        let mut raw = Raw::plain_from("127.0.0.2", proxy.http());
        // Two requests: the head is the connection's.
        let requests = "GET /env?1 HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n\
                        GET /env?2 HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
        raw.send([head, requests.as_bytes()].concat()).rest()
    };
    let named = ask(b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 443\r\n");
    assert_eq!(named.matches("\"REMOTE_ADDR\":\"192.0.2.9\"").count(), 2, "{named}");
    assert_eq!(named.matches("\"REMOTE_PORT\":\"4711\"").count(), 2, "{named}");
    assert!(!named.contains(SPOOFED), "who is named is asked whether it is trusted: {named}");
    let six = ask(b"PROXY TCP6 2001:db8::9 ::1 4711 443\r\n");
    assert_eq!(six.matches("\"REMOTE_ADDR\":\"2001:db8::9\"").count(), 2, "{six}");
    let own = ask(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    assert!(own.contains("\"REMOTE_ADDR\":\"127.0.0.2\""), "LOCAL: {own}");
    assert!(own.contains("\"REMOTE_ADDR\":\"6.6.6.6\""), "of itself a trusted proxy may tell more: {own}");
    assert_eq!(ask(b""), "", "a trusted proxy has to begin with one");
    assert_eq!(ask(b"PROXY TCP4 192.0.2.9 127.0.0.1 4711\r\n"), "");
    let curl = || proxy.curl("app.test").arg("--haproxy-protocol");
    assert_eq!(server_variables(curl(), "127.0.0.2")["REMOTE_ADDR"], "127.0.0.2", "HTTP/2 over TLS");
    assert!(proxy.curl("app.test").arg("--interface").arg("127.0.0.2").send("/").is_err());
    let lines = log_lines(&proxy, 7);
    assert_eq!(lines.iter().filter(|line| line.starts_with("192.0.2.9 ")).count(), 2, "{lines:?}");
    let mut command = doorward();
    command.args(["sockets", "-c"]).arg(world.path("proxy.toml")).current_dir(world.path(""));
    let told = finish("doorward sockets", &mut command).said();
    assert!(told.contains("3  connections of trusted proxies closed for want of a PROXY head"), "{told}");
}

#[test]
fn cloudflare_behind_a_balancer_is_believed_and_others_there_are_not() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    let head = world
        .head()
        .replace("[server]\n", "[server]\nproxy_protocol = true\ntrusted_proxies = [\"cloudflare\", \"127.0.0.2\"]\n");
    let proxy = Proxy::start(&world, &format!("{head}{}", php::site(&world, &fpm, "http = \"serve\"")));
    let ask = |peer: &str, fields: &str| {
        let head = format!("PROXY TCP4 {peer} 127.0.0.1 4711 443\r\n");
        let request = format!("GET /env HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{fields}\r\n");
        let answer = Raw::plain_from("127.0.0.2", proxy.http()).send(head + &request).rest();
        let body = answer.split_once("\r\n\r\n").expect(&answer).1;
        let from = body.find('{').unwrap();
        let to = body.rfind('}').unwrap();
        serde_json::from_str::<Value>(&body[from..=to]).unwrap()["server"].clone()
    };
    let fields = "CF-Connecting-IP: 192.0.2.9\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.9\r\nX-Forwarded-Host: evil.test\r\n\
                  Forwarded: for=6.6.6.6\r\nX-Client-IP: 6.6.6.6\r\nCF-IPCountry: DE\r\n";
    let server = ask("173.245.48.5", fields);
    assert_eq!(server["REMOTE_ADDR"], "192.0.2.9");
    assert_eq!(server["HTTP_X_FORWARDED_FOR"], "192.0.2.9", "what Cloudflare passed on of the client's is not told");
    assert_eq!(server["HTTP_CF_CONNECTING_IP"], "192.0.2.9");
    assert_eq!(server["HTTP_CF_IPCOUNTRY"], "DE");
    assert!(!server.to_string().contains(SPOOFED) && !server.to_string().contains("evil"), "{server}");
    let twice = "CF-Connecting-IP: 6.6.6.6\r\nCF-Connecting-IP: 192.0.2.9\r\n";
    assert_eq!(ask("173.245.48.5", twice)["REMOTE_ADDR"], "173.245.48.5");
    let stranger = ask("203.0.113.5", fields);
    assert_eq!(stranger["REMOTE_ADDR"], "203.0.113.5");
    assert!(!stranger.to_string().contains("192.0.2.9"), "{stranger}");
}

#[test]
fn a_head_that_drips_in_is_cut_off_at_the_deadline() {
    let world = World::new();
    let backend = BackEnd::start();
    let timeouts = "[timeouts]\nheader = \"1s\"\n";
    let server = head(&world, "proxy_protocol = true");
    let proxy = Proxy::start(&world, &format!("{server}{timeouts}{}", socket_site(&backend.url(), "", "")));
    for port in [proxy.http(), proxy.https()] {
        let begun = Instant::now();
        let mut raw = Raw::plain_from("127.0.0.2", port);
        let dripped = b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 443\r\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
        for byte in &dripped[..20] {
            raw.send([*byte]);
            // The pace is what is under test: each byte comes well within the deadline of the whole.
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(raw.rest(), "");
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
    let mut raw = Raw::plain_from("127.0.0.2", proxy.http());
    for piece in b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 443\r\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n".chunks(9) {
        raw.send(piece);
    }
    assert_eq!(raw.head().0, 200, "in pieces, but in time");
    assert_eq!(backend.seen().len(), 1);
    assert_eq!(backend.last().field("x-forwarded-for"), Some("192.0.2.9"));
}

#[test]
fn the_client_that_a_head_names_has_its_own_share_of_connections() {
    let world = World::new();
    let backend = BackEnd::start();
    let server = head(&world, "proxy_protocol = true\nmax_connections_per_ip = 1");
    let proxy = Proxy::start(&world, &format!("{server}{}", socket_site(&backend.url(), "", "")));
    let ask = |client: &str| {
        let mut raw = Raw::plain_from("127.0.0.2", proxy.http());
        raw.send(format!("PROXY TCP4 {client} 127.0.0.1 4711 80\r\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n"));
        let status = raw.head().0;
        (raw, status)
    };
    let (first, status) = ask("192.0.2.9");
    assert_eq!(status, 200);
    assert_eq!(ask("192.0.2.9").1, 503);
    assert_eq!(ask("192.0.2.10").1, 200);
    drop(first);
    wait_until("the place is free again", SOON, || ask("192.0.2.9").1 == 200);
}

/// HAProxy with this configuration; ready when it listens on `port`, or at once where that is none.
fn haproxy(world: &World, name: &str, text: &str, port: Option<u16>) -> Running {
    let text = format!(
        "global\n  maxconn 100\ndefaults\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n{text}\n"
    );
    let config = world.write(&format!("{name}.cfg"), text);
    let mut command = Command::new(program(&["haproxy"]));
    command.args(["-db", "-f"]).arg(config);
    let running = Running::start("haproxy", &mut command);
    if let Some(port) = port {
        wait_until("HAProxy listens", SOON, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }
    running
}

#[test]
fn behind_haproxy_every_client_has_its_own_address() {
    let world = World::new();
    let (_fpm, proxy) = with_php(&world, "proxy_protocol = true", "");
    let ways = ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl"];
    let ports: Vec<u16> = ways.iter().map(|_| free_port()).collect();
    let mut text = String::new();
    for (number, (way, port)) in ways.iter().zip(&ports).enumerate() {
        // The checks are LOCAL heads, or UNKNOWN ones.
        text.push_str(&format!(
            "listen l{number}\n  mode tcp\n  bind 127.0.0.1:{port}\n  unique-id-format %ci-%rt\n  \
             server s 127.0.0.1:{} {way} source 127.0.0.2 check inter 200ms\n",
            proxy.https()
        ));
    }
    let mut balancer = haproxy(&world, "front", &text, Some(ports[0]));
    for (way, port) in ways.iter().zip(&ports) {
        for client in ["127.0.0.77", "127.0.0.78"] {
            let curl = || Curl::new(format!("https://app.test:{port}"), &world.ca(), &world.path(""));
            for curl in [curl(), curl().http1()] {
                let server = server_variables(curl.header("X-Forwarded-For: 6.6.6.6"), client);
                assert_eq!(server["REMOTE_ADDR"], client, "{way}");
                assert_eq!(server["HTTPS"], "on");
                assert!(!server.to_string().contains(SPOOFED), "{server}");
            }
        }
    }
    let lines = log_lines(&proxy, 12);
    assert_eq!(lines.iter().filter(|line| line.starts_with("127.0.0.77 ")).count(), 6, "{lines:?}");
    assert!(balancer.alive());
    let said = balancer.said();
    assert!(!said.contains("DOWN"), "the checks fail: {said}");
}

#[test]
fn haproxy_and_nginx_find_the_client_in_the_head_that_they_get() {
    let world = World::new();
    let pem = ["site.pem", "site.key"].map(|name| std::fs::read_to_string(world.path(name)).unwrap()).concat();
    let pem = world.write("both.pem", pem);
    let (plain, tls, nginx_port) = (free_port(), free_port(), free_port());
    let socket = world.path("haproxy.sock");
    let answer =
        "http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"";
    let text = format!(
        "frontend f\n  mode http\n  bind 127.0.0.1:{plain} accept-proxy\n  \
         bind 127.0.0.1:{tls} accept-proxy ssl crt {}\n  bind unix@{} accept-proxy\n  {answer}\n",
        pem.display(),
        socket.display()
    );
    let _haproxy = haproxy(&world, "behind", &text, Some(plain));
    let temp = world.path("tmp");
    std::fs::create_dir_all(&temp).unwrap();
    let temp = temp.display();
    let text = format!(
        "daemon off; pid {temp}/nginx.pid; error_log stderr; events {{}}\nhttp {{ access_log off; \
         client_body_temp_path {temp}/1; proxy_temp_path {temp}/2; fastcgi_temp_path {temp}/3; uwsgi_temp_path {temp}/4; \
         scgi_temp_path {temp}/5;\nserver {{ listen 127.0.0.1:{nginx_port} proxy_protocol; \
         location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
         $proxy_protocol_server_port\"; }} }} }}\n"
    );
    let config = world.write("nginx.conf", text);
    let mut command = Command::new(program(&["nginx"]));
    command.arg("-c").arg(config).arg("-p").arg(world.path(""));
    let _nginx = Running::start("nginx", &mut command);
    wait_until("nginx listens", SOON, || std::net::TcpStream::connect(("127.0.0.1", nginx_port)).is_ok());

    let back_ends = [
        format!("http://127.0.0.1:{plain}"),
        format!("https://127.0.0.1:{tls}"),
        format!("unix:{}", socket.display()),
        format!("http://127.0.0.1:{nginx_port}"),
    ];
    let mut sites = String::new();
    for (version, label) in ["v1", "v2"].iter().enumerate() {
        for (number, to) in back_ends.iter().enumerate() {
            sites.push_str(&format!(
                "[site.s{version}{number}]\nhosts = [\"s{version}{number}.app.test\"]\nupstream = {to:?}\n\
                 upstream_tls = {{ verify = false }}\nupstream_proxy_protocol = {label:?}\n\n"
            ));
        }
    }
    let proxy = Proxy::start(&world, &format!("{}{sites}", head(&world, "")));
    for version in 0..2 {
        for (number, to) in back_ends.iter().enumerate() {
            // In turns: a connection that was shared would name the wrong one.
            for client in ["127.0.0.5", "127.0.0.6", "127.0.0.5", "127.0.0.6"] {
                let curl = proxy.curl(&format!("s{version}{number}.app.test")).arg("--interface").arg(client);
                let answer = curl.get("/").expect(200).text();
                let words: Vec<&str> = answer.split_whitespace().collect();
                assert_eq!(words[0], client, "{to}: {answer}");
                assert_ne!(words[1], "0", "{to}: {answer}");
                assert_eq!(words[2..], ["127.0.0.1", proxy.https().to_string().as_str()], "{to}");
            }
        }
    }
    // Behind a trusted proxy the port is not known.
    let curl = proxy.curl("s03.app.test").arg("--interface").arg("127.0.0.2").header("X-Forwarded-For: 192.0.2.9");
    // nginx writes 0 as nothing.
    assert!(curl.get("/").expect(200).text().starts_with("192.0.2.9  127.0.0.1 "));
}

#[test]
fn a_sockets_back_end_gets_a_head_before_the_handshake_and_no_connection_is_shared() {
    let world = World::new();
    // Keeps its connections open and reads a head as the line of the request that it is not.
    let backend = BackEnd::start();
    let site = socket_site(&backend.url(), "upstream_proxy_protocol = \"v1\"", "proxy_protocol = \"v1\"");
    let proxy = Proxy::start(&world, &format!("{}{site}", head(&world, "")));
    let line = |seen: &Seen| seen.line().rsplit_once(' ').unwrap().1.to_owned();
    for client in ["127.0.0.5", "127.0.0.6"] {
        let mut raw = Raw::plain_from(client, proxy.http());
        for _ in 0..2 {
            let (status, head) = raw.send("GET /x HTTP/1.1\r\nHost: app.test\r\n\r\n").head();
            assert_eq!(status, 200);
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect(&head);
            raw.exactly(length.parse().unwrap());
            let seen = backend.last();
            assert!(seen.line().starts_with(&format!("PROXY TCP4 {client} 127.0.0.1 ")), "{}", seen.head);
            assert_eq!(line(&seen), proxy.http().to_string());
            assert_eq!(seen.field("connection"), Some("close"));
        }
        let mut raw = Raw::plain_from(client, proxy.http());
        assert_eq!(raw.send(handshake(&[])).head().0, 101);
        let seen = backend.last();
        assert!(seen.line().starts_with(&format!("PROXY TCP4 {client} 127.0.0.1 ")), "{}", seen.head);
        assert_eq!(seen.field("upgrade"), Some("websocket"));
        raw.send(b"\x81\x82\0\0\0\0hi");
        assert_eq!(raw.exactly(4), b"\x81\x02hi", "the tunnel is open");
    }
    assert_eq!(backend.seen().len(), 6);
}

#[test]
fn a_node_application_sees_the_forwarded_field_that_it_is_promised() {
    let world = World::new();
    let node = Node::serve(&world, "http-server.js", &[]);
    let site = socket_site(&node.url(), "forwarded = true", "");
    let proxy = Proxy::start(&world, &format!("{}{site}", head(&world, "client_ip_header = \"Forwarded\"")));
    let seen = |source: &str| {
        let curl = proxy.curl("app.test").header("Forwarded: for=\"[2001:db8::9]\";proto=https");
        curl.arg("--interface").arg(source).get("/see").expect(200).json()["headers"]["forwarded"].clone()
    };
    let own = |node: &str| format!("for={node};host=\"app.test:{}\";proto=https", proxy.https());
    assert_eq!(seen("127.0.0.9"), own("127.0.0.9"));
    assert_eq!(seen("127.0.0.2"), format!("for=\"[2001:db8::9]\";proto=https, {}", own("127.0.0.2")));
}
