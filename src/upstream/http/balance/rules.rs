//! The rules of balancing over what is known of the back ends at one moment: pure functions, each of which puts all of
//! them in the order in which they are tried.

/// One back end at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// Its place in the file.
    pub(super) index: usize,
    /// Its share, in thousandths of a weight; at least 1 and at most [`HEAVIEST`].
    pub(super) weight: u32,
    /// Requests and tunnels on it.
    pub(super) load: usize,
    /// Its half of the rendezvous hash.
    pub(super) seed: u64,
}

/// The largest weight: 1000 in thousandths.
pub(super) const HEAVIEST: u32 = 1_000_000;

/// The time of one cycle of turns: in it everybody has as many turns as it has weight.
const CYCLE: u64 = 1 << 40;

/// The one whose turn it is first, the others behind it as they stand in the file.
pub(super) fn in_turn(members: &mut [Member], turn: u64) {
    let first = nth(members, turn);
    members.rotate_left(first);
}

/// The one with the least load for its weight first. Equals take turns: a quiet site would else send everybody to one.
pub(super) fn by_load(members: &mut [Member], turn: u64) {
    members.sort_by_cached_key(burden);
    let least = members.first().map(burden);
    let equals = members.iter().take_while(|member| Some(burden(member)) == least).count();
    in_turn(members.get_mut(..equals).unwrap_or_default(), turn);
}

/// Two are drawn in proportion to their weights; the one with less load for its weight is first, the other second.
pub(super) fn by_draw(members: &mut [Member], drawn: u64) {
    let mut others = &mut *members;
    for drawn in [drawn, mix(drawn)] {
        let at = draw(others, drawn);
        others.rotate_left(at);
        others = others.get_mut(1..).unwrap_or_default();
    }
    if let [first, second, ..] = members
        && burden(second) < burden(first)
    {
        std::mem::swap(first, second);
    }
}

/// By weighted rendezvous hashing: each gives every client a score, the highest wins. Another member, or another weight,
/// moves only those clients whose highest score changes.
pub(super) fn by_hash(members: &mut [Member], client: u64) {
    // The logarithm method: -w / ln(h) is the highest in proportion to w for h even between 0 and 1.
    let score = |member: &Member| {
        let hash = mix(client ^ member.seed) >> 11;
        let even = (hash as f64 + 0.5) / (1_u64 << 53) as f64;
        -f64::from(member.weight) / even.ln()
    };
    members.sort_by(|a, b| score(b).total_cmp(&score(a)));
}

/// Load for weight, comparable.
fn burden(member: &Member) -> u64 {
    (member.load as u64).saturating_mul(u64::from(HEAVIEST) * 1024) / u64::from(member.weight.max(1))
}

/// Whose turn it is, smoothly: a member's turns lie evenly in the cycle, and those of different members apart from one
/// another. It is computed from the number of the turn alone, so that workers share a counter and no lock.
fn nth(members: &[Member], turn: u64) -> usize {
    let count = members.len() as u64;
    let Some(first) = members.first().filter(|_| count > 1) else { return 0 };
    if members.iter().all(|member| member.weight == first.weight) {
        return usize::try_from(turn % count).unwrap_or(0);
    }
    let unit = members.iter().fold(0, |unit, member| gcd(unit, member.weight)).max(1);
    let total: u64 = members.iter().map(|member| u64::from(member.weight / unit)).sum();
    let turn = turn % total.max(1);
    // The k-th turn of a member is at (k + phase) / weight of the cycle.
    let taken_by = |at: usize, weight: u32, time: u64| {
        let phase = (2 * at as u64 + 1) * (CYCLE / (2 * count));
        (u64::from(weight / unit) * time + CYCLE - phase) / CYCLE
    };
    let taken = |time: u64| -> u64 { members.iter().enumerate().map(|(at, m)| taken_by(at, m.weight, time)).sum() };
    let (mut before, mut time) = (0, CYCLE);
    while time - before > 1 {
        let middle = before + (time - before) / 2;
        if taken(middle) > turn { time = middle } else { before = middle }
    }
    let nth = turn - taken(before);
    let due =
        |(at, member): &(usize, &Member)| taken_by(*at, member.weight, time) > taken_by(*at, member.weight, before);
    let mut all = members.iter().enumerate().filter(due).map(|(at, _)| at);
    all.nth(usize::try_from(nth).unwrap_or(0)).unwrap_or(0)
}

