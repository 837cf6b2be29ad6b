//! `doorward demo`: the shipped code path with nothing beside it.

use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Running, SOON, World, doorward, finish, free_port};

#[test]
fn the_demo_serves_a_page_and_a_chat_under_its_own_authority_and_prints_its_file() {
    let world = World::new();
    let port = free_port();
    let mut demo =
        Running::start("demo", doorward().args(["demo", "--port", &port.to_string()]).current_dir(world.path("")));
    demo.wait_line("the demo is ready", |line| line.contains("ready"));
    let said = demo.stdout().join("\n");
    for part in ["[site.demo]", "tls      = \"self-signed\"", &format!("https://localhost:{port}")] {
        assert!(said.contains(part), "{part} is missing:\n{said}");
    }
    let base = format!("https://localhost:{port}");
    let curl = |arguments: &[&str], path: &str| {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--cacert"])
            .arg(world.path("certs-dev/ca.pem"))
            .args(arguments)
            .arg(format!("{base}{path}"));
        finish("curl", &mut command).stdout
    };
    assert!(curl(&[], "/").contains("Doorward"), "the page");
    assert!(curl(&[], "/request").contains("x-forwarded-proto"), "what the back end saw");
    // The socket stays open: curl is told to go, behind the 101 and the chat's first words.
    let handshake = [
        "-i",
        "-N",
        "--http1.1",
        "--max-time",
        "2",
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
        "-H",
        "Sec-WebSocket-Version: 13",
        "-H",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let answer = curl(&handshake, "/ws");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    demo.signal(Signal::TERM);
    assert!(demo.wait_exit(SOON).success(), "{}", demo.said());
}
