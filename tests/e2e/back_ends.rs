//! Several back ends: shares, retries, and names that change their addresses.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backend::site;
use crate::harness::{
    Asking, BackEnd, Load, NameServer, Node, Proxy, SOON, Seen, Socket, World, free_port, promised, wait_until,
};

/// A site over these back ends, as they stand in the file.
fn over(back_ends: &[String], more: &str) -> String {
    format!("[site.app]\nhosts = [\"app.test\"]\nupstream = [{}]\n{more}\n", back_ends.join(", "))
}

fn quoted(back_ends: &[&BackEnd]) -> Vec<String> {
    back_ends.iter().map(|back_end| format!("{:?}", back_end.url())).collect()
}

fn says(text: &'static str) -> impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync {
    move |_, stream| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        stream.write_all(head.as_bytes()).is_ok()
    }
}

/// Takes a request and closes without a word.
fn dies(_: &Seen, _: &mut TcpStream) -> bool {
    false
}

fn gone() -> String {
    format!("\"http://127.0.0.1:{}\"", free_port())
}

fn counted(back_end: &BackEnd, method: &str) -> usize {
    back_end.seen().iter().filter(|seen| seen.line().starts_with(method)).count()
}

#[test]
fn requests_are_shared_by_weight_and_a_backup_gets_none() {
    let world = World::new();
    let [heavy, light, backup] = [(); 3].map(|()| BackEnd::start());
    let list = [
        format!("{{ to = {:?}, weight = 3 }}", heavy.url()),
        format!("{:?}", light.url()),
        format!("{{ to = {:?}, weight = 1000, backup = true }}", backup.url()),
    ];
    for rule in ["round_robin", "least_conn", "random"] {
        let before = [&heavy, &light, &backup].map(|it| it.seen().len());
        let proxy = world.proxy(&over(&list, &format!("upstream_balance = {rule:?}")));
        let mut raw = proxy.raw(&world, "app.test");
        for _ in 0..40 {
            let (status, head) = raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").head();
            assert_eq!(status, 200, "{head}");
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            raw.exactly(length.parse().unwrap());
        }
        let after = [&heavy, &light, &backup].map(|it| it.seen().len());
        let seen = [0, 1, 2].map(|at| after[at] - before[at]);
        match rule {
            "random" => assert!(seen[0] > 20 && seen[1] > 1 && seen[2] == 0, "{rule}: {seen:?}"),
            _ => assert_eq!(seen, [30, 10, 0], "{rule}"),
        }
    }
}

#[test]
fn a_backup_serves_where_all_others_are_gone() {
    let world = World::new();
    let backup = BackEnd::start();
    let list = [gone(), gone(), format!("{{ to = {:?}, backup = true }}", backup.url())];
    let proxy = world.proxy(&over(&list, ""));
    for _ in 0..6 {
        proxy.curl("app.test").post("/", b"whole").expect(200);
    }
    assert!(backup.seen().iter().all(|seen| seen.body == b"whole"));
    assert_eq!(backup.seen().len(), 6);
}

