//! PHP-FPM behind the proxy, as Laravel, Symfony and WordPress use it.

use crate::files;
use crate::harness::{Fpm, Proxy, Redis, World, wait_until};

/// The front controller's site on `fpm`, with more keys.
pub fn site(world: &World, fpm: &Fpm, more: &str) -> String {
    let root = world.copy("php").join("public");
    format!("[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\nphp = {:?}\n{more}\n", fpm.address)
}

fn start(world: &World, more: &str) -> (Fpm, Proxy) {
    let fpm = Fpm::unix(world);
    let proxy = world.proxy(&site(world, &fpm, more));
    (fpm, proxy)
}

/// The front controller's site, whose `php` has these keys beside `to`.
fn start_with_keys(world: &World, keys: &str) -> (Fpm, Proxy) {
    let fpm = Fpm::unix(world);
    let address = format!("{:?}", fpm.address);
    let proxy = world.proxy(&site(world, &fpm, "").replace(&address, &format!("{{ to = {address}, {keys} }}")));
    (fpm, proxy)
}

#[test]
fn the_front_controller_answers_over_a_unix_socket() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    let answer = proxy.curl("app.test").get("/").expect(200);
    assert_eq!(answer.text(), "front controller\n");
    assert_eq!(answer.version, "2", "ALPN chooses HTTP/2");
    assert_eq!(answer.field("x-powered-by"), None, "PHP's version is not told");
    assert_eq!(answer.field("server"), None);
}

#[test]
fn the_front_controller_answers_over_tcp() {
    let world = World::new();
    let fpm = Fpm::tcp(&world);
    let proxy = world.proxy(&site(&world, &fpm, ""));
    assert_eq!(proxy.curl("app.test").http1().get("/").expect(200).text(), "front controller\n");
    for number in 0..20 {
        let answer = proxy.curl("app.test").get(&format!("/page/{number}?q=a%20b&c=%2F")).expect(200).json();
        assert_eq!(answer["path"], format!("/page/{number}"));
        assert_eq!(answer["query"], "q=a%20b&c=%2F", "the query is passed on as it came");
    }
}

#[test]
fn an_application_finds_itself_on_https_with_its_port_and_no_work() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    assert_eq!(proxy.curl("app.test").get("/url").expect(200).text(), format!("{}/", proxy.url("app.test")));
    assert_eq!(proxy.curl("app.test").http1().get("/url").text(), format!("{}/", proxy.url("app.test")));
}

#[test]
fn the_environment_is_that_of_cgi() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    let root = std::fs::canonicalize(world.path("php/public")).unwrap();
    for http1 in [true, false] {
        let curl = proxy.curl("app.test").header("X-Custom: yes").header("Cookie: a=1; b=2");
        let curl = if http1 { curl.http1() } else { curl };
        let answer = curl.get("/env?x=1&y=2").expect(200).json();
        let server = &answer["server"];
        let expected = [
            ("HTTPS", "on".to_owned()),
            ("REQUEST_SCHEME", "https".to_owned()),
            ("GATEWAY_INTERFACE", "CGI/1.1".to_owned()),
            ("REQUEST_METHOD", "GET".to_owned()),
            ("REQUEST_URI", "/env?x=1&y=2".to_owned()),
            ("QUERY_STRING", "x=1&y=2".to_owned()),
            ("SCRIPT_NAME", "/index.php".to_owned()),
            ("SCRIPT_FILENAME", root.join("index.php").display().to_string()),
            ("DOCUMENT_ROOT", root.display().to_string()),
            ("SERVER_NAME", "app.test".to_owned()),
            ("SERVER_PORT", proxy.https().to_string()),
            ("HTTP_HOST", format!("app.test:{}", proxy.https())),
            ("REMOTE_ADDR", "127.0.0.1".to_owned()),
            ("HTTP_X_CUSTOM", "yes".to_owned()),
            ("HTTP_COOKIE", "a=1; b=2".to_owned()),
            ("REDIRECT_STATUS", "200".to_owned()),
            ("SERVER_PROTOCOL", if http1 { "HTTP/1.1" } else { "HTTP/2.0" }.to_owned()),
        ];
        for (name, value) in expected {
            assert_eq!(server[name], value, "{name}: {server}");
        }
        assert!(server["REMOTE_PORT"].as_str().is_some_and(|port| port.parse::<u16>().is_ok()), "{server}");
        assert_eq!(answer["get"]["y"], "2");
        assert_eq!(answer["cookie"]["b"], "2");
    }
}

#[test]
fn a_client_cannot_forge_what_the_application_is_told() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    let answer = proxy
        .curl("app.test")
        .http1()
        .header("X-Forwarded-For: 6.6.6.6")
        .header("X-Real-IP: 6.6.6.6")
        .header("X-Forwarded-Proto: http")
        .header("X-Forwarded-Host: evil.test")
        .header("Forwarded: for=6.6.6.6;host=evil.test")
        .header("Proxy: http://evil.test/")
        .header("X_Forwarded_For: 6.6.6.6")
        .header("HTTPS: off")
        .get("/env")
        .expect(200)
        .json();
    let server = &answer["server"];
    assert_eq!(server["REMOTE_ADDR"], "127.0.0.1");
    assert_eq!(server["HTTPS"], "on");
    assert!(server.get("HTTP_PROXY").is_none(), "httpoxy: {server}");
    let all = server.to_string();
    assert!(!all.contains("6.6.6.6"), "{all}");
    assert!(!all.contains("evil.test"), "{all}");
}

