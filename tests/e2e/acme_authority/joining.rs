//! Names that join one certificate, and what they are served until it is there.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::authority::{Resource, What};
use crate::harness::{Proxy, wait_until};

use super::scene::{ORDERED, Scene, site};

const APP: &str = "app.example.com";
const SHOP: &str = "shop.example.com";

fn no_more_orders(scene: &Scene) {
    let problem = What::Problem(503, "serverInternal", "closed for today", None);
    scene.authority().repair();
    scene.authority().fault(Resource::NewOrder, problem);
}

fn both(scene: &Scene, proxy: &Proxy) -> [Vec<u8>; 2] {
    [APP, SHOP].map(|host| {
        // By a client that believes it.
        proxy.curl(host).get("/").expect(200);
        scene.leaf(proxy, host).to_vec()
    })
}

#[test]
fn a_name_that_was_apart_joins_the_others_and_both_are_served_all_the_while() {
    let scene = Scene::new();
    let apart = scene.storage().join("apart.json");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    fs::create_dir(scene.storage()).unwrap();
    fs::write(&apart, format!("{{{APP:?}: {}}}", now - 29 * 86_400)).unwrap();
    let sites = site("app", &[APP, SHOP]);
    let mut proxy = scene.start(&sites);
    let before = [APP, SHOP].map(|host| scene.served(&proxy, host).to_vec());
    assert_ne!(before[0], before[1], "each has its own");
    no_more_orders(&scene);
    let asked = scene.asked_for_orders();
    fs::write(&apart, format!("{{{APP:?}: {}}}", now - 31 * 86_400)).unwrap();
    assert_eq!(proxy.reload().code, 0);
    wait_until("the joint order", ORDERED, || scene.asked_for_orders() > asked);
    assert_eq!(both(&scene, &proxy), before);
    drop(proxy);
    proxy = scene.start(&sites);
    assert_eq!(both(&scene, &proxy), before, "after a restart");
    scene.authority().repair();
    scene.renewed(APP);
    let joint = both(&scene, &proxy);
    assert!(joint[0] == joint[1] && !before.contains(&joint[0]), "one new certificate for both, without a reload");
}

#[test]
fn sites_that_come_under_a_wildcard_are_served_all_the_while() {
    let scene = Scene::new();
    let two = [site("app", &[APP]), site("shop", &[SHOP])].concat();
    let proxy = scene.start(&two);
    let before = [APP, SHOP].map(|host| scene.served(&proxy, host).to_vec());
    no_more_orders(&scene);
    let asked = scene.asked_for_orders();
    let hook = format!("dns_hook = [{:?}]\n", "/bin/true");
    let listed = scene.config("", &(two + &site("wild", &[".example.com"])));
    proxy.rewrite(&listed.replacen("[acme]\n", &format!("[acme]\n{hook}"), 1));
    let reloaded = proxy.reload();
    assert_eq!(reloaded.code, 0, "{}", reloaded.said());
    wait_until("the order of the wildcard", ORDERED, || scene.asked_for_orders() > asked);
    assert_eq!(both(&scene, &proxy), before);
}