#[test]
fn one_of_three_dies_under_load_and_no_get_fails_and_no_post_runs_twice() {
    let world = World::new();
    let log = world.path("asked.log");
    let path = log.display().to_string();
    let mut nodes: Vec<_> = ["one", "two", "three"]
        .iter()
        .map(|name| Node::serve(&world, "counting-server.js", &["--name", name, "--log", &path]))
        .collect();
    let list: Vec<_> = nodes.iter().map(|node| format!("{:?}", node.url())).collect();
    let proxy = world.proxy(&over(&list, "upstream_balance = \"round_robin\""));
    let loads = [Asking::KeepAlive, Asking::Http2].map(|how| Load::asking(&world, &proxy, "app.test", 3, how));
    let stop = AtomicBool::new(false);
    let curls: Vec<_> = (0..2).map(|_| proxy.url("app.test")).collect();
    let statuses = std::thread::scope(|scope| {
        let posting: Vec<_> = curls
            .iter()
            .enumerate()
            .map(|(who, url)| {
                let (world, stop) = (&world, &stop);
                scope.spawn(move || {
                    let mut statuses = HashMap::new();
                    for at in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let (id, curl) = (format!("/{who}-{at}"), curl(world, url));
                        statuses.insert(id.clone(), curl.post(&id, b"once").status);
                    }
                    statuses
                })
            })
            .collect();
        loads.iter().for_each(|load| load.goes_on(100));
        nodes.remove(1);
        loads.iter().for_each(|load| load.goes_on(300));
        stop.store(true, Ordering::Relaxed);
        posting.into_iter().flat_map(|posting| posting.join().unwrap()).collect::<HashMap<_, _>>()
    });
    // None of them failed.
    loads.into_iter().for_each(|load| drop(load.stop()));
    let text = std::fs::read_to_string(log).unwrap();
    let mut runs: HashMap<&str, usize> = HashMap::new();
    text.lines().filter_map(|line| line.strip_prefix("POST ")).for_each(|id| *runs.entry(id).or_default() += 1);
    assert!(statuses.len() > 4, "{statuses:?}");
    for (id, status) in &statuses {
        let runs = runs.get(id.as_str()).copied().unwrap_or(0);
        match status {
            200 => assert_eq!(runs, 1, "{id}"),
            502 => assert!(runs <= 1, "{id} ran {runs} times"),
            other => panic!("{id}: {other}"),
        }
    }
}

fn curl(world: &World, url: &str) -> crate::harness::Curl {
    crate::harness::Curl::new(url.to_owned(), &world.ca(), &world.path(""))
}

#[test]
fn what_may_have_been_run_is_not_sent_again_and_what_only_asks_is_sent_to_another_once() {
    let world = World::new();
    let [one, two, three] = [(); 3].map(|()| BackEnd::answering(dies));
    let all = [&one, &two, &three];
    // Deaths alone put nobody out here.
    let more = "upstream_balance = \"round_robin\"\n[site.app.upstream_health]\nmax_fails = 0";
    let proxy = world.proxy(&over(&quoted(&all), more));
    for (method, tries) in [("POST", 1), ("PUT", 1), ("DELETE", 1), ("PATCH", 1), ("GET", 2), ("OPTIONS", 2)] {
        let before: usize = all.iter().map(|it| counted(it, method)).sum();
        let before_each = all.map(|it| counted(it, method));
        proxy.curl("app.test").arg("-X").arg(method).get("/").expect(502);
        let after: usize = all.iter().map(|it| counted(it, method)).sum();
        assert_eq!(after - before, tries, "{method}");
        let most = all.iter().zip(before_each).map(|(it, before)| counted(it, method) - before).max();
        assert_eq!(most, Some(1), "{method} went to the same one again");
    }
    proxy.curl("app.test").post("/", b"a body").expect(502);
    assert_eq!(all.iter().map(|it| counted(it, "POST")).sum::<usize>(), 2);
    // A GET that brings a body may be anything.
    let before: usize = all.iter().map(|it| counted(it, "GET")).sum();
    proxy.curl("app.test").arg("-X").arg("GET").post("/", b"a body").expect(502);
    assert_eq!(all.iter().map(|it| counted(it, "GET")).sum::<usize>() - before, 1);
}

#[test]
fn a_handshake_without_an_answer_goes_to_another_back_end() {
    let world = World::new();
    let (dead, alive) = (BackEnd::answering(dies), BackEnd::start());
    let urls = [dead.url(), alive.url()];
    let proxy = world.proxy(&format!(
        "[site.app]\nhosts = [\"app.test\"]\nupstream = {:?}\n[site.app.websocket]\npreset = \"any\"\nto = {urls:?}\n\
         balance = \"round_robin\"\nsticky = \"off\"\n",
        alive.url()
    ));
    for _ in 0..4 {
        Socket::open(&world, &proxy, "app.test", "/live").echoes("there");
    }
    assert!(counted(&dead, "GET") >= 1, "it was never asked");
}