#[test]
fn bodies_reach_php_whole_whatever_their_framing() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    // Around the limit of a FastCGI record (65535 bytes), and past any buffer.
    for size in [0, 1, 8191, 65_535, 65_536, 1 << 20, 5 << 20] {
        let body: Vec<u8> = (0..size).map(|i: usize| u8::try_from(i * 7 % 251).unwrap()).collect();
        let digest = sha256(&body);
        for curl in [
            proxy.curl("app.test"),
            proxy.curl("app.test").http1(),
            proxy.curl("app.test").http1().header("Transfer-Encoding: chunked"),
        ] {
            let answer = curl.post("/echo", &body).expect(200).json();
            assert_eq!(answer["length"], size);
            assert_eq!(answer["sha256"], digest, "{size} bytes");
            assert_eq!(answer["content_length"], size.to_string(), "PHP needs CONTENT_LENGTH to read a body");
            assert_eq!(answer["method"], "POST");
        }
    }
}

#[test]
fn a_form_reaches_php_as_a_form() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    let curl = proxy.curl("app.test").arg("-d").arg("name=J%C3%BCrgen&x=1");
    let answer = curl.get("/env").expect(200).json();
    assert_eq!(answer["post"]["name"], "Jürgen");
    assert_eq!(answer["server"]["CONTENT_TYPE"], "application/x-www-form-urlencoded");
}

#[test]
fn status_location_and_cookies_of_php_reach_the_client() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    for code in [201, 204, 304, 403, 404, 418, 500, 503] {
        proxy.curl("app.test").get(&format!("/status?code={code}")).expect(code);
    }
    let answer = proxy.curl("app.test").get("/location").expect(302);
    assert_eq!(answer.field("location"), Some("/elsewhere?x=1"));
    assert_eq!(proxy.curl("app.test").get("/cookies").expect(200).fields("set-cookie").len(), 2);
    assert_eq!(proxy.curl("app.test").get("/missing").expect(404).json()["path"], "/missing", "PHP's own 404");
}

#[test]
fn sixty_four_kib_of_response_fields_pass() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    let answer = proxy.curl("app.test").http1().get("/headers").expect(200);
    let fillers = answer.headers.iter().filter(|(name, value)| name.starts_with("x-filler-") && value.len() == 1000);
    assert_eq!(fillers.count(), 64);
}

#[test]
fn head_has_no_body() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    proxy.curl("app.test").head("/big?bytes=100000").expect(200);
    files::head_has_no_body(&world, &proxy, "/big?bytes=100000");
}

#[test]
fn only_the_front_controller_runs() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    let paths = [
        "/other.php",
        "/other.php/x",
        "/other.PHP",
        "/other%2ephp",
        "/other.php%00",
        "/other.php%20",
        "/other.php.",
        "/./other.php",
        "/x/../other.php",
        "/uploads/evil.jpg/x.php",
        "/uploads/evil.jpg%00.php",
        "/uploads/evil.jpg/index.php",
        "/uploads/evil.jpg",
    ];
    for path in paths {
        for curl in [proxy.curl("app.test"), proxy.curl("app.test").http1()] {
            let text = curl.get(path).text();
            assert!(!text.contains("SOURCE-MUST-NOT-LEAK"), "{path} shows source: {text}");
            assert!(!text.contains("other.php ran"), "{path} runs: {text}");
            assert!(!text.contains("EVIL-RAN"), "{path} runs a picture: {text}");
        }
    }
    proxy.curl("app.test").get("/other.php").expect(404);
    // The source of the front controller itself is never a file either.
    assert!(!proxy.curl("app.test").get("/index.php").text().contains("<?php"));
}

#[test]
fn all_scripts_run_when_the_file_says_so_and_pictures_never() {
    let world = World::new();
    let (_fpm, proxy) = start_with_keys(&world, "scripts = \"all\", params = { APP_MODE = \"test\" }");
    assert_eq!(
        proxy.curl("app.test").get("/other.php/path/info").expect(200).text(),
        "other.php ran with path info /path/info\n"
    );
    for path in ["/uploads/evil.jpg/x.php", "/uploads/evil.jpg/index.php", "/uploads/evil.jpg%00.php"] {
        assert!(!proxy.curl("app.test").get(path).text().contains("EVIL-RAN"), "{path}");
    }
    assert_eq!(proxy.curl("app.test").get("/env").json()["server"]["APP_MODE"], "test");
}

