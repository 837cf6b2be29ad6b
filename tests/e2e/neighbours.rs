//! The neighbours without the proxy between them. When one of these fails, nothing else here says anything about
//! Doorward.

use std::process::Command;

use crate::harness::{BackEnd, Curl, Fpm, Node, Raw, Redis, Waiting, World, finish, free_port, program, run_node};

fn pair(world: &World) -> Vec<String> {
    ["--cert", "site.pem", "--key", "site.key"]
        .map(|word| if word.starts_with("--") { word.to_owned() } else { world.path(word).display().to_string() })
        .to_vec()
}

#[test]
fn curl_and_an_https_server_of_node_trust_the_tests_authority() {
    let world = World::new();
    let pair = pair(&world);
    let arguments: Vec<&str> = pair.iter().map(String::as_str).collect();
    let node = Node::serve(&world, "http-server.js", &arguments);
    let curl = |host: &str| Curl::new(format!("https://{host}:{}", node.port), &world.ca(), &world.path(""));
    assert_eq!(curl("app.test").get("/see?x=1").expect(200).json()["url"], "/see?x=1");
    assert_eq!(curl("app.test").post("/echo", b"hello").expect(200).json()["length"], 5);
    assert_eq!(curl("app.test").get("/big?bytes=1000000").expect(200).body.len(), 1_000_000);
    assert!(curl("elsewhere.test").send("/").is_err(), "a name that the certificate is not for");
    let mut raw = Raw::tls(&world, node.port, "app.test");
    assert_eq!(raw.send("GET /status?code=418 HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").head().0, 418);
    assert!(raw.rest().contains("status 418"));
}

#[test]
fn the_recording_back_end_records() {
    let world = World::new();
    let backend = BackEnd::start();
    let curl = || Curl::new(backend.url(), &world.ca(), &world.path(""));
    curl().header("X-One: 1").post("/x", b"hello").expect(200);
    let seen = backend.last();
    assert_eq!(
        (seen.line(), seen.field("x-one"), seen.body.as_slice()),
        ("POST /x HTTP/1.1", Some("1"), &b"hello"[..])
    );
    curl().header("Transfer-Encoding: chunked").post("/y", &[7; 100_000]).expect(200);
    assert_eq!(backend.last().body, [7; 100_000]);
}

