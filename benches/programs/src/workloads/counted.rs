//! Single operations, so many of them, for counting their instructions.

use super::{Services, micro, programs};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::task::{Context, Waker};

/// Does one of the operations, or of the programs that have a run of their own, `number` times. `None` if there is no such
/// operation.
pub fn run(operation: &str, number: usize, services: impl Services) -> Option<()> {
    let mut each: Box<dyn FnMut()> = match operation {
        "pair-64" => Box::new(|| pair(64, alloc)),
        "pair-4096" => Box::new(|| pair(4096, alloc)),
        "zeroed-64" => Box::new(|| pair(64, alloc_zeroed)),
        "realloc-64-128" => Box::new(|| {
            // SAFETY: the block is freed with the layout that it has by then.
            unsafe {
                let block = realloc(black_box(alloc(layout(64))), layout(64), 128);
                dealloc(black_box(block), layout(128));
            }
        }),
        "small-1k-live" => {
            let mut churn = micro::Churn::new(0, 1..=128, 1_000);
            Box::new(move || churn.replace(1))
        }
        "freed-elsewhere-64" => {
            let (one, other) = (services.service(1), services.service(2));
            Box::new(move || {
                // SAFETY: the layout is not empty, and the block is freed with it.
                let block = services.run(&one, || unsafe { black_box(alloc(layout(64))) });
                // SAFETY: the block is live, and freed with the layout that it was requested with.
                services.run(&other, || unsafe { dealloc(black_box(block), layout(64)) });
            })
        }
        "scope-run" => {
            let service = services.service(1);
            Box::new(move || services.run(&service, || ()))
        }
        "scope-enter" => {
            let service = services.service(1);
            Box::new(move || {
                let _scope = services.enter(&service);
                opaque();
            })
        }
        "scope-by-turns" => {
            let both = [1, 2].map(|number| services.service(number));
            let mut turn = 0;
            Box::new(move || {
                turn = (turn + 1) % both.len();
                let _scope = services.enter(&both[turn]);
                opaque();
            })
        }
        "future-poll" => {
            let mut future = Box::pin(services.request(1, std::future::pending::<()>()));
            Box::new(move || {
                let _ = black_box(future.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            })
        }
        _ => programs::once(operation)?,
    };
    (0..number).for_each(|_| each());
    Some(())
}

/// What the compiler knows nothing of.
#[inline(never)]
fn opaque() {
    black_box(());
}

fn pair(size: usize, allocate: unsafe fn(Layout) -> *mut u8) {
    // SAFETY: the layout is not empty, and the block is freed with it.
    unsafe { dealloc(black_box(allocate(black_box(layout(size)))), layout(size)) };
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}
