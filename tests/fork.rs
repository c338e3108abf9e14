//! Forks while other threads register, limit and drop services: the child can do
//! all of that, too.

use dogtag::{Dogtag, Service};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn come_and_go(name: &str, tenant: &Service) {
    let service =
        Service::builder(name).parent(tenant).hard_limit(1 << 20).soft_limit(1 << 19).register().unwrap();
    let block = service.run(|| black_box(vec![0_u8; 100]));
    assert_eq!((service.usage().bytes(), service.headroom()), (100, Some((1 << 20) - 100)));
    drop(service);
    drop(block);
}

#[test]
fn children_register_and_drop_services() {
    static IS_OVER: AtomicBool = AtomicBool::new(false);

    let tenant = Service::builder("tenant").hard_limit(1 << 30).register().unwrap();
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let tenant = &tenant;
            threads.spawn(move || {
                for number in 0.. {
                    if IS_OVER.load(Ordering::Relaxed) {
                        break;
                    }
                    come_and_go(&format!("{thread}/{number}"), tenant);
                    if number % 100 == 0 {
                        drop(dogtag::snapshot());
                    }
                }
            });
        }
        let mut failed = Vec::new();
        for number in 0..300 {
            // SAFETY: the child calls what dogtag says a child may call, and leaves.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    // Ends it if a lock is never given back.
                    libc::alarm(30);
                    (0..100).for_each(|i| come_and_go(&format!("child/{i}"), &tenant));
                    drop(Service::by_name("tenant"));
                    libc::_exit(0);
                }
                assert!(child > 0);
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                if status != 0 {
                    failed.push((number, status));
                    break;
                }
            }
        }
        IS_OVER.store(true, Ordering::Relaxed);
        assert_eq!(failed, [], "children and how they ended");
    });
    assert_eq!(tenant.usage_with_children().bytes(), 0);
}
