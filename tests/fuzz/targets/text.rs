//! What is written of services, regions and figures, whatever they are called and wherever they
//! come from: tables keep their lines, Prometheus gets back the names, JSON the figures.

#![no_main]

use arbitrary::Arbitrary;
use dogtag::{
    Balance, Dogtag, JemallocStats, Lost, Quarantine, RegisterError, Row, Service, Snapshot, Usage,
};
use dogtag_mapped::MappedRegion;
use dogtag_prometheus::ServiceCollector;
use libfuzzer_sys::fuzz_target;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::collections::HashSet;
use std::fmt::Debug;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Json(&'a str),
    Figures(Box<Figures<'a>>),
    Names(Names<'a>),
}

/// A snapshot as it may come from elsewhere.
#[derive(Arbitrary, Debug)]
struct Figures<'a> {
    rows: Vec<FiguresOfOne<'a>>,
    ended: Option<[u64; 6]>,
    totals: [u64; 6],
    lost: [u64; 2],
    quarantine: Option<[u64; 2]>,
    jemalloc: Option<[u64; 6]>,
    balance: Option<[u64; 16]>,
    resident: Option<u64>,
    precision: u8,
}

#[derive(Arbitrary, Debug)]
struct FiguresOfOne<'a> {
    name: &'a str,
    usage: [u64; 6],
    with_children: [u64; 6],
    parent: Option<u8>,
    limits: [Option<u64>; 2],
    is_retired: bool,
}

/// Services and a region of these names.
#[derive(Arbitrary, Debug)]
struct Names<'a> {
    services: Vec<Named<'a>>,
    /// Of whom Prometheus is told, if it is.
    most_services: Option<u8>,
    precision: u8,
    region: Option<&'a str>,
}

#[derive(Arbitrary, Debug)]
struct Named<'a> {
    name: &'a str,
    times: u8,
    bytes: u16,
    is_dropped: bool,
    is_child: bool,
}

fn json(text: &str) {
    /// What was read is written so that it is read as the same.
    fn read<T: Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned>(text: &str) -> Option<T> {
        let value: T = serde_json::from_str(text).ok()?;
        let again = serde_json::to_string(&value).expect("figures can be written");
        assert_eq!(serde_json::from_str::<T>(&again).expect("it was written so"), value);
        Some(value)
    }

    if let Some(snapshot) = read::<Snapshot>(text) {
        show(&snapshot, 3);
    }
    if let Some(balance) = read::<Balance>(text) {
        show_balance(&balance);
    }
    if let Some(row) = read::<Row>(text) {
        show(&with_rows(vec![row.clone(), row]), 0);
    }
    if let Some(usage) = read::<Usage>(text) {
        let sum = usage + usage + usage;
        assert!(
            sum.bytes() >= usage.bytes() || sum.freed_bytes == u64::MAX || sum.allocated_bytes == u64::MAX
        );
    }
}

fn figures(figures: &Figures<'_>) {
    let rows = figures.rows.iter().map(|one| {
        let mut row = Row::default();
        row.name = one.name.to_owned();
        row.usage = usage(one.usage);
        row.usage_with_children = usage(one.with_children);
        row.parent = one.parent.map(usize::from);
        [row.hard_limit, row.soft_limit] = one.limits;
        row.is_retired = one.is_retired;
        row
    });
    let mut snapshot = with_rows(rows.collect());
    snapshot.ended = figures.ended.map(usage).unwrap_or_default();
    snapshot.totals = usage(figures.totals);
    let mut lost = Lost::default();
    [lost.bytes, lost.blocks] = figures.lost;
    snapshot.lost = lost;
    snapshot.quarantine = figures.quarantine.map(|[bytes, blocks]| {
        let mut quarantine = Quarantine::default();
        (quarantine.bytes, quarantine.blocks) = (bytes, blocks);
        quarantine
    });
    snapshot.jemalloc = figures.jemalloc.map(|figures| {
        let mut it = JemallocStats::default();
        [it.allocated, it.active, it.resident, it.mapped, it.retained, it.metadata] = figures;
        it
    });
    snapshot.balance = figures.balance.map(|parts| {
        let mut it = Balance::default();
        [
            it.services,
            it.unattributed,
            it.cookies,
            it.quarantine,
            it.rounding,
            it.thread_caches,
            it.free_slots,
            it.dirty_pages,
            it.metadata,
            it.regions,
            it.ledger,
            it.files,
            it.stacks,
            it.other_mappings,
            it.other_allocators,
            it.not_in_memory,
        ] = parts;
        it.resident = figures.resident;
        it
    });
    show(&snapshot, figures.precision);
    json(&serde_json::to_string(&snapshot).expect("figures can be written"));
}

fn with_rows(rows: Vec<Row>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.rows = rows;
    snapshot
}

