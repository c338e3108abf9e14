//! Profiles that are made by hand, their differences, and their views.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

/// Return addresses of the profiles that are made by hand.
pub(in crate::profile) const GROW: usize = 0x1001;
pub(in crate::profile) const INSERT: usize = 0x2001;
pub(in crate::profile) const MAIN: usize = 0x3001;
pub(in crate::profile) const SLAB: usize = 0x4001;
pub(in crate::profile) const ROUTER: usize = 0x5001;
/// Of the standard library, the same function twice.
const WITH_CAPACITY: usize = 0x6001;
const ELSEWHERE: usize = 0x6101;

pub(in crate::profile) fn names() -> Names {
    let frame = |address, function: &str, file: &str, line, is_inlined| Frame {
        address,
        function: function.to_owned(),
        file: Some(file.to_owned()),
        line: Some(line),
        is_inlined,
        is_own: file.starts_with("/app/"),
    };
    let (std, slab) = ("/rustc/0/library/alloc/src/lib.rs", "/x/registry/src/slab/src/lib.rs");
    [
        (
            GROW,
            vec![
                frame(GROW, "alloc::alloc::alloc", std, 95, true),
                frame(GROW, "<[u8; 16] as app::Table>::grow", "/app/src/table.rs", 42, false),
            ],
        ),
        (
            INSERT,
            vec![
                frame(INSERT, "app::Index::inlined", "/app/src/index.rs", 7, true),
                frame(INSERT, "app::Index::insert", "/app/src/index.rs", 17, false),
            ],
        ),
        (
            MAIN,
            vec![
                frame(MAIN, "app::main", "/app/src/main.rs", 3, false),
                frame(MAIN, "std::sys::backtrace::__rust_begin_short_backtrace", std, 1, false),
            ],
        ),
        (SLAB, vec![frame(SLAB, "slab::Slab<T>::with_capacity", slab, 230, false)]),
        (WITH_CAPACITY, vec![frame(WITH_CAPACITY, "alloc::vec::Vec<T>::with_capacity", std, 7, false)]),
        (ELSEWHERE, vec![frame(ELSEWHERE, "alloc::vec::Vec<T>::with_capacity", std, 7, false)]),
        (ROUTER, vec![frame(ROUTER, "app::router::Router::new", "/app/src/router.rs", 88, false)]),
    ]
    .into_iter()
    .collect()
}

pub(in crate::profile) fn row(service: usize, stack: &[usize], objects: f64, bytes: f64) -> CollectedRow {
    CollectedRow {
        service,
        stack: stack.into(),
        samples: 4,
        objects,
        bytes,
        objects_variance: objects,
        bytes_variance: bytes * bytes / 4.0,
    }
}

pub(in crate::profile) fn service(name: &str, handle: u32, blocks: u64, bytes: u64) -> ServiceTotal {
    ServiceTotal { name: name.into(), handle, bytes, blocks, bytes_before: 0, blocks_before: 0 }
}

pub(in crate::profile) fn profile(
    kind: Kind,
    services: Vec<ServiceTotal>,
    rows: Vec<CollectedRow>,
) -> Profile {
    let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let taken = began + Duration::from_secs(30);
    let mut profile =
        Profile::new(Collected { kind, rows, services, interval: 512 << 10, dropped: 0, began, taken });
    profile.names = OnceLock::from(Arc::new(names()));
    profile.mappings = [Mapping {
        start: 0x1000,
        limit: 0x9000,
        offset: 0x100,
        file: "/app/app".to_owned(),
        build_id: "01ab".to_owned(),
    }]
    .into();
    profile
}

/// Services with samples, with none, with some from before, and with names like quantities.
pub(in crate::profile) fn hand_made(kind: Kind) -> Profile {
    let before = ServiceTotal { bytes_before: 600, blocks_before: 6, ..service("old", 12, 10, 1000) };
    profile(
        kind,
        vec![
            service("unattributed", 0, 120, 9_600_000),
            service("index", 3, 30, 3_000_001),
            service("7d", 9, 1, 4096),
            service("cache", 5, 2, 200),
            service("idle", 6, 0, 0),
            before,
        ],
        vec![
            row(0, &[SLAB, ROUTER, MAIN], 80.0, 7_000_000.0),
            row(0, &[GROW, MAIN], 20.0, 2_000_000.0),
            row(1, &[GROW, INSERT, INSERT, MAIN], 10.0, 1_000_000.0),
            row(1, &[INSERT, MAIN], 10.0, 2_000_000.0),
            row(2, &[GROW, MAIN], 1.0, 5000.0),
            row(5, &[MAIN], 4.0, 300.0),
        ],
    )
}

