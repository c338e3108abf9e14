#!/usr/bin/env bash
# prometheus-parse 0.2.5 reads what Prometheus scrapes. It takes a line apart at the first `}`, `,` and `=` that it
# meets, within a label's quotes, too: a sample is gone whose label has a `}`, a value ends at its comma, a label with a
# `=` is left out, and what is escaped stays so, but for a quote at the end, which is lost. None of it is an error. Samples that differ in such a label only
# become one series: types and closures of Rust, URLs and SQL as labels are all of this kind.
#
# Seen: of seven valid samples one is missing and one has no label; of the other five two have the value that was written.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
prometheus-parse = "=0.2.5"
TOML
cat > src/main.rs <<'RUST'
const PAGE: &str = r#"# TYPE live gauge
live{of="Vec<u8>"} 1
live{of="Map<u8,u8>"} 2
live{of="{closure}"} 3
live{of="/?page=1"} 4
live{of="say \"yes\""} 5
live{of="C:\\temp"} 6
live{of=""} 7
"#;

fn main() {
    let lines = PAGE.lines().map(|line| Ok(line.to_owned()));
    for sample in prometheus_parse::Scrape::parse(lines).unwrap().samples {
        println!("{:?} {:?}", sample.labels.get("of"), sample.value);
    }
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = 'Some("Vec<u8>") Gauge(1.0)
Some("Map<u8") Gauge(2.0)
None Gauge(4.0)
Some("say \\\"yes\\") Gauge(5.0)
Some("C:\\\\temp") Gauge(6.0)
Some("") Gauge(7.0)' ]
