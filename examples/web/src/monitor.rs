//! What is shown of the memory: a page, its figures, and metrics.

use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use dogtag_prometheus::ServiceCollector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub struct Monitor {
    registry: Registry,
}

impl Default for Monitor {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ServiceCollector::new()));
        Self { registry }
    }
}

impl Monitor {
    /// Draws what `memory` tells, once a second.
    pub fn page() -> Html<String> {
        let flame_graph = include_str!("flame_graph.js");
        Html(include_str!("memory.html").replacen("/* flame_graph.js */", flame_graph, 1))
    }

    pub fn memory(leak: bool) -> Value {
        let snapshot = dogtag::snapshot().with_balance();
        let services: Vec<Value> = snapshot
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "live_bytes": row.usage.bytes(),
                    "live_blocks": row.usage.blocks(),
                    "allocated_bytes": row.usage.allocated_bytes,
                    "freed_bytes": row.usage.freed_bytes,
                    "peak_bytes": row.usage.peak_bytes,
                    "hard_limit": row.hard_limit,
                    "denied": row.usage.denied,
                    "is_retired": row.is_retired,
                })
            })
            .collect();
        let totals = snapshot.totals;
        let balance = snapshot.balance.and_then(|balance| {
            let line = |line: &dogtag::BalanceLine| {
                json!({ "part": line.part, "bytes": line.bytes, "meaning": line.meaning })
            };
            let lines: Vec<Value> = balance.lines().iter().map(line).collect();
            Some(json!({ "resident": balance.resident?, "lines": lines }))
        });
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "time": time.as_millis() as u64,
            "leak": leak,
            "services": services,
            "totals": {
                "live_bytes": totals.bytes(),
                "live_blocks": totals.blocks(),
                "allocated_bytes": totals.allocated_bytes,
                "freed_bytes": totals.freed_bytes,
                "peak_bytes": totals.peak_bytes,
                "denied": totals.denied,
            },
            "balance": balance,
        })
    }

    /// In the format that is asked for: OpenMetrics, or Prometheus' own.
    pub fn metrics(&self, headers: &HeaderMap) -> Response {
        let mut text = String::new();
        // Fails where writing does, which a string's cannot.
        let _ = encode(&mut text, &self.registry);
        let accepted = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
        if accepted.contains("application/openmetrics-text") {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        } else {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], plain(&text))
                .into_response()
        }
    }
}

/// The older format, in which a counter's description has its full name.
fn plain(open_metrics: &str) -> String {
    let lines = || open_metrics.lines();
    let counters: Vec<&str> =
        lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut plain = String::with_capacity(open_metrics.len());
    for line in lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        match line.strip_prefix("# ").and_then(|line| line.split(' ').nth(1)) {
            Some(name) if counters.contains(&name) => {
                plain += &line.replacen(name, &format!("{name}_total"), 1);
            }
            _ => plain += line,
        }
        plain.push('\n');
    }
    plain
}
