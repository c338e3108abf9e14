#!/usr/bin/env python3
"""Writes Grafana's dashboard of dogtag's figures, dashboard.json, which is to be imported.

    ops/dashboard.py > ops/dashboard.json

As in the rules, the word `service` alone is the label that has a service's name.
"""
import json

# What the variables choose. Grafana escapes what is special in names.
PROCESS = 'job=~"$job", instance=~"$instance"'
CHOSEN = PROCESS + ', service=~"$service"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def main():
    rows = [
        ("All at once", [
            stat("Processes", f"count(dogtag_live_bytes{{{PROCESS}}})"),
            stat("Live", f"sum(dogtag_live_bytes{{{PROCESS}}})", "bytes", "What programs have allocated and not freed"),
            stat("Resident", f"sum(dogtag_resident_bytes{{{PROCESS}}})", "bytes", "Physical memory (RSS)"),
            stat("Denied", f"sum(increase(dogtag_denied_allocations_total{{{PROCESS}}}[$__range]))",
                 help="Allocations that hard limits have denied in the time shown", red=1),
            stat("Cancelled", f'sum(increase(dogtag_cancelled_services_total{{{PROCESS}, by!="program"}}[$__range]))',
                 help="Services that were cancelled by the guard or their budgets in the time shown", red=1),
            stat("Lost blocks", f"sum(dogtag_lost_blocks_total{{{PROCESS}}})",
                 help="Blocks that were freed with an overwritten owner: something writes past the ends of blocks", red=1),
            stat("Most unexplained", f'max(abs(dogtag_balance_bytes{{{PROCESS}, part="unexplained"}})'
                 f" / ignoring(part) dogtag_resident_bytes{{{PROCESS}}})", "percentunit",
                 "The largest share of a process's memory that is in no line of its balance", red=0.05),
        ]),
        ("Who holds it", [
            graph("Live bytes, by service", 24, 10,
                  (f"sum by (service) (dogtag_service_live_bytes{{{CHOSEN}}})", "{{service}}"), unit="bytes", stacked=True,
                  help="Summed over the chosen processes. (other) are those beyond the largest of each process; "
                       "(retired) and (cancelled), what they left behind."),
            graph("Growth", 12, 8,
                  (f"topk(20, sum by (service) (deriv(dogtag_service_live_bytes{{{CHOSEN}}}[15m])))", "{{service}}"),
                  unit="Bps", help="The slope of the line through the last 15 minutes"),
            graph("Allocated", 12, 8,
                  (f"topk(20, sum by (service) (rate(dogtag_service_allocated_bytes_total{{{CHOSEN}}}[$__rate_interval])))",
                   "{{service}}"), unit="Bps", help="What is allocated in a second, freed or not"),
            table("Grown most in the time shown", 12, 9, [
                (f"topk(20, sum by (job, service) (delta(dogtag_service_live_bytes{{{CHOSEN}}}[$__range])))", "Grown by"),
            ]),
            graph("Live bytes, by process", 12, 9,
                  (f"topk(20, dogtag_live_bytes{{{PROCESS}}})", "{{job}} {{instance}}"), unit="bytes"),
        ]),
        ("Limits", [
            bars("Held of the hard limit", 12, 9,
                 f"topk(20, dogtag_service_live_with_children_bytes{{{CHOSEN}}} / dogtag_service_hard_limit_bytes{{{CHOSEN}}})",
                 "{{service}} {{instance}}", help="With what the family below holds"),
            table("Peaks and limits", 12, 9, [
                (f"max by (service) (dogtag_service_peak_bytes{{{CHOSEN}}})", "Peak of its own"),
                (f"max by (service) (dogtag_service_live_with_children_bytes{{{CHOSEN}}})", "Family now"),
                (f"max by (service) (dogtag_service_soft_limit_bytes{{{CHOSEN}}})", "Soft limit"),
                (f"max by (service) (dogtag_service_hard_limit_bytes{{{CHOSEN}}})", "Hard limit"),
            ], help="Of the process where it is largest"),
            graph("Denied allocations", 12, 8,
                  (f"sum by (service) (increase(dogtag_service_denied_allocations_total{{{CHOSEN}}}[$__rate_interval]))",
                   "{{service}}"),
                  (f"sum(increase(dogtag_denied_allocations_total{{{PROCESS}}}[$__rate_interval]))", "in all"),
                  unit="short", help="In all counts those too that have ended since"),
            graph("Denied, by process", 12, 8,
                  (f"topk(20, increase(dogtag_denied_allocations_total{{{PROCESS}}}[$__rate_interval]))", "{{job}} {{instance}}"),
                  unit="short"),
        ]),
        ("Cancelled work, and the guard", [
            graph("Cancelled services", 12, 8,
                  (f"sum by (by) (increase(dogtag_cancelled_services_total{{{PROCESS}}}[$__rate_interval]))", "by the {{by}}"),
                  (f"sum(dogtag_unreleased_services{{{PROCESS}}})", "hold something still"), unit="short",
                  help="With dogtag's feature guard"),
            graph("Held by cancelled services", 12, 8,
                  (f"topk(20, dogtag_unreleased_bytes{{{PROCESS}}})", "{{job}} {{instance}}"), unit="bytes"),
            graph("Used of the guard's ceiling", 12, 8,
                  (f"topk(20, dogtag_guard_used_bytes{{{PROCESS}}} / dogtag_guard_ceiling_bytes{{{PROCESS}}})",
                   "{{job}} {{instance}}"), unit="percentunit", help="Of processes that have started a guard"),
            graph("What the guard did", 12, 8,
                  (f"sum(increase(dogtag_guard_purges_total{{{PROCESS}}}[$__rate_interval]))", "gave free pages back"),
                  (f"sum(increase(dogtag_guard_pressure_calls_total{{{PROCESS}}}[$__rate_interval]))", "asked caches"),
                  (f'sum(increase(dogtag_cancelled_services_total{{{PROCESS}, by="guard"}}[$__rate_interval]))', "cancelled"),
                  (f"sum(increase(dogtag_guard_unresponsive_services_total{{{PROCESS}}}[$__rate_interval]))", "waited in vain"),
                  (f"sum(increase(dogtag_guard_helpless_total{{{PROCESS}}}[$__rate_interval]))", "found nothing to cancel"),
                  unit="short"),
        ]),
        ("Where the physical memory is", [
            graph("Balance", 24, 10,
                  (f"sum by (part) (dogtag_balance_bytes{{{PROCESS}}})", "{{part}}"),
                  (f"sum(dogtag_resident_bytes{{{PROCESS}}})", "resident"), unit="bytes", stacked=True, line="resident",
                  help="The parts add up to what is resident; what was never written to, or swapped out, is below zero"),
            graph("Unexplained", 12, 7,
                  (f'dogtag_balance_bytes{{{PROCESS}, part="unexplained"}} / ignoring(part) dogtag_resident_bytes{{{PROCESS}}}',
                   "{{job}} {{instance}}"), unit="percentunit"),
            graph("Lost blocks", 6, 7, (f"dogtag_lost_blocks_total{{{PROCESS}}}", "{{job}} {{instance}}"), unit="short"),
            graph("Services that live", 6, 7, (f"dogtag_services{{{PROCESS}}}", "{{job}} {{instance}}"), unit="short"),
        ]),
    ]
    print(json.dumps(dashboard(rows), indent=2, ensure_ascii=False))


