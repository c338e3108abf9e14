//! How handles are assigned, in a process of its own: every registration of
//! another test would take one.

use dogtag::Service;

#[test]
fn assigned_handles_go_round_the_chosen_ones() {
    alone!();
    let chosen = Service::builder("chosen").handle(0x8000_0003).register().unwrap();
    let assigned: Vec<u32> =
        (0..6).map(|i| Service::register(format!("assigned {i}")).unwrap().handle()).collect();
    assert_eq!(chosen.handle(), 0x8000_0003);
    assert_eq!(assigned, [0, 1, 2, 4, 5, 6].map(|number| 0x8000_0000 + number));
}
