#!/usr/bin/env bash
# prometheus-client 0.24.1, the official crate for OpenMetrics: the values of labels are written between quotes as they are.
# A quote, a backslash or the end of a line in one (a path of Windows, a query, a thread's name) makes the page one that
# no parser takes, and the process has no figures at all from then on. The crate prometheus 0.14.0 escapes the three, as
# OpenMetrics demands of whoever writes.
#
# Seen: `live{path="C:\temp"} 1` on the page, and the whole page refused by promtool 2.42.0 (as Debian 12 has it:
# "invalid escape sequence"); from the other crate `live{path="C:\\temp"} 1`, which is taken.
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
mkdir -p src/bin
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
prometheus-client = "=0.24.1"
prometheus = { version = "=0.14.0", default-features = false }
TOML
cat > src/bin/client.rs <<'RUST'
use prometheus_client::{encoding::text::encode, metrics::family::Family, metrics::gauge::Gauge, registry::Registry};

fn main() {
    let live = Family::<Vec<(String, String)>, Gauge>::default();
    let mut registry = Registry::default();
    registry.register("live", "Live bytes", live.clone());
    live.get_or_create(&vec![("path".to_owned(), r"C:\temp".to_owned())]).set(1);
    let mut page = String::new();
    encode(&mut page, &registry).unwrap();
    print!("{page}");
}
RUST
cat > src/bin/other.rs <<'RUST'
use prometheus::{IntGaugeVec, Opts, Registry, TextEncoder};

fn main() {
    let live = IntGaugeVec::new(Opts::new("live", "Live bytes."), &["path"]).unwrap();
    let registry = Registry::new();
    registry.register(Box::new(live.clone())).unwrap();
    live.with_label_values(&[r"C:\temp"]).set(1);
    print!("{}", TextEncoder::new().encode_to_string(&registry.gather()).unwrap());
}
RUST
cargo build --quiet --release
target/release/client > client.txt
target/release/other > other.txt
cat client.txt other.txt
grep -qxF 'live{path="C:\temp"} 1' client.txt
grep -qxF 'live{path="C:\\temp"} 1' other.txt
refused=$("$promtool" check metrics < client.txt 2>&1 || true)
echo "$refused"
grep -q 'invalid escape sequence' <<< "$refused"
"$promtool" check metrics < other.txt
