//! Pools and regions.

use super::*;

impl Actor<'_> {
    pub(super) fn use_pool(&mut self, act: u8, one: u8, other: u8) {
        let world = self.world;
        let known = aside(|| world.pick(other));
        if act % 40 == 30 || aside(|| lock(&world.pools).is_empty()) {
            let mut builder = Pool::builder().block_size(1024);
            if let Some(known) = &known {
                builder = builder.service(&known.service);
            }
            if one.is_multiple_of(4) {
                builder = builder.limit(4096 + usize::from(other) * 64);
            }
            let former = builder.build().ok().and_then(|pool| {
                aside(|| {
                    let mut pools = lock(&world.pools);
                    pools.push(pool);
                    (pools.len() > 4).then(|| pools.swap_remove(0))
                })
            });
            return caught(|| drop(former));
        }
        let pool = aside(|| {
            let mut pools = lock(&world.pools);
            let place = usize::from(one).checked_rem(pools.len())?;
            Some(pools.swap_remove(place))
        });
        let Some(mut pool) = pool else { return };
        caught(|| match other % 12 {
            0 => pool.clear(),
            1 => pool.reset(),
            2 => {
                let text = pool.try_alloc_with(|| "a text that is longer than a few words".repeat(3));
                assert!(text.map_or(true, |text| text.ends_with("words")));
            }
            3 => _ = pool.try_cleanup(move || drop(known)).map(mem::forget),
            4 => {
                _ = pool.try_cleanup(move || {
                    let _known = known;
                    resume_unwind(Box::new(Endless))
                });
            }
            5 => {
                _ = pool.try_pre_cleanup(move || {
                    drop(Service::register("a cleanup's"));
                    drop(known);
                });
            }
            6 => {
                _ = pool.try_alloc_with(|| Endless);
            }
            7 => {
                if let Ok(child) = pool.try_lasting_child() {
                    _ = child.try_alloc_with(move || known);
                    _ = child.try_alloc_bytes(usize::from(one) * 20);
                }
            }
            8 => {
                if let Ok(child) = pool.try_child() {
                    let text = child.try_alloc_str("borrowed").map(|text| text.len());
                    assert!(text.is_err() || text.is_ok_and(|len| len == 8));
                    _ = child.try_alloc_with(move || known);
                    if one.is_multiple_of(2) {
                        // What is in it is dropped with its parent, or never.
                        mem::forget(child);
                    }
                }
            }
            9 => {
                if let Ok(cleanup) = pool.try_cleanup(move || drop(known)) {
                    if one.is_multiple_of(2) { cleanup.run() } else { cleanup.cancel() }
                }
            }
            10 => {
                let mut numbers = allocator_api2::vec::Vec::new_in(&pool);
                for number in 0..usize::from(one) {
                    if numbers.try_reserve(1).is_err() {
                        break;
                    }
                    numbers.push(number);
                }
                assert!(numbers.iter().enumerate().all(|(place, number)| place == *number));
            }
            _ => {
                _ = pool.try_set_data(known);
                assert!(pool.data::<Option<Known>>().is_none_or(|data| data.as_ref().is_none_or(|known| {
                    known.check();
                    true
                })));
            }
        });
        aside(|| lock(&world.pools).push(pool));
    }
}

pub(super) fn use_region(one: u8, other: u8) {
    let mut numbers = allocator_api2::vec::Vec::new_in(&*REGION);
    for number in 0..usize::from(one) * usize::from(other % 16) {
        if numbers.try_reserve(1).is_err() {
            break;
        }
        numbers.push(number);
    }
    assert!(numbers.iter().enumerate().all(|(place, number)| place == *number));
    numbers.truncate(usize::from(other));
    numbers.shrink_to_fit();
    assert!(numbers.iter().enumerate().all(|(place, number)| place == *number));
}
