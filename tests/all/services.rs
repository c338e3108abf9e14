//! Names, handles, and many services.

use dogtag::{RegisterError, Service};

#[test]
fn register_of_a_name_that_lives_is_the_same_service() {
    let first = Service::register("twice").unwrap();
    let second = Service::register(String::from("twice")).unwrap();
    assert_eq!(first, second);
    assert_eq!(first.handle(), second.handle());
    assert_eq!(Service::by_name("twice"), Some(first.clone()));
    assert_eq!(Service::by_handle(first.handle()), Some(first));
    assert_eq!(Service::by_name("never registered"), None);
    assert_eq!(Service::by_handle(0x1234_5678), None);
}

#[test]
fn register_by_threads_at_once_is_one_service() {
    for round in 0..50 {
        let name = format!("raced for {round}");
        let services: Vec<Service> = std::thread::scope(|threads| {
            let racers: Vec<_> =
                (0..4).map(|_| threads.spawn(|| Service::register(&name).unwrap())).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert!(services.iter().all(|service| *service == services[0]));
    }
}

#[test]
fn handle_is_any_number_but_those_in_use() {
    let handles = [1, 0x0100_0001, 0x7fff_ffff, u32::MAX];
    let services = handles.map(|handle| {
        let service = Service::builder(format!("number {handle}")).handle(handle).register().unwrap();
        assert_eq!(service.handle(), handle);
        // Asked for again, with its handle or without.
        assert_eq!(Service::builder(service.name()).handle(handle).register().unwrap(), service);
        assert_eq!(Service::register(service.name()).unwrap(), service);
        service
    });

    let error = Service::builder("thief").handle(1).register().unwrap_err();
    assert!(
        matches!(&error, RegisterError::HandleTaken { handle: 1, name, .. } if name == "number 1"),
        "{error:?}"
    );
    assert_eq!(Service::by_name("thief"), None);
    let error = Service::builder("number 1").handle(2).register().unwrap_err();
    let RegisterError::NameTaken { name, handle, requested, .. } = &error else { panic!("{error:?}") };
    assert_eq!((&**name, *handle, *requested), ("number 1", 1, 2));
    assert_eq!(Service::by_handle(2), None);
    let error = Service::builder("nobody").handle(0).register().unwrap_err();
    assert_eq!(
        error.to_string(),
        "handle 0x00000000 belongs to service \"unattributed\": choose another, or let one be assigned"
    );

    // Names and handles are free as soon as their service is dropped.
    drop(services);
    assert_eq!(Service::builder("thief").handle(1).register().unwrap().handle(), 1);
    assert_eq!(Service::builder("number 1").handle(2).register().unwrap().handle(), 2);
}

#[test]
fn unattributed_is_a_service_like_any_other() {
    let nobody = Service::unattributed();
    assert_eq!((nobody.name(), nobody.handle()), ("unattributed", 0));
    assert_eq!(Service::by_handle(0), Some(nobody.clone()));
    assert_eq!(Service::register("unattributed").unwrap(), nobody);
    assert_eq!(Service::current(), nobody);
    let before = nobody.usage();
    let block = std::hint::black_box(Box::new([0_u8; 1000]));
    assert!(nobody.usage().since(&before).allocated_bytes >= 1000);
    drop(block);
    assert!(dogtag::snapshot().rows.iter().any(|row| row.name == "unattributed"));
}

#[test]
fn register_is_not_charged_to_who_registers() {
    let registrar = Service::register("registrar").unwrap();
    let name = String::from("a name that has to be stored somewhere");
    let registered = registrar.run(|| Service::register(&name).unwrap());
    assert_eq!(registrar.usage().allocated_blocks, 0);
    assert_eq!(registered.name(), name);
}

#[test]
fn name_is_kept_as_it_is() {
    for name in ["ünïcödé ✓", "with\nnewline", "\0", " ", &"long ".repeat(51)] {
        assert_eq!(Service::register(name).unwrap().name(), name);
    }
    for line in dogtag::snapshot().to_string().lines() {
        assert!(line.chars().count() < 160, "{line}");
    }
}

#[test]
fn name_is_not_empty_and_not_longer_than_its_bound() {
    assert_eq!(Service::MAX_NAME_LEN, 255);
    assert_eq!(Service::register(""), Err(RegisterError::NoName));
    assert_eq!(Service::builder(String::new()).handle(0x77).register(), Err(RegisterError::NoName));
    assert_eq!((Service::by_name(""), Service::by_handle(0x77)), (None, None));
    let longest = "é".repeat(127) + "x";
    let service = Service::register(&longest).unwrap();
    assert_eq!((service.name(), Service::by_name(&longest)), (&*longest, Some(service.clone())));
    for name in [longest.clone() + "y", "é".repeat(128), "名".repeat(1 << 20)] {
        let refused = || {
            [
                Service::register(&name).unwrap_err(),
                Service::builder(&name).parent(&service).register().unwrap_err(),
            ]
        };
        let (errors, usage) = dogtag::measure(refused);
        assert!(usage.allocated_bytes < 100_000, "{usage:?} for a name that is none");
        for error in errors {
            let RegisterError::NameTooLong { beginning, len, .. } = &error else { panic!("{error:?}") };
            assert!(*len == name.len() && name.starts_with(beginning) && beginning.len() > 50);
            let text = error.to_string();
            assert!(
                text.contains(&format!("{beginning:?}")) && text.contains("255") && text.len() < 300,
                "{text}"
            );
        }
        assert_eq!(Service::by_name(&name), None);
    }
    let text = RegisterError::NoName.to_string();
    assert!(text.contains("name"), "{text}");
}

/// More than fit a short cookie, and every one of them exact.
#[test]
fn services_beyond_the_short_cookies() {
    alone!();
    const SERVICES: usize = 70_000;

    let services: Vec<Service> =
        (0..SERVICES).map(|i| Service::register(format!("crowd {i}")).unwrap()).collect();
    // Some of them large.
    let size = |i: usize| if i % 50 == 49 { 5_000 } else { i % 50 + 1 };
    let allocate = |i: usize| services[i].run(|| vec![i as u8; size(i)]);
    let mut blocks: Vec<Vec<u8>> = (0..SERVICES).map(allocate).collect();
    for (i, service) in services.iter().enumerate() {
        assert_eq!((service.usage().bytes(), service.usage().blocks()), (size(i) as u64, 1), "{i}");
    }
    // Limits and peaks are theirs too.
    let limited = &services[SERVICES - 1];
    limited.set_hard_limit(Some(1 << 20));
    limited.run(|| {
        let most = Vec::<u8>::with_capacity(1_000_000);
        assert!(Vec::<u8>::new().try_reserve_exact(100_000).is_err());
        drop(most);
        let small: Vec<Vec<u8>> = (0..900).map(|_| Vec::with_capacity(1_000)).collect();
        assert!((0..200).any(|_| Vec::<u8>::new().try_reserve_exact(200_000).is_err()));
        drop(small);
    });
    assert!(limited.usage().denied >= 2 && limited.usage().peak_bytes >= 1_000_000);
    limited.set_hard_limit(None);
    // Grown by another service, some of them from a short cookie to a long one
    // or back; then freed on another thread.
    for (i, block) in blocks.iter_mut().enumerate() {
        services[SERVICES - 1 - i].run(|| block.reserve_exact(if i % 20 == 7 { 4_096 } else { 100 }));
        assert!(block.iter().all(|&byte| byte == i as u8), "the contents of {i} did not move along");
    }
    let grown: u64 = services.iter().map(|service| service.usage().bytes()).sum();
    assert_eq!(grown, blocks.iter().map(|block| block.capacity() as u64).sum::<u64>());
    let sum = dogtag::snapshot();
    let crowd = sum.rows.iter().filter(|row| row.name.starts_with("crowd"));
    assert_eq!(crowd.map(|row| row.usage.bytes()).sum::<u64>(), grown);
    std::thread::spawn(move || drop(blocks)).join().unwrap();
    for (i, service) in services.iter().enumerate() {
        assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0), "{i}");
    }
    assert_eq!(dogtag::snapshot().lost, dogtag::Lost::default());
    // Wherever their scopes were counted, all were left.
    drop(services);
    assert!(!dogtag::snapshot().rows.iter().any(|row| row.name.starts_with("crowd")));
}

/// As `?` into a boxed error, and threads, ask of them.
#[test]
fn errors_can_be_passed_on() {
    fn is_error<E: std::error::Error + Clone + Send + Sync + Unpin + 'static>() {}

    is_error::<RegisterError>();
}