#[test]
fn php_fpm_answers_on_both_kinds_of_socket_and_finds_redis() {
    let world = World::new();
    let _redis = Redis::start(&world);
    let root = world.copy("php").join("public");
    for fpm in [Fpm::unix(&world), Fpm::tcp(&world)] {
        let address = fpm.address.trim_start_matches("unix:");
        let mut command = Command::new(program(&["cgi-fcgi"]));
        command.args(["-bind", "-connect", address]).env_clear();
        for (name, value) in [
            ("REQUEST_METHOD", "GET"),
            ("REQUEST_URI", "/publish?msg=x"),
            ("QUERY_STRING", "msg=x"),
            ("SCRIPT_FILENAME", root.join("index.php").to_str().unwrap()),
        ] {
            command.env(name, value);
        }
        let end = finish("cgi-fcgi", &mut command);
        assert!(end.stdout.contains(r#"{"receivers":0}"#), "{}", end.said());
    }
}

#[test]
fn socket_io_works_in_its_three_modes_with_and_without_tls() {
    let world = World::new();
    let pair = pair(&world);
    let tls: Vec<&str> = pair.iter().map(String::as_str).collect();
    for (arguments, scheme) in [(&[][..], "http"), (&tls, "https")] {
        let node = Node::serve(&world, "socketio-server.js", arguments);
        let url = format!("{scheme}://app.test:{}", node.port);
        for mode in ["polling", "websocket", "upgrade"] {
            let result = run_node(&world, "socketio-client.js", &["--url", &url, "--mode", mode]);
            assert_eq!(result["intact"], true, "{scheme} {mode}: {result}");
            assert_eq!(result["transport"], if mode == "polling" { "polling" } else { "websocket" });
        }
    }
}

#[test]
fn laravel_echo_and_laravel_echo_server_understand_each_other() {
    let world = World::new();
    let redis = Redis::start(&world);
    let port = free_port().to_string();
    let mut arguments = vec!["--port".to_owned(), port.clone(), "--redis".to_owned()];
    arguments.push(redis.socket.display().to_string());
    arguments.extend(pair(&world));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _node = Node::serve(&world, "echo-server.js", &arguments);
    let url = format!("https://app.test:{port}");
    let arguments = ["--url", &url, "--mode", "upgrade", "--channel", "orders", "--event", ".OrderShipped"];
    let (client, _) = Waiting::start(&world, "echo-client.js", &arguments);
    let message = r#"{"event":"OrderShipped","data":{"order":"7"},"socket":null}"#;
    let mut publish = Command::new(program(&["redis-cli"]));
    publish.arg("-s").arg(&redis.socket).args(["publish", "laravel_database_orders", message]);
    assert_eq!(finish("redis-cli", &mut publish).stdout.trim(), "1");
    assert_eq!(client.result()["data"]["order"], "7");
}

#[test]
fn pusher_js_and_the_pusher_server_understand_each_other() {
    let world = World::new();
    let pair = pair(&world);
    let arguments: Vec<&str> = pair.iter().map(String::as_str).collect();
    let node = Node::serve(&world, "pusher-server.js", &arguments);
    let port = node.port.to_string();
    let (client, _) = Waiting::start(&world, "pusher-client.js", &["--host", "app.test", "--port", &port]);
    let curl = Curl::new(format!("https://app.test:{port}"), &world.ca(), &world.path(""));
    let event = r#"{"name":"news","channels":["news"],"data":"{\"a\":1}"}"#;
    assert_eq!(curl.arg("-d").arg(event).get("/apps/1/events").expect(200).json()["sent"], 1);
    assert_eq!(client.result()["data"]["a"], 1);
}

#[test]
fn nginx_takes_the_spellings_that_the_scenarios_replace() {
    let world = World::new();
    world.certificate("site", &["app.example.com"]);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let pattern =
        regex::Regex::new(r"(?m)^(\s*(ssl_certificate|ssl_certificate_key|proxy_ssl_trusted_certificate)) .*$")
            .unwrap();
    for name in ["a", "b", "c", "d"] {
        let mut text = std::fs::read_to_string(folder.join(name).with_extension("nginx")).unwrap();
        text = pattern
            .replace_all(&text, |found: &regex::Captures<'_>| {
                let file = if &found[2] == "ssl_certificate_key" { "site.key" } else { "site.pem" };
                format!("{} {};", &found[1], world.path(file).display())
            })
            // Ports that this account may bind; -t opens them.
            .replace("listen 80", "listen 20080")
            .replace("listen [::]:80", "listen [::]:20080")
            .replace("listen 127.0.0.1:80", "listen 127.0.0.1:20080")
            .replace(":443", ":20443")
            .replace("listen 443", "listen 20443")
            .replace("2096", "22096")
            .replace("include fastcgi_params", "include /etc/nginx/fastcgi_params");
        let temp = world.path("tmp");
        let temp = temp.display();
        let config = world.write(
            &format!("{name}.conf"),
            format!(
                "pid {temp}-nginx.pid; error_log stderr; events {{}}\nhttp {{ access_log off; client_body_temp_path {temp}-1; \
                 proxy_temp_path {temp}-2; fastcgi_temp_path {temp}-3; uwsgi_temp_path {temp}-4; scgi_temp_path {temp}-5;\n{text}\n}}\n"
            ),
        );
        let mut command = Command::new(program(&["nginx"]));
        command.args(["-t", "-c"]).arg(config).arg("-p").arg(world.path(""));
        let end = finish("nginx -t", &mut command);
        assert_eq!(end.code, 0, "{name}: {}", end.said());
    }
}
