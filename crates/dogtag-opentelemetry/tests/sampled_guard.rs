//! Metrics of the sampled guard, as OpenTelemetry's SDK exports them. One test: they are the process's.

#[path = "../../../tests/guarded/mod.rs"]
mod guarded;
mod shown;

#[test]
fn the_sampled_guard_has_series_once_it_was_started() {
    let collect = shown::reader();
    assert_eq!(collect().get("dogtag.sampled_guard_violations"), None);
    let Some(figures) = guarded::catches_one() else { return };
    let points = collect();
    assert_eq!(points.get("dogtag.sampled_guard_violations"), Some(&1.0), "{points:#?}");
    assert_eq!(points.get("dogtag.sampled_guard_blocks"), Some(&(figures.ever as f64)), "{points:#?}");
}
