//! laravel-echo-server 1.6 with laravel-echo, and the Pusher protocol with pusher-js.

use crate::harness::{Fpm, Node, Proxy, Redis, Socket, Waiting, World, free_port};
use crate::{laravel, php};

fn echo_server(world: &World, redis: &Redis, https: bool) -> (Node, String) {
    let port = free_port().to_string();
    let own = world.certificate("echo", &["echo.internal"]);
    let mut arguments = vec!["--port", &port, "--redis", redis.socket.to_str().unwrap()];
    if https {
        arguments.extend(["--cert", own.cert.to_str().unwrap(), "--key", own.key.to_str().unwrap()]);
    }
    let node = Node::serve(world, "echo-server.js", &arguments);
    let scheme = if https { "https" } else { "http" };
    (node, format!("{scheme}://127.0.0.1:{port}"))
}

/// laravel-echo subscribes in each mode; Laravel itself broadcasts.
fn an_event_arrives(world: &World, proxy: &Proxy) {
    for mode in ["polling", "websocket", "upgrade"] {
        let url = proxy.url("app.test");
        let arguments = ["--url", &url, "--mode", mode, "--channel", "orders", "--event", ".App\\OrderShipped"];
        let (client, ready) = Waiting::start(world, "echo-client.js", &arguments);
        assert!(ready["id"].as_str().is_some_and(|id| !id.is_empty()), "{ready}");
        proxy.curl("app.test").get("/ship/42").expect(200);
        let result = client.result();
        assert_eq!(result["data"]["order"], "42", "{mode}");
        assert_eq!(result["transport"], if mode == "polling" { "polling" } else { "websocket" });
    }
}

#[test]
fn laravel_echo_gets_what_laravel_broadcasts_through_laravel_echo_server() {
    let world = World::new();
    let redis = Redis::start(&world);
    let fpm = Fpm::unix(&world);
    let (_node, to) = echo_server(&world, &redis, false);
    let websocket = format!("[site.app.websocket]\npreset = \"socket.io\"\nto = {to:?}\n");
    let proxy = world.proxy(&laravel::site(&world, &fpm, &websocket));
    an_event_arrives(&world, &proxy);
    // Its HTTP API is on the same port and stays inside.
    assert_eq!(proxy.curl("app.test").get("/apps/app/status?auth_key=secret").status, 404, "Laravel's own 404");
}

#[test]
fn laravel_echo_server_with_its_own_certificate_is_reached_over_https() {
    let world = World::new();
    let redis = Redis::start(&world);
    let fpm = Fpm::unix(&world);
    let (_node, to) = echo_server(&world, &redis, true);
    // A websocket block takes `upstream_tls` of its site.
    let websocket = format!(
        "upstream_tls = {{ server_name = \"echo.internal\", ca = {:?} }}\n\
         [site.app.websocket]\npreset = \"socket.io\"\nto = {to:?}\n",
        world.ca()
    );
    let proxy = world.proxy(&laravel::site(&world, &fpm, &websocket));
    an_event_arrives(&world, &proxy);
}

fn pusher(world: &World, more: &str) -> (Node, Fpm, Proxy) {
    let node = Node::serve(world, "pusher-server.js", &[]);
    let fpm = Fpm::unix(world);
    let websocket = format!("[site.app.websocket]\npreset = \"pusher\"\nto = {:?}\n{more}", node.url());
    let proxy = world.proxy(&php::site(world, &fpm, &websocket));
    (node, fpm, proxy)
}

/// What reached the Pusher server, asked without the proxy.
fn seen(world: &World, node: &Node) -> Vec<String> {
    let curl = crate::harness::Curl::new(node.url(), &world.ca(), &world.path(""));
    serde_json::from_value(curl.get("/seen").expect(200).json()).unwrap()
}

fn publish(world: &World, node: &Node) -> u64 {
    let curl = crate::harness::Curl::new(node.url(), &world.ca(), &world.path(""));
    let event = r#"{"name":"news","channels":["news"],"data":"{\"a\":1}"}"#;
    curl.arg("-d").arg(event).get("/apps/1/events").expect(200).json()["sent"].as_u64().unwrap()
}

