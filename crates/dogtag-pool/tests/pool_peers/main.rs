//! The real APR's and the real nginx's pools beside ours: random programs have to do the same in
//! both, but for what the table of differences in `dogtag_pool` says.
//!
//! `.ci/pool-peers` installs and builds the peers, and then runs this. Each is a program of its
//! own (`apr.c` and `nginx.c`), which reads scripts and prints what a user would notice; `Ours` does
//! the same with our pools.

mod compare;
mod differences;
mod ours;
mod peer;
mod programs;
#[path = "../../../../tests/random/mod.rs"]
mod random;

use compare::{ALL_BUT_FACTS, Wanted, compare};
use dogtag::Dogtag;
use ours::Ours;
use peer::{Peer, Script};
use programs::{complete, operations};
use random::Random;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn trees_end_in_aprs_order_and_keep_its_values() {
    let make = |random: &mut Random| {
        let count = 1 + random.below(120);
        operations(Peer::Apr, random, count, true)
    };
    compare(
        Peer::Apr,
        4000,
        make,
        |body| complete(&[&["root 0".to_owned()], &body[..]].concat()),
        ALL_BUT_FACTS,
    );
}

/// Who asks for the same again gets what was freed, and the system is not asked.
#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn rounds_ask_for_no_more_than_aprs() {
    let make = |random: &mut Random| {
        let count = 1 + random.below(120);
        let mut body = operations(Peer::Apr, random, count, false);
        body.retain(|line| line != "destroy 0");
        body
    };
    let lines = |text: &str| text.split(", ").map(str::to_owned).collect::<Script>();
    // What is large goes back to the system at each clear, as the table says.
    let asked: Wanted = |line| line.starts_with("asked") || line.ends_with("left");
    // `left_out` rounds, of which nobody is told, and four others.
    let rounds = |body: &Script, root: &str, left_out: usize| {
        let round = |last: &str| [&body[..], &lines(last)[..]].concat();
        let first = vec![round("clear 0, mark"); left_out].concat();
        let others = vec![round("clear 0, asked, mark"); 4].concat();
        complete(&[lines(root), first, others].concat())
    };
    compare(Peer::Apr, 2000, make, |body| rounds(body, "root 0 unlimited", 2), asked);
    // With blocks of any size, small pools may have to be given large ones first, one in each round.
    compare(Peer::Apr, 1000, make, |body| rounds(body, "root 0", 40), asked);
}

#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn pools_do_as_nginxs() {
    let make = |random: &mut Random| {
        let count = 1 + random.below(150);
        operations(Peer::Nginx, random, count, false)
    };
    let first = |body: &Script| [&["root 0 1024".to_owned()], &body[..]].concat();
    compare(Peer::Nginx, 4000, make, |body| complete(&first(body)), ALL_BUT_FACTS);
}
/// How much is kept when much was freed, with a bound.
#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn no_more_is_kept_than_was_said() {
    // Of APR's: the allocator, and the pool's first block.
    const APR_FIRST: u64 = 8192 + 300;
    const OUR_FIRST: u64 = 8192;
    let seed = random::seed();
    let held = |log: &[String]| log.last().unwrap().strip_prefix("# ").unwrap().parse::<u64>().unwrap();
    let mut kept = [0; 2];
    for number in 0..300 {
        let random = &mut Random::nth(seed, number);
        let max_free = 1 + random.below(300_000) as u64;
        let first = [format!("root 0 {max_free}")];
        let count = 1 + random.below(100);
        let mut body = operations(Peer::Apr, random, count, false);
        body.retain(|line| line != "destroy 0");
        let last = ["clear 0", "held"].map(str::to_owned);
        let script = complete(&[&first[..], &body, &last].concat());
        // What ends it says more than is held.
        let theirs = Peer::Apr.run(std::slice::from_ref(&script)).remove(0);
        let ours = Ours::run(Peer::Apr, &script);
        let [theirs, ours] = [theirs, ours].map(|log| {
            let at = log.iter().rposition(|line| line.starts_with('#')).unwrap();
            held(&log[..=at])
        });
        assert!(theirs <= APR_FIRST + max_free.next_multiple_of(4096), "{theirs} of {max_free}");
        assert!(ours <= OUR_FIRST + max_free, "{ours} of {max_free}");
        kept[0] += theirs;
        kept[1] += ours;
    }
    println!("kept by APR and by us, after 300 clears: {kept:?}");
}
