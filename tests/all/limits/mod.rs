//! Families and limits.

use crate::watch;
use dogtag::{RegisterError, Service};
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

mod peaks;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

fn child(name: &str, parent: &Service) -> Service {
    Service::builder(name).parent(parent).register().unwrap()
}

/// What a thread of dogtag's reports, which may take a moment.
fn next<T>(told: &Receiver<T>) -> T {
    watch::eventually(|| told.try_recv())
}

fn reserve(service: &Service, bytes: usize) -> Option<Vec<u8>> {
    let mut block = Vec::new();
    service.run(|| block.try_reserve_exact(bytes)).ok().map(|()| block)
}

#[test]
fn usage_with_children_adds_up() {
    alone!();
    let tenant = register("tenant");
    let (first, second) = (child("first", &tenant), child("second", &tenant));
    let grandchild = child("grandchild", &first);
    let blocks = [
        tenant.run(|| vec![0_u8; 1]),
        first.run(|| vec![0_u8; 20]),
        second.run(|| vec![0_u8; 300]),
        grandchild.run(|| vec![0_u8; 4000]),
    ];
    let held = |service: &Service| (service.usage().bytes(), service.usage_with_children().bytes());
    assert_eq!(held(&tenant), (1, 4321));
    assert_eq!(held(&first), (20, 4020));
    assert_eq!(held(&second), (300, 300));
    assert_eq!(grandchild.parent().and_then(|parent| parent.parent()), Some(tenant.clone()));
    assert_eq!(tenant.parent(), None);

    let table = format!("{:#}", dogtag::snapshot());
    let at = |what: &str| table.find(what).unwrap_or_else(|| panic!("{what:?} is missing in\n{table}"));
    assert!(at("\ntenant ") < at("\n  first ") && at("\n  first ") < at("\n    grandchild "), "{table}");
    assert!(at("\n    grandchild ") < at("\n  second "), "{table}");
    let row = |name: &str| dogtag::snapshot().rows.into_iter().find(|row| row.name == name);
    assert_eq!(row("tenant").unwrap().usage_with_children, tenant.usage_with_children());

    // A parent lives as long as its children, and they as long as their blocks.
    let handle = tenant.handle();
    drop((tenant, first, second, grandchild));
    assert_eq!(Service::by_handle(handle).map(|parent| parent.usage_with_children().bytes()), Some(4321));
    let [own, mine, others, deepest] = blocks;
    drop((own, mine, others));
    let tenant = row("tenant").unwrap();
    assert_eq!((tenant.usage.bytes(), tenant.usage_with_children.bytes()), (0, 4000));
    // What has ended is still in the family's figures.
    assert_eq!(tenant.usage_with_children.allocated_bytes, 4321);
    drop(deepest);
    // Another test's thread may be looking at one of them just now.
    let is_gone = |name| {
        (0..1000).any(|_| {
            row(name).is_none() || {
                std::thread::yield_now();
                false
            }
        })
    };
    assert!(["grandchild", "first", "tenant"].into_iter().all(is_gone));
    assert_eq!(Service::by_name("tenant"), None);
}

#[test]
fn another_parent_is_refused() {
    let (one, other) = (register("one"), register("other"));
    let part = child("part", &one);
    assert_eq!(Service::builder("part").parent(&one).register(), Ok(part.clone()));
    assert_eq!(Service::register("part"), Ok(part.clone()));
    let error = Service::builder("part").parent(&other).register().unwrap_err();
    assert!(
        matches!(&error, RegisterError::OtherParent { parent: Some(parent), .. } if parent == "one"),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "service \"part\" is registered as a child of \"one\": ask for that, or choose another name"
    );
    let error = Service::builder("one").parent(&other).register().unwrap_err();
    assert!(
        matches!(&error, RegisterError::OtherParent { name, parent: None, .. } if name == "one"),
        "{error:?}"
    );
}

#[test]
fn hard_limit_holds_to_the_byte_on_one_thread() {
    let service = Service::builder("bounded").hard_limit(100_000).register().unwrap();
    assert_eq!((service.hard_limit(), service.headroom()), (Some(100_000), Some(100_000)));
    for sizes in [&[100_000][..], &[1, 99_999], &[40_000, 40_000, 20_000], &[7; 14_285]] {
        let mut blocks: Vec<Vec<u8>> = sizes.iter().map(|size| reserve(&service, *size).unwrap()).collect();
        let rest = 100_000 - sizes.iter().sum::<usize>();
        let denied = service.usage().denied;
        assert_eq!(service.headroom(), Some(rest as u64));
        assert!(reserve(&service, rest + 1).is_none());
        assert_eq!((service.usage().denied, service.usage().bytes()), (denied + 1, 100_000 - rest as u64));
        // What is freed can be had again at once, and no more.
        let freed = blocks.pop().unwrap().capacity();
        assert!(reserve(&service, rest + freed + 1).is_none());
        let again = reserve(&service, rest + freed);
        assert!(again.is_some() && reserve(&service, 1).is_none());
    }
    assert_eq!(service.usage().bytes(), 0);
    assert_eq!(service.usage().peak_bytes, 100_000);
}

