//! The tripwire of ordinary builds: a block whose tail was overwritten is
//! noticed when it is freed, and changes no other service's figures.

use crate::random::Random;
use crate::watch;
use dogtag::{Service, Usage};
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::fmt::Debug;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata};

/// Lost blocks that were announced.
static ANNOUNCED: AtomicU64 = AtomicU64::new(0);

struct Listener;

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "dogtag" && *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Blocks;

        impl Visit for Blocks {
            fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

            fn record_u64(&mut self, field: &Field, value: u64) {
                if field.name() == "blocks" {
                    ANNOUNCED.fetch_add(value, Ordering::Relaxed);
                }
            }
        }

        // Allocates, as subscribers do; nobody's service pays for it.
        drop(black_box(vec![0_u8; 100]));
        assert_eq!(Service::current(), Service::unattributed());
        event.record(&mut Blocks);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Bytes behind a block that are surely nobody's: its cookie, and what the
/// block is too small for.
const TAIL: usize = 8;
const LAYOUT: Layout = Layout::new::<[u8; 40]>();

#[test]
fn overwritten_tails_are_noticed_and_harm_nobody() {
    alone!();
    const OVERWRITES: u64 = 10_000;

    tracing::subscriber::set_global_default(Listener).unwrap();
    let names = ["careless", "auth", "cache", "index", "search", "session"];
    let services = names.map(|name| Service::register(name).unwrap());
    let (careless, others) = services.split_first().unwrap();
    let kept: Vec<_> = others.iter().map(|other| other.run(|| black_box(vec![1_u8; 1000]))).collect();
    let others_before: Vec<_> = others.iter().map(Service::usage).collect();

    let full = Service::builder("full").hard_limit(0).register().unwrap();
    // What is nobody's is freed and allocated all the time, so nobody could tell a free too many.
    let nobody = Service::unattributed();
    // SAFETY: the block's cookie is behind it.
    let nobodys: [u8; 2] = unsafe {
        let block = black_box(nobody.run(|| alloc(LAYOUT)));
        let cookie = block.add(LAYOUT.size()).cast::<[u8; 2]>().read();
        dealloc(block, LAYOUT);
        cookie
    };
    let mut random = Random::new(0x2014_0605);
    let (mut noticed, mut believed_elsewhere) = (0, 0);
    for _ in 0..OVERWRITES {
        // SAFETY: what is overwritten lies in the block's size class of 48 bytes.
        unsafe {
            let block = black_box(careless.run(|| alloc(LAYOUT)));
            let tail = std::slice::from_raw_parts_mut(block.add(LAYOUT.size()), TAIL);
            let before: [u8; TAIL] = (&*tail).try_into().unwrap();
            // From one byte on, and so that the cookie is another than it was, and somebody's.
            let length = 1 + random.below(TAIL);
            while tail[..2] == before[..2] || tail[..2] == nobodys {
                tail[..length].fill_with(|| random.next() as u8);
            }
            let (lost, live) = (dogtag::snapshot().lost.blocks, careless.usage().blocks());
            match random.below(3) {
                0 => dealloc(block, LAYOUT),
                1 => {
                    // What is freed next would not be resized, but freed with a size that it has not.
                    let block = black_box(careless.run(|| realloc(block, LAYOUT, 100)));
                    dealloc(block, Layout::from_size_align(100, 1).unwrap());
                }
                _ => {
                    // Whose it is nobody knows; but it does not grow.
                    let block = black_box(full.run(|| realloc(block, LAYOUT, 20)));
                    assert!(!block.is_null());
                    dealloc(block, Layout::from_size_align(20, 1).unwrap());
                }
            }
            noticed += dogtag::snapshot().lost.blocks - lost;
            // Lost, and so still live in its service's figures; but not
            // refunded to it or to another.
            believed_elsewhere += u64::from(careless.usage().blocks() != live);
        }
    }
    println!("noticed {noticed} of {OVERWRITES}");
    assert!(noticed >= OVERWRITES * 999 / 1000, "{noticed}");
    assert_eq!(believed_elsewhere, 0);
    // What looked like another one's cookie by chance is a free too many of that one, and nothing else:
    // what it was given back by `full`, smaller, it had been given.
    let too_many = |service: &Service, before: &Usage| {
        let usage = service.usage();
        let freed = usage.freed_blocks + before.allocated_blocks - usage.allocated_blocks;
        assert_eq!(
            usage.freed_bytes + before.allocated_bytes - usage.allocated_bytes,
            40 * freed,
            "{service:?}"
        );
        assert_eq!(usage.denied, 0, "{service:?}");
        freed
    };
    let mut believed = too_many(&full, &Usage::default());
    for (other, before) in others.iter().zip(&others_before) {
        believed += too_many(other, before);
    }
    assert_eq!(noticed + believed, OVERWRITES);
    assert_eq!(careless.usage().bytes(), 40 * OVERWRITES);
    assert_eq!(careless.usage().blocks(), OVERWRITES);
    let lost = dogtag::snapshot().lost;
    assert_eq!((lost.blocks, lost.bytes), (noticed, 40 * noticed));
    // Each is announced once, by threads that may take a moment.
    watch::eventually(|| {
        // What was lost while a thread was telling is told of next time.
        let _ = dogtag::snapshot();
        let announced = ANNOUNCED.load(Ordering::Relaxed);
        if announced >= noticed { Ok(()) } else { Err(format!("{announced} of {noticed} are announced")) }
    });
    assert_eq!(ANNOUNCED.load(Ordering::Relaxed), noticed);
    drop(kept);
}
