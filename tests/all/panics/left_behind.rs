//! What panics leave behind, which panics when it is dropped.

use super::{ends, panic_quietly, register};
use dogtag::Service;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;

/// What a panic leaves behind, and to drop it leaves another one behind, and so on.
struct Endless;

impl Drop for Endless {
    fn drop(&mut self) {
        if !thread::panicking() {
            resume_unwind(Box::new(Self));
        }
    }
}

/// Dogtag's own thread announces.
fn is_announced() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let service = Service::builder("still announced")
        .soft_limit(1_000)
        .on_soft_limit(move |_| tell.lock().unwrap().send(()).unwrap())
        .register()
        .unwrap();
    drop(service.run(|| black_box(vec![0_u8; 2_000])));
    told.recv().unwrap();
}

#[test]
fn what_panics_of_callbacks_leave_behind() {
    alone!();
    let (tell, told) = mpsc::channel();
    for round in 0..5 {
        let (tell, captured) = (Mutex::new(tell.clone()), Endless);
        let service = Service::builder("leaves an endless one")
            .soft_limit(1_000)
            .on_soft_limit(move |service| {
                let _captured = &captured;
                std::mem::forget(service.clone().enter());
                tell.lock().unwrap().send(Service::current() == *service).unwrap();
                resume_unwind(Box::new(Endless));
            })
            .register()
            .unwrap();
        drop(service.run(|| black_box(vec![0_u8; 2_000])));
        assert!(told.recv().unwrap(), "round {round}");
        // What its place is taken by, and what finds no service.
        let captured = Endless;
        let other = Service::builder("leaves an endless one").on_soft_limit(move |_| _ = &captured);
        assert_eq!(other.register().unwrap(), service);
        let captured = Endless;
        service.set_on_soft_limit(move |_| _ = &captured);
        let captured = Endless;
        let taken = Service::builder("of that handle").handle(service.handle());
        assert!(taken.on_soft_limit(move |_| _ = &captured).register().is_err());
        // Nor does the service's end panic.
        drop(service);
        is_announced();
    }
}

#[test]
fn what_panics_of_subscribers_leave_behind() {
    alone!();
    use tracing::subscriber::with_default;
    use tracing_subscriber::{Layer, layer::Context, prelude::*, registry};

    /// Panics on dogtag's own thread, who is the last one who has it.
    struct Careless {
        tell: Mutex<mpsc::Sender<()>>,
        is_alone: Mutex<mpsc::Receiver<()>>,
        _dropped: Endless,
    }

    impl<S: tracing::Subscriber> Layer<S> for Careless {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            self.tell.lock().unwrap().send(()).unwrap();
            self.is_alone.lock().unwrap().recv().unwrap();
            resume_unwind(Box::new(Endless));
        }
    }

    for _ in 0..5 {
        let (tell, told) = mpsc::channel();
        let (be_alone, is_alone) = mpsc::channel();
        let careless = Careless { tell: tell.into(), is_alone: is_alone.into(), _dropped: Endless };
        // To be registered is an event, which the subscriber receives on that thread.
        let service = with_default(registry().with(careless), || {
            let service = register("told to the careless");
            told.recv().unwrap();
            service
        });
        be_alone.send(()).unwrap();
        is_announced();
        ends(service);
    }
}

#[test]
fn what_panics_of_cleanups_leave_behind() {
    alone!();
    use dogtag_pool::Pool;

    let service = register("pool of the endless");
    for round in 0..4 {
        let mut pool = Pool::builder().service(&service).build().unwrap();
        for _ in 0..3 {
            pool.alloc(Endless);
            let _ = pool.cleanup(|| resume_unwind(Box::new(Endless)));
            let _ = pool.pre_cleanup(|| resume_unwind(Box::new(Endless)));
            let captured = Endless;
            let cleanup = pool.cleanup(move || _ = &captured);
            forget_panic(move || cleanup.cancel());
        }
        match round {
            0 => forget_panic(|| pool.clear()),
            1 => forget_panic(|| pool.reset()),
            2 => forget_panic(|| pool.destroy()),
            // While it unwinds already.
            _ => forget_panic(move || {
                let _pool = pool;
                panic_quietly();
            }),
        }
        assert_eq!(Service::current(), Service::unattributed());
    }
    is_announced();

    /// It panics, with what must not be dropped.
    fn forget_panic(work: impl FnOnce()) {
        std::mem::forget(catch_unwind(AssertUnwindSafe(work)).unwrap_err());
    }
}
