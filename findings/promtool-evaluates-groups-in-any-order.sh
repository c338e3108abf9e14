#!/usr/bin/env bash
# `promtool test rules`: where an alert of one group is on a series that another group records, the same files
# pass in one run and fail in the next. In a file's groups rules are evaluated in order, but the groups in that of a
# Go map, which is another one in each run, and all at the same moment of the test: an alert whose group comes
# first sees what was recorded a step before. A sample that is checked at the step at which a condition begins to hold is
# there or not, and `$value` in an annotation is that of either step.
#
# With `group_eval_order` in the test file, all groups named, it is always the same. (The documentation says that it
# guarantees the order of those named; not that without it a test is drawn by lot.)
#
# Seen with promtool 2.42.0, as Debian 12 has it: of 100 runs seven in eight pass.
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
"$promtool" --version | head -1
cat > rules.yml <<'YAML'
groups:
  - name: recorded
    rules:
      - {record: twice, expr: 2 * metric}
  - name: alerts
    rules:
      - {alert: Large, expr: twice >= 10}
YAML
cat > test.yml <<'YAML'
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: metric, values: '0 1 2 3 4 5 6 7'}
    alert_rule_test:
      - {alertname: Large, eval_time: 5m, exp_alerts: [{exp_labels: {}}]}
YAML
passed() {
    local count=0
    for _ in $(seq 100); do
        "$promtool" test rules "$1" >/dev/null 2>&1 && count=$((count + 1))
    done
    echo "$count"
}
any=$(passed test.yml)
echo "group_eval_order: [recorded, alerts]" | cat - test.yml > ordered.yml
ordered=$(passed ordered.yml)
echo "group_eval_order: [alerts, recorded]" | cat - test.yml > reversed.yml
reversed=$(passed reversed.yml)
echo "of 100 runs $any pass; with the order named $ordered, with the other one $reversed"
[ "$any" -gt 0 ] && [ "$any" -lt 100 ]
[ "$ordered" -eq 100 ]
[ "$reversed" -eq 0 ]
