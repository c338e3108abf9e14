//! What pools do, one capability after the other, as the tables of the crate have them.

mod clearing;
mod memory;
mod tree;
mod values;

use dogtag::{Dogtag, Service};
use std::sync::Mutex;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn service(name: &str) -> Service {
    Service::register(name).unwrap()
}

/// What happens, in order.
#[derive(Default)]
struct Log(Mutex<Vec<&'static str>>);

impl Log {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Says that it is dropped.
struct Noisy<'a>(&'a Log, &'static str);

impl Drop for Noisy<'_> {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}
