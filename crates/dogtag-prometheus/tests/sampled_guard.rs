//! Metrics of the sampled guard, as Prometheus' own library writes them. One test: they are the process's.

#[path = "../../../tests/guarded/mod.rs"]
mod guarded;
mod shown;

use shown::scrape;

#[test]
fn the_sampled_guard_has_series_once_it_was_started() {
    let text = scrape();
    assert!(!text.contains("sampled_guard"), "{text}");
    let Some(figures) = guarded::catches_one() else { return };
    let text = scrape();
    for line in [
        "# TYPE dogtag_sampled_guard_violations counter",
        "dogtag_sampled_guard_violations_total 1",
        "dogtag_sampled_guard_slots 200",
        "dogtag_sampled_guard_retired_slots 1",
        &format!("dogtag_sampled_guard_blocks_total {}", figures.ever),
        &format!("dogtag_sampled_guard_refused_blocks_total {}", figures.refused),
        "dogtag_sampled_guard_throttled_blocks_total 0",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    assert!(text.contains("\ndogtag_sampled_guard_guarded_blocks "), "{text}");
}
