//! Snapshots as others read them.

use dogtag::{Dogtag, Service, Usage};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn the_table_names_every_service_and_the_backend() {
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
fn a_snapshot_adds_up() {
    let snapshot = dogtag::snapshot();
    let rows: Usage = snapshot.rows.iter().map(|row| row.usage).sum();
    let peak_bytes = snapshot.totals.peak_bytes;
    assert_eq!(Usage { peak_bytes, ..rows + snapshot.ended }, snapshot.totals);
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
fn a_snapshot_survives_json() {
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