#[test]
fn pusher_js_gets_an_event_over_app() {
    let world = World::new();
    let (node, _fpm, proxy) = pusher(&world, "");
    let port = proxy.https().to_string();
    let (client, _) = Waiting::start(&world, "pusher-client.js", &["--host", "app.test", "--port", &port]);
    assert_eq!(publish(&world, &node), 1);
    assert_eq!(client.result()["data"]["a"], 1);
}

#[test]
fn pusher_js_gets_every_event_across_a_reload_on_the_same_connection() {
    let world = World::new();
    let (node, _fpm, proxy) = pusher(&world, "");
    let port = proxy.https().to_string();
    let arguments = ["--host", "app.test", "--port", &port, "--events", "3"];
    let (client, ready) = Waiting::start(&world, "pusher-client.js", &arguments);
    assert_eq!(publish(&world, &node), 1);
    for more in ["", "[site.more]\nhosts = [\"more.app.test\"]\nupstream = \"http://127.0.0.1:9\"\n"] {
        let file = std::fs::read_to_string(world.path("proxy.toml")).unwrap();
        proxy.rewrite(&format!("{file}{more}"));
        assert_eq!(proxy.reload().code, 0);
        assert_eq!(publish(&world, &node), 1, "the subscription is the same");
    }
    let result = client.result();
    assert_eq!(result["events"], 3);
    assert_eq!(result["socket"], ready["socket"], "{result}");
    assert_eq!(result["states"], serde_json::json!(["connected"]), "no reconnect");
}

#[test]
fn the_publishing_api_of_the_pusher_protocol_is_closed() {
    let world = World::new();
    let (node, _fpm, proxy) = pusher(&world, "");
    for path in ["/apps/1/events", "/apps/1/channels", "/apps/", "/%61pps/1/events", "/x/../apps/1/events"] {
        proxy.curl("app.test").arg("-d").arg("{}").get(path).expect(404);
        proxy.curl("app.test").http1().get(path).expect(404);
    }
    assert_eq!(seen(&world, &node), ["GET /seen"], "the socket server never saw them");
    // What only begins alike is the site's.
    assert_eq!(proxy.curl("app.test").get("/application").expect(200).json()["path"], "/application");
}

#[test]
fn the_publishing_api_opens_when_the_file_says_so() {
    let world = World::new();
    let event = r#"{"name":"news","channels":["news"],"data":"{}"}"#;
    for (api, status) in [("api = true\n", 200), ("api = [\"127.0.0.0/8\"]\n", 200), ("api = [\"10.0.0.0/8\"]\n", 403)]
    {
        let (_node, _fpm, proxy) = pusher(&world, api);
        proxy.curl("app.test").arg("-d").arg(event).get("/apps/1/events").expect(status);
    }
}

#[test]
fn any_upgrade_goes_to_the_socket_server_whatever_its_path() {
    let world = World::new();
    let (node, _fpm, proxy) = pusher(&world, "upgrade = \"any\"\n");
    for path in ["/", "/chat", "/my/own/handler?x=1", "/hello.txt"] {
        let mut socket = Socket::open(&world, &proxy, "app.test", path);
        socket.send("hello");
        assert_eq!(socket.receive(), format!("{}: hello", path.split('?').next().unwrap()));
        socket.close(1000);
    }
    // The same paths without Upgrade are the site's.
    assert_eq!(proxy.curl("app.test").get("/chat").expect(200).json()["path"], "/chat");
    assert_eq!(proxy.curl("app.test").get("/hello.txt").expect(200).text(), "hello from a file\n");
    // Closed stays closed.
    let refused = Socket::try_open(&world, &proxy, "app.test", "/apps/1/events", &[]).err();
    assert_eq!(refused.map(|status| status.as_u16()), Some(404));
    assert!(seen(&world, &node).iter().all(|line| !line.contains("/apps")));
}
