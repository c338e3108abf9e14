//! What is shown of the memory: dogtag's page with a switch, its figures, and metrics.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use dogtag::report;
use dogtag_prometheus::ServiceCollector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

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
    /// dogtag's page, with this server's switch.
    pub fn page() -> Html<String> {
        Html(report::page().replacen("</header>", concat!(include_str!("leak.html"), "</header>"), 1))
    }

    /// What dogtag's page asks for, and what has to be looked up for it.
    pub fn answer(target: &str) -> Response {
        let answer = report::get(target);
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = [(header::CONTENT_TYPE, answer.content_type), (header::CACHE_CONTROL, "no-store")];
        (status, headers, answer.body).into_response()
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
