//! Spans of two subscribers, whose layers are exchanged.

use super::*;

impl Actor<'_> {
    pub(super) fn span(&self, which: u8) -> Option<(Span, Names, usize)> {
        aside(|| {
            let spans = lock(&self.world.spans);
            let place = usize::from(which).checked_rem(spans.len())?;
            let SomeSpan { span, subscriber, names } = &spans[place];
            let span = catch_unwind(AssertUnwindSafe(|| span.clone())).ok()?;
            Some((span, Arc::clone(names), *subscriber))
        })
    }

    pub(super) fn new_span(&mut self, one: u8, other: u8) {
        let world = self.world;
        let (parent, mut subscriber) = (self.span(other), usize::from(one & 1));
        // What it may have from its parent.
        let names: Names = Names::default();
        let inherited = |from: &Names| aside(|| lock(&names).extend(lock(from).iter().cloned()));
        match &parent {
            Some((_, from, of)) if one & 2 != 0 => {
                subscriber = *of;
                inherited(from);
            }
            _ => self.entered.iter().for_each(|(_, from)| inherited(from)),
        }
        let known = if one & 4 != 0 {
            aside(|| world.pick(other)).map(|known| aside(|| Arc::clone(&known.name)))
        } else {
            None
        };
        let known = known.or_else(|| (one & 8 != 0).then(|| aside(|| world.name("a span's"))));
        if let Some(known) = &known {
            aside(|| lock(&names).push(Arc::clone(known)));
        }
        let mut new = None;
        caught(|| {
            with_default(&world.subscribers[subscriber], || {
                let span = match (&parent, &known) {
                    (Some((parent, ..)), Some(name)) if one & 2 != 0 => {
                        info_span!(parent: parent, "own", service = &**name)
                    }
                    (Some((parent, ..)), None) if one & 2 != 0 => info_span!(parent: parent, "child"),
                    (_, Some(name)) => info_span!("own", service = &**name),
                    (_, None) => info_span!("none"),
                };
                info!("an event");
                new = Some(span);
            });
        });
        caught(|| drop(parent));
        let Some(span) = new else { return };
        let former = aside(|| {
            let mut spans = lock(&world.spans);
            spans.push(SomeSpan { span, subscriber, names });
            (spans.len() > MOST).then(|| spans.swap_remove(0))
        });
        caught(|| drop(former));
    }

    /// What `tracing` lets everybody do who knows a span's number.
    pub(super) fn by_number(&mut self, one: u8, other: u8) {
        let Some((span, names, subscriber)) = self.span(one) else { return };
        let subscriber = &self.world.subscribers[subscriber ^ usize::from(other & 64 != 0)];
        drop(names);
        // Which span has that number elsewhere, is not known here.
        aside(|| lock(&self.world.forgotten).extend(lock(&self.world.known).iter().cloned()));
        self.is_orderly = false;
        self.world.is_calm.store(false, SeqCst);
        let Some(id) = span.id() else { return };
        caught(|| match other % 8 {
            0 => mem::forget(span.enter()),
            1 | 2 => subscriber.enter(&id),
            3 | 4 => subscriber.exit(&id),
            5 => {
                HAS_CLOSED_BY_NUMBER.store(true, SeqCst);
                _ = subscriber.try_close(id.clone());
            }
            6 => subscriber.enter(&tracing::Id::from_u64(1 + u64::from(one))),
            _ => subscriber.exit(&tracing::Id::from_u64(1 + u64::from(one))),
        });
        caught(|| drop(span));
    }

    pub(super) fn exchange(&mut self, one: u8, other: u8) {
        let world = self.world;
        world.is_calm.store(false, SeqCst);
        let handle = &world.handles[usize::from(one & 1)];
        aside(|| match other % 6 {
            0 => _ = handle.reload(None),
            1 | 2 => _ = handle.reload(new_layer()),
            3 => _ = handle.modify(|layer| mem::swap(layer, &mut lock(&world.away))),
            _ => {
                let mut third = None;
                let mut swap = |handle: &reload::Handle<SomeLayer, _>| {
                    _ = handle.modify(|layer| mem::swap(layer, &mut third));
                };
                [0, 1, 0].into_iter().for_each(|which| swap(&world.handles[which]));
                // Others may have exchanged meanwhile.
                drop(third);
            }
        });
    }
}
