//! Which back end a request goes to.

use super::*;
use crate::upstream::http::back_end::BackEndRegister;
use proptest::prelude::*;

const NOBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

fn candidates(register: &BackEndRegister, count: usize, sticky: &Sticky) -> Vec<Candidate> {
    (0..count).map(|i| Candidate::new(register.state(&format!("http://10.0.0.{i}:80")), 1, false, sticky)).collect()
}

fn first(balancer: &Balancer, candidates: &[Candidate]) -> usize {
    balancer.order(candidates, NOBODY, &HeaderMap::new())[0]
}

#[test]
fn round_robin_takes_turns() {
    let list = candidates(&BackEndRegister::new(), 3, &Sticky::Off);
    let balancer = Balancer::new(Balance::RoundRobin, Sticky::Off, Duration::ZERO);
    let taken: Vec<_> = (0..6).map(|_| first(&balancer, &list)).collect();
    assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_least_loaded_is_taken_and_equals_take_turns() {
    let list = candidates(&BackEndRegister::new(), 3, &Sticky::Off);
    let balancer = Balancer::new(Balance::LeastConn, Sticky::Off, Duration::ZERO);
    let _one = list[0].state.enter();
    let two = list[2].state.enter();
    assert_eq!(first(&balancer, &list), 1);
    let three = list[1].state.enter();
    drop(two);
    assert_eq!(first(&balancer, &list), 2);
    drop(three);
    let taken: Vec<_> = (0..8).map(|_| first(&balancer, &list)).collect();
    assert!(taken.contains(&1) && taken.contains(&2) && !taken.contains(&0), "{taken:?}");
}

#[test]
fn random_prefers_the_less_loaded_of_two_and_reaches_all() {
    let list = candidates(&BackEndRegister::new(), 4, &Sticky::Off);
    let balancer = Balancer::new(Balance::Random, Sticky::Off, Duration::ZERO);
    let mut seen = [0; 4];
    for _ in 0..400 {
        seen[first(&balancer, &list)] += 1;
    }
    assert!(seen.iter().all(|n| *n > 40), "{seen:?}");
    let two = &list[..2];
    let _busy = two[0].state.enter();
    assert!((0..50).all(|_| first(&balancer, two) == 1));
}

#[test]
fn one_out_of_reach_is_left_out_until_it_is_reached() {
    let list = candidates(&BackEndRegister::new(), 2, &Sticky::Off);
    let balancer = Balancer::new(Balance::RoundRobin, Sticky::Off, Duration::ZERO);
    list[0].state.missed();
    assert!((0..4).all(|_| balancer.order(&list, NOBODY, &HeaderMap::new()) == [1]));
    list[0].state.reached();
    assert!((0..4).any(|_| first(&balancer, &list) == 0));
}

#[test]
fn a_state_is_shared_by_name_and_forgotten_with_its_last_user() {
    let register = BackEndRegister::new();
    let state = register.state("http://a:80");
    let load = state.enter();
    drop(state);
    assert_eq!(register.state("http://a:80").load(), 1);
    assert_eq!(register.back_ends().len(), 1);
    drop(load);
    assert!(register.back_ends().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_address_always_leads_to_the_same_back_end_and_spreads_evenly(base in any::<u32>(), count in 2_usize..8) {
        let list = candidates(&BackEndRegister::new(), count, &Sticky::Off);
        let balancer = Balancer::new(Balance::IpHash, Sticky::Off, Duration::ZERO);
        let mut seen = vec![0_usize; count];
        for i in 0..2000_u32 {
            let address = IpAddr::V4(base.wrapping_add(i).into());
            let order = balancer.order(&list, address, &HeaderMap::new());
            prop_assert_eq!(&order, &balancer.order(&list, address, &HeaderMap::new()));
            seen[order[0]] += 1;
        }
        let fair = 2000 / count;
        prop_assert!(seen.iter().all(|n| *n > fair / 2 && *n < fair * 2), "{:?}", seen);
    }

    #[test]
    fn one_more_back_end_moves_only_its_own_share(base in any::<u32>(), count in 2_usize..8) {
        let register = BackEndRegister::new();
        let more = candidates(&register, count + 1, &Sticky::Off);
        let balancer = Balancer::new(Balance::LeastConn, Sticky::Ip, Duration::ZERO);
        let mut moved = 0;
        for i in 0..2000_u32 {
            let address = IpAddr::V4(base.wrapping_add(i.wrapping_mul(7919)).into());
            let before = balancer.order(&more[..count], address, &HeaderMap::new())[0];
            let after = balancer.order(&more, address, &HeaderMap::new())[0];
            if before != after {
                prop_assert_eq!(after, count, "moved between old back ends");
                moved += 1;
            }
        }
        let share = 2000 / (count + 1);
        prop_assert!(moved > share / 2 && moved < share * 2, "{} of {}", moved, share);
    }

    #[test]
    fn an_ipv6_client_keeps_its_back_end_when_its_interface_changes(net in any::<u64>(), a in any::<u64>(), b in any::<u64>()) {
        let at = |host: u64| IpAddr::V6((u128::from(net) << 64 | u128::from(host)).into());
        prop_assume!(net != 0);
        prop_assert_eq!(hash_address(at(a)), hash_address(at(b)));
    }
}

fn weighted(register: &BackEndRegister, weights: &[u16], backups: usize, sticky: &Sticky) -> Vec<Candidate> {
    let primaries = weights.len() - backups;
    let of = |(i, weight): (usize, &u16)| {
        Candidate::new(register.state(&format!("http://10.0.0.{i}:80")), *weight, i >= primaries, sticky)
    };
    weights.iter().enumerate().map(of).collect()
}

const RULES: [Balance; 4] = [Balance::LeastConn, Balance::RoundRobin, Balance::IpHash, Balance::Random];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_rule_gives_each_that_is_in_once_and_backups_behind_all_others(
        weights in proptest::collection::vec(1_u16..=1000, 1..8), backups in 0_usize..8, out in any::<u8>(),
        rule in 0_usize..4, address in any::<u32>(), sticky in any::<bool>(),
    ) {
        let sticky = if sticky { Sticky::Ip } else { Sticky::Off };
        let backups = backups.min(weights.len() - 1);
        let register = BackEndRegister::new();
        let list = weighted(&register, &weights, backups, &sticky);
        let balancer = Balancer::new(RULES[rule], sticky, Duration::ZERO);
        list.iter().enumerate().filter(|(i, _)| out >> i & 1 == 1).for_each(|(_, candidate)| candidate.state.missed());
        let is_in = |i: &usize| !list[*i].state.is_out();
        for turn in 0..10_u32 {
            let address = IpAddr::V4(address.wrapping_add(turn).into());
            let order = balancer.order(&list, address, &HeaderMap::new());
            prop_assert!(order.is_sorted_by_key(|i| list[*i].backup), "{:?}", order);
            let mut all = order.clone();
            all.sort_unstable();
            prop_assert_eq!(all, (0..list.len()).filter(is_in).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_reload_or_another_order_in_the_file_moves_nobody(
        weights in proptest::collection::vec(1_u16..=1000, 2..8), by in 0_usize..8, address in any::<u32>(),
    ) {
        let before = weighted(&BackEndRegister::new(), &weights, 0, &Sticky::Ip);
        let mut after = weighted(&BackEndRegister::new(), &weights, 0, &Sticky::Ip);
        after.rotate_left(by % weights.len());
        let one = Balancer::new(Balance::LeastConn, Sticky::Ip, Duration::ZERO);
        let two = Balancer::new(Balance::IpHash, Sticky::Ip, Duration::ZERO);
        for client in 0..100_u32 {
            let address = IpAddr::V4(address.wrapping_add(client).into());
            let names = |balancer: &Balancer, list: &[Candidate]| -> Vec<Arc<str>> {
                let order = balancer.order(list, address, &HeaderMap::new());
                order.iter().map(|i| list[*i].state.name().clone()).collect()
            };
            prop_assert_eq!(names(&one, &before), names(&two, &after));
        }
    }

    #[test]
    fn weight_grows_with_the_time_since_the_return_from_a_hundredth_to_the_whole(
        weight in 1_u16..=1000, slow_start in 1_u64..100_000, steps in proptest::collection::vec(0_u64..120_000, 2..20),
    ) {
        let slow_start = Duration::from_millis(slow_start);
        let full = u32::from(weight) * 1000;
        let mut steps = steps;
        steps.sort_unstable();
        let weights: Vec<u32> = steps.iter().map(|ms| grown(full, Duration::from_millis(*ms), slow_start)).collect();
        prop_assert!(weights.is_sorted(), "{:?}", weights);
        prop_assert!(weights.iter().all(|it| *it >= full / 100 && *it <= full));
        prop_assert_eq!(grown(full, slow_start, slow_start), full);
        prop_assert_eq!(grown(full, Duration::ZERO, slow_start), full / 100);
        prop_assert_eq!(grown(full, Duration::ZERO, Duration::ZERO), full);
    }
}
