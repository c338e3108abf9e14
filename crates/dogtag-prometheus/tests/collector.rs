//! The metrics, as Prometheus' own library writes them.

use dogtag::{Dogtag, Service};
use dogtag_prometheus::ServiceCollector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// One at a time: all services of the process are in it.
static ALONE: Mutex<()> = Mutex::new(());

/// Series and value. No series is there twice.
fn scrape(collector: ServiceCollector) -> BTreeMap<String, i64> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut samples = BTreeMap::new();
    let mut described = BTreeSet::new();
    for line in text.lines() {
        if let Some(metric) = line.strip_prefix("# HELP ") {
            let (name, help) = metric.split_once(' ').unwrap();
            assert!(help.len() > 10 && described.insert(name.to_owned()), "{line}");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let name = name.strip_suffix("_total").unwrap_or(name);
            assert!(described.contains(name), "{line} has no description");
            let former = samples.insert(series.to_owned(), value.parse().unwrap());
            assert_eq!(former, None, "{series} is there twice");
        }
    }
    samples
}

fn of(metric: &str, service: &str) -> String {
    format!("dogtag_service_{metric}{{service=\"{service}\"}}")
}

#[test]
fn figures_are_those_of_the_moment() {
    let _alone = ALONE.lock();
    let parent = Service::builder("tenant").hard_limit(1 << 30).soft_limit(1 << 29).register().unwrap();
    let service = Service::builder("query").parent(&parent).register().unwrap();
    let kept = service.run(|| {
        drop(vec![0_u8; 500]);
        vec![0_u8; 1000]
    });
    assert!(service.run(|| Vec::<u8>::new().try_reserve(2 << 30)).is_err());
    let samples = scrape(ServiceCollector::new());
    for (metric, value) in [
        ("live_bytes", 1000),
        ("live_blocks", 1),
        ("allocated_bytes_total", 1500),
        ("allocated_blocks_total", 2),
        ("freed_bytes_total", 500),
        ("freed_blocks_total", 1),
        ("denied_allocations_total", 1),
        ("peak_bytes", 1000),
    ] {
        assert_eq!(samples.get(&of(metric, "query")), Some(&value), "{metric}: {samples:#?}");
    }
    assert_eq!(samples[&of("hard_limit_bytes", "tenant")], 1 << 30);
    assert_eq!(samples[&of("soft_limit_bytes", "tenant")], 1 << 29);
    // What limits bound is shown of those who have one.
    assert_eq!(samples[&of("live_with_children_bytes", "tenant")], 1000);
    assert_eq!(samples.get(&of("live_with_children_bytes", "query")), None);
    assert_eq!(samples.get(&of("hard_limit_bytes", "query")), None);
    drop(kept);
    assert_eq!(scrape(ServiceCollector::new())[&of("live_bytes", "query")], 0);
}

#[test]
fn the_process_is_the_sum() {
    let _alone = ALONE.lock();
    let samples = scrape(ServiceCollector::new());
    for metric in ["live_bytes", "live_blocks"] {
        let prefix = format!("dogtag_service_{metric}{{");
        let services: i64 =
            samples.iter().filter(|(series, _)| series.starts_with(&prefix)).map(|(_, value)| value).sum();
        assert_eq!(services, samples[&format!("dogtag_{metric}")], "{metric}");
    }
    for metric in [
        "allocated_bytes_total",
        "freed_blocks_total",
        "denied_allocations_total",
        "lost_blocks_total",
        "services",
    ] {
        assert!(samples.contains_key(&format!("dogtag_{metric}")), "{metric}");
    }
    if cfg!(target_os = "linux") {
        let parts = samples.iter().filter(|(series, _)| series.starts_with("dogtag_balance_bytes{part="));
        let parts: Vec<i64> = parts.map(|(_, value)| *value).collect();
        assert_eq!(parts.len(), dogtag::balance().lines().len());
        assert_eq!(parts.iter().sum::<i64>(), samples["dogtag_resident_bytes"]);
    }
}

