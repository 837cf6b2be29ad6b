//! A real Laravel application, Debian's `php-laravel-framework`.

use crate::harness::{Fpm, Proxy, World};

/// The application's site on `fpm`, with more keys.
pub fn site(world: &World, fpm: &Fpm, more: &str) -> String {
    let root = world.copy("laravel").join("public");
    format!("[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\nphp = {:?}\n{more}\n", fpm.address)
}

fn start(world: &World) -> (Fpm, Proxy) {
    let fpm = Fpm::unix(world);
    let proxy = world.proxy(&site(world, &fpm, ""));
    (fpm, proxy)
}

#[test]
fn laravel_links_to_itself_by_https_without_trust_proxies() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let here = proxy.url("app.test");
    // url('/') has no slash at its end.
    assert_eq!(proxy.curl("app.test").get("/").expect(200).text(), here);
    let links = proxy.curl("app.test").get("/links").expect(200).json();
    assert_eq!(links["url"], here);
    assert_eq!(links["asset"], format!("{here}/assets/app.css"));
    assert_eq!(links["route"], format!("{here}/orders/7"));
    assert_eq!(links["full"], format!("{here}/links"));
    assert_eq!(links["secure"], true);
    assert_eq!(links["ip"], "127.0.0.1");
    assert_eq!(links["port"], proxy.https());
}

#[test]
fn laravel_redirects_to_https() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let answer = proxy.curl("app.test").get("/go").expect(302);
    assert_eq!(answer.field("location"), Some(format!("{}/orders/7", proxy.url("app.test")).as_str()));
    assert_eq!(proxy.curl("app.test").get("/orders/7").expect(200).text(), "order 7");
    proxy.curl("app.test").get("/nowhere").expect(404);
}

#[test]
fn laravel_gets_an_upload() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let file = world.write("photo.bin", vec![7; 300_000]);
    let form = format!("file=@{};filename=photo.jpg", file.display());
    let answer =
        proxy.curl("app.test").arg("-F").arg("note=hello").arg("-F").arg(form).get("/upload").expect(200).json();
    assert_eq!(answer["name"], "photo.jpg");
    assert_eq!(answer["size"], 300_000);
    assert_eq!(answer["note"], "hello");
}
