//! How a program that has another outcome is found, and made short.

use crate::ours::Ours;
use crate::peer::{Peer, Script};
use crate::random::{self, Random};

/// What has to be the same in two logs: what is wanted of them. Facts are for who knows what to
/// expect of them.
pub type Wanted = fn(&str) -> bool;
pub const ALL_BUT_FACTS: Wanted = |line| !line.starts_with('#');

/// Runs random programs, and shows the shortest one it finds of those that do something else.
pub fn compare(
    peer: Peer,
    count: usize,
    make: impl Fn(&mut Random) -> Script,
    whole: impl Fn(&Script) -> Script,
    wanted: Wanted,
) {
    let seed = random::seed();
    let same_of = |theirs: &[String], ours: &[String]| {
        let [theirs, ours] =
            [theirs, ours].map(|log| log.iter().filter(|line| wanted(line)).collect::<Vec<_>>());
        // Ours may do with less.
        let agree = |(theirs, ours): (&&String, &&String)| {
            theirs == ours || *theirs == "asked for more" && *ours == "asked for nothing"
        };
        theirs.len() == ours.len() && theirs.iter().zip(&ours).all(agree)
    };
    for batch in 0..count / 100 {
        let bodies: Vec<Script> =
            (0..100).map(|i| make(&mut Random::nth(seed, (batch * 100 + i) as u64))).collect();
        let scripts: Vec<Script> = bodies.iter().map(&whole).collect();
        for ((theirs, script), body) in peer.run(&scripts).iter().zip(&scripts).zip(&bodies) {
            let ours = Ours::run(peer, script);
            if same_of(theirs, &ours) {
                continue;
            }
            let mut body = body.clone();
            let differs = |body: &Script| {
                let script = whole(body);
                let theirs = peer.run(std::slice::from_ref(&script)).remove(0);
                let ours = Ours::run(peer, &script);
                (!same_of(&theirs, &ours)).then_some((script, theirs, ours))
            };
            let mut found = differs(&body).expect("it does so again");
            let mut length = body.len().div_ceil(2);
            while length > 0 {
                let mut start = 0;
                while start < body.len() {
                    let mut shorter = body.clone();
                    shorter.drain(start..body.len().min(start + length));
                    match differs(&shorter) {
                        Some(difference) => (body, found) = (shorter, difference),
                        None => start += length,
                    }
                }
                length /= 2;
            }
            let (script, theirs, ours) = found;
            panic!("{peer:?}:\n{}\ntheirs: {theirs:#?}\nours: {ours:#?}", script.join("\n"));
        }
    }
}
