//! Socket.IO 4 on Node behind the proxy.

use serde_json::{Value, json};

use crate::harness::{Fpm, Node, Proxy, Redis, Socket, Waiting, World, run_node};
use crate::php;

/// `[site.app.websocket]` with the preset socket.io.
pub fn websocket(to: &str) -> String {
    format!("[site.app.websocket]\npreset = \"socket.io\"\nto = {to:?}\n")
}

struct Stack {
    proxy: Proxy,
    _fpm: Fpm,
    _node: Node,
    _redis: Redis,
}

fn start(world: &World) -> Stack {
    let redis = Redis::start(world);
    let fpm = Fpm::unix(world);
    let node = Node::serve(world, "socketio-server.js", &["--redis", redis.socket.to_str().unwrap()]);
    let proxy = world.proxy(&php::site(world, &fpm, &websocket(&node.url())));
    Stack { proxy, _fpm: fpm, _node: node, _redis: redis }
}

/// Runs the client in one mode and checks all that it did.
pub fn exercise(world: &World, proxy: &Proxy, mode: &str) -> Value {
    let url = proxy.url("app.test");
    let result = run_node(world, "socketio-client.js", &["--url", &url, "--mode", mode, "--frames", "16"]);
    let (first, last) = match mode {
        "polling" => ("polling", "polling"),
        "websocket" => ("websocket", "websocket"),
        _ => ("polling", "websocket"),
    };
    assert_eq!(result["first"], first, "{result}");
    assert_eq!(result["transport"], last, "{result}");
    assert_eq!(result["text"], "héllo wörld ✓");
    assert_eq!(result["binary"], json!([0, 1, 2, 253, 254, 255]));
    assert_eq!(result["intact"], true, "64 KiB frames came back changed");
    assert_eq!(result["large"], 1 << 20);
    assert_eq!(result["heard"], "to the room");
    assert_eq!(result["closed"], "io server disconnect");
    result
}

#[test]
fn polling_only_works() {
    let world = World::new();
    let stack = start(&world);
    let result = exercise(&world, &stack.proxy, "polling");
    let headers = &result["who"]["headers"];
    assert_eq!(headers["host"], format!("app.test:{}", stack.proxy.https()));
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
}

#[test]
fn websocket_only_works() {
    let world = World::new();
    let stack = start(&world);
    let result = exercise(&world, &stack.proxy, "websocket");
    let headers = &result["who"]["headers"];
    assert_eq!(headers["upgrade"], "websocket");
    assert_eq!(headers["connection"].as_str().unwrap().to_lowercase(), "upgrade");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
}

#[test]
fn polling_then_upgrade_works() {
    let world = World::new();
    let stack = start(&world);
    exercise(&world, &stack.proxy, "upgrade");
}

#[test]
fn what_php_publishes_reaches_every_client_through_redis_and_node() {
    let world = World::new();
    let stack = start(&world);
    let url = stack.proxy.url("app.test");
    let clients: Vec<_> = ["polling", "websocket", "upgrade"]
        .into_iter()
        .map(|mode| {
            let arguments = ["--url", &url, "--mode", mode, "--wait", "news"];
            Waiting::start(&world, "socketio-client.js", &arguments).0
        })
        .collect();
    let answer = stack.proxy.curl("app.test").get("/publish?msg=from%20PHP").expect(200).json();
    assert_eq!(answer["receivers"], 1, "Node has subscribed");
    for client in clients {
        assert_eq!(client.result()["data"]["msg"], "from PHP");
    }
}