fn bytes_of(profile: &Profile, service: &str) -> Vec<(Origin, i64)> {
    let rows = profile.rows.iter().filter(|row| row.service == service);
    rows.map(|row| (row.origin.clone(), row.bytes)).collect()
}

#[test]
fn services_add_up_to_their_exact_figures() {
    let profile = hand_made(Kind::Live);
    let services: Vec<_> =
        profile.services.iter().map(|service| (&*service.name, service.objects, service.bytes)).collect();
    assert_eq!(
        services,
        [
            ("unattributed", 120, 9_600_000),
            ("index", 30, 3_000_001),
            ("7d", 1, 4096),
            ("old", 10, 1000),
            ("cache", 2, 200),
        ]
    );
    for service in &profile.services {
        let rows: Vec<_> = profile.rows.iter().filter(|row| row.service == service.name).collect();
        assert_eq!(rows.iter().map(|row| row.bytes).sum::<i64>(), service.bytes);
        assert_eq!(rows.iter().map(|row| row.objects).sum::<i64>(), service.objects);
    }
    assert_eq!((profile.bytes(), profile.objects()), (9_600_000 + 3_000_001 + 4096 + 200 + 1000, 163));
    assert_eq!(bytes_of(&profile, "cache"), [(Origin::NotSampled, 200)]);
    assert_eq!(bytes_of(&profile, "old"), [(Origin::BeforeSampling, 600), (Origin::Stack(vec![MAIN]), 400)]);
    // The error is that of the samples: half of the estimate.
    let row = profile.rows.iter().find(|row| row.service == "7d").unwrap();
    assert_eq!((row.bytes, row.standard_error), (4096, 2500.0));
}

#[test]
fn rows_of_one_stack_are_one() {
    let services = vec![service("a", 1, 4, 400)];
    let rows = vec![row(0, &[MAIN], 1.0, 100.0), row(0, &[MAIN], 1.0, 100.0), row(7, &[MAIN], 1.0, 1.0)];
    let profile = profile(Kind::Live, services, rows);
    assert_eq!(bytes_of(&profile, "a"), [(Origin::Stack(vec![MAIN]), 400)]);
    assert_eq!(profile.rows[0].samples, 8);
}

#[test]
fn growth_is_signed() {
    let now = profile(
        Kind::Live,
        vec![service("a", 1, 2, 300), service("new", 3, 1, 10)],
        vec![row(0, &[MAIN], 1.0, 200.0), row(0, &[GROW], 1.0, 100.0), row(1, &[MAIN], 1.0, 10.0)],
    );
    let then = profile(
        Kind::Live,
        vec![service("a", 1, 3, 350), service("gone", 2, 1, 50)],
        vec![row(0, &[MAIN], 1.0, 250.0), row(0, &[GROW], 2.0, 100.0), row(1, &[MAIN], 1.0, 50.0)],
    );
    let growth = now.difference(&then);
    let rows: Vec<_> = growth
        .rows
        .iter()
        .map(|row| (&*row.service, row.origin.stack()[0], row.objects, row.bytes))
        .collect();
    let expected = [("new", MAIN, 1, 10), ("a", GROW, 0, 0), ("a", MAIN, -1, -50), ("gone", MAIN, -1, -50)];
    // The objects of `a` are spread anew: 2 of 3, and 1 of 2.
    assert_eq!(rows.len(), 4 - usize::from(rows.iter().all(|row| row.1 != GROW)));
    for (service, _, _, bytes) in expected {
        let of_service = |name: &&(&str, usize, i64, i64)| name.0 == service;
        if bytes != 0 {
            assert!(rows.iter().filter(of_service).any(|row| row.3 == bytes), "{service}: {rows:?}");
        }
    }
    let services: Vec<_> =
        growth.services.iter().map(|service| (&*service.name, service.objects, service.bytes)).collect();
    assert_eq!(services, [("new", 1, 10), ("a", -1, -50), ("gone", -1, -50)]);
    assert_eq!((growth.bytes(), growth.objects()), (-90, -1));
    assert!(growth.is_difference);
    assert_eq!(growth.began, then.taken);
    // Nothing has changed since itself.
    let none = now.difference(&now);
    assert_eq!((none.rows, none.services), (vec![], vec![]));
}

