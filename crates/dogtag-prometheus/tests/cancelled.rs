//! Metrics of cancelled services, as Prometheus' own library writes them. One test: the counts are the
//! process's.

#[path = "../../../tests/cancelled/mod.rs"]
mod cancelled;
mod shown;

use dogtag::Service;
use dogtag::guard::{Ceiling, Guard, fallible};
use shown::scrape;

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    let text = scrape();
    assert!(text.contains("\ndogtag_cancelled_services_total{by=\"program\"} 0\n"), "{text}");
    assert!(!text.contains("dogtag_guard_"), "{text}");
    cancelled::is_shown(scrape, "# TYPE dogtag_cancelled_services counter");

    let query = Service::register("query").unwrap();
    query.cancel("too slow");
    query.run(|| assert!(fallible(|| Vec::<u8>::new().try_reserve(10)).is_err()));
    let _next = Service::register("query").unwrap();
    let text = scrape();
    for line in [
        "dogtag_cancelled_services_total{by=\"program\"} 2",
        "dogtag_refused_allocations_total 1",
        "dogtag_last_release_seconds 0.0",
        "# UNIT dogtag_longest_release_seconds seconds",
        "dogtag_service_live_bytes{service=\"query (cancelled)\"} 0",
        "dogtag_service_live_bytes{service=\"query\"} 0",
        "dogtag_service_allocated_bytes_total{service=\"query\"} 0",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    drop(query);
    assert!(!scrape().contains("(cancelled)"), "{text}");

    // What the guard has seen stays when it has ended.
    let guard = Guard::builder().ceiling(Ceiling::physical(1.0)).start().unwrap();
    for text in [scrape(), {
        drop(guard);
        scrape()
    }] {
        let ceiling = text.lines().find_map(|line| line.strip_prefix("dogtag_guard_ceiling_bytes ")).unwrap();
        assert!(ceiling.parse::<i64>().unwrap() > 1 << 20, "{text}");
        for metric in ["polls", "failed_polls", "purges", "purged_bytes", "pressure_calls", "helpless"] {
            assert!(text.contains(&format!("\ndogtag_guard_{metric}_total ")), "{metric}: {text}");
        }
        assert!(text.contains("\ndogtag_guard_unresponsive_services_total 0\n"), "{text}");
    }
}