def dashboard(rows):
    panels, y = [], 0
    for title, inside in rows:
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "id": len(panels) + 1,
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        x, y, height = 0, y + 1, 0
        for panel in inside:
            place = panel["gridPos"]
            if x + place["w"] > 24:
                x, y, height = 0, y + height, 0
            place.update(x=x, y=y)
            panel["id"] = len(panels) + 1
            panels.append(panel)
            x, height = x + place["w"], max(height, place["h"])
        y += height
    return {
        "title": "Memory by service", "uid": "dogtag-services", "tags": ["dogtag", "memory"], "schemaVersion": 39,
        "description": "Who holds the memory of programs that allocate with dogtag",
        "editable": True, "graphTooltip": 1, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-3h", "to": "now"}, "fiscalYearStartMonth": 0, "links": [], "annotations": {"list": []},
        "templating": {"list": [
            {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "hide": 0,
             "regex": "", "refresh": 1, "multi": False, "includeAll": False, "skipUrlSync": False, "options": []},
            variable("job", "label_values(dogtag_live_bytes, job)"),
            variable("instance", 'label_values(dogtag_live_bytes{job=~"$job"}, instance)'),
            variable("service", f"label_values(dogtag_service_live_bytes{{{PROCESS}}}, service)"),
        ]},
        "panels": panels,
    }