fn usage(
    [allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, denied, peak_bytes]: [u64; 6],
) -> Usage {
    let mut usage = Usage::default();
    (usage.allocated_bytes, usage.allocated_blocks) = (allocated_bytes, allocated_blocks);
    (usage.freed_bytes, usage.freed_blocks) = (freed_bytes, freed_blocks);
    (usage.denied, usage.peak_bytes) = (denied, peak_bytes);
    usage
}

/// Writes it in all ways; each row has its line.
fn show(snapshot: &Snapshot, precision: u8) {
    let (rows, precision) = (snapshot.rows.len(), usize::from(precision));
    let ended = usize::from(snapshot.ended != Usage::default());
    let hidden = usize::from(rows > precision);
    for (table, lines) in [
        (format!("{snapshot}"), rows + ended),
        (format!("{snapshot:.precision$}"), rows.min(precision) + hidden + ended),
        (format!("{snapshot:#}"), rows),
    ] {
        // A heading, a rule, another one, and the sum.
        assert_eq!(table.lines().take_while(|line| !line.is_empty()).count(), lines + 4, "{table}");
        let ends_line = |c| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let is_odd = |c: char| c != '\n' && c.is_control() || ends_line(c);
        assert!(!table.contains(is_odd), "{table:?}");
    }
    assert!(!format!("{snapshot:?}").is_empty());
    if let Some(balance) = &snapshot.balance {
        show_balance(balance);
    }
}

fn show_balance(balance: &Balance) {
    let lines = balance.lines();
    assert_eq!((lines.len(), lines[16].bytes), (17, balance.unexplained()));
    let sum: i128 = lines.iter().map(|line| i128::from(line.bytes)).sum();
    let is_usual = lines.iter().all(|line| line.bytes.unsigned_abs() < 1 << 59);
    if let Some(resident) = balance.resident.filter(|resident| is_usual && *resident < 1 << 59) {
        assert_eq!(sum, resident.into());
    }
    assert_eq!(balance.to_string().lines().count(), 21, "{balance}");
}

fn names(names: &Names<'_>) {
    let mut services: Vec<Service> = Vec::new();
    let mut blocks = Vec::new();
    for named in &names.services {
        let name = named.name.repeat(usize::from(named.times % 8) + 1);
        let mut builder = Service::builder(&name);
        if let Some(parent) = services.last().filter(|_| named.is_child) {
            builder = builder.parent(parent);
        }
        match builder.register() {
            Ok(service) => {
                assert_eq!(service.name(), name);
                blocks.push(service.run(|| vec![0_u8; named.bytes.into()]));
                if !named.is_dropped {
                    services.push(service);
                }
            }
            Err(RegisterError::NoName) => assert!(name.is_empty()),
            Err(RegisterError::NameTooLong { beginning, len, .. }) => {
                assert!(len == name.len() && len > Service::MAX_NAME_LEN && name.starts_with(&beginning));
            }
            Err(error) => assert!(error.to_string().contains(&format!("{name:?}")), "{error}"),
        }
    }
    let region =
        names.region.map(|name| MappedRegion::builder(4096).name(name).map().expect("a small window"));
    let snapshot = dogtag::snapshot();
    if let Some(name) = names.region {
        let shown = &snapshot.regions[0].name;
        assert!(
            name.starts_with(shown.as_str()) && (shown == name || shown.len() > 60),
            "{shown:?}, {name:?}"
        );
    }
    show(&snapshot, names.precision);
    if let Some(most) = names.most_services {
        prometheus(most.into(), &services);
    }
    drop((region, blocks));
}

/// Prometheus gets each service by its name, and nobody twice.
fn prometheus(most: usize, services: &[Service]) {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ServiceCollector::new().most_services(most)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("figures can be written");
    let mut seen = HashSet::new();
    for line in text.split_terminator('\n').filter(|line| !line.starts_with("# ")) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<i64>().is_ok(), "{line:?}");
        let label = series.split_once('{').map(|(name, labels)| (name, label(labels)));
        assert!(seen.insert(label.unwrap_or((series, String::new()))), "{line:?} twice");
    }
    assert!(text.ends_with("# EOF\n"));
    let is_whole = most >= dogtag::snapshot().rows.len();
    for service in services.iter().filter(|_| is_whole) {
        assert!(seen.contains(&("dogtag_service_live_bytes", service.name().to_owned())), "{service:?}");
    }
}

/// The value in `label="value"}`.
fn label(labels: &str) -> String {
    let value = labels.split_once("=\"").and_then(|(_, rest)| rest.strip_suffix("\"}"));
    let mut rest = value.expect("one label").chars();
    let mut label = String::new();
    while let Some(c) = rest.next() {
        label.push(match c {
            '\\' => match rest.next() {
                Some('n') => '\n',
                Some(c @ ('"' | '\\')) => c,
                other => panic!("\\{other:?} in {labels:?}"),
            },
            '"' | '\n' => panic!("{labels:?}"),
            c => c,
        });
    }
    label
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Json(text) => json(text),
    Input::Figures(made_up) => figures(&made_up),
    Input::Names(odd) => names(&odd),
});
