use super::*;
use std::time::Duration;

fn row(name: &str, live: u64, freed: u64) -> Row {
    let usage = Usage {
        allocated_bytes: live + freed,
        allocated_blocks: 2000,
        freed_bytes: freed,
        freed_blocks: 0,
        ..Usage::default()
    };
    Row { name: name.to_owned(), handle: 1, usage, ..Row::default() }
}

fn sample() -> Snapshot {
    let rows = vec![row("index", 3 << 20, 512), row("a\nb", 1 << 20, 0), row("idle", 0, 1023)];
    let totals = rows.iter().map(|row| row.usage).sum();
    Snapshot { rows, totals, ..Snapshot::default() }
}

#[test]
fn the_table_is_aligned_and_adds_up() {
    let expected = "\
service         live    share         blocks    allocated        freed
──────────────────────────────────────────────────────────────────────
index        3.0 MiB   75.0 %          2,000      3.0 MiB        512 B
a\\nb         1.0 MiB   25.0 %          2,000      1.0 MiB          0 B
idle             0 B    0.0 %          2,000       1023 B       1023 B
──────────────────────────────────────────────────────────────────────
total        4.0 MiB  100.0 %          6,000      4.0 MiB      1.5 KiB
";
    assert_eq!(sample().to_string(), expected);
}

#[test]
fn a_precision_sums_up_the_small_ones() {
    let table = format!("{:.1}", sample());
    assert!(table.contains("index ") && !table.contains("idle"), "{table}");
    assert!(table.contains("(2 more)      1.0 MiB   25.0 %          4,000"), "{table}");
    assert!(table.contains("total         4.0 MiB  100.0 %          6,000"), "{table}");
}

#[test]
fn retired_services_and_ended_ones_are_told() {
    let mut snapshot = sample();
    snapshot.rows[1].is_retired = true;
    snapshot.ended = Usage {
        allocated_bytes: 2048,
        allocated_blocks: 1,
        freed_bytes: 2048,
        freed_blocks: 1,
        ..Usage::default()
    };
    let table = snapshot.to_string();
    assert!(table.contains("\na\\nb (retired)      1.0 MiB "), "{table}");
    assert!(
        table.contains("\n(ended)                 0 B    0.0 %              0      2.0 KiB      2.0 KiB\n"),
        "{table}"
    );
}

#[test]
fn families_are_a_tree() {
    let family = |row: Row, parent: Option<&'static str>| {
        let name = row.name.clone();
        let usage = Usage { peak_bytes: 4 << 20, ..row.usage };
        (Row { usage, usage_with_children: usage, ..row }, name, parent.map(str::to_owned))
    };
    let mut query = row("query", 2 << 20, 0);
    query.usage.denied = 1234;
    let mut tenant = row("tenant", 0, 0);
    (tenant.hard_limit, tenant.soft_limit) = (Some(8 << 20), Some(6 << 20));
    let rows = arrange(vec![
        family(row("part", 1 << 20, 0), Some("query")),
        family(row("alone", 2 << 20, 0), None),
        family(query, Some("tenant")),
        family(tenant, None),
        family(row("orphan", 10, 0), Some("who was not met")),
    ]);
    let totals = rows.iter().map(|row| row.usage).sum();
    let tree = format!("{:#}", Snapshot { rows, totals, ..Snapshot::default() });
    let expected = "\
service          live  with children         peak   soft limit   hard limit     denied
──────────────────────────────────────────────────────────────────────────────────────
tenant            0 B        3.0 MiB      4.0 MiB      6.0 MiB      8.0 MiB      1,234
  query       2.0 MiB        3.0 MiB      4.0 MiB            –            –      1,234
    part      1.0 MiB        1.0 MiB      4.0 MiB            –            –          0
alone         2.0 MiB        2.0 MiB      4.0 MiB            –            –          0
orphan           10 B           10 B      4.0 MiB            –            –          0
──────────────────────────────────────────────────────────────────────────────────────
total         5.0 MiB                    20.0 MiB                                1,234
";
    assert_eq!(tree, expected);
}

/// As deep as there can be services, and from whomever.
#[test]
fn families_of_any_depth_are_shown_in_few_columns() {
    const DEEP: usize = 100_000;

    let mut snapshot = Snapshot { rows: vec![row("query", 1, 0); DEEP], ..Snapshot::default() };
    snapshot.rows.iter_mut().zip(0..).skip(1).for_each(|(row, place)| row.parent = Some(place - 1));
    let tree = format!("{snapshot:#}");
    let lines: Vec<&str> = tree.lines().collect();
    assert_eq!(lines.len(), DEEP + 4);
    let width = lines[0].chars().count();
    assert!(width < 160 && lines.iter().all(|line| line.chars().count() == width), "{}", lines[0]);
    assert!(lines[2 + 16].starts_with(&format!("{}query ", " ".repeat(32))), "{}", lines[2 + 16]);
    for depth in [17, 99, DEEP - 1] {
        let expected = format!("{}({depth}) query ", " ".repeat(32));
        assert!(lines[2 + depth].starts_with(&expected), "{}", lines[2 + depth]);
    }
}