#[test]
fn a_release_behind_a_symlink_is_resolved_for_every_request() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    for release in ["one", "two"] {
        world.write(
            &format!("releases/{release}/public/index.php"),
            format!("<?php echo '{release} ', $_SERVER['DOCUMENT_ROOT'];"),
        );
    }
    let current = world.path("current");
    std::os::unix::fs::symlink("releases/one", &current).unwrap();
    let proxy = world.proxy(&format!(
        "[site.app]\nhosts = [\"app.test\"]\nroot = {:?}\nphp = {:?}\n",
        current.join("public"),
        fpm.address
    ));
    let expected = |release: &str| {
        let root = std::fs::canonicalize(world.path(format!("releases/{release}/public"))).unwrap();
        format!("{release} {}", root.display())
    };
    assert_eq!(proxy.curl("app.test").get("/").expect(200).text(), expected("one"));
    let next = world.path("next");
    std::os::unix::fs::symlink("releases/two", &next).unwrap();
    std::fs::rename(next, current).unwrap();
    // As deploy tools switch: by renaming over the link. Nobody tells the proxy.
    wait_until("the new release answers", std::time::Duration::from_secs(5), || {
        proxy.curl("app.test").get("/").expect(200).text() == expected("two")
    });
}

#[test]
fn what_php_writes_to_stderr_is_in_the_log() {
    let world = World::new();
    let (_fpm, proxy) = start(&world, "");
    proxy.curl("app.test").get("/stderr?text=from-the-application").expect(200);
    wait_until("the line is logged", crate::harness::SOON, || {
        proxy.running.stderr().iter().any(|line| line.contains("a line for the error log: from-the-application"))
    });
}

#[test]
fn x_accel_redirect_hands_out_a_file_that_no_path_reaches() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    let storage = world.path("php/storage/");
    let proxy = world.proxy(&site(&world, &fpm, &format!("accel = {{ \"/internal/\" = {storage:?} }}")));
    let answer = proxy.curl("app.test").get("/accel").expect(200);
    assert_eq!(answer.text(), "a report that only X-Accel-Redirect shows\n");
    assert_eq!(answer.field("x-accel-redirect"), None);
    assert_eq!(answer.field("content-disposition"), Some("attachment; filename=\"report.txt\""));
    assert_eq!(answer.field("content-type"), Some("application/octet-stream"));
    assert_eq!(proxy.curl("app.test").arg("-r").arg("2-7").get("/accel").expect(206).text(), "report");
    let direct = proxy.curl("app.test").get("/internal/report.txt");
    assert!(!direct.text().contains("a report that only"), "the internal path is reachable");
    for escape in ["/internal/../.env", "/internal/%2e%2e/.env", "/elsewhere/x", "/internal/"] {
        let answer = proxy.curl("app.test").get(&format!("/accel?to={}", escape.replace('%', "%25")));
        assert!(!answer.text().contains("DOTFILE-MUST-NOT-LEAK"), "{escape}: {}", answer.text());
        assert!(!answer.text().contains("must be replaced"), "{escape}: {}", answer.text());
    }
}

#[test]
fn a_pool_that_was_never_there_is_a_quick_502_and_its_coming_is_noticed() {
    let world = World::new();
    let (fpm, address) = (world.path("fpm.sock"), format!("unix:{}", world.path("fpm.sock").display()));
    let root = world.copy("php").join("public");
    let proxy = world.proxy(&format!(
        "[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\nphp = {{ to = {address:?}, restart_window = \"10ms\" }}\n"
    ));
    let started = std::time::Instant::now();
    let answer = proxy.curl("app.test").get("/").expect(502);
    assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(!answer.text().contains("fpm.sock"), "the inside is not told: {}", answer.text());
    // The log says why, and what to look at.
    wait_until("the reason is logged", crate::harness::SOON, || {
        proxy.running.stderr().iter().any(|line| line.contains("cannot connect") && line.contains("No such file"))
    });
    let _fpm = Fpm::unix(&world);
    assert!(fpm.exists());
    wait_until("its coming is noticed", std::time::Duration::from_secs(5), || {
        proxy.curl("app.test").get("/").status == 200
    });
}

#[test]
fn a_script_may_run_for_longer_than_anybody_may_wait_for_a_worker_however_quick_the_last_one_was() {
    let world = World::new();
    let (_fpm, proxy) = start_with_keys(&world, "queue_timeout = \"1s\"");
    for _ in 0..3 {
        proxy.curl("app.test").get("/").expect(200);
        proxy.curl("app.test").get("/slow?ms=1500").expect(200);
    }
}

#[test]
fn a_script_that_does_not_answer_in_time_is_504() {
    let world = World::new();
    let (_fpm, proxy) = start_with_keys(&world, "read_timeout = \"300ms\"");
    proxy.curl("app.test").get("/slow?ms=5000").expect(504);
    proxy.curl("app.test").get("/slow?ms=1").expect(200);
}

#[test]
fn php_publishes_through_redis() {
    let world = World::new();
    let _redis = Redis::start(&world);
    let (_fpm, proxy) = start(&world, "");
    assert_eq!(proxy.curl("app.test").get("/publish?msg=x").expect(200).json()["receivers"], 0);
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