/// One in proportion to its weight.
fn draw(members: &[Member], drawn: u64) -> usize {
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let mut left = ((u128::from(drawn) * u128::from(total)) >> 64) as u64;
    for (at, member) in members.iter().enumerate() {
        match left.checked_sub(u64::from(member.weight)) {
            Some(rest) => left = rest,
            None => return at,
        }
    }
    0
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The finaliser of splitmix64: every bit of the input changes about half of the output.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        let member = |(index, weight): (usize, &u32)| Member {
            index,
            weight: weight * 1000,
            load: 0,
            seed: mix(index as u64 + 1),
        };
        weights.iter().enumerate().map(member).collect()
    }

    fn first(members: &[Member], rule: impl Fn(&mut [Member])) -> usize {
        let mut sorted = members.to_vec();
        rule(&mut sorted);
        let mut all: Vec<usize> = sorted.iter().map(|member| member.index).collect();
        let first = all[0];
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..members.len()), "somebody is lost: {all:?}");
        first
    }

    /// Whether `seen` of `all` is the share `weight` of `total`, within five standard deviations.
    fn is_share(seen: usize, all: usize, weight: u32, total: u32) -> bool {
        let share = f64::from(weight) / f64::from(total);
        let expected = all as f64 * share;
        (seen as f64 - expected).abs() < 5.0 * (expected * (1.0 - share)).sqrt() + 2.0
    }

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(1_u32..20, 1..7)
    }

    #[test]
    fn equal_weights_take_turns_in_the_order_of_the_file() {
        let list = members(&[7, 7, 7]);
        let taken: Vec<_> = (0..6).map(|turn| first(&list, |m| in_turn(m, turn))).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_heavy_one_has_no_long_run_of_turns() {
        let list = members(&[5, 1, 1]);
        let taken: Vec<_> = (0..14).map(|turn| first(&list, |m| in_turn(m, turn))).collect();
        let longest = taken.chunk_by(|a, b| a == b).filter(|run| run[0] == 0).map(<[_]>::len).max();
        assert!(longest <= Some(4), "{taken:?}");
        assert_eq!(taken[..7], taken[7..]);
    }

    #[test]
    fn the_extremes_of_weight_are_taken_exactly() {
        let list = members(&[1000, 1]);
        let seen = (0..1001).filter(|turn| first(&list, |m| in_turn(m, *turn)) == 1).count();
        assert_eq!(seen, 1);
        let mut tiny = members(&[1000, 1]);
        tiny[1].weight = 1;
        let seen = (0..1_000_001).step_by(1).filter(|turn| nth(&tiny, *turn) == 1).count();
        assert_eq!(seen, 1);
    }

    #[test]
    fn load_is_compared_for_weight() {
        let mut list = members(&[3, 1]);
        (list[0].load, list[1].load) = (2, 1);
        assert_eq!(first(&list, |m| by_load(m, 0)), 0, "2/3 is less than 1/1");
        (list[0].load, list[1].load) = (4, 1);
        assert_eq!(first(&list, |m| by_load(m, 0)), 1, "4/3 is more than 1/1");
        (list[0].load, list[1].load) = (usize::MAX, 1);
        assert_eq!(first(&list, |m| by_load(m, 0)), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn turns_are_exactly_proportional_to_weight_and_smooth(weights in weights(), cycle in 0_u64..1000) {
            let list = members(&weights);
            let unit = weights.iter().copied().fold(0, gcd);
            let total: u32 = weights.iter().sum::<u32>() / unit;
            let mut seen = vec![0_u32; weights.len()];
            for turn in 0..u64::from(total) {
                seen[first(&list, |m| in_turn(m, cycle * u64::from(total) + turn))] += 1;
                for (seen, weight) in seen.iter().zip(&weights) {
                    let ideal = f64::from(weight / unit) * (turn + 1) as f64 / f64::from(total);
                    prop_assert!((f64::from(*seen) - ideal).abs() < weights.len() as f64, "{} of {}", seen, ideal);
                }
            }
            prop_assert!(seen.iter().zip(&weights).all(|(seen, weight)| *seen == weight / unit), "{:?}", seen);
        }

        #[test]
        fn the_least_loaded_fill_up_in_proportion_to_weight(weights in weights(), rounds in 1_usize..20) {
            let mut list = members(&weights);
            let total: u32 = weights.iter().sum();
            for turn in 0..rounds * total as usize {
                let taken = first(&list, |m| by_load(m, turn as u64));
                list[taken].load += 1;
            }
            for (member, weight) in list.iter().zip(&weights) {
                prop_assert!(member.load.abs_diff(rounds * *weight as usize) <= 1, "{:?}", list);
            }
        }

        #[test]
        fn idle_ones_take_turns_by_weight_and_busy_ones_wait(weights in weights(), busy in any::<prop::sample::Index>()) {
            let mut list = members(&weights);
            let busy = busy.index(list.len());
            list[busy].load = 1;
            let total = u64::from(weights.iter().sum::<u32>() - weights[busy]);
            let mut seen = vec![0_u32; weights.len()];
            for turn in 0..total {
                seen[first(&list, |m| by_load(m, turn))] += 1;
            }
            seen[busy] = weights[busy];
            if list.len() > 1 {
                prop_assert_eq!(seen, weights);
            }
        }

        #[test]
        fn draws_are_proportional_to_weight(weights in weights(), salt in any::<u64>()) {
            let list = members(&weights);
            let total: u32 = weights.iter().sum();
            let mut seen = vec![0_usize; weights.len()];
            for drawn in 0..4000_u64 {
                seen[first(&list, |m| by_draw(m, mix(drawn ^ salt)))] += 1;
            }
            for (seen, weight) in seen.iter().zip(&weights) {
                prop_assert!(is_share(*seen, 4000, *weight, total), "{} for {} of {}", seen, weight, total);
            }
        }

        #[test]
        fn of_two_drawn_the_less_loaded_is_taken(weights in proptest::collection::vec(1_u32..20, 2), salt in any::<u64>(),
                                                 loads in proptest::collection::vec(0_usize..50, 2)) {
            let mut list = members(&weights);
            list.iter_mut().zip(&loads).for_each(|(member, load)| member.load = *load);
            let (one, two) = (loads[0] as u64 * u64::from(weights[1]), loads[1] as u64 * u64::from(weights[0]));
            prop_assume!(one != two);
            prop_assert_eq!(first(&list, |m| by_draw(m, mix(salt))), usize::from(one > two));
        }

        #[test]
        fn clients_spread_in_proportion_to_weight(weights in weights(), salt in any::<u64>()) {
            let list = members(&weights);
            let total: u32 = weights.iter().sum();
            let mut seen = vec![0_usize; weights.len()];
            for client in 0..4000_u64 {
                seen[first(&list, |m| by_hash(m, mix(client ^ salt)))] += 1;
            }
            for (seen, weight) in seen.iter().zip(&weights) {
                prop_assert!(is_share(*seen, 4000, *weight, total), "{} for {} of {}", seen, weight, total);
            }
        }

        #[test]
        fn a_member_that_leaves_moves_its_own_clients_only(weights in proptest::collection::vec(1_u32..20, 2..7),
                                                           gone in any::<prop::sample::Index>(), salt in any::<u64>()) {
            let list = members(&weights);
            let gone = gone.index(list.len());
            let total: u32 = weights.iter().sum();
            let (mut moved, mut rest) = (0, list.clone());
            rest.remove(gone);
            for client in 0..4000_u64 {
                let client = mix(client ^ salt);
                let before = first(&list, |m| by_hash(m, client));
                let mut after = rest.clone();
                by_hash(&mut after, client);
                if before == gone {
                    moved += 1;
                } else {
                    prop_assert_eq!(after[0].index, before, "moved between members that stay");
                }
            }
            prop_assert!(is_share(moved, 4000, weights[gone], total), "{} moved", moved);
        }

        #[test]
        fn more_weight_draws_clients_and_pushes_none_away(weights in weights(), which in any::<prop::sample::Index>(),
                                                          more in 1_u32..20, salt in any::<u64>()) {
            let list = members(&weights);
            let which = which.index(list.len());
            let mut heavier = list.clone();
            heavier[which].weight += more * 1000;
            for client in 0..1000_u64 {
                let client = mix(client ^ salt);
                let (before, after) = (first(&list, |m| by_hash(m, client)), first(&heavier, |m| by_hash(m, client)));
                prop_assert!(after == before || after == which);
            }
        }
    }
}
