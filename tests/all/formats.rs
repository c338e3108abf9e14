//! Snapshots as others read them.

use dogtag::{Service, Usage};

#[test]
fn snapshot_table_names_every_service_and_the_backend() {
    let cache = Service::register("cache").unwrap();
    let entries = cache.run(|| vec![0_u8; 3 << 20]);
    let table = dogtag::snapshot().to_string();
    let row = table.lines().find(|line| line.starts_with("cache ")).unwrap();
    assert!(row.contains("3.0 MiB"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("unattributed ")), "{table}");
    assert!(table.lines().any(|line| line.starts_with("total ") && line.contains("100.0 %")), "{table}");
    assert_eq!(table.contains("jemalloc: allocated"), cfg!(feature = "jemalloc-stats"), "{table}");
    // All but the backend's line end in the same column.
    let widths: Vec<usize> =
        table.lines().take_while(|line| !line.is_empty()).map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
    drop(entries);
}

#[test]
fn snapshot_adds_up() {
    let snapshot = dogtag::snapshot();
    let mut sum = snapshot.rows.iter().map(|row| row.usage).sum::<Usage>() + snapshot.ended;
    sum.peak_bytes = snapshot.totals.peak_bytes;
    assert_eq!(sum, snapshot.totals);
    assert!(snapshot.rows.is_sorted_by(|a, b| a.usage.bytes() >= b.usage.bytes()));
    assert_eq!(snapshot.lost, dogtag::Lost::default());
    assert_eq!(snapshot.jemalloc.is_some(), cfg!(feature = "jemalloc-stats"));
    if let Some(jemalloc) = snapshot.jemalloc {
        assert!(jemalloc.resident >= jemalloc.active && jemalloc.active >= jemalloc.allocated);
        assert!(jemalloc.mapped >= jemalloc.active);
    }
}

#[cfg(feature = "serde")]
#[test]
fn snapshot_survives_json() {
    let json = Service::builder("json").handle(99).register().unwrap();
    let block = json.run(|| vec![0_u8; 77]);
    let snapshot = dogtag::snapshot().with_balance();
    assert!(snapshot.balance.is_some() && snapshot.to_string().contains("unexplained"));
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<dogtag::Snapshot>(&text).unwrap(), snapshot);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = value["rows"].as_array().unwrap().iter().find(|row| row["name"] == "json").unwrap();
    assert_eq!(row["handle"], 99);
    assert_eq!(row["usage"]["allocated_bytes"], 77);
    drop(block);
}

/// What an older dogtag wrote lacks fields, and what a newer one writes has more.
#[cfg(feature = "serde")]
#[test]
fn json_of_other_versions_is_read() {
    use dogtag::{Balance, Cancellation, Cancellations, JemallocStats, Lost, Quarantine, Row, Snapshot};
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::{Map, Value, from_value, json, to_value};

    #[track_caller]
    fn without_and_with<T: Serialize + DeserializeOwned + Default + PartialEq + std::fmt::Debug>(sample: &T) {
        let Value::Object(fields) = to_value(sample).unwrap() else { panic!("no object: {sample:?}") };
        let defaults = to_value(T::default()).unwrap();
        assert_eq!(&from_value::<T>(Value::Object(Map::new())).unwrap(), &T::default());
        for name in fields.keys() {
            let mut old = fields.clone();
            old.remove(name);
            let read = to_value(from_value::<T>(Value::Object(old)).unwrap()).unwrap();
            let mut expected = fields.clone();
            expected[name] = defaults[name].clone();
            assert_eq!(read, Value::Object(expected), "without {name}");
        }
        let mut new = fields;
        for value in [json!(7), json!({ "deep": [null, "text"] })] {
            new.insert(format!("a field of {value}"), value);
        }
        assert_eq!(&from_value::<T>(Value::Object(new)).unwrap(), sample);
    }

    let service = Service::builder("of another version").soft_limit(1 << 30).register().unwrap();
    let block = service.run(|| vec![0_u8; 77]);
    let mut snapshot = dogtag::snapshot().with_balance();
    (snapshot.lost.bytes, snapshot.lost.blocks) = (3, 1);
    let mut cancellation = Cancellation::default();
    (cancellation.by, cancellation.bytes) = ("budget".to_owned(), 9);
    cancellation.released_after = Some(std::time::Duration::from_micros(3));
    let mut cancellations = Cancellations::default();
    (cancellations.by_budget, cancellations.longest_release) = (1, cancellation.released_after);
    snapshot.cancellations = Some(cancellations);
    (snapshot.rows[0].is_cancelled, snapshot.rows[0].cancellation) = (true, Some(cancellation.clone()));
    without_and_with(&cancellation);
    without_and_with(&cancellations);
    without_and_with(&snapshot);
    without_and_with::<Row>(&snapshot.rows[0]);
    without_and_with::<Usage>(&service.usage());
    without_and_with::<Balance>(&snapshot.balance.unwrap());
    without_and_with::<Lost>(&snapshot.lost);
    without_and_with::<Quarantine>(&snapshot.quarantine.unwrap_or_default());
    without_and_with::<JemallocStats>(&snapshot.jemalloc.unwrap_or_default());
    // As the first version wrote it, before there were regions and profiles.
    let old = r#"{"rows":[{"name":"cache","handle":7,"is_retired":false,"usage":{"allocated_bytes":10,
        "allocated_blocks":1,"freed_bytes":4,"freed_blocks":0,"denied":0,"peak_bytes":10}}],
        "totals":{"allocated_bytes":10,"allocated_blocks":1,"freed_bytes":4}}"#;
    let old: Snapshot = serde_json::from_str(old).unwrap();
    assert_eq!((old.rows[0].usage.bytes(), old.totals.bytes(), old.balance), (6, 6, None));
    drop(block);
}
