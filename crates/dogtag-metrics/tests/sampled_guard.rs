//! Metrics of the sampled guard, as `metrics-exporter-prometheus` shows them. One test: they are the process's.

#[path = "../../../tests/guarded/mod.rs"]
mod guarded;
mod shown;

#[test]
fn the_sampled_guard_has_series_once_it_was_started() {
    let show = shown::recorder();
    assert!(!show().contains("\ndogtag_sampled_guard_violations_total "));
    let Some(figures) = guarded::catches_one() else { return };
    let text = show();
    for line in [
        "dogtag_sampled_guard_violations_total 1",
        "dogtag_sampled_guard_slots 200",
        &format!("dogtag_sampled_guard_blocks_total {}", figures.ever),
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
}
