//! Metrics of cancelled services, as OpenTelemetry's SDK exports them. One test: the counts are the
//! process's.

mod shown;

use dogtag::Service;

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    let collect = shown::reader();
    assert_eq!(collect().get("dogtag.longest_release"), None);
    let query = Service::register("query").unwrap();
    let rows = query.run(|| vec![0_u8; 1000]);
    query.cancel("too slow");
    drop((query, rows));
    let points = collect();
    assert_eq!(points.get("dogtag.cancelled_services by=program"), Some(&1.0), "{points:#?}");
    assert_eq!(points.get("dogtag.cancelled_services by=guard"), Some(&0.0), "{points:#?}");
    let longest = dogtag::snapshot().cancellations.unwrap().longest_release.unwrap().as_secs_f64();
    assert_eq!(points.get("dogtag.longest_release"), Some(&longest), "{points:#?}");
    assert_eq!(points.get("dogtag.refused_allocations"), Some(&0.0), "{points:#?}");
    assert!(!points.keys().any(|name| name.starts_with("dogtag.guard")), "there is no guard");
}