#[test]
fn long_polling_is_plain_get_and_post() {
    let world = World::new();
    let stack = start(&world);
    let curl = || stack.proxy.curl("app.test");
    let open = curl().get("/socket.io/?EIO=4&transport=polling").expect(200).text();
    let open: Value = serde_json::from_str(open.strip_prefix('0').expect("an open packet")).unwrap();
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={}", open["sid"].as_str().unwrap());
    assert_eq!(curl().header("Content-Type: text/plain").arg("-d").arg("40").get(&path).expect(200).text(), "ok");
    assert!(curl().get(&path).expect(200).text().starts_with("40{"), "connected to the name space");
    // And the site still has its own paths, beside ones that only begin alike.
    assert_eq!(curl().get("/").expect(200).text(), "front controller\n");
    assert_eq!(curl().get("/socket.iox").expect(200).json()["path"], "/socket.iox");
}

#[test]
fn a_websocket_outside_the_socket_path_is_not_opened() {
    let world = World::new();
    let stack = start(&world);
    let status = Socket::try_open(&world, &stack.proxy, "app.test", "/chat", &[]).err().expect("it was opened");
    assert!(status.is_success() || status.is_client_error(), "{status}");
}

#[test]
fn a_socket_server_that_is_down_is_502_then_503_and_the_site_goes_on() {
    let world = World::new();
    let stack = start(&world);
    drop(stack._node);
    stack.proxy.curl("app.test").get("/socket.io/?EIO=4&transport=polling").expect(502);
    // From now on it is known to be out.
    let status = Socket::try_open(&world, &stack.proxy, "app.test", "/socket.io/?EIO=4&transport=websocket", &[]);
    assert_eq!(status.err().map(|status| status.as_u16()), Some(503));
    stack.proxy.curl("app.test").get("/").expect(200);
}

#[test]
fn several_socket_servers_keep_each_client_by_a_cookie() {
    let world = World::new();
    let names = ["one", "two", "three"];
    let nodes: Vec<_> = names.iter().map(|name| Node::serve(&world, "socketio-server.js", &["--node", name])).collect();
    let urls: Vec<_> = nodes.iter().map(Node::url).collect();
    let proxy = world.proxy(&format!(
        "[site.app]\nhosts = [\"app.test\"]\nupstream = {:?}\n\
         [site.app.websocket]\npreset = \"socket.io\"\nto = {urls:?}\n",
        nodes[0].url()
    ));
    let first = proxy.curl("app.test").get("/socket.io/?EIO=4&transport=polling").expect(200);
    let cookie = first.field("set-cookie").expect("a cookie for a new client");
    let lower = cookie.to_lowercase();
    assert!(lower.starts_with("doorward_node="), "{cookie}");
    for attribute in ["httponly", "samesite=lax", "secure"] {
        assert!(lower.contains(attribute), "{attribute}: {cookie}");
    }
    let pair = cookie.split(';').next().unwrap();
    let open: Value = serde_json::from_str(&first.text()[1..]).unwrap();
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={}", open["sid"].as_str().unwrap());
    let curl = || proxy.curl("app.test").header(&format!("Cookie: {pair}"));
    curl().header("Content-Type: text/plain").arg("-d").arg("40").get(&path).expect(200);
    for _ in 0..5 {
        // Another server would not know this session and answer 400.
        curl().header("Content-Type: text/plain").arg("-d").arg("42[\"x\"]").get(&path).expect(200);
    }
    // A websocket alone needs no cookie.
    exercise(&world, &proxy, "websocket");
}

#[test]
fn a_socket_server_with_its_own_certificate_is_reached_over_https() {
    let world = World::new();
    let own = world.certificate("node", &["node.internal"]);
    let arguments = ["--cert", own.cert.to_str().unwrap(), "--key", own.key.to_str().unwrap()];
    let node = Node::serve(&world, "socketio-server.js", &arguments);
    let to = format!("https://127.0.0.1:{}", node.port);
    let proxy = world.proxy(&format!(
        "[site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n\
         upstream_tls = {{ server_name = \"node.internal\", ca = {:?} }}\n{}",
        world.ca(),
        websocket(&to)
    ));
    for mode in ["polling", "websocket", "upgrade"] {
        exercise(&world, &proxy, mode);
    }
}
