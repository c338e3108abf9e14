//! Exports three readings by OTLP to `OTEL_EXPORTER_OTLP_ENDPOINT`, cumulative or, with the argument `delta`, deltas:
//!
//! 1. the service `cache` has 3 MiB, and the service `query "1" ✓` was denied 8 MiB twice;
//! 2. `cache` has allocated 5 MiB more and freed 1 MiB of the first;
//! 3. it has ended.

use dogtag::{Dogtag, Service};
use dogtag_opentelemetry::ServiceExporter;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_otlp::{MetricExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use std::error::Error;
use std::time::Duration;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MIB: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let is_delta = std::env::args().nth(1).as_deref() == Some("delta");
    let temporality = if is_delta { Temporality::Delta } else { Temporality::Cumulative };
    let exporter = MetricExporter::builder()
        .with_http()
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_temporality(temporality)
        .build()?;
    // Exports when it is told to.
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(100_000)).build();
    let resource = Resource::builder().with_service_name("shop").build();
    let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
    ServiceExporter::new().observe(&provider.meter("dogtag"));

    let cache = Service::register("cache")?;
    let query = Service::builder("query \"1\" ✓").hard_limit(4 * MIB as u64).register()?;
    for _ in 0..2 {
        assert!(query.run(|| Vec::<u8>::new().try_reserve_exact(8 * MIB)).is_err());
    }
    let mut entries: Vec<Vec<u8>> = (0..3).map(|_| cache.run(|| vec![1; MIB])).collect();
    provider.force_flush()?;
    entries.extend((0..5).map(|_| cache.run(|| vec![1; MIB])));
    drop(entries.remove(0));
    provider.force_flush()?;
    drop((entries, cache));
    provider.force_flush()?;
    // Once more.
    provider.shutdown()?;
    Ok(())
}
