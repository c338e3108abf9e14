//! Random spans against a simple model.

use super::*;
use dogtag::attributed;
use tracing::debug_span;

/// Spans entered and left in any order: the thread is in the service of the last
/// one that it has entered, not left, and that took it anywhere. Whether the program's filter leaves out
/// all spans, some of them or none does not matter.
#[test]
fn spans_are_as_a_simple_model_has_them() {
    alone!();
    random_spans();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(256) as u32, ..ProptestConfig::default() })]

    fn random_spans(steps in proptest::collection::vec((0..7_usize, any::<bool>(), 0..8_usize), 0..60), filter in 0..3_usize) {
        let filtered = |level| {
            let log = fmt().with_max_level(level).with_writer(io::sink).finish();
            Dispatch::new(attributed(log).with_layer(ServiceLayer::new().keep_services(false)))
        };
        let subscriber = match filter {
            0 => Dispatch::new(plain()),
            1 => filtered(LevelFilter::OFF),
            _ => filtered(LevelFilter::INFO),
        };
        tracing::dispatcher::with_default(&subscriber, || {
            let mut spans = vec![
                info_span!("a", service = "model a"),
                debug_span!("b", service = "model b"),
                info_span!("c", service = "model a"),
                debug_span!("d"),
            ];
            spans.push(debug_span!(parent: &spans[0], "child of a"));
            spans.push(info_span!(parent: &spans[1], "child of b"));
            spans.push(info_span!(parent: &spans[4], "grandchild of a"));
            let names = [Some("model a"), Some("model b"), Some("model a"), None, Some("model a"), Some("model b"), Some("model a")];
            let origins = [0, 1, 2, 9, 0, 1, 0];
            let (mut model, mut entered) = (vec![], vec![]);
            for (span, enters, which) in steps {
                if enters || model.is_empty() {
                    let innermost = model.iter().rev().find_map(|(to, origin): &(Option<&str>, usize)| to.map(|_| *origin));
                    let is_inherited = origins[span] != span;
                    let stays = is_inherited && innermost == Some(origins[span]);
                    model.push((names[span].filter(|_| !stays), origins[span]));
                    entered.push(Some(spans[span].clone().entered()));
                } else {
                    let which = which % model.len();
                    let span = entered.remove(which).unwrap();
                    // Which of a span's several entries goes, tracing does not tell: the last one.
                    let same = entered[which..].iter().rposition(|other| other.as_ref().unwrap().id() == span.id());
                    model.remove(same.map_or(which, |at| which + at + 1));
                    if let Some(at) = same {
                        let last = entered.remove(which + at);
                        entered.insert(which, last);
                    }
                    drop(span);
                }
                let expected = model.iter().rev().find_map(|(to, _)| *to).unwrap_or("unattributed");
                prop_assert_eq!(current(), expected);
            }
            // The guards are dropped in any order, too.
            drop(entered);
            prop_assert_eq!(current(), "unattributed");
            Ok(())
        })?;
        drop(subscriber);
        let left = dogtag::snapshot();
        prop_assert!(!left.rows.iter().any(|row| row.name.starts_with("model ")), "{}", left);
    }
}
