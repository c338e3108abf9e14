//! Owners of each kind of block, in pages that services share.

use dogtag::Service;
#[cfg(all(feature = "jemalloc", not(feature = "memory-check")))]
use dogtag::{DefaultBackend, Dogtag, OwnerTable};
#[cfg(all(feature = "jemalloc", not(feature = "memory-check")))]
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;

fn figures(service: &Service) -> (u64, u64) {
    (service.usage().bytes(), service.usage().blocks())
}

/// Of all sizes, the smallest of which begin within 16 bytes of each other.
#[test]
fn blocks_beside_each_other_have_owners_of_their_own() {
    alone!();
    const BLOCKS: usize = 3000;
    let services = [0, 1, 2].map(|number| Service::register(format!("neighbour {number}")).unwrap());
    for size in [1, 8, 9, 16, 24, 48, 100, 1000, 4096, 5000, 20_000] {
        let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(BLOCKS);
        for number in 0..BLOCKS {
            services[number % 3].run(|| blocks.push(black_box(Vec::with_capacity(size))));
        }
        let each = (size * BLOCKS / 3) as u64;
        assert!(services.iter().all(|service| figures(service) == (each, BLOCKS as u64 / 3)), "{size}");
        // Grown by another service, in its place or not, a block is that one's.
        services[0].run(|| blocks.iter_mut().for_each(|block| block.reserve_exact(size + 7)));
        let all = ((size + 7) * BLOCKS) as u64;
        assert_eq!(services.each_ref().map(figures), [(all, BLOCKS as u64), (0, 0), (0, 0)], "{size}");
        std::thread::scope(|scope| drop(scope.spawn(|| blocks.drain(BLOCKS / 2..).for_each(drop)).join()));
        drop(blocks);
        assert!(services.iter().all(|service| figures(service) == (0, 0)), "{size}");
    }
    assert_eq!(dogtag::snapshot().lost, dogtag::Lost::default());
}

/// The slots of services beyond the first 65,533 take more than an entry of the table has.
#[test]
fn services_beyond_the_short_slots_have_their_blocks() {
    alone!();
    let services: Vec<Service> =
        (0..66_000).map(|number| Service::register(format!("{number}")).unwrap()).collect();
    let (first, late) = (&services[0], &services[65_900..]);
    let allocate = |service: &Service| service.run(|| black_box(vec![7_u8; 40]));
    let blocks: Vec<_> = late.iter().flat_map(|service| [allocate(service), allocate(first)]).collect();
    assert!(late.iter().all(|service| figures(service) == (40, 1)));
    assert_eq!(figures(first), (4000, 100));
    let grown: Vec<_> = late[0].run(|| {
        let grow = |mut block: Vec<u8>| {
            block.reserve_exact(4000);
            block
        };
        blocks.into_iter().map(grow).collect()
    });
    assert_eq!(figures(&late[0]), (200 * 4040, 200));
    drop(grown);
    assert!(services.iter().all(|service| figures(service) == (0, 0)));
    assert_eq!(dogtag::snapshot().lost, dogtag::Lost::default());
}

/// So that services' pages are not mixed from the beginning. Not what was freed is taken again, either.
#[cfg(all(feature = "jemalloc", not(feature = "memory-check")))]
#[test]
fn services_begin_in_pages_where_nobody_has_blocks() {
    static DEFAULT: Dogtag<DefaultBackend, OwnerTable> = Dogtag::with_owner_table();

    alone!();
    let layouts = [8, 16, 64, 1000].map(|size| Layout::from_size_align(size, 8).unwrap());
    // SAFETY: the layouts are not empty.
    let allocate = |layout| [(); 10].map(|()| unsafe { DEFAULT.alloc(layout) });
    let free = |layout, blocks: &[*mut u8]| {
        // SAFETY: each block is live, of that layout, and freed once.
        blocks.iter().for_each(|&block| unsafe { DEFAULT.dealloc(block, layout) });
    };
    let page = |block: &*mut u8| block.addr() / 4096;
    let nobodys = layouts.map(|layout| (layout, allocate(layout)));
    let pages: Vec<usize> = nobodys.iter().flat_map(|(_, blocks)| blocks.iter().map(page)).collect();
    nobodys.iter().for_each(|(layout, blocks)| free(*layout, &blocks[..5]));
    let service = Service::register("first").unwrap();
    // Nothing but these, so that they are the service's first blocks.
    let first = service.run(|| layouts.map(|layout| (layout, allocate(layout))));
    assert!(first.iter().all(|(_, blocks)| blocks.iter().all(|block| !pages.contains(&page(block)))));
    first.iter().for_each(|(layout, blocks)| free(*layout, blocks));
    nobodys.iter().for_each(|(layout, blocks)| free(*layout, &blocks[5..]));
    assert_eq!(figures(&service), (0, 0));
}
