//! Two subscribers, each with its own ServiceLayer behind tracing-subscriber's reload. The layers are exchanged
//! while no span is entered (as the docs ask). Safe code only.
#![forbid(unsafe_code)]
use dogtag::{Service, ServiceLayer};
use tracing::{Dispatch, dispatcher::with_default};
use tracing_subscriber::{Registry, prelude::*, reload};
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    println!("begin");
    let (l1, h1) = reload::Layer::<ServiceLayer, Registry>::new(ServiceLayer::new().keep_services(false));
    let (l2, h2) = reload::Layer::<ServiceLayer, Registry>::new(ServiceLayer::new().keep_services(false));
    let d1 = Dispatch::new(Registry::default().with(l1));
    let d2 = Dispatch::new(Registry::default().with(l2));
    let b = with_default(&d2, || tracing::info_span!("b"));
    let a = with_default(&d1, || {
        tracing::info_span!("a", service = "x-service-with-quite-a-long-name-on-the-heap")
    });
    println!("ids {:?} {:?}", a.id(), b.id());
    // exchange
    let mut one = ServiceLayer::new().keep_services(false);
    h1.modify(|l| std::mem::swap(l, &mut one)).unwrap();
    h2.modify(|l| std::mem::swap(l, &mut one)).unwrap();
    h1.modify(|l| std::mem::swap(l, &mut one)).unwrap();
    drop(a); // the service x ends: its last span is closed
    println!("x: {:?}", Service::by_name("x-service-with-quite-a-long-name-on-the-heap"));
    let cur = {
        let _e = b.enter(); // b never had a service
        println!("in b, which never named a service: {:?}", Service::current());
        Service::current()
    };
    println!("now: {:?}", Service::current());
    let other = Service::register("an-innocent-other-service-with-a-long-name").unwrap();
    println!("cur == other: {}", cur == other);
    let name: &str = cur.name();
    println!("borrowed: {name:?}");
    drop(other);
    let junk: Vec<Box<[u8]>> =
        (0..2000).map(|i| vec![b'A' + (i % 26) as u8; 42].into_boxed_slice()).collect();
    println!("the same &str: {:?}", name.as_bytes().iter().map(|b| *b as char).collect::<String>());
    drop(junk);
    println!("{}", dogtag::snapshot());
}