#[test]
fn what_families_hold_is_added_up_from_below() {
    const DEEP: usize = 1_000_000;

    let found = (0..DEEP).map(|i| {
        let row = row("query", 1, 0);
        (Row { usage_with_children: row.usage, ..row }, i, i.checked_sub(1))
    });
    let rows = arrange(found.collect());
    let root = rows.iter().position(|row| row.parent.is_none()).expect("there is one");
    assert_eq!(rows[root].usage_with_children.bytes(), DEEP as u64);
    let mut held: Vec<u64> = rows.iter().map(|row| row.usage_with_children.bytes()).collect();
    held.sort_unstable();
    assert!(held.into_iter().eq(1..=DEEP as u64));
}

#[test]
fn rows_that_are_their_own_ancestors_are_shown() {
    let mut snapshot = sample();
    for (row, parent) in [(0, 1), (1, 0), (2, 2)] {
        snapshot.rows[row].parent = Some(parent);
    }
    let tree = format!("{snapshot:#}");
    for name in ["\nindex ", "\n  a\\nb ", "\nidle "] {
        assert_eq!(tree.matches(name).count(), 1, "{tree}");
    }
}

#[test]
fn figures_that_were_made_up_can_be_shown() {
    let mut snapshot = sample();
    for row in &mut snapshot.rows {
        let huge = u64::MAX - 1;
        row.usage = Usage { allocated_bytes: huge, allocated_blocks: huge, ..row.usage };
    }
    let table = format!("{snapshot:.0}");
    assert!(table.contains("(3 more)     16.0 EiB "), "{table}");
    assert!(table.contains(" 18,446,744,073,709,551,615 "), "{table}");
}

#[test]
fn lost_blocks_are_told() {
    let lost = Lost { bytes: 2048, blocks: 2 };
    let table = Snapshot { lost, ..sample() }.to_string();
    assert!(table.contains("2 blocks (2.0 KiB) were freed whose owner had been overwritten"), "{table}");
}

#[test]
fn cancelled_services_are_told_the_first_of_them_by_name() {
    let cancelled = |number: u64| Row {
        is_retired: true,
        is_cancelled: true,
        cancellation: Some(Cancellation {
            by: "budget".to_owned(),
            reason: "too\nmuch".to_owned(),
            bytes: 2048,
            ago: Duration::from_millis(1500),
            released_after: (number > 0).then_some(Duration::from_micros(250)),
        }),
        ..row(&format!("query {number}"), 1024, 0)
    };
    let cancellations = Cancellations {
        by_budget: 13,
        by_guard: 1000,
        released: 1012,
        holding: 1,
        holding_bytes: 1024,
        longest_release: Some(Duration::from_millis(7)),
        ..Cancellations::default()
    };
    let mut snapshot =
        Snapshot { rows: (0..13).map(cancelled).collect(), cancellations: Some(cancellations), ..sample() };
    let text = snapshot.to_string();
    assert!(text.contains("\nquery 0 (cancelled) "), "{text}");
    let expected = "
cancelled: 0 by the program, 13 by their budgets, 1,000 by the guard
  1,012 let go of all (the slowest within 7.0ms), 1 hold 1.0 KiB still
  query 0: cancelled 1.5s ago with 2.0 KiB: too\\nmuch; holds something still
  query 1: cancelled 1.5s ago with 2.0 KiB: too\\nmuch; let go of all within 250.0µs
";
    assert!(text.contains(expected), "{text}");
    assert!(text.ends_with("  query 9: cancelled 1.5s ago with 2.0 KiB: too\\nmuch; let go of all within 250.0µs\n  (3 more)\n"), "{text}");
    snapshot.cancellations = Some(Cancellations::default());
    assert!(!snapshot.to_string().contains("cancelled:"), "{snapshot}");
}

#[cfg(feature = "sampled-guard")]
#[test]
fn the_sampled_guard_is_told_of_where_there_was_one() {
    use crate::sampled_guard::Figures;

    let figures = Figures {
        slots: 256,
        retired: 1,
        guarded: 40,
        ever: 12_345,
        refused: 6,
        throttled: 7_890,
        caught: 2,
        rate: 5000,
    };
    let mut snapshot = Snapshot { sampled_guard: Some(figures), ..sample() };
    let expected = "
sampled guard: 40 of 256 slots in use, 12,345 blocks so far, 6 refused, 7,890 throttled; 2 violations caught, 1 slots retired
";
    assert!(snapshot.to_string().contains(expected), "{snapshot}");
    snapshot.sampled_guard = None;
    assert!(!snapshot.to_string().contains("sampled guard"), "{snapshot}");
}