#[test]
fn what_was_allocated_between_is_never_negative() {
    let stack = |origin: &[usize], samples, bytes| CollectedRow { samples, ..row(0, origin, bytes, bytes) };
    // By itself the first row's figure falls, since the second one's samples make the estimate
    // larger than the exact figure.
    let then = profile(Kind::Allocated, vec![service("a", 1, 1000, 1000)], vec![stack(&[MAIN], 5, 800.0)]);
    let now = profile(
        Kind::Allocated,
        vec![service("a", 1, 1500, 1500)],
        vec![stack(&[MAIN], 5, 800.0), stack(&[GROW], 3, 900.0)],
    );
    assert!(bytes_of(&now, "a").contains(&(Origin::Stack(vec![MAIN]), 712)));
    let between = now.difference(&then);
    assert_eq!(bytes_of(&between, "a"), [(Origin::Stack(vec![GROW]), 500)]);
    assert_eq!((between.rows[0].samples, between.bytes(), between.objects()), (3, 500, 500));
    assert_eq!(between.services[0].bytes, 500);
    // From the beginning.
    let all = now.difference(&Profile { kind: Kind::Allocated, ..Profile::default() });
    assert_eq!(all.rows, now.rows);
}

#[test]
fn frames_are_without_the_allocator_and_the_beginning() {
    let profile = hand_made(Kind::Live);
    let row = profile
        .rows
        .iter()
        .find(|row| row.origin == Origin::Stack(vec![GROW, INSERT, INSERT, MAIN]))
        .unwrap();
    let functions: Vec<&str> = profile.frames(row).iter().map(|frame| &*frame.function).collect();
    assert_eq!(
        functions,
        [
            "<[u8; 16] as app::Table>::grow",
            "app::Index::inlined",
            "app::Index::insert",
            "app::Index::inlined",
            "app::Index::insert",
            "app::main",
        ]
    );
}

#[test]
fn by_service_says_how_much_has_a_stack() {
    let profile = hand_made(Kind::Live);
    let rows = profile.by_service().rows;
    let old = rows.iter().find(|row| row.service == "old").unwrap();
    assert_eq!((old.handle, old.objects, old.bytes, old.with_stack, old.samples), (12, 10, 1000, 400, 4));
    assert_eq!(rows.iter().map(|row| row.bytes).sum::<i64>(), profile.bytes());
    assert_eq!(rows[0].service, "unattributed");
}

#[test]
fn by_function_counts_a_function_once_for_each_stack() {
    let profile = hand_made(Kind::Live);
    let rows = profile.by_function().rows;
    let find = |name: &str| rows.iter().find(|row| row.function == name).unwrap();
    // 9.6 MB in the proportion of 7 and 2, 3 MB of 1 and 2, and the whole of `7d`.
    let slab = find("slab::Slab<T>::with_capacity");
    assert_eq!((slab.bytes, slab.cumulative_bytes), (7_554_717, 7_554_717));
    let grow = find("<[u8; 16] as app::Table>::grow");
    assert_eq!(grow.bytes, 2_045_283 + 1_000_000 + 4096);
    let insert = find("app::Index::insert");
    assert_eq!((insert.bytes, insert.cumulative_bytes), (0, 3_000_001));
    let main = find("app::main");
    assert_eq!((main.bytes, main.cumulative_bytes), (400, profile.bytes() - 600 - 200));
    assert_eq!(find("[not sampled]").bytes, 200);
    assert_eq!(find("[allocated before sampling began]").cumulative_bytes, 600);
    assert_eq!(rows.iter().map(|row| row.bytes).sum::<i64>(), profile.bytes());
    // Errors of independent rows add up by their squares.
    let errors: f64 = profile
        .rows
        .iter()
        .filter(|row| row.origin.stack().first() == Some(&GROW))
        .map(|row| row.standard_error.powi(2))
        .sum();
    assert!((grow.standard_error - errors.sqrt()).abs() < 1e-6);
}

