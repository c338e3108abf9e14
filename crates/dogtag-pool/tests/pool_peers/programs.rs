//! Random programs.

use crate::peer::{Peer, Script};
use crate::random::Random;
use std::collections::BTreeMap;

/// Some operations, of which some may make no sense.
pub fn operations(peer: Peer, random: &mut Random, count: usize, has_loners: bool) -> Script {
    let mut script = Vec::new();
    let (mut pools, mut blocks, mut cleanups) = (vec![0], Vec::new(), vec![0]);
    let mut next = 1;
    let mut new = || {
        next += 1;
        next - 1
    };
    let size = |random: &mut Random| match random.below(10) {
        0 => random.below(30_000),
        1 | 2 => random.below(3000),
        _ => random.below(200),
    };
    if has_loners {
        script.extend((900..904).map(|loner| format!("root {loner}")));
        pools.extend(900..904);
    }
    for _ in 0..count {
        let pool = *random.pick(&pools).unwrap();
        let id = new();
        let size = size(random);
        match (peer, random.below(20)) {
            (Peer::Apr, 0 | 1) if pool < 900 => {
                pools.push(id);
                script.push(format!("{} {id} {pool}", if random.once_in(2) { "own" } else { "lasting" }));
            }
            (_, 2..5) => {
                blocks.push((pool, id));
                script.push(format!("alloc {pool} {id} {size}"));
            }
            (_, 5) => {
                blocks.push((pool, id));
                script.push(format!("zeroed {pool} {id} {size}"));
            }
            (Peer::Apr, 6) => {
                let most = if random.once_in(20) { 90 } else { 5 };
                let text = "some-text".repeat(1 + random.below(most));
                script.push(match random.below(2) {
                    0 => format!("text {pool} {id} {text}"),
                    _ => format!("format {pool} {id} {size} {text}"),
                });
            }
            (Peer::Apr, 7..12) => {
                let is_loner = pool >= 900;
                let kind = if random.once_in(3) { "pre" } else { "cleanup" };
                let mut works = Vec::new();
                for _ in 0..random.below(3) {
                    works.push(match random.below(5) {
                        0 => format!("r{}", new()),
                        1 if kind == "pre" => format!("p{}", new()),
                        2 => format!("k{}", random.pick(&cleanups).unwrap()),
                        3 if has_loners && !is_loner => format!("x{}", 900 + random.below(4)),
                        // It fits into any block, so that no other one is asked for.
                        _ => format!("a{}", size % 1000),
                    });
                }
                cleanups.push(id);
                script.push(format!("{kind} {pool} {id} {}", works.join(",")));
            }
            (Peer::Apr, 12) => script.push(format!("cancel {pool} {}", random.pick(&cleanups).unwrap())),
            (Peer::Apr, 13) => script.push(format!("run {pool} {}", random.pick(&cleanups).unwrap())),
            (Peer::Apr, 14) => {
                script.push(format!("set {pool} {} {}", random.below(3), 1 + random.below(1000)));
            }
            (Peer::Apr, 15 | 16) => script.push(format!("get {pool} {}", random.below(3))),
            (Peer::Apr, 17) => script.push(format!("above {pool} {}", random.pick(&pools).unwrap())),
            (Peer::Apr, 18) => script.push(format!("clear {pool}")),
            (Peer::Apr, _) => script.push(format!("destroy {pool}")),
            (Peer::Nginx, 6 | 7) => {
                blocks.push((pool, id));
                script.push(format!("unaligned {pool} {id} {size}"));
            }
            (Peer::Nginx, 8) => {
                blocks.push((pool, id));
                script.push(format!("aligned {pool} {id} {} {}", size + 1, 8 << random.below(8)));
            }
            (Peer::Nginx, 9..13) => {
                if let Some((pool, id)) = random.pick(&blocks) {
                    script.push(format!("free {pool} {id}"));
                }
            }
            (Peer::Nginx, 13) => {
                cleanups.push(id);
                script.push(match random.below(2) {
                    0 => format!("cleanup {pool} {id} a{size}"),
                    _ => format!("cleanup {pool} {id}"),
                });
            }
            (Peer::Nginx, 14) => script.push(format!("cancel {pool} {}", random.pick(&cleanups).unwrap())),
            (Peer::Nginx, 15) => script.push(format!("reset {pool}")),
            (Peer::Nginx, 0 | 1) => {
                pools.push(id);
                script.push(format!("root {id} {}", [1024, 1504, 4096, 5008, 16384][random.below(5)]));
            }
            (Peer::Nginx, 16) => script.push(format!("destroy {pool}")),
            (Peer::Nginx, _) => script.push(format!("large {pool}")),
        }
    }
    script
}

/// Leaves out what makes no sense, has children that are somebody's end before what is above
/// them, as the compiler would ask for, and ends all.
pub fn complete(operations: &[String]) -> Script {
    struct Known {
        parent: Option<u32>,
        is_lasting: bool,
        size: String,
        has_cleanups: bool,
    }
    /// Below a pool, the youngest first and each behind those below it.
    fn below(pools: &BTreeMap<u32, Known>, pool: u32) -> Vec<u32> {
        let children = pools.iter().rev().filter(|(_, known)| known.parent == Some(pool));
        children.flat_map(|(child, _)| below(pools, *child).into_iter().chain([*child])).collect()
    }
    let mut script = Vec::new();
    let mut pools: BTreeMap<u32, Known> = BTreeMap::new();
    for line in operations {
        let words: Vec<_> = line.split(' ').collect();
        let number = |word: usize| words.get(word).and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
        let pool = number(1);
        if matches!(words[0], "mark" | "asked" | "held") {
            script.push(line.clone());
            continue;
        }
        let parent = match words[0] {
            "root" => None,
            "own" | "lasting" => Some(number(2)),
            _ => {
                let Some(known) = pools.get_mut(&pool) else { continue };
                match words[0] {
                    "cleanup" => known.has_cleanups = true,
                    "clear" | "destroy" if known.is_lasting => continue,
                    // What nginx does then is in the table.
                    "reset" if known.has_cleanups => continue,
                    "large" => {
                        script.push(format!("large {pool} {}", known.size));
                        continue;
                    }
                    _ => {}
                }
                if matches!(words[0], "clear" | "destroy") {
                    for lower in below(&pools, pool) {
                        if !pools[&lower].is_lasting {
                            script.push(format!("destroy {lower}"));
                        }
                        pools.remove(&lower);
                    }
                }
                if words[0] == "destroy" {
                    pools.remove(&pool);
                }
                script.push(line.clone());
                continue;
            }
        };
        if pools.contains_key(&pool) || parent.is_some_and(|parent| !pools.contains_key(&parent)) {
            continue;
        }
        let size = words.get(2).copied().unwrap_or_default().to_owned();
        pools.insert(pool, Known { parent, is_lasting: words[0] == "lasting", size, has_cleanups: false });
        script.push(line.clone());
    }
    let roots: Vec<u32> = pools.iter().filter(|(_, it)| it.parent.is_none()).map(|(root, _)| *root).collect();
    if !roots.is_empty() {
        let ends: Vec<String> = roots.iter().map(|root| format!("destroy {root}")).collect();
        return complete(&[script, ends].concat());
    }
    script
}
