//! Clients that stay with their server. With `DOORWARD_FULL=1` the crowds have 2,000 sessions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    BackEnd, Node, Proxy, SOON, Seen, Socket, Waiting, World, is_full, run_node, wait_for, wait_until,
};

/// How many sessions a crowd has, and how long it may take.
fn scale() -> (usize, Duration) {
    if is_full() { (2000, Duration::from_secs(600)) } else { (96, Duration::from_secs(60)) }
}

fn node(world: &World, name: &str) -> Node {
    Node::serve(world, "socketio-server.js", &["--node", name, "--ping", "20000"])
}

fn site(nodes: &[&Node], rule: &str) -> String {
    let urls: Vec<_> = nodes.iter().map(|node| node.url()).collect();
    format!("[site.app]\nhosts = [\"app.test\"]\n[site.app.websocket]\npreset = \"socket.io\"\nto = {urls:?}\n{rule}\n")
}

/// Four servers under a crowd; one of them is killed, and a fifth is added.
fn a_crowd_outlasts_it(rule: &str, cookies: &str) -> Value {
    let world = World::new();
    let names = ["one", "two", "three", "four"];
    let nodes = names.map(|name| node(&world, name));
    let four: Vec<_> = nodes.iter().collect();
    let proxy = world.proxy(&site(&four, rule));
    let (sessions, limit) = scale();
    let more = world.path("more");
    let (pace, later) = ((sessions * 4).to_string(), (sessions / 4).to_string());
    let there = world.path("there");
    let (crowd, _) = Waiting::start(
        &world,
        "socketio-crowd.js",
        &[
            &["--url", &proxy.url("app.test"), "--sessions", &sessions.to_string(), "--pace", &pace][..],
            &["--cookies", cookies, "--later", &later, "--events", "4"],
            &["--there", there.to_str().unwrap(), "--more", more.to_str().unwrap()],
        ]
        .concat(),
    );
    let ready: Value =
        wait_for("all sessions are there", limit, || serde_json::from_slice(&std::fs::read(&there).ok()?).ok());
    for name in names {
        let share = ready["nodes"][name].as_u64().unwrap_or_default() as usize;
        assert!(share > sessions / 8, "{name} has too few of {sessions}: {ready}");
    }
    nodes[1].kill();
    let fifth = node(&world, "five");
    let five: Vec<_> = nodes.iter().rev().chain([&fifth]).collect();
    proxy.rewrite(&format!("{}{}", world.head(), site(&five, rule)));
    assert_eq!(proxy.reload().code, 0);
    std::fs::write(&more, "").unwrap();
    let result = crowd.result_within(limit);
    assert_eq!(result["broken"], json!([]));
    // Nobody lost a session but those whose server was killed, and all of these are with others.
    let on_two = ready["nodes"]["two"].as_u64();
    assert_eq!(result["lost"], json!({ "two": on_two }), "{result}");
    assert_eq!(result["refused"], json!({}), "{result}");
    assert_eq!(result["nodes"].get("two"), None, "{result}");
    assert!(result["nodes"]["five"].as_u64() > Some(0), "{result}");
    assert!(result["events"].as_u64() >= Some(sessions as u64 * 4), "{result}");
    result
}

#[test]
fn sessions_stay_with_their_server_by_their_ids_while_one_is_killed_and_one_is_added() {
    let result = a_crowd_outlasts_it("sticky = \"sid\"", "half");
    let all = scale().0 + scale().0 / 4;
    assert_eq!(result["cookies"], json!({ "": all / 2, "blocked": all / 2 }), "a cookie was set");
}

#[test]
fn sessions_stay_with_their_server_by_cookies_while_one_is_killed_and_one_is_added() {
    let secret = "cookie_secret = \"a secret of the house\"";
    let result = a_crowd_outlasts_it(&format!("sticky = \"cookie\"\n{secret}"), "kept");
    let all = scale().0 + scale().0 / 4;
    assert_eq!(result["cookies"], json!({ "doorward_node": all }));
}

#[test]
fn socket_io_2_polls_by_its_ids_in_text_and_in_binary() {
    let world = World::new();
    let nodes = ["one", "two", "three"].map(|name| Node::serve(&world, "socketio-v2-server.js", &["--node", name]));
    let proxy = world.proxy(&site(&nodes.each_ref(), "sticky = \"sid\"\nbalance = \"round_robin\""));
    for base64 in ["true", "false"] {
        let url = proxy.url("app.test");
        let result = run_node(&world, "socketio-v2-client.js", &["--url", &url, "--sessions", "6", "--base64", base64]);
        let nodes = result["nodes"].as_array().unwrap();
        assert!(nodes.len() == 6 && nodes.iter().any(|node| node != &nodes[0]), "one server had all: {result}");
    }
    // A script for JSONP.
    let first = proxy.curl("app.test").get("/socket.io/?EIO=3&transport=polling&j=0").expect(200).text();
    let sid = first.split("sid\\\":\\\"").nth(1).unwrap_or_else(|| panic!("{first}")).split('\\').next().unwrap();
    for _ in 0..6 {
        let path = format!("/socket.io/?EIO=3&transport=polling&sid={sid}");
        assert_eq!(post(&proxy, &path, "1:2"), 200);
    }
}