#[test]
fn an_answer_of_503_is_passed_on() {
    let world = World::new();
    let [one, two] = [(); 2].map(|()| {
        BackEnd::saying(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlast")
    });
    let proxy = world.proxy(&over(&quoted(&[&one, &two]), ""));
    assert_eq!(proxy.curl("app.test").get("/").expect(503).text(), "last");
    assert_eq!(one.seen().len() + two.seen().len(), 1);
}

#[test]
fn when_all_are_out_the_answer_is_503_at_once() {
    let world = World::new();
    let proxy = world.proxy(&over(&[gone(), gone()], ""));
    wait_until("all to be known as out", SOON, || proxy.curl("app.test").get("/").status == 503);
    let mut raw = proxy.raw(&world, "app.test");
    for _ in 0..5 {
        let since = Instant::now();
        let (status, head) = raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").head();
        assert!(since.elapsed() < promised(Duration::from_millis(100)), "{:?}", since.elapsed());
        assert_eq!(status, 503, "{head}");
        let head = head.to_lowercase();
        assert!(head.contains("\r\nretry-after: "), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        raw.exactly(length.parse().unwrap());
    }
}

/// The usual head, and the name server that is to be asked.
fn with_resolver(world: &World, server: &NameServer) -> String {
    world.head().replace("[server]\n", &format!("[server]\nresolvers = [\"{}\"]\n", server.address()))
}

#[test]
fn a_name_is_followed_when_it_moves_and_serves_on_while_its_server_is_silent() {
    let (world, server) = (World::new(), NameServer::start());
    let port = free_port();
    let (_one, _two) = (
        BackEnd::answering_at(&format!("127.0.0.1:{port}"), says("one")),
        BackEnd::answering_at(&format!("127.0.0.2:{port}"), says("two")),
    );
    server.set("app.internal.test", &[[127, 0, 0, 1]]);
    let toml = with_resolver(&world, &server) + &site(&format!("http://app.internal.test:{port}"), "");
    let proxy = Proxy::start(&world, &toml);
    assert_eq!(server.asked(), Vec::<String>::new(), "the start asks nobody");
    let ask = || proxy.curl("app.test").get("/").expect(200).text();
    assert_eq!(ask(), "one");
    // The connection to the first is used again and again, and does not keep the site there.
    server.set("app.internal.test", &[[127, 0, 0, 2]]);
    wait_until("the new address", SOON, || ask() == "two");
    server.set_silent(true);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        assert_eq!(ask(), "two");
    }
    server.set("app.internal.test", &[[127, 0, 0, 1]]);
    server.set_silent(false);
    wait_until("the newer address", SOON, || ask() == "one");
    // Other name servers are asked from the reload on.
    let other = NameServer::start();
    other.set("app.internal.test", &[[127, 0, 0, 2]]);
    proxy.rewrite(&toml.replace(&server.address().to_string(), &other.address().to_string()));
    assert_eq!(proxy.reload().code, 0);
    wait_until("the other server's word", SOON, || ask() == "two");
}

#[test]
fn a_dead_address_of_a_name_costs_no_request() {
    let (world, server) = (World::new(), NameServer::start());
    let port = free_port();
    let _alive = BackEnd::answering_at(&format!("127.0.0.3:{port}"), says("alive"));
    server.set("app.internal.test", &[[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4]]);
    let to = format!("http://app.internal.test:{port}");
    let proxy = Proxy::start(&world, &(with_resolver(&world, &server) + &site(&to, "")));
    for _ in 0..6 {
        assert_eq!(proxy.curl("app.test").post("/", b"x").expect(200).text(), "alive");
    }
}

#[test]
fn a_name_that_does_not_resolve_costs_502_on_its_route_and_nothing_else() {
    let (world, server, backend) = (World::new(), NameServer::start(), BackEnd::start());
    let more = "[[site.app.route]]\npath = \"/lost/*\"\nupstream = \"http://nowhere.internal.test\"\n";
    let proxy = Proxy::start(&world, &(with_resolver(&world, &server) + &site(&backend.url(), more)));
    proxy.curl("app.test").get("/lost/x").expect(502);
    proxy.curl("app.test").get("/").expect(200);
    assert_eq!(proxy.reload().code, 0);
    let named = |line: &String| line.contains("cannot resolve \"nowhere.internal.test\"") && line.contains("NXDOMAIN");
    wait_until("the name in the log", SOON, || proxy.running.stderr().iter().any(named));
    proxy.curl("app.test").get("/").expect(200);
}
