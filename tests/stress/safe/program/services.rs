//! Services, their scopes, and threads that end within them.

use super::*;

impl<'a> Actor<'a> {
    pub(super) fn register(&mut self, one: u8, other: u8) {
        static CALLS: AtomicUsize = AtomicUsize::new(0);

        let world = self.world;
        let (name, captured) = aside(|| (world.name("a service"), world.pick(other)));
        let mut builder = Service::builder(&*name);
        if one % 4 == 1
            && let Some(parent) = aside(|| world.pick(other))
        {
            builder = builder.parent(&parent.service);
        }
        if one % 8 >= 6 {
            let parent_name = captured.as_ref().map(|captured| aside(|| Arc::clone(&captured.name)));
            let what = other % 4;
            builder = aside(|| {
                builder.soft_limit(u64::from(other) << 9).on_soft_limit(move |service| {
                    assert!(service.name().contains("on the heap"));
                    let kept = captured.as_ref().inspect(|captured| captured.check());
                    let number = CALLS.fetch_add(1, SeqCst);
                    let name = format!("a callback's with a name on the heap, number {number}");
                    let new = Service::builder(name).parent(service).register();
                    black_box(&new);
                    match what {
                        0 => {}
                        1 => resume_unwind(Box::new(parent_name.clone())),
                        2 => resume_unwind(Box::new(Endless)),
                        _ => drop(kept.map(|kept| kept.service.clone())),
                    }
                })
            });
        }
        if let Ok(service) = builder.register() {
            aside(|| world.keep(Known { service, name }));
        }
    }

    pub(super) fn enter_scope(&mut self, which: u8) {
        let place = self.arena.iter().find(|place| place.get().is_none());
        if let Some(place) = place
            && let Some(known) = aside(|| self.world.pick(which))
        {
            let known: &'a Known = place.get_or_init(|| known);
            self.is_orderly &= self.entered.is_empty();
            // Where it goes back to, whatever has become of that span by then.
            let before = Service::current();
            aside(|| {
                let name = lock(&self.world.known).iter().find(|known| ***known == *before.name()).cloned();
                lock(&self.world.forgotten).extend(name);
            });
            drop(before);
            self.scopes.push(known.service.enter());
        }
    }

    /// A thread that ends in a scope and in a span.
    pub(super) fn end_a_thread_within(&mut self, one: u8, other: u8) {
        let (known, span) = (aside(|| self.world.pick(one)), self.span(other));
        self.world.is_calm.store(false, SeqCst);
        if let Some((_, names, _)) = &span {
            aside(|| lock(&self.world.forgotten).extend(lock(names).iter().cloned()));
        }
        if one.is_multiple_of(2) {
            // The registry has the next thread be in the span that this one has not left.
            self.world.is_tidy.store(false, SeqCst);
        }
        let work = || {
            // The scope goes first.
            let entered = span.as_ref().map(|(span, ..)| span.enter());
            let _scope = known.as_ref().map(|known| known.service.enter());
            drop(black_box(vec![0_u8; 100]));
            if one.is_multiple_of(2) {
                mem::forget(entered);
            }
            mem::forget(NOBODY.enter());
        };
        aside(|| {
            thread::scope(|threads| {
                let ended = threads.spawn(|| caught(work)).join();
                assert!(ended.is_ok());
            });
        });
        caught(|| drop(span));
    }
}