/// What a server says to packets: none takes text that calls itself binary. It may say so before it has them.
fn post(proxy: &Proxy, path: &str, packets: &str) -> u16 {
    proxy.curl("app.test").header("Content-Type: text/plain").arg("-d").arg(packets).get(path).status
}

/// A session that was begun at `node` itself: the proxy has not heard of it.
fn begun_elsewhere(node: &Node) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", node.port)).unwrap();
    let ask = "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split("\"sid\":\"").nth(1).unwrap_or_else(|| panic!("{answer}")).split('"').next().unwrap().to_owned()
}

#[test]
fn a_session_that_began_at_another_instance_is_found() {
    let world = World::new();
    let nodes = ["one", "two", "three", "four"].map(|name| node(&world, name));
    let proxy = world.proxy(&site(&nodes.each_ref(), "sticky = \"sid\"\nbalance = \"round_robin\""));
    for node in &nodes {
        let path = |sid: &str, transport| format!("/socket.io/?EIO=4&transport={transport}&sid={sid}");
        // By an upgrade, whose probe the server answers.
        let sid = begun_elsewhere(node);
        let mut socket = Socket::open(&world, &proxy, "app.test", &path(&sid, "websocket"));
        socket.send("2probe");
        assert_eq!(socket.receive(), "3probe");
        // By polling: what waits for the client is there, and from then on POST finds it as well.
        let sid = begun_elsewhere(node);
        let first = std::thread::scope(|scope| {
            let poll = scope.spawn(|| proxy.curl("app.test").get(&path(&sid, "polling")).expect(200).text());
            wait_until("the poll has found its server", SOON, || post(&proxy, &path(&sid, "polling"), "40") == 200);
            poll.join().unwrap()
        });
        assert!(first.starts_with("40{"), "{first}");
        for _ in 0..8 {
            assert_eq!(post(&proxy, &path(&sid, "polling"), "42[\"x\"]"), 200);
        }
    }
    let nobody = proxy.curl("app.test").get("/socket.io/?EIO=4&transport=polling&sid=nobody").expect(400);
    assert_eq!(nobody.json(), json!({ "code": 1, "message": "Session ID unknown" }));
    let nobody = "/socket.io/?EIO=4&transport=websocket&sid=nobody";
    assert_eq!(Socket::try_open(&world, &proxy, "app.test", nobody, &[]).err().map(|s| s.as_u16()), Some(400));
}

/// Servers that know the sessions whose ids begin with their name, as long as they are not told to forget.
struct Scripted {
    servers: Vec<BackEnd>,
    forgetful: Arc<AtomicBool>,
}