#[test]
fn the_number_of_series_is_bounded() {
    let _alone = ALONE.lock();
    let services: Vec<Service> =
        (0..500).map(|i| Service::register(format!("of many {i}")).unwrap()).collect();
    let blocks: Vec<Vec<u8>> =
        services.iter().zip(0..).map(|(service, i)| service.run(|| vec![0; 100_000 + i])).collect();
    let samples = scrape(ServiceCollector::new().most_services(10));
    let live: Vec<&String> =
        samples.keys().filter(|series| series.starts_with("dogtag_service_live_bytes")).collect();
    assert_eq!(live.len(), 11, "{live:#?}");
    // The largest, and all others as one.
    assert_eq!(samples[&of("live_bytes", "of many 499")], 100_499);
    assert_eq!(samples.get(&of("live_bytes", "of many 489")), None);
    assert!(samples[&of("live_bytes", "(other)")] >= 490 * 100_000);
    // What goes down when a service leaves is no counter.
    assert_eq!(samples.get(&of("allocated_bytes_total", "(other)")), None);
    assert!(samples.contains_key(&of("allocated_bytes_total", "of many 499")));
    assert!(samples["dogtag_services"] >= 500);
    assert!(samples.len() < 200, "{} series", samples.len());

    // Nobody has a place, and nobody is missing.
    let samples = scrape(ServiceCollector::new().most_services(0));
    assert!(samples[&of("live_bytes", "(other)")] >= 500 * 100_000);
    drop(blocks);
}

/// A tenant's memory is that of its queries: it may hold nothing itself.
#[test]
fn who_bounds_a_family_is_as_large_as_the_family() {
    let _alone = ALONE.lock();
    let tenant = Service::builder("bounded").hard_limit(1 << 30).register().unwrap();
    let services: Vec<Service> =
        (0..50).map(|i| Service::builder(format!("below {i}")).parent(&tenant).register().unwrap()).collect();
    let blocks: Vec<Vec<u8>> = services.iter().map(|service| service.run(|| vec![0; 1 << 20])).collect();
    let samples = scrape(ServiceCollector::new().most_services(10));
    assert_eq!(samples.get(&of("live_bytes", "bounded")), Some(&0), "{samples:#?}");
    assert_eq!(samples[&of("hard_limit_bytes", "bounded")], 1 << 30);
    assert_eq!(samples[&of("live_with_children_bytes", "bounded")], 50 << 20);
    assert!(samples[&of("live_bytes", "(other)")] >= 41 << 20);
    drop(blocks);
}

/// A million services, each with a name of its own and each of the largest for a while, and one that stays.
#[test]
fn the_number_of_names_is_bounded() {
    let _alone = ALONE.lock();
    let steady = Service::register("steady").unwrap();
    let kept = steady.run(|| vec![0_u8; 10 << 20]);
    let collector = ServiceCollector::new().most_services(20);
    let mut names = BTreeSet::new();
    // With memory-check it takes longer to register one.
    let each = if dogtag::snapshot().quarantine.is_some() { 1_000 } else { 10_000 };
    for round in 0..100 {
        let services: Vec<Service> =
            (0..each).map(|i| Service::register(format!("request {}", round * each + i)).unwrap()).collect();
        let blocks: Vec<Vec<u8>> =
            services[..30].iter().map(|service| service.run(|| vec![0; 100_000])).collect();
        let samples = scrape(collector.clone());
        let live: BTreeMap<&str, i64> = samples
            .iter()
            .filter_map(|(series, value)| {
                Some((
                    series.strip_prefix("dogtag_service_live_bytes{service=\"")?.split_once('"')?.0,
                    *value,
                ))
            })
            .collect();
        assert!(live.len() <= 21, "{live:#?}");
        assert_eq!(live.values().sum::<i64>(), samples["dogtag_live_bytes"]);
        assert_eq!(live["steady"], 10 << 20);
        names.extend(live.into_keys().map(str::to_owned));
        drop((blocks, services));
    }
    assert!(names.len() <= 201, "{} names", names.len());
    drop(kept);
}