#[test]
fn own_code_is_named_by_service_and_line() {
    let profile = hand_made(Kind::Live);
    let rows = profile.by_own_code().rows;
    let lines: Vec<_> =
        rows.iter().map(|row| (&*row.service, &*row.function, row.line.unwrap_or(0), row.bytes)).collect();
    assert_eq!(
        lines,
        [
            // The slab is of the registry, so the code is whoever makes it.
            ("unattributed", "app::router::Router::new", 88, 7_554_717),
            ("unattributed", "<[u8; 16] as app::Table>::grow", 42, 2_045_283),
            ("index", "app::Index::inlined", 7, 2_000_001),
            ("index", "<[u8; 16] as app::Table>::grow", 42, 1_000_000),
            ("7d", "<[u8; 16] as app::Table>::grow", 42, 4096),
            ("old", "[allocated before sampling began]", 0, 600),
            ("old", "app::main", 3, 400),
            ("cache", "[not sampled]", 0, 200),
        ]
    );
    // Of another crate, and where there is none of it the first that is not the standard library's.
    let rows = profile.by_code(|frame| frame.function.starts_with("slab::")).rows;
    assert_eq!((&*rows[0].function, rows[0].line), ("slab::Slab<T>::with_capacity", Some(230)));
    assert_eq!(rows[1].function, "<[u8; 16] as app::Table>::grow");
}

/// The standard library allocates for those who call it, dependencies for the program's own lines.
fn with_libraries() -> Profile {
    profile(
        Kind::Live,
        vec![service("a", 1, 4, 1000)],
        vec![
            row(0, &[WITH_CAPACITY, SLAB, ROUTER, MAIN], 1.0, 400.0),
            row(0, &[ELSEWHERE, SLAB, ROUTER, MAIN], 1.0, 300.0),
            row(0, &[WITH_CAPACITY, ROUTER, MAIN], 1.0, 200.0),
            row(0, &[WITH_CAPACITY], 1.0, 100.0),
        ],
    )
}

#[test]
fn what_the_standard_library_allocates_is_its_callers() {
    let rows = with_libraries().by_function().rows;
    let own: Vec<_> = rows.iter().map(|row| (&*row.function, row.bytes, row.flat_bytes)).collect();
    assert_eq!(
        own,
        [
            ("slab::Slab<T>::with_capacity", 700, 0),
            ("app::router::Router::new", 200, 0),
            // By nobody else.
            ("alloc::vec::Vec<T>::with_capacity", 100, 1000),
            ("app::main", 0, 0),
        ]
    );
    assert_eq!(rows[2].cumulative_bytes, 1000);
}

#[test]
fn own_lines_say_what_others_allocated_for_them() {
    let rows = with_libraries().by_own_code().rows;
    let router = &rows[0];
    assert_eq!((&*router.function, router.bytes, router.objects), ("app::router::Router::new", 900, 3));
    let [slab] = &router.callees[..] else { panic!("{:?}", router.callees) };
    assert_eq!((&*slab.function, slab.line), ("slab::Slab<T>::with_capacity", Some(230)));
    assert_eq!((slab.bytes, slab.objects, slab.standard_error), (700, 2, 250.0));
    // Nothing but the standard library's.
    assert_eq!((&*rows[1].function, &*rows[1].callees), ("alloc::vec::Vec<T>::with_capacity", &[][..]));
    // Of the wanted function's own lines there is none below it.
    let rows = with_libraries().by_code(|frame| frame.function.starts_with("slab::")).rows;
    assert!(rows.iter().all(|row| row.callees.is_empty()), "{rows:?}");
}

#[test]
fn stacks_of_the_same_functions_are_one_line() {
    let mut folded = Vec::new();
    with_libraries().write_folded(&mut folded).unwrap();
    let slab = "a;app::main;app::router::Router::new;slab::Slab<T>::with_capacity;alloc::vec::Vec<T>::with_capacity 700\n";
    let folded = String::from_utf8(folded).unwrap();
    assert!(folded.contains(slab) && folded.lines().count() == 3, "{folded}");
}

