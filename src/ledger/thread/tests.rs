use super::*;

#[cfg(feature = "memory-check")]
#[test]
fn a_thread_is_inside_until_it_leaves() {
    let inside = Inside::enter();
    assert!(inside.is_some());
    assert!(Inside::enter().is_none());
    assert!(Inside::enter().is_none(), "who came in vain has ended it");
    drop(inside);
    assert!(Inside::enter().is_some());
}

#[test]
fn a_thread_that_forgot_scopes_beyond_32_bits_stays_where_it_is() {
    std::thread::spawn(|| {
        assert!(can_settle());
        with(|thread| thread.stays.set(u32::MAX.into()));
        std::mem::forget(Stay::begin());
        assert!(!can_settle());
        with(|thread| thread.stays.set(0));
    })
    .join()
    .unwrap();
}