#[test]
fn hard_limit_changes_while_running() {
    let service = register("changing");
    // The hot path is open.
    drop(reserve(&service, 100));
    service.set_hard_limit(Some(1000));
    assert!(reserve(&service, 1001).is_none());
    let block = reserve(&service, 900).unwrap();
    service.set_hard_limit(Some(500));
    assert!(reserve(&service, 1).is_none(), "it is above its limit");
    assert_eq!(service.headroom(), Some(0));
    service.set_hard_limit(None);
    assert!(reserve(&service, MIB).is_some());
    assert_eq!((service.hard_limit(), service.headroom(), service.usage().denied), (None, None, 2));
    drop(block);
    // Its successor in the slot begins without.
    service.set_hard_limit(Some(1));
    drop(service);
    assert!(reserve(&register("successor"), MIB).is_some());
}

#[test]
fn realloc_needs_only_the_growth_below_a_hard_limit() {
    let service = Service::builder("growing").hard_limit(1000).register().unwrap();
    let mut block = reserve(&service, 600).unwrap();
    assert_eq!(service.run(|| block.try_reserve_exact(700)), Ok(()));
    assert!(service.run(|| block.try_reserve_exact(1001)).is_err());
    // Also where a smaller limit leaves nothing at all.
    service.set_hard_limit(Some(10));
    service.run(|| block.shrink_to(300));
    assert_eq!(service.usage().bytes(), 300);
    drop(block);
    assert_eq!((service.usage().bytes(), service.usage().denied), (0, 1));
}

#[test]
fn realloc_that_shrinks_lifts_no_hard_limit() {
    let service = Service::builder("shrinking").hard_limit(100_000).register().unwrap();
    let mut blocks = Vec::new();
    while let Some(mut block) = reserve(&service, 100) {
        service.run(|| block.shrink_to(50));
        blocks.push(block);
        assert!(service.usage().bytes() <= 100_000);
    }
    assert_eq!(service.usage().bytes(), 99_950);
}

#[test]
fn realloc_of_a_relatives_block_needs_only_the_growth() {
    let tenant = Service::builder("related tenant").hard_limit(1000).register().unwrap();
    let (one, other) = (child("related", &tenant), child("related too", &tenant));
    let stranger = register("unrelated");
    let mut block = reserve(&one, 600).unwrap();
    assert_eq!(other.run(|| block.try_reserve_exact(700)), Ok(()));
    assert_eq!((one.usage().bytes(), other.usage().bytes()), (0, 700));
    // A stranger's is more for the family.
    let mut large = reserve(&stranger, 400).unwrap();
    assert!(other.run(|| large.try_reserve_exact(500)).is_err());
    assert_eq!(tenant.usage_with_children().bytes(), 700);
}

#[test]
fn hard_limit_holds_over_many_children_of_one_thread() {
    const LIMIT: usize = MIB;

    let tenant = Service::builder("many children").hard_limit(LIMIT as u64).register().unwrap();
    let children: Vec<Service> = (0..300).map(|i| child(&format!("one of many {i}"), &tenant)).collect();
    // Each gets a grant of its own, and uses little of it at first.
    let mut blocks: Vec<_> = children.iter().map(|child| reserve(child, 100)).collect();
    assert!(blocks.iter().all(Option::is_some));
    for round in 0..60 {
        for child in &children {
            blocks.push(reserve(child, KIB));
            assert!(round % 10 > 0 || tenant.usage_with_children().bytes() <= LIMIT as u64);
        }
    }
    let held = tenant.usage_with_children();
    assert!(
        held.denied > 0 && held.bytes() <= LIMIT as u64 && held.bytes() > (LIMIT - KIB) as u64,
        "{held:?}"
    );
}

#[test]
fn on_soft_limit_is_its_services_own() {
    let (tell, told) = channel::<String>();
    for round in 0..100 {
        let tell = Mutex::new(tell.clone());
        let former = Service::builder("with a callback")
            .on_soft_limit(move |service| tell.lock().unwrap().send(service.name().to_owned()).unwrap());
        drop(former.register().unwrap());
        let latter = Service::builder(format!("without {round}")).soft_limit(10).register().unwrap();
        drop(reserve(&latter, 100));
    }
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
}