#[test]
fn tables_are_read_by_people() {
    let profile = hand_made(Kind::Live);
    let table = format!("{profile:.1}");
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    let expected = "\
service, and its code                                          live      share    ± error    objects
────────────────────────────────────────────────────────────────────────────────────────────────────
unattributed                                                9.2 MiB     76.2 %                   120
  app::router::Router::new  app/src/router.rs:88            7.2 MiB     59.9 %    3.3 MiB         96
    by slab::Slab<T>::with_capacity  slab/src/lib.rs:230    7.2 MiB     59.9 %    3.3 MiB         96
  (1 more)                                                  2.0 MiB     16.2 %  976.6 KiB         24";
    assert_eq!(lines[..6].join("\n"), expected, "{table}");
    assert!(table.ends_with("\n24 samples, one for each 512.0 KiB on average\n"), "{table}");
    assert_eq!(profile.to_string().matches("[not sampled]").count(), 1);

    let by_service = profile.by_service().to_string();
    assert!(by_service.contains("old"), "{by_service}");
    let by_function = format!("{:.2}", profile.by_function());
    assert!(by_function.contains("with calls") && by_function.contains("more)"), "{by_function}");

    for (interval, expected) in [(0, "sampling had been stopped"), (1, "every allocation was one")] {
        let shown = Profile { interval, ..profile.clone() }.to_string();
        assert!(shown.ends_with(&format!("{expected}\n")), "{shown}");
    }

    let growth = Profile { dropped: 2, ..profile.clone() }.difference(&Profile::default()).to_string();
    assert!(
        growth.contains("growth") && growth.contains("+9.2 MiB") && growth.contains("2 more were dropped")
    );
    let shrunk = Profile::default().difference(&profile).to_string();
    assert!(shrunk.contains("-9.2 MiB") && !shrunk.contains('%'), "{shrunk}");
}

#[test]
fn an_empty_profile_has_tables_and_files() {
    let profile = Profile::default();
    assert!(profile.to_string().contains("total"));
    assert!(profile.by_function().to_string().contains("total"));
    assert!(profile.by_service().to_string().contains("total"));
    let mut folded = Vec::new();
    profile.write_folded(&mut folded).unwrap();
    assert_eq!(folded, b"");
}

#[test]
fn folded_stacks_begin_with_the_service() {
    let mut folded = Vec::new();
    let profile = hand_made(Kind::Live);
    profile.write_folded(&mut folded).unwrap();
    let folded = String::from_utf8(folded).unwrap();
    assert_eq!(folded.lines().count(), profile.rows.len());
    for line in [
        "unattributed;app::main;app::router::Router::new;slab::Slab<T>::with_capacity 7554717",
        "index;app::main;app::Index::insert;app::Index::inlined 2000001",
        "7d;app::main;<[u8, 16] as app::Table>::grow 4096",
        "cache;[not sampled] 200",
    ] {
        assert!(folded.lines().any(|written| written == line), "{line} is not in\n{folded}");
    }
    let sum: i64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<i64>().unwrap()).sum();
    assert_eq!(sum, profile.bytes());

    // What shrank has no flame.
    let mut folded = Vec::new();
    Profile::default().difference(&profile).write_folded(&mut folded).unwrap();
    assert_eq!(folded, b"");
}

#[test]
fn a_writers_errors_are_passed_on() {
    let profile = hand_made(Kind::Live);
    let mut full = [0_u8; 3];
    assert_eq!(profile.write_folded(&mut full[..]).unwrap_err().kind(), std::io::ErrorKind::WriteZero);
    assert_eq!(profile.write_pprof(&mut full[..]).unwrap_err().kind(), std::io::ErrorKind::WriteZero);
}

