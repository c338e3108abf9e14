//! What the threads of a program share.

use super::*;

impl World {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let (is_in_turn, bytes) = match bytes.split_first() {
            Some((way, bytes)) => (way % 4 != 0, bytes),
            None => (true, bytes),
        };
        let steps = bytes.chunks_exact(3).map(|step| Step {
            thread: usize::from(step[0] >> 7) % THREADS,
            act: step[0] & 127,
            one: step[1],
            other: step[2],
        });
        let (one, one_handle) = reload::Layer::new(new_layer());
        let (other, other_handle) = reload::Layer::new(new_layer());
        Self {
            steps: steps.collect(),
            next: Mutex::new(0),
            changed: Condvar::new(),
            is_in_turn,
            is_calm: AtomicBool::new(true),
            is_tidy: AtomicBool::new(true),
            known: Mutex::default(),
            services: Mutex::default(),
            subscribers: [
                Dispatch::new(registry().with(one).with(Witness).unattributed()),
                Dispatch::new(registry().with(other).with(Witness).unattributed()),
            ],
            handles: [one_handle, other_handle],
            away: Mutex::new(None),
            spans: Mutex::default(),
            tasks: Mutex::default(),
            pools: Mutex::default(),
            blocks: Mutex::default(),
            forgotten: Mutex::default(),
        }
    }

    /// Waits until that step is to be done. All at once, nobody waits.
    pub(super) fn wait_for(&self, step: usize) {
        if self.is_in_turn {
            let next = lock(&self.next);
            drop(self.changed.wait_while(next, |next| *next < step).unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub(super) fn has_done(&self, step: usize) {
        if self.is_in_turn {
            *lock(&self.next) = step + 1;
            self.changed.notify_all();
        }
    }

    pub(super) fn name(&self, what: &str) -> Name {
        let name = new_name(what);
        lock(&self.known).push(Arc::clone(&name));
        name
    }

    pub(super) fn pick(&self, which: u8) -> Option<Known> {
        let services = lock(&self.services);
        let place = usize::from(which).checked_rem(services.len())?;
        Some(services[place].another())
    }

    pub(super) fn keep(&self, service: Known) {
        let mut services = lock(&self.services);
        services.push(service);
        let former = if services.len() > MOST { Some(services.swap_remove(0)) } else { None };
        drop(services);
        drop(former);
    }

    /// Whether somebody may hold the service of that name.
    pub(super) fn is_held(&self, name: &str) -> bool {
        name == "unattributed"
            || lock(&self.known).iter().any(|known| **known == *name && Arc::strong_count(known) > 1)
    }

    /// All is given back; nothing is left of any service.
    pub(super) fn end(self) {
        let blocks = self.blocks.into_inner().unwrap_or_else(PoisonError::into_inner);
        drop(blocks);
        lock(&self.tasks).drain(..).for_each(|task| caught(|| drop(task)));
        lock(&self.pools).drain(..).for_each(|pool| caught(|| drop(pool)));
        let spans: Vec<_> = lock(&self.spans).drain(..).collect();
        spans.into_iter().for_each(|span| caught(|| drop(span)));
        drop((self.handles, self.away));
        drop(self.subscribers);
        let services = self.services.into_inner().unwrap_or_else(PoisonError::into_inner);
        for known in services {
            known.check();
            if !self.is_tidy.load(SeqCst) {
                continue;
            }
            // What dogtag's own thread has of it, it frees in a moment.
            let is_empty = || known.service.usage().bytes() == 0 && known.service.usage().blocks() == 0;
            let ends = (0..1_000_000).any(|_| is_empty() || (thread::yield_now(), false).1);
            assert!(ends, "{} is left with {:?}", known.name, known.service.usage());
        }
    }
}
