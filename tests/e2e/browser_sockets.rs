//! The sockets of a page in Chromium, over the HTTP/2 connection that the page came over (RFC 8441).

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::browser::spki;
use crate::harness::{Node, Proxy, SOON, Waiting, World, program, run_node, wait_until};

fn site(world: &World, to: &str, more: &str) -> String {
    world.write("page/index.html", "<!doctype html><title>a page</title><p>a page");
    world.write("page/switch", "on");
    format!(
        "[site.app]\nhosts = [\"app.test\"]\nroot = {:?}\n[site.app.websocket]\npreset = \"any\"\nto = {to:?}\n{more}\n",
        world.path("page")
    )
}

fn arguments(world: &World, proxy: &Proxy, mode: &str) -> Vec<String> {
    [
        ("--chromium", program(&["chromium", "chromium-browser"]).display().to_string()),
        ("--url", proxy.url("app.test")),
        ("--profile", world.path("profile").display().to_string()),
        ("--spki", spki(&world.path("site.pem"))),
        ("--mode", mode.to_owned()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect()
}

fn browse(world: &World, proxy: &Proxy, mode: &str, more: &[&str]) -> Value {
    let arguments = arguments(world, proxy, mode);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let result = run_node(world, "browser-sockets.js", &arguments);
    assert_eq!(result["protocol"], "h2", "{result}");
    result
}

/// The lines of the access log with `what` in them.
fn lines(proxy: &Proxy, what: &str) -> Vec<String> {
    proxy.running.stdout().into_iter().filter(|line| line.contains(what)).collect()
}

#[test]
fn a_page_in_chromium_has_its_sockets_on_its_own_connection() {
    let world = World::new();
    let node = Node::serve(&world, "ws-server.js", &[]);
    let proxy = world.proxy(&site(&world, &node.url(), ""));
    // More than a connection could have streams before there were sockets among them.
    let result = browse(&world, &proxy, "echo", &["--sockets", "150"]);
    assert_eq!(result["texts"], true, "{result}");
    assert_eq!((&result["bytes"], &result["page"]), (&json!(true), &json!(true)));
    assert_eq!(result["extensions"], "permessage-deflate");
    assert_eq!(result["codes"], json!(["4001,true"]));
    wait_until("all closing lines", SOON, || lines(&proxy, "ws=close code=4001").len() == 150);
    let sockets = lines(&proxy, "/live");
    assert!(sockets.iter().all(|line| line.contains("\"CONNECT /live HTTP/2.0\" 200 ")), "{sockets:?}");
    assert_eq!(sockets.len(), 300);
}

#[test]
fn socketio_in_chromium_goes_over_http2() {
    let world = World::new();
    let node = Node::serve(&world, "socketio-server.js", &[]);
    let proxy = world.proxy(&site(&world, &node.url(), "").replace("\"any\"", "\"socket.io\""));
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node_modules/socket.io-client/dist/socket.io.min.js");
    let result = browse(&world, &proxy, "socketio", &["--script", script.to_str().unwrap()]);
    let expected = json!(["websocket", "héllo ✓", 65536]);
    assert_eq!((&result["websocket"], &result["polling"]), (&expected, &expected), "{result}");
    wait_until("the closing lines", SOON, || lines(&proxy, "ws=close").len() == 2);
    let sockets = lines(&proxy, "ws=close");
    assert!(
        sockets.iter().all(|line| line.contains("\"CONNECT /socket.io/") && line.contains("HTTP/2.0")),
        "{sockets:?}"
    );
}

#[test]
fn with_the_switch_off_chromium_has_its_sockets_on_connections_of_their_own() {
    let world = World::new();
    let node = Node::serve(&world, "ws-server.js", &[]);
    let proxy = world.proxy(&site(&world, &node.url(), "http2 = false"));
    let result = browse(&world, &proxy, "echo", &["--sockets", "3"]);
    assert_eq!(result["texts"], true, "{result}");
    wait_until("all closing lines", SOON, || lines(&proxy, "ws=close").len() == 3);
    assert!(lines(&proxy, "/live").iter().all(|line| line.contains("\"GET /live HTTP/1.1\" 101 ")));
}

#[test]
fn a_switch_that_is_turned_off_is_followed_by_a_page_that_is_open() {
    let world = World::new();
    let node = Node::serve(&world, "ws-server.js", &[]);
    let proxy = world.proxy(&site(&world, &node.url(), ""));
    let arguments = arguments(&world, &proxy, "switched");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (page, _) = Waiting::start(&world, "browser-sockets.js", &arguments);
    proxy.rewrite(&format!("{}{}", world.head(), site(&world, &node.url(), "http2 = false")));
    assert_eq!(proxy.reload().code, 0);
    world.write("page/switch", "off");
    let result = page.result();
    // One fails and says so to the page, as every page with sockets has to expect; the connection goes with it.
    assert_eq!(result["later"], json!(["the socket failed", "later 1", "later 2"]), "{result}");
    assert_eq!(result["first"], "first");
    assert_eq!(lines(&proxy, "\"CONNECT /live HTTP/2.0\" 421 ").len(), 1, "it asks once, and learns");
    assert_eq!(
        lines(&proxy, "\"GET /live HTTP/1.1\" 101 ").iter().filter(|line| !line.contains("ws=close")).count(),
        2
    );
}

#[test]
fn a_page_that_is_left_ends_its_sockets_at_once() {
    let world = World::new();
    let node = Node::serve(&world, "ws-server.js", &[]);
    let proxy = world.proxy(&site(&world, &node.url(), ""));
    let arguments = arguments(&world, &proxy, "left");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--ms", "8000"]).collect();
    let (page, _) = Waiting::start(&world, "browser-sockets.js", &arguments);
    let begun = Instant::now();
    wait_until("the closing line", SOON, || !lines(&proxy, "ws=close").is_empty());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(page);
}
