//! Where something is dropped, or a scope ends, there may be no memory at all. So nothing there
//! needs any.

use crate::backend::{self, Plan};
use crate::child::watch;
use crate::events::listen;
#[cfg(not(feature = "memory-check"))]
use crate::events::wait_for;
use crate::tight::limit_address_space;
use dogtag::{Row, Service};
use std::sync::mpsc;
#[cfg(not(feature = "memory-check"))]
use tracing::Level;

#[test]
fn services_are_dropped_without_memory() {
    alone!();
    // Whoever listens to every beginning and end has most to be told.
    listen();
    let parent = Service::register("dropped parent").unwrap();
    let dropped = || {
        // More than there ever were.
        (0..3000).map(|i| {
            let service = Service::builder(format!("dropped {i}")).parent(&parent).register().unwrap();
            if i % 3 == 0 {
                service.set_hard_limit(Some(1 << 20))
            }
            // Some end later, when the last block does.
            let block = (i % 2 == 0).then(|| service.run(|| Box::new(i)));
            (service, block)
        })
    };
    let (services, mut blocks): (Vec<Service>, Vec<_>) = dropped().unzip();
    backend::with(Plan::All, || services.into_iter().for_each(drop));
    backend::with(Plan::All, || blocks.iter_mut().for_each(|block| drop(block.take())));
    // They have ended, and their slots are given to others. (Another test's thread may be about to
    // end one of them.)
    let is_left = |row: &Row| row.name.starts_with("dropped ") && row.name != "dropped parent";
    let have_ended = || {
        std::thread::yield_now();
        !dogtag::snapshot().rows.iter().any(is_left)
    };
    assert!((0..1000).any(|_| have_ended()));
    let (services, _): (Vec<Service>, Vec<_>) = dropped().unzip();
    let (_, refused) = backend::with(Plan::All, || drop(services));
    assert!(refused > 0, "nothing was to be told");
    backend::with(Plan::All, || drop(parent));
}

#[test]
fn callbacks_are_dropped_without_memory() {
    alone!();
    let (tell, told) = mpsc::channel::<()>();
    let kept = move |_: &Service| drop(tell.clone());
    let service =
        Service::builder("with a callback").soft_limit(1 << 30).on_soft_limit(kept).register().unwrap();
    backend::with(Plan::All, || drop(service));
    assert_eq!(told.recv(), Err(mpsc::RecvError), "the callback is kept");
}

/// In a process of its own: there must be no thread that announces.
#[test]
fn the_announcer_is_begun_when_there_is_memory() {
    alone!();
    let (tell, told) = mpsc::channel();
    let service = Service::builder("crossing")
        .on_soft_limit(move |service| tell.send(service.usage().bytes()).unwrap())
        .register()
        .unwrap();
    // A parent has a place for limits already.
    drop(Service::builder("child").parent(&service).register().unwrap());
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    limit_address_space(watch::memory().mapped as libc::rlim_t);
    backend::with(Plan::All, || service.set_soft_limit(Some(1000)));
    assert_eq!(threads(), before, "there is memory for a thread");
    // Crossed while there is nobody to tell it to; and so scopes end, without memory.
    let block = service.run(|| std::hint::black_box(vec![0_u8; 2000]));
    backend::with(Plan::All, || (0..1000).for_each(|_| drop(service.enter())));
    assert_eq!(threads(), before);
    limit_address_space(libc::RLIM_INFINITY);
    let bytes = watch::eventually(|| {
        // It is tried again once a second.
        drop(service.enter());
        told.try_recv()
    });
    assert_eq!(bytes, 2000);
    drop(block);
}

/// A service without a callback, whose limit makes that there might be one. In a process of its
/// own, in which there never was one.
#[test]
fn without_callbacks_there_is_nothing_to_forget() {
    alone!();
    let service = Service::register("without a callback").unwrap();
    service.set_hard_limit(Some(1 << 20));
    backend::with(Plan::All, || drop(service));
    assert_eq!(Service::by_name("without a callback"), None);
}

/// Ends scopes while something is to be told for which there is no memory.
#[cfg(not(feature = "memory-check"))]
#[test]
fn what_was_lost_is_told_when_there_is_memory() {
    alone!();
    use std::alloc::{Layout, alloc, dealloc};

    const LAYOUT: Layout = Layout::new::<[u8; 40]>();
    const LOST: &str = "whose owner had been overwritten";

    listen();
    let service = Service::register("careless").unwrap();
    for _ in 0..100 {
        // SAFETY: what is overwritten lies in the block's size class.
        unsafe {
            let block = service.run(|| alloc(LAYOUT));
            block.add(LAYOUT.size()).cast::<u16>().write_unaligned(0);
            backend::with(Plan::All, || {
                dealloc(std::hint::black_box(block), LAYOUT);
                drop(service.enter());
            });
        }
    }
    assert_eq!(dogtag::snapshot().lost.blocks, 100);
    wait_for(LOST, "blocks", Level::ERROR, 100);
    assert_eq!(crate::events::sum(LOST, "blocks"), 100);
}

/// The spans of a thread are noted, and so is what it goes back to.
#[cfg(feature = "tracing-layer")]
#[test]
fn a_span_that_cannot_be_noted_changes_nothing() {
    alone!();
    use dogtag::ServiceLayer;
    use tracing::info_span;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::layer::Identity;
    use tracing_subscriber::{Layer, prelude::*, registry};

    let layer = ServiceLayer::new().with_filter(filter_fn(|metadata| metadata.name() != "unseen"));
    tracing::subscriber::with_default(registry().with(Identity::new()).with(layer), || {
        // The registry's own notes have space for some spans.
        let unseen: Vec<_> = (0..4).map(|_| info_span!("unseen").entered()).collect();
        drop(unseen);
        let span = info_span!("seen", service = "of a span");
        let (is_in_it, refused) = backend::with(Plan::All, || {
            span.in_scope(|| Service::current() == Service::unattributed()).then_some(())
        });
        assert!(is_in_it.is_some() && refused > 0);
        assert_eq!(span.in_scope(|| Service::current().name().to_owned()), "of a span");
        assert_eq!(Service::current(), Service::unattributed());
    });
}
