//! The four files under tests/scenarios, against real neighbours. Only addresses and paths are replaced.

use std::path::Path;

use crate::harness::{Curl, Fpm, Node, Proxy, Redis, Socket, Waiting, World, free_port};
use crate::{browser, socketio};

/// The scenario's file with each of `changes` made; one that is not there is a failure.
fn scenario(name: &str, changes: &[(&str, String)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios").join(name);
    let mut text = std::fs::read_to_string(path).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name} no longer has {from}");
        text = text.replace(from, to);
    }
    text
}

/// Free ports in the place of 80 and 443, where the file leaves those as they are.
fn listeners() -> String {
    "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\n\n".to_owned()
}

/// A folder as certbot makes it.
fn certbot(world: &World, host: &str, names: &[&str]) -> String {
    let pair = world.certificate(&format!("archive/{host}"), names);
    let live = world.path(format!("live/{host}"));
    std::fs::create_dir_all(&live).unwrap();
    std::os::unix::fs::symlink(pair.cert, live.join("fullchain.pem")).unwrap();
    std::os::unix::fs::symlink(pair.key, live.join("privkey.pem")).unwrap();
    live.display().to_string()
}

#[test]
fn a_laravel_with_socket_io() {
    let world = World::new();
    let redis = Redis::start(&world);
    let fpm = Fpm::unix(&world);
    let node = Node::serve(&world, "socketio-server.js", &["--redis", redis.socket.to_str().unwrap()]);
    let root = world.copy("laravel").join("public");
    let live = certbot(&world, "app.example.com", &["app.example.com"]);
    let changes = [
        ("/etc/letsencrypt/live/app.example.com", live),
        ("/srv/app/public", root.display().to_string()),
        ("unix:/run/php/php8.2-fpm.sock", fpm.address.clone()),
        ("http://127.0.0.1:3444", node.url()),
    ];
    let proxy = Proxy::start(&world, &(listeners() + &scenario("a.toml", &changes)));
    let here = proxy.url("app.example.com");
    assert_eq!(proxy.curl("app.example.com").get("/").expect(200).text(), here);
    let answer = proxy.plain("app.example.com").get("/orders/7").expect(301);
    assert_eq!(answer.field("location"), Some(format!("{here}/orders/7").as_str()));
    for mode in ["polling", "websocket", "upgrade"] {
        let (client, _) =
            Waiting::start(&world, "socketio-client.js", &["--url", &here, "--mode", mode, "--wait", "news"]);
        let end = std::process::Command::new("redis-cli")
            .arg("-s")
            .arg(&redis.socket)
            .args(["publish", "news", r#"{"event":"news","data":{"msg":"hello"}}"#])
            .output()
            .unwrap();
        assert!(end.status.success());
        assert_eq!(client.result()["data"]["msg"], "hello", "{mode}");
    }
}

#[test]
fn b_certbots_folder_pusher_any_upgrade_and_an_http_application() {
    let world = World::new();
    let app = Node::serve(&world, "http-server.js", &[]);
    let pusher = Node::serve(&world, "pusher-server.js", &[]);
    let changes = [
        (
            "/etc/letsencrypt/live/shop.example.com",
            certbot(&world, "shop", &["shop.example.com", "www.shop.example.com"]),
        ),
        ("http://127.0.0.1:8000", app.url()),
        ("http://127.0.0.1:6001", pusher.url()),
    ];
    let proxy = Proxy::start(&world, &(listeners() + &scenario("b.toml", &changes)));
    let shop = "shop.example.com";
    let seen = proxy.curl(shop).get("/products?page=2").expect(200).json();
    assert_eq!(seen["url"], "/products?page=2");
    assert_eq!(seen["headers"]["host"], format!("{shop}:{}", proxy.https()));
    assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
    let www = proxy.curl("www.shop.example.com").get("/products?page=2").expect(301);
    assert_eq!(www.field("location"), Some(format!("{}/products?page=2", proxy.url(shop)).as_str()));
    for name in [shop, "www.shop.example.com"] {
        let plain = proxy.plain(name).get("/x").expect(301);
        assert!(plain.field("location").unwrap().starts_with("https://"), "{:?}", plain.headers);
    }
    let port = proxy.https().to_string();
    let (client, _) = Waiting::start(&world, "pusher-client.js", &["--host", shop, "--port", &port]);
    let direct = Curl::new(pusher.url(), &world.ca(), &world.path(""));
    let event = r#"{"name":"news","channels":["news"],"data":"{\"a\":1}"}"#;
    direct.arg("-d").arg(event).get("/apps/1/events").expect(200);
    assert_eq!(client.result()["data"]["a"], 1);
    proxy.curl(shop).arg("-d").arg(event).get("/apps/1/events").expect(404);
    let mut socket = Socket::open(&world, &proxy, shop, "/any/path");
    socket.send("hello");
    assert_eq!(socket.receive(), "/any/path: hello");
}

#[test]
fn c_two_sites_two_ports_several_socket_servers_and_a_back_end_with_its_own_certificate() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    let nodes: Vec<_> = ["one", "two", "three"]
        .iter()
        .map(|name| Node::serve(&world, "socketio-server.js", &["--node", name]))
        .collect();
    let own = world.certificate("admin", &["admin.internal"]);
    let arguments = ["--cert", own.cert.to_str().unwrap(), "--key", own.key.to_str().unwrap()];
    let admin = Node::serve(&world, "http-server.js", &arguments);
    let pair = world.certificate("cf", &["example.com", "*.example.com"]);
    let root = world.copy("php").join("public");
    let (first, second) = (free_port(), free_port());
    let changes = [
        (
            "https           = [\":443\", \":2096\"]",
            format!("http = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:{first}\", \"127.0.0.1:{second}\"]"),
        ),
        ("/etc/ssl/cf/example.com.pem", pair.cert.display().to_string()),
        ("/etc/ssl/cf/example.com.key", pair.key.display().to_string()),
        ("/srv/forum/public", root.display().to_string()),
        ("unix:/run/php/php8.3-fpm.sock", fpm.address.clone()),
        ("http://10.0.0.11:3000", nodes[0].url()),
        ("http://10.0.0.12:3000", nodes[1].url()),
        ("http://10.0.0.13:3000", nodes[2].url()),
        ("https://10.0.0.5:8443", format!("https://127.0.0.1:{}", admin.port)),
        ("/etc/ssl/internal-ca.pem", world.ca().display().to_string()),
    ];
    let proxy = Proxy::start(&world, &scenario("c.toml", &changes));
    for port in [first, second] {
        let curl = |host: &str| Curl::new(format!("https://{host}:{port}"), &world.ca(), &world.path(""));
        let url = curl("forum.example.com").get("/url").expect(200).text();
        assert_eq!(url, format!("https://forum.example.com:{port}/"), "the port that was asked for");
        // This peer is not Cloudflare, so its word does not count.
        let env = curl("forum.example.com").header("CF-Connecting-IP: 6.6.6.6").get("/env").expect(200).json();
        assert_eq!(env["server"]["REMOTE_ADDR"], "127.0.0.1");
        let seen = curl("admin.example.com").get("/status?code=418").expect(418);
        assert_eq!(seen.text(), "status 418\n");
        let seen = curl("admin.example.com").get("/see").expect(200).json();
        assert_eq!(seen["headers"]["host"], format!("admin.example.com:{port}"), "Host is kept, SNI is admin.internal");
        let url = format!("https://forum.example.com:{port}");
        let arguments = ["--url", &url, "--mode", "websocket"];
        let result = crate::harness::run_node(&world, "socketio-client.js", &arguments);
        assert_eq!(result["intact"], true);
    }
    let cookies: Vec<_> = (0..6)
        .map(|_| {
            let answer = proxy.curl("forum.example.com").get("/socket.io/?EIO=4&transport=polling").expect(200);
            answer.field("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned()
        })
        .collect();
    assert!(cookies.iter().any(|cookie| *cookie != cookies[0]), "all went to one server: {cookies:?}");
}

#[test]
fn d_local_development() {
    let world = World::new();
    let fpm = Fpm::tcp(&world);
    let pusher = Node::serve(&world, "pusher-server.js", &[]);
    let site = world.copy("php");
    // The file lies in the project's folder, and `root` is relative to it.
    std::fs::rename(site.join("public"), world.path("public")).unwrap();
    let changes = [("127.0.0.1:9000", fpm.address.clone()), ("http://127.0.0.1:8080", pusher.url())];
    let proxy = Proxy::start(&world, &(listeners() + &scenario("d.toml", &changes)));
    let curl = || proxy.curl("app.test").arg("--insecure");
    assert_eq!(curl().get("/url").expect(200).text(), format!("{}/", proxy.url("app.test")));
    assert_eq!(curl().get("/hello.txt").expect(200).text(), "hello from a file\n");
    curl().get("/other.php").expect(404);
    assert!(world.path("certs-dev").is_dir());
    curl().arg("-d").arg("{}").get("/apps/1/events").expect(404);
}

#[test]
fn the_first_seed_php_to_redis_to_node_to_the_browser() {
    let world = World::new();
    let redis = Redis::start(&world);
    let fpm = Fpm::unix(&world);
    let node = Node::serve(&world, "socketio-server.js", &["--redis", redis.socket.to_str().unwrap()]);
    let root = world.copy("php").join("public");
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node_modules/socket.io-client/dist/socket.io.min.js");
    std::fs::copy(script, root.join("assets/socket.io.min.js")).unwrap();
    let changes = [
        ("app.example.com\"]", "app.test\"]".to_owned()),
        ("/etc/letsencrypt/live/app.example.com", certbot(&world, "app.test", &["app.test"])),
        ("/srv/app/public", root.display().to_string()),
        ("unix:/run/php/php8.2-fpm.sock", fpm.address.clone()),
        ("http://127.0.0.1:3444", node.url()),
    ];
    let proxy = Proxy::start(&world, &(listeners() + &scenario("a.toml", &changes)));
    browser::see(&world, &proxy, &world.path("archive/app.test.pem"), "scenario-a.png");
    socketio::exercise(&world, &proxy, "upgrade");
}