#[test]
fn a_living_services_limits_are_not_changed_by_registering() {
    let service = Service::builder("as it is").hard_limit(1000).register().unwrap();
    // Who asks for nothing, or for what there is, gets it.
    let ask = || Service::builder("as it is");
    assert_eq!(Service::register("as it is"), Ok(service.clone()));
    assert_eq!(ask().hard_limit(1000).register(), Ok(service.clone()));
    assert_eq!(ask().soft_limit(u64::MAX).register(), Ok(service.clone()), "that is no limit");
    for other in [ask().hard_limit(1001), ask().soft_limit(1000), ask().hard_limit(1000).soft_limit(10)] {
        let error = other.register().unwrap_err();
        assert!(
            matches!(
                &error,
                RegisterError::OtherLimits { name, hard_limit: Some(1000), soft_limit: None, .. }
                    if name == "as it is"
            ),
            "{error:?}"
        );
        assert!(error.to_string().contains("(hard: 1000, soft: none): ask for those"), "{error}");
        assert_eq!((service.hard_limit(), service.soft_limit()), (Some(1000), None));
    }
    // Nor is its callback, of whoever asks for something else.
    assert!(ask().hard_limit(1001).on_soft_limit(|_| {}).register().is_err());
    assert!(service.take_on_soft_limit().is_none());
    assert_eq!(ask().on_soft_limit(|_| {}).register(), Ok(service.clone()));
    assert!(service.take_on_soft_limit().is_some());
    // They are changed by whoever says so.
    service.set_hard_limit(Some(2000));
    assert_eq!(ask().hard_limit(2000).register(), Ok(service.clone()));
    service.set_hard_limit(None);
    assert!(ask().hard_limit(2000).register().is_err());
    drop(service);
    let new = ask().hard_limit(7).soft_limit(6).register().unwrap();
    assert_eq!((new.hard_limit(), new.soft_limit()), (Some(7), Some(6)));
}

#[test]
fn callbacks_can_be_set_and_taken() {
    let (tell, told) = channel();
    let number = |number: u32| {
        let tell = Mutex::new(tell.clone());
        move |service: &Service| tell.lock().unwrap().send((number, service.clone())).unwrap()
    };
    let service = Service::builder("exchanged").soft_limit(1000).on_soft_limit(number(1)).register().unwrap();
    let cross = || {
        // It is noticed that it is below when so much has been allocated.
        (0..300).for_each(|_| drop(black_box(reserve(&service, KIB / 2))));
        drop(black_box(reserve(&service, 2000)));
    };
    cross();
    assert_eq!(next(&told), (1, service.clone()));
    service.set_on_soft_limit(number(2));
    cross();
    assert_eq!(next(&told), (2, service.clone()));
    // What was taken is the program's.
    let taken = service.take_on_soft_limit().unwrap();
    assert!(service.take_on_soft_limit().is_none());
    cross();
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
    taken(&service);
    assert_eq!(next(&told).0, 2);
    service.set_on_soft_limit(move |service| taken(service));
    cross();
    assert_eq!(next(&told), (2, service.clone()));
    // With the service it is dropped.
    let (tell, ended) = channel::<()>();
    let tell = Mutex::new(tell);
    service.set_on_soft_limit(move |_| drop(tell.lock()));
    told.try_iter().for_each(drop);
    drop(service);
    watch::eventually(|| match ended.try_recv() {
        Err(TryRecvError::Disconnected) => Ok(()),
        other => Err(format!("it is kept: {other:?}")),
    });
}

#[test]
fn hard_limit_of_a_parent_is_the_familys() {
    let tenant = Service::builder("bounded tenant").hard_limit(MIB as u64).register().unwrap();
    let queries: Vec<Service> = (0..10).map(|i| child(&format!("query {i}"), &tenant)).collect();
    let mut blocks: Vec<_> = queries.iter().map(|query| reserve(query, 100 * KIB).unwrap()).collect();
    assert_eq!(queries[3].headroom(), Some(24 * KIB as u64));
    assert!(reserve(&queries[3], 25 * KIB).is_none() && reserve(&tenant, 25 * KIB).is_none());
    assert_eq!((queries[3].usage().denied, tenant.usage().denied), (1, 1));
    assert_eq!(tenant.usage_with_children().denied, 2);
    blocks.truncate(9);
    // Another child, with a limit of its own, under the family's.
    let strict = Service::builder("strict").parent(&tenant).hard_limit(10_000).register().unwrap();
    assert!(reserve(&strict, 10_001).is_none());
    assert!(reserve(&strict, 10_000).is_some());
    assert!(reserve(&queries[0], 124 * KIB).is_some());
    drop(queries);
    assert_eq!(tenant.usage_with_children().denied, 3);
    assert_eq!(tenant.usage_with_children().bytes(), 900 * KIB as u64);
    drop(blocks);
    assert_eq!(tenant.headroom(), Some(MIB as u64));
}

