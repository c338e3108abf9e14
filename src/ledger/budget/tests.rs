use super::*;

fn limited(hard: u64, soft: u64) -> Budget {
    let budget = Budget::new();
    budget.set(hard, soft);
    budget
}

fn exactly(live: u64) -> impl FnMut(Grants) -> Option<Live> {
    move |_| Some(Live { at_least: live, at_most: live, granted: 0 })
}

fn granted(bytes: u64) -> Option<Granted> {
    Some(Granted::of(bytes))
}

#[test]
fn it_is_added_up_again_when_the_credit_is_used_up() {
    let budget = limited(4 * GRANT, NONE);
    let never = |_| unreachable!("there is credit");
    assert_eq!(budget.draw(1, 0, exactly(GRANT)), granted(GRANT));
    assert_eq!(budget.draw(GRANT, 0, never), granted(GRANT));
    assert_eq!(budget.draw(100, 0, never), granted(GRANT));
    // What was granted is used up, and some of it freed.
    assert_eq!(budget.draw(100, 0, exactly(4 * GRANT - 150)), granted(150));
    assert_eq!(budget.draw(151, 0, exactly(4 * GRANT - 150)), None);
    assert_eq!(budget.draw(4 * GRANT, 4 * GRANT, exactly(0)), granted(4 * GRANT));
    budget.land(4 * GRANT);
    assert_eq!(budget.draw(1, 0, exactly(4 * GRANT)), None);
}

#[test]
fn a_denial_is_certain() {
    let budget = limited(1000, NONE);
    let mut asked = 0;
    let unsure = |_| {
        asked += 1;
        Some(Live { at_least: 0, at_most: if asked < 5 { 5000 } else { 900 }, granted: 0 })
    };
    assert_eq!(budget.draw(100, 0, unsure), granted(100));
    assert_eq!(asked, 5);
    // Nor is it a reason to announce anything that nothing is known.
    let mut asked = 0;
    let unknown = |_| {
        asked += 1;
        (asked > 5).then_some(Live { at_least: 0, at_most: 0, granted: 0 })
    };
    assert_eq!(limited(NONE, 1000).draw(1, 0, unknown), granted(1000));
}

#[test]
fn grants_are_taken_back_where_there_is_no_space_for_them() {
    let budget = limited(10 * GRANT, NONE);
    let granted_to_others = |grants| {
        let granted = if grants == Grants::Count { 9 * GRANT } else { 0 };
        Some(Live { at_least: 0, at_most: 0, granted })
    };
    assert_eq!(budget.draw(2 * GRANT, 2 * GRANT, granted_to_others), granted(2 * GRANT));
    let in_vain = |grants| {
        assert_eq!(grants, Grants::Count, "something was left");
        Some(Live { at_least: 0, at_most: 0, granted: 7 * GRANT })
    };
    assert_eq!(limited(10 * GRANT, NONE).draw(1, 0, in_vain), granted(GRANT));
    // Nor do they cross a soft limit.
    let soft = limited(NONE, 8 * GRANT);
    assert_eq!(soft.draw(1, 0, granted_to_others), granted(GRANT));
}

/// While one adds up others change it as often as it can count, and more.
#[test]
fn a_balance_that_looks_the_same_is_not_taken_for_it() {
    for times in [CreditWord::MOST_CHANGES, 2 * CreditWord::MOST_CHANGES] {
        let budget = limited(10 * GRANT, NONE);
        let mut asked = 0;
        let stale_at_first = |grants| {
            asked += 1;
            if asked > 1 {
                return exactly(10 * GRANT)(grants);
            }
            let before = budget.word.load(Ordering::Relaxed);
            (0..times).for_each(|_| budget.set(10 * GRANT, NONE));
            assert_eq!(budget.word.load(Ordering::Relaxed), before, "it does not look the same");
            exactly(0)(grants)
        };
        assert_eq!(budget.draw(2 * GRANT, 2 * GRANT, stale_at_first), None);
        assert!(asked > 1);
        let credit = CreditWord(budget.word.load(Ordering::Relaxed));
        assert_eq!((credit.credit(), credit.taken_off()), (0, 0));
    }
}

