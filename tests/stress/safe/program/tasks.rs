//! Futures in services, which are polled by turns, or given up.

use super::*;

impl Actor<'_> {
    pub(super) fn new_task(&mut self, one: u8, other: u8) {
        let world = self.world;
        let Some(known) = aside(|| world.pick(one)) else { return };
        let service = known.service.clone();
        let inner = aside(|| world.pick(other));
        let is_last = other % 4;
        let work = async move {
            known.check();
            let block = black_box(vec![one; 1000]);
            Yield(false).await;
            let name = Service::current();
            assert_eq!(name, known.service);
            if let Some(inner) = inner {
                let service = inner.service.clone();
                async move {
                    inner.check();
                    Yield(false).await;
                    drop(black_box(vec![0_u8; 300]));
                }
                .in_service(&service)
                .await;
            }
            match is_last {
                0 => resume_unwind(Box::new(known)),
                1 => Yield(false).await,
                _ => {}
            }
            drop(block);
        };
        aside(|| {
            let task = Box::pin(work.in_service(&service));
            let mut tasks = lock(&world.tasks);
            tasks.push(task);
            let former = (tasks.len() > MOST).then(|| tasks.swap_remove(0));
            drop(tasks);
            caught(|| drop(former));
        });
        drop(service);
    }
}

/// Not at once.
struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}
