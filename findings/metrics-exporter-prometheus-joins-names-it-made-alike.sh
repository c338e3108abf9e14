#!/usr/bin/env bash
# metrics-exporter-prometheus 0.18.3 writes `_` for each character that Prometheus's names do not have, and does not
# look whether two names have become one. A measure with the labels `service.name` (OpenTelemetry's word) and
# `service_name` (a field in somebody's code) has one label twice, which Prometheus's parser refuses, with the whole
# page, so that one such measure takes all others of the process away. Of the gauges `heap.bytes` and `heap_bytes` one
# is on the page, the other nowhere, without an error or a log line.
#
# Seen: `live{service_name="a",service_name="b"} 3`, which promtool 2.42.0 (as Debian 12 has it) ends at with
# "duplicate label names"; and one line for the two gauges.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
promtool=$(command -v promtool || true)
if [ -z "$promtool" ]; then
    apt-get update -qq
    apt-get download -qq prometheus
    dpkg -x prometheus_*.deb package
    promtool=$work/package/usr/bin/promtool
fi
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
metrics = "=0.24.6"
metrics-exporter-prometheus = { version = "=0.18.3", default-features = false }
TOML
cat > src/main.rs <<'RUST'
use metrics::gauge;

fn page(measure: impl Fn()) -> String {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, measure);
    recorder.handle().render()
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("labels") {
        print!("{}", page(|| gauge!("live", "service.name" => "a", "service_name" => "b").set(3.0)));
    } else {
        print!("{}", page(|| {
            gauge!("heap.bytes").set(1.0);
            gauge!("heap_bytes").set(2.0);
        }));
    }
}
RUST
cargo build --quiet --release
target/release/finding labels > labels.txt
target/release/finding names > names.txt
cat labels.txt names.txt
grep -qxF 'live{service_name="a",service_name="b"} 3' labels.txt
refused=$("$promtool" check metrics < labels.txt 2>&1 || true)
echo "$refused"
grep -q 'duplicate label names' <<< "$refused"
[ "$(grep -c '^heap_bytes ' names.txt)" -eq 1 ]