#[test]
fn large_ones_count_before_they_are_made() {
    let budget = limited(10 * GRANT, NONE);
    assert_eq!(budget.draw(6 * GRANT, 6 * GRANT, exactly(0)), granted(6 * GRANT));
    // Another, on a thread that does not see the first in any cell; then it is
    // seen, and has landed.
    let mut asked = 0;
    let seen_at_last = |grants| {
        asked += 1;
        if asked == 3 {
            budget.land(6 * GRANT);
        }
        exactly(if asked < 3 { 0 } else { 6 * GRANT })(grants)
    };
    assert_eq!(budget.draw(5 * GRANT, 5 * GRANT, seen_at_last), None);
    assert_eq!(asked, 6);
    assert_eq!(budget.draw(4 * GRANT - 1, 4 * GRANT - 1, exactly(6 * GRANT)), granted(4 * GRANT - 1));
}

#[test]
fn a_service_is_cancelled_once_and_not_before() {
    let cancels = |bytes| Some(Granted { cancels: true, ..Granted::of(bytes) });
    let budget = Budget::new();
    budget.set_cancel_at(1000);
    assert!(budget.is_limited());
    assert_eq!(budget.draw(100, 0, exactly(0)), granted(1000), "up to there");
    assert_eq!(budget.draw(1, 0, exactly(999)), granted(1), "no further");
    assert_eq!(budget.draw(1, 0, exactly(1000)), cancels(GRANT));
    assert_eq!(budget.draw(1 << 20, 0, exactly(5000)), granted(1 << 20), "it is cancelled already");
    // Unless that was not made.
    budget.unpass();
    assert_eq!(budget.draw(1, 0, exactly(1000)), cancels(GRANT));
    budget.unpass();
    assert_eq!(budget.draw(1, 0, exactly(999)), granted(1));
    // Grants that nobody has used do not count, nor what is in flight and in a cell, perhaps.
    let budget = Budget::new();
    budget.set_cancel_at(10 * GRANT);
    let unused = |grants| {
        let granted = if grants == Grants::Count { 20 * GRANT } else { 0 };
        Some(Live { at_least: 0, at_most: 0, granted })
    };
    assert_eq!(budget.draw(1, 0, unused), granted(GRANT));
    let budget = Budget::new();
    budget.set_cancel_at(10 * GRANT);
    budget.take_off(8 * GRANT);
    assert_eq!(budget.draw(1, 0, exactly(4 * GRANT)), granted(1));
    // Another place to be cancelled at, and none.
    budget.set_cancel_at(100);
    assert_eq!(budget.draw(1, 0, exactly(100)), cancels(GRANT));
    budget.set_cancel_at(NONE);
    assert!(!budget.is_limited());
}

#[test]
fn a_soft_limit_is_crossed_once() {
    let budget = limited(NONE, 1000);
    assert_eq!(budget.draw(100, 0, exactly(0)), granted(1000), "up to the limit");
    assert_eq!(budget.draw(1, 0, exactly(1000)), Some(Granted { crosses: true, ..Granted::of(GRANT) }));
    assert_eq!(budget.draw(1, 0, exactly(2000)), granted(GRANT));
    assert_eq!(budget.draw(1, 0, exactly(500)), granted(500), "undershot");
    assert_eq!(budget.draw(501, 0, exactly(500)), Some(Granted { crosses: true, ..Granted::of(GRANT) }));
    // Nor do grants that nobody has used hide that it was undershot.
    let budget = limited(NONE, 1000);
    assert!(budget.draw(1001, 0, exactly(0)).is_some_and(|granted| granted.crosses));
    let unused = |_| Some(Live { at_least: 0, at_most: 0, granted: 5000 });
    assert_eq!(budget.draw(1, 0, unused), granted(GRANT));
    assert!(budget.draw(1001, 0, exactly(0)).is_some_and(|granted| granted.crosses));
    // A new limit is a new crossing.
    budget.set(NONE, 100);
    assert!(budget.draw(1, 0, exactly(500)).is_some_and(|granted| granted.crosses));
    // What is in flight is in a cell already, perhaps.
    let budget = limited(NONE, 10 * GRANT);
    budget.take_off(8 * GRANT);
    assert_eq!(budget.draw(1, 0, exactly(4 * GRANT)), granted(GRANT));
}