def variable(name, query):
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {"type": "query", "name": name, "datasource": SOURCE, "hide": 0, "regex": "", "sort": 1,
            "query": {"qryType": 1, "query": query, "refId": f"{name}-values"}, "refresh": 2, "multi": True, "includeAll": True,
            "allValue": ".*", "current": everything, "options": [], "skipUrlSync": False}


def panel(kind, title, width, height, help, queries, options, defaults, overrides=(), **target):
    targets = [{"refId": chr(ord("A") + number), "datasource": SOURCE, "editorMode": "code", "expr": query,
                "legendFormat": legend, **target} for number, (query, legend) in enumerate(queries)]
    return {"type": kind, "title": title, "description": help, "datasource": SOURCE, "targets": targets,
            "gridPos": {"w": width, "h": height}, "options": options,
            "fieldConfig": {"defaults": defaults, "overrides": list(overrides)}}


def thresholds(red):
    steps = [{"color": "green", "value": None}] + ([{"color": "red", "value": red}] if red else [])
    return {"mode": "absolute", "steps": steps}


def stat(title, query, unit="short", help="", red=None):
    return panel("stat", title, 3 if unit != "bytes" else 4, 4, help, [(query, "__auto")], {
        "colorMode": "value" if red else "none", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
        "textMode": "value", "wideLayout": True, "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
    }, {"unit": unit, "thresholds": thresholds(red), "color": {"mode": "thresholds"}}, instant=True)


def graph(title, width, height, *queries, unit, stacked=False, line=None, help=""):
    custom = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 60 if stacked else 0, "showPoints": "never",
              "spanNulls": False, "stacking": {"mode": "normal" if stacked else "none", "group": "A"}}
    apart = [{"matcher": {"id": "byName", "options": line}, "properties": [
        {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}}, {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.lineWidth", "value": 2}, {"id": "color", "value": {"mode": "fixed", "fixedColor": "text"}}]}]
    return panel("timeseries", title, width, height, help, queries, {
        "legend": {"displayMode": "table", "placement": "right", "showLegend": True, "calcs": ["lastNotNull", "max"],
                   "sortBy": "Last *", "sortDesc": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }, {"unit": unit, "custom": custom, "color": {"mode": "palette-classic-by-name"}}, apart if line else (), range=True)


def bars(title, width, height, query, legend, help=""):
    return panel("bargauge", title, width, height, help, [(query, legend)], {
        "displayMode": "basic", "orientation": "horizontal", "valueMode": "color", "showUnfilled": True, "minVizHeight": 16,
        "minVizWidth": 8, "namePlacement": "auto", "sizing": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
    }, {"unit": "percentunit", "min": 0, "max": 1, "color": {"mode": "thresholds"}, "thresholds": {
        "mode": "absolute", "steps": [{"color": "green", "value": None}, {"color": "orange", "value": 0.8},
                                      {"color": "red", "value": 0.9}]}}, instant=True)


def table(title, width, height, columns, help=""):
    made = panel("table", title, width, height, help, columns, {
        "showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": columns[0][1], "desc": True}],
    }, {"unit": "bytes", "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}},
        instant=True, range=False, format="table")
    names = {"Value" if len(columns) == 1 else f"Value #{chr(ord('A') + number)}": name
             for number, (_, name) in enumerate(columns)}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}}]
    return made


if __name__ == "__main__":
    main()