#[cfg(feature = "serde")]
#[test]
fn profiles_are_stored_with_their_names() {
    let profile = hand_made(Kind::Live);
    let text = serde_json::to_string(&profile).unwrap();
    let read: Profile = serde_json::from_str(&text).unwrap();
    assert_eq!(read.rows.len(), profile.rows.len());
    for (read, row) in read.rows.iter().zip(&profile.rows) {
        assert_eq!((&read.service, read.handle, &read.origin), (&row.service, row.handle, &row.origin));
        assert_eq!((read.objects, read.bytes, read.samples), (row.objects, row.bytes, row.samples));
        // JSON's reader may be off by the last bit.
        assert!((read.standard_error - row.standard_error).abs() <= row.standard_error * 1e-15);
    }
    assert_eq!(read.services, profile.services);
    assert_eq!((read.kind, read.interval, read.taken), (profile.kind, profile.interval, profile.taken));
    assert_eq!(read.to_string(), profile.to_string());
    assert_eq!(read.mappings, profile.mappings);
    // As an older or a newer dogtag writes it.
    let read: Profile = serde_json::from_str(r#"{"interval": 7, "of_later": [1]}"#).unwrap();
    assert_eq!((read.interval, read.rows.len()), (7, 0));
}

/// Services' figures, and rows of them: some of a stack that another has as well.
fn any_profile(kind: Kind) -> impl Strategy<Value = Profile> {
    let services = proptest::collection::vec(any::<(u32, u32, u32, u32)>(), 0..5);
    let rows = proptest::collection::vec((0..6_usize, 0..8_usize, 0.0..1e9, 1..5_u64), 0..30);
    (services, rows).prop_map(move |(services, rows)| {
        let services =
            services.into_iter().zip(0..).map(|((bytes, blocks, bytes_before, blocks_before), i)| {
                let (bytes_before, blocks_before) = (bytes_before.into(), blocks_before.into());
                let service = service(&format!("service {i}"), i, blocks.into(), bytes.into());
                ServiceTotal { bytes_before, blocks_before, ..service }
            });
        let stacks: [&[usize]; 8] =
            [&[], &[MAIN], &[GROW], &[GROW, MAIN], &[INSERT, MAIN], &[SLAB], &[SLAB, ROUTER], &[0x7001]];
        let rows = rows.into_iter().map(|(service, stack, bytes, samples)| CollectedRow {
            samples,
            ..row(service, stacks[stack], bytes / 100.0, bytes)
        });
        profile(kind, services.collect(), rows.collect())
    })
}

/// What the rows of each service add up to.
fn sums(profile: &Profile) -> HashMap<(String, u32), (i64, i64)> {
    let mut sums: HashMap<_, (i64, i64)> = HashMap::new();
    for row in &profile.rows {
        let sum = sums.entry((row.service.clone(), row.handle)).or_default();
        *sum = (sum.0 + row.objects, sum.1 + row.bytes);
    }
    sums
}

fn figures(profile: &Profile) -> HashMap<(String, u32), (i64, i64)> {
    let services = profile.services.iter();
    services.map(|one| ((one.name.clone(), one.handle), (one.objects, one.bytes))).collect()
}

proptest! {
    #[test]
    fn whatever_is_sampled_rows_add_up_and_so_do_views_and_files(profile in any_profile(Kind::Live)) {
        prop_assert_eq!(sums(&profile), figures(&profile));
        for row in &profile.rows {
            prop_assert!(row.bytes >= 0 && row.objects >= 0 && row.standard_error.is_finite());
        }
        let bytes = profile.bytes();
        prop_assert_eq!(profile.by_service().rows.iter().map(|row| row.bytes).sum::<i64>(), bytes);
        prop_assert_eq!(profile.by_function().rows.iter().map(|row| row.bytes).sum::<i64>(), bytes);
        prop_assert_eq!(profile.by_own_code().rows.iter().map(|row| row.bytes).sum::<i64>(), bytes);
        let mut folded = Vec::new();
        profile.write_folded(&mut folded).unwrap();
        let folded = String::from_utf8(folded).unwrap();
        let counts = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<i64>().unwrap());
        prop_assert_eq!(counts.sum::<i64>(), bytes);
    }

    #[test]
    fn growth_adds_up(now in any_profile(Kind::Live), then in any_profile(Kind::Live)) {
        let growth = now.difference(&then);
        prop_assert_eq!(growth.bytes(), now.bytes() - then.bytes());
        let mut sums = sums(&growth);
        let figures = figures(&growth);
        // Of a service that is as before there may be rows that make up for one another.
        sums.retain(|service, sum| figures.contains_key(service) || *sum != (0, 0));
        prop_assert_eq!(sums, figures);
        prop_assert!(growth.rows.iter().all(|row| row.standard_error.is_finite()));
        // And back.
        let back = then.difference(&now);
        prop_assert_eq!(back.bytes(), -growth.bytes());
    }

    #[test]
    fn what_was_allocated_between_adds_up(
        now in any_profile(Kind::Allocated),
        then in any_profile(Kind::Allocated),
    ) {
        let between = now.difference(&then);
        prop_assert_eq!(sums(&between), figures(&between));
        let then = figures(&then);
        for (service, (objects, bytes)) in figures(&now) {
            let (former_objects, former_bytes) = then.get(&service).copied().unwrap_or_default();
            let expected = ((objects - former_objects).max(0), (bytes - former_bytes).max(0));
            let between = figures(&between).get(&service).copied().unwrap_or_default();
            prop_assert_eq!(between, expected);
        }
        for row in &between.rows {
            prop_assert!(row.bytes >= 0 && row.objects >= 0 && row.standard_error.is_finite());
        }
    }
}