#[test]
fn names_are_anything() {
    let _alone = ALONE.lock();
    let longest = "\"".repeat(Service::MAX_NAME_LEN);
    let names = ["with \"quotes\"", "back\\slash", "two\nlines", "{braces}", "ünïcödé", &longest, "(other)"];
    let services = names.map(|name| Service::register(name).unwrap());
    let block = services[6].run(|| vec![0_u8; 777]);
    let samples = scrape(ServiceCollector::new());
    assert!(samples.contains_key(&of("live_bytes", r#"with \"quotes\""#)), "{samples:#?}");
    assert!(samples.contains_key(&of("live_bytes", r"two\nlines")));
    assert_eq!(samples[&of("live_bytes", "(other)")], 777);
    drop((block, services));
}

/// Of a scrape in which one label is too long nothing is kept.
#[test]
fn labels_are_bounded() {
    let _alone = ALONE.lock();
    let block = Service::register("x".repeat(Service::MAX_NAME_LEN)).unwrap().run(|| vec![0_u8; 1 << 20]);
    assert!(Service::register("x".repeat(10_000)).is_err());
    let samples = scrape(ServiceCollector::new());
    let labels =
        samples.keys().filter_map(|series| Some(series.split_once("service=\"")?.1.split_once('"')?.0));
    assert_eq!(labels.map(str::len).max(), Some(255 + " (retired)".len()));
    drop(block);
}

#[test]
fn what_dropped_services_left_is_told_apart() {
    let _alone = ALONE.lock();
    let leave = || Service::register("brief").unwrap().run(|| vec![0_u8; 100]);
    let (first, second) = (leave(), leave());
    let living = Service::register("brief").unwrap();
    let third = living.run(|| vec![0_u8; 10]);
    // One that really has such a name.
    let confusing = Service::register("brief (retired)").unwrap();
    let fourth = confusing.run(|| vec![0_u8; 1]);
    let samples = scrape(ServiceCollector::new());
    assert_eq!(samples[&of("live_bytes", "brief")], 10);
    assert_eq!(samples[&of("live_bytes", "brief (retired)")], 201);
    assert_eq!(samples.get(&of("allocated_bytes_total", "brief (retired)")), None);
    assert_eq!(samples[&of("allocated_bytes_total", "brief")], 10);
    drop((first, second, third, fourth));
}

/// As Kubernetes has it: the target, or the registry, has a label `service` of its own.
#[test]
fn the_label_can_have_another_name() {
    let _alone = ALONE.lock();
    let service = Service::register("renamed").unwrap();
    let block = service.run(|| vec![0_u8; 1000]);
    let scrape = |collector| {
        let mut registry = Registry::default();
        registry
            .sub_registry_with_label(("service".into(), "shop".into()))
            .register_collector(Box::new(collector));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    let names = |line: &str| {
        let labels = line.split_once('{').map_or("", |(_, labels)| labels);
        labels.matches("service=\"").count()
    };
    let text = scrape(ServiceCollector::new().label("dogtag_name").unwrap());
    let line = "dogtag_service_live_bytes{service=\"shop\",dogtag_name=\"renamed\"} 1000";
    assert!(text.lines().any(|there| there == line), "{text}");
    assert!(text.lines().all(|line| names(line) <= 1), "{text}");
    // What the documentation warns of.
    assert!(scrape(ServiceCollector::new()).lines().any(|line| names(line) == 2));

    for bad in ["", "a-b", "__name__", "1", "ü"] {
        assert!(ServiceCollector::new().label(bad).is_err(), "{bad}");
    }
    drop(block);
}