#[test]
fn hard_limit_while_children_come_and_go() {
    // Less than what one of them asks for.
    const LIMIT: usize = MIB;

    let tenant = Service::builder("busy tenant").hard_limit(LIMIT as u64).register().unwrap();
    let most = Mutex::new(0);
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let (tenant, most) = (&tenant, &most);
            threads.spawn(move || {
                for round in 0..300 {
                    let query = child(&format!("busy {thread} {round}"), tenant);
                    let blocks: Vec<_> = (0..40)
                        .filter_map(|i| reserve(&query, 1 + 7919 * (i + round) % (60 * KIB)))
                        .collect();
                    // No more than was held at one moment, however slowly it is added up while others go on.
                    let [first, last] = [(); 2].map(|()| tenant.usage_with_children());
                    let held = first.allocated_bytes.saturating_sub(last.freed_bytes);
                    let mut most = most.lock().unwrap();
                    *most = held.max(*most);
                    drop(blocks);
                }
            });
        }
    });
    let (most, denied) = (most.into_inner().unwrap(), tenant.usage_with_children().denied);
    assert!(most > LIMIT as u64 * 3 / 4 && most <= (LIMIT + 4 * 64 * KIB) as u64, "{most}");
    assert!(denied > 0, "nothing was ever denied");
    assert_eq!((tenant.usage_with_children().bytes(), tenant.headroom()), (0, Some(LIMIT as u64)));
}

#[test]
fn hard_limit_of_one_family_is_no_others() {
    // Recounted all the time, since only three more blocks fit.
    let modest = Service::builder("modest").hard_limit(MIB as u64).register().unwrap();
    let lavish = register("lavish");
    let _most = reserve(&modest, 700 * KIB).unwrap();
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let (family, bytes) = if thread % 2 == 0 { (&modest, 100 * KIB) } else { (&lavish, 2 * MIB) };
            threads.spawn(move || {
                for round in 0..4000 {
                    let member = child(&format!("{} {thread} {round}", family.name()), family);
                    drop(black_box(reserve(&member, bytes).expect("it fits")));
                }
            });
        }
    });
    assert_eq!(modest.usage_with_children().denied, 0);
}

#[test]
fn hard_limit_in_a_slot_that_was_used_without() {
    let tenant = Service::builder("strict tenant").hard_limit(1000).register().unwrap();
    for round in 0..100 {
        let former = register("former");
        drop(reserve(&former, 10));
        drop(former);
        let query = child(&format!("latter {round}"), &tenant);
        assert!(reserve(&query, 1001).is_none() && reserve(&query, 1000).is_some());
    }
}

#[test]
fn soft_limit_is_not_crossed_by_what_is_denied() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let tenant = Service::builder("cautious").hard_limit(10_000).register().unwrap();
    let query = Service::builder("curious")
        .parent(&tenant)
        .soft_limit(5000)
        .on_soft_limit(move |service| tell.lock().unwrap().send(service.usage().bytes()).unwrap())
        .register()
        .unwrap();
    assert!(reserve(&query, 10_001).is_none());
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
    let block = reserve(&query, 6000);
    assert_eq!(next(&told), 6000);
    drop(block);
}

#[test]
fn soft_limit_is_announced_once_a_crossing() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let service = Service::builder("watched")
        .soft_limit(10_000)
        .on_soft_limit(move |service| {
            tell.lock().unwrap().send((service.clone(), service.usage().bytes())).unwrap()
        })
        .register()
        .unwrap();
    let next = || next(&told);
    let none = || told.recv_timeout(Duration::from_millis(50)).is_err();
    let below = reserve(&service, 10_000).unwrap();
    assert!(none(), "it is not past its limit");
    let above = reserve(&service, 1).unwrap();
    assert_eq!(next(), (service.clone(), 10_001));
    let more: Vec<_> = (0..100).map(|_| reserve(&service, KIB)).collect();
    assert!(none(), "it is told already");
    drop((below, above, more));
    // Below it, which the next 64 KiB notice.
    for _ in 0..100 {
        drop(black_box(reserve(&service, KIB)));
    }
    let again = reserve(&service, 20_000);
    assert_eq!(next(), (service.clone(), 20_000));
    assert!(none());
    drop(again);
    service.set_soft_limit(None);
    let block = reserve(&service, MIB);
    assert!(none() && block.is_some());
}

#[test]
fn soft_limit_is_not_crossed_by_grants() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let tenant = Service::builder("watched tenant")
        .soft_limit(MIB as u64)
        .on_soft_limit(move |tenant| tell.lock().unwrap().send(tenant.usage_with_children().bytes()).unwrap())
        .register()
        .unwrap();
    let children: Vec<Service> = (0..100).map(|i| child(&format!("watched {i}"), &tenant)).collect();
    let _few: Vec<_> = children.iter().map(|child| reserve(child, 1000)).collect();
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
    let _many = reserve(&children[7], MIB);
    assert_eq!(next(&told), (MIB + 100_000) as u64);
}
