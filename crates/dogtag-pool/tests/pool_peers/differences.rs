//! What a peer does otherwise, on purpose.

use crate::ours::Ours;
use crate::peer::{Peer, Script};

/// What a peer does otherwise, and where that is said.
struct Difference {
    peer: Peer,
    /// In a row of the tables in `dogtag_pool`.
    row: &'static str,
    script: &'static str,
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
}

const fn apr(
    row: &'static str,
    script: &'static str,
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
) -> Difference {
    Difference { peer: Peer::Apr, row, script, theirs, ours }
}

const fn nginx(
    row: &'static str,
    script: &'static str,
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
) -> Difference {
    Difference { peer: Peer::Nginx, row, script, theirs, ours }
}

/// Lines of scripts are separated by commas.
const DIFFERENCES: &[Difference] = &[
    apr(
        "it takes the last one with that function and data from each of the two lists",
        "root 0, cleanup 0 1, pre 0 1, cancel 0 1, destroy 0",
        &["system has more"],
        &["ran 1", "system has more"],
    ),
    apr(
        "also runs what is not registered",
        "root 0, call 0 1, destroy 0",
        &["ran 1", "system has more"],
        &["system has more"],
    ),
    apr(
        "found until the cleanups have run",
        "root 0, set 0 0 5, cleanup 0 1 g0, get 0 0, destroy 0",
        &["0 is 5", "ran 1", "0 is 5", "system has more"],
        &["0 is 5", "ran 1", "0 is 0", "system has more"],
    ),
    apr(
        "aligned to 8",
        "root 0, zeroed 0 1 1, zeroed 0 2 1, distance 1 2, destroy 0",
        &["distance: 8", "system has more"],
        &["distance: 16", "system has more"],
    ),
    apr(
        "all is kept for ever by default",
        "root 0 default, own 1 0, alloc 1 1 3000000, destroy 1, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    apr(
        "0 means all",
        "root 0 0, own 1 0, alloc 1 1 30000, destroy 1, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    apr(
        "rounded up to pages",
        "root 0 4097, alloc 0 1 8100, clear 0, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    apr(
        "what is large is in a block",
        "root 0 default, alloc 0 1 100000, clear 0, destroy 0",
        &["system has as much", "system has more"],
        &["system has more", "system has more"],
    ),
    nginx("runs no cleanups", "root 0 1024, cleanup 0 1, reset 0, abandon 0", &[], &["ran 1"]),
    nginx("never runs", "root 0 1024, cleanup 0 1 r2, destroy 0", &["ran 1"], &["ran 1", "ran 2"]),
    nginx(
        "always large",
        "root 0 16384, aligned 0 1 100 64, free 0 1, destroy 0",
        &["# freed"],
        &["# declined"],
    ),
    nginx(
        "aligned to 8",
        "root 0 1024, alloc 0 1 1, alloc 0 2 1, distance 1 2, destroy 0",
        &["distance: 8"],
        &["distance: 16"],
    ),
    nginx(
        "what is not large stays as it is",
        "root 0 1024, alloc 0 1 16, alloc 0 2 16, free 0 2, alloc 0 3 16, distance 1 3, destroy 0",
        &["declined", "distance: 32"],
        &["declined", "distance: 16"],
    ),
    nginx(
        "all blocks are as large",
        "root 0 1024, alloc 0 1 900, alloc 0 2 900, alloc 0 3 900, alloc 0 4 900, blocks 0, destroy 0",
        &["blocks: 4"],
        &["blocks: 3"],
    ),
    nginx(
        "has 80 bytes of the first block",
        "root 0 1024, alloc 0 1 944, blocks 0, destroy 0",
        &["blocks: 1"],
        &["blocks: 2"],
    ),
    nginx(
        "the 7th time that something does not fit",
        "root 0 1024, alloc 0 0 900, current 0, alloc 0 1 900, current 0, alloc 0 2 900, current 0, \
         alloc 0 3 900, current 0, alloc 0 4 900, current 0, alloc 0 5 900, current 0, alloc 0 6 900, \
         current 0, alloc 0 7 900, current 0, destroy 0",
        &[
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current stays",
            "current moves",
        ],
        &[],
    ),
];

#[test]
#[ignore = "needs the peers: .ci/pool-peers"]
fn what_is_different_is_a_row_of_the_table() {
    let table = include_str!("../../src/lib.rs").lines().filter(|line| line.starts_with("//! |"));
    let table: Vec<_> = table.collect();
    for Difference { peer, row, script, theirs, ours } in DIFFERENCES {
        let script: Script = script.split(", ").map(|line| line.trim().to_owned()).collect();
        assert_eq!(peer.run(std::slice::from_ref(&script))[0], *theirs, "{peer:?}: {row}");
        assert_eq!(Ours::run(*peer, &script), *ours, "ours, where {peer:?} differs: {row}");
        assert!(table.iter().any(|line| line.contains(row)), "no row of the table says {row:?}");
    }
}