impl Scripted {
    fn start() -> Scripted {
        let forgetful = Arc::new(AtomicBool::new(false));
        let servers = ["a", "b", "c"].map(|name| {
            let (given, forgetful) = (AtomicUsize::new(0), Arc::clone(&forgetful));
            BackEnd::answering(move |seen, stream| {
                let answer = match seen.line().split("sid=").nth(1).map(|rest| rest.split([' ', '&']).next().unwrap()) {
                    None => {
                        let body = format!("0{{\"sid\":\"{name}-{}\"}}", given.fetch_add(1, Ordering::Relaxed));
                        // In two chunks.
                        let (one, two) = body.split_at(9);
                        format!(
                            "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
                            two.len()
                        )
                    }
                    Some(sid) if sid.starts_with(name) && !forgetful.load(Ordering::Relaxed) => {
                        format!("200 OK\r\nContent-Length: 1\r\n\r\n{name}")
                    }
                    Some(_) => {
                        let body = "{\"code\":1,\"message\":\"Session ID unknown\"}";
                        format!("400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                    }
                };
                stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).is_ok()
            })
        });
        Scripted { servers: servers.into(), forgetful }
    }

    fn site(&self, name: &str, host: &str) -> String {
        let urls: Vec<_> = self.servers.iter().map(BackEnd::url).collect();
        format!(
            "[site.{name}]\nhosts = [{host:?}]\nupstream = {urls:?}\nupstream_sticky = \"sid\"\n\
             upstream_balance = \"round_robin\"\n"
        )
    }

    fn seen(&self) -> Vec<Seen> {
        self.servers.iter().flat_map(BackEnd::seen).collect()
    }

    /// How many requests named `sid`.
    fn asked(&self, sid: &str) -> usize {
        self.seen().iter().filter(|seen| seen.line().contains(&format!("sid={sid} "))).count()
    }
}

fn path(sid: &str) -> String {
    format!("/engine?transport=polling&sid={sid}")
}

fn handshake(proxy: &Proxy, host: &str) -> String {
    let answer = proxy.curl(host).header("Accept-Encoding: gzip, br").get("/engine?transport=polling").expect(200);
    assert!(answer.fields("set-cookie").is_empty());
    let open: Value = serde_json::from_str(answer.text().strip_prefix('0').unwrap()).unwrap();
    open["sid"].as_str().unwrap().to_owned()
}

#[test]
fn every_request_of_a_session_goes_to_one_server_and_no_cookie_is_set() {
    let world = World::new();
    let scripted = Scripted::start();
    let proxy = world.proxy(&scripted.site("app", "app.test"));
    for _ in 0..6 {
        let sid = handshake(&proxy, "app.test");
        for _ in 0..4 {
            assert_eq!(proxy.curl("app.test").post(&path(&sid), b"x").expect(200).text(), sid[..1]);
            proxy.curl("app.test").header("Accept-Encoding: br").get(&path(&sid)).expect(200);
        }
        assert_eq!(scripted.asked(&sid), 8, "none was sent anywhere else");
    }
    for seen in scripted.seen().iter().filter(|seen| seen.line().starts_with("GET")) {
        let coding = if seen.line().contains("sid=") { "br" } else { "identity" };
        assert_eq!(seen.field("accept-encoding"), Some(coding), "{}", seen.line());
    }
}

#[test]
fn sessions_outlast_a_reload_that_turns_the_list_round() {
    let world = World::new();
    let mut scripted = Scripted::start();
    let proxy = world.proxy(&scripted.site("app", "app.test"));
    let sids: Vec<_> = (0..6).map(|_| handshake(&proxy, "app.test")).collect();
    scripted.servers.rotate_left(1);
    proxy.rewrite(&format!("{}{}", world.head(), scripted.site("app", "app.test")));
    assert_eq!(proxy.reload().code, 0);
    for sid in &sids {
        proxy.curl("app.test").post(&path(sid), b"x").expect(200);
        assert_eq!(scripted.asked(sid), 1);
    }
}

#[test]
fn an_unknown_session_is_looked_for_with_get_and_never_with_post() {
    let world = World::new();
    let scripted = Scripted::start();
    let proxy = world.proxy(&scripted.site("app", "app.test"));
    for name in ["a", "b", "c"] {
        let sid = format!("{name}-elsewhere");
        assert_eq!(proxy.curl("app.test").get(&path(&sid)).expect(200).text(), name);
        let searched = scripted.asked(&sid);
        assert!((1..=3).contains(&searched), "{searched}");
        proxy.curl("app.test").post(&path(&sid), b"x").expect(200);
        proxy.curl("app.test").get(&path(&sid)).expect(200);
        assert_eq!(scripted.asked(&sid), searched + 2, "it is known now");
    }
    let answer = proxy.curl("app.test").get(&path("nobodys")).expect(400);
    assert_eq!(answer.json()["message"], "Session ID unknown");
    assert_eq!(scripted.asked("nobodys"), 3, "each is asked once");
    for i in 0..9 {
        let sid = format!("a-posted{i}");
        proxy.curl("app.test").post(&path(&sid), b"x");
        assert_eq!(scripted.asked(&sid), 1, "a POST was sent twice");
    }
}

#[test]
fn a_session_that_its_server_denies_is_forgotten() {
    let world = World::new();
    let scripted = Scripted::start();
    let proxy = world.proxy(&scripted.site("app", "app.test"));
    let sid = handshake(&proxy, "app.test");
    scripted.forgetful.store(true, Ordering::Relaxed);
    let answer = proxy.curl("app.test").post(&path(&sid), b"x").expect(400);
    assert_eq!(answer.json(), json!({ "code": 1, "message": "Session ID unknown" }));
    assert_eq!(scripted.asked(&sid), 1);
    proxy.curl("app.test").get(&path(&sid)).expect(400);
    assert_eq!(scripted.asked(&sid), 4, "it was not looked for: it is held");
}

#[test]
fn an_id_of_one_site_says_nothing_in_another() {
    let world = World::new();
    let scripted = Scripted::start();
    let proxy =
        world.proxy(&format!("{}{}", scripted.site("app", "app.test"), scripted.site("other", "other.app.test")));
    let sids: Vec<_> = (0..3).map(|_| handshake(&proxy, "app.test")).collect();
    // In turn: each comes to the server after that of the one before, and here to the first one first.
    let statuses: Vec<u16> =
        sids.iter().rev().map(|sid| proxy.curl("other.app.test").post(&path(sid), b"x").status).collect();
    assert!(statuses.contains(&400), "they lead to their servers: {statuses:?}");
    for sid in &sids {
        proxy.curl("app.test").post(&path(sid), b"x").expect(200);
    }
}
