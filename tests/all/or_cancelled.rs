//! Futures whose services are cancelled: they are woken wherever they wait, and let go.

use crate::watch;
use dogtag::guard::OrCancelled;
use dogtag::{InServiceExt, Service};
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

/// Counts how often it is woken.
#[derive(Default)]
pub struct Counter(pub AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

pub fn poll<F: Future>(future: Pin<&mut F>, counter: &Arc<Counter>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(counter))))
}

#[test]
fn who_waits_is_woken_and_lets_go_in_its_service() {
    struct Says(Arc<AtomicUsize>, Service);

    impl Drop for Says {
        fn drop(&mut self) {
            assert_eq!(Service::current(), self.1);
            self.0.fetch_add(1, SeqCst);
        }
    }

    let query = register("waits for ever");
    let (dropped, counter) = (Arc::new(AtomicUsize::new(0)), Arc::new(Counter::default()));
    let says = Says(Arc::clone(&dropped), query.clone());
    let waits = async move {
        let _says = says;
        let rows = black_box(vec![0_u8; 10_000]);
        std::future::pending::<()>().await;
        drop(rows);
    };
    let mut future = Box::pin(waits.in_service(&query).or_cancelled());
    // Of the tasks that it was polled by, the last one is woken.
    let former = Arc::new(Counter::default());
    for counter in [&former, &counter, &former, &counter] {
        assert!(poll(future.as_mut(), counter).is_pending());
    }
    assert_eq!(query.usage().bytes(), 10_000);
    assert_eq!(counter.0.load(SeqCst), 0);
    query.cancel("the client is gone");
    assert_eq!((counter.0.load(SeqCst), former.0.load(SeqCst), dropped.load(SeqCst)), (1, 0, 0));
    let Poll::Ready(Err(error)) = poll(future.as_mut(), &counter) else { panic!("it goes on") };
    assert_eq!(error.usage.bytes(), 10_000, "{error}");
    assert_eq!(
        error.to_string(),
        "service \"waits for ever\" is cancelled, and holds 9.8 KiB: the client is gone"
    );
    assert_eq!((query.usage().bytes(), dropped.load(SeqCst)), (0, 1));
    // Nobody keeps the waker.
    assert_eq!(Arc::strong_count(&counter), 1);
}

#[test]
fn futures_that_end_are_as_without() {
    let query = register("goes on");
    let counter = Arc::new(Counter::default());
    let mut steps = 0;
    let steps = poll_fn(|_| {
        steps += 1;
        if steps < 3 { Poll::Pending } else { Poll::Ready(steps) }
    });
    let mut future = pin!(steps.in_service(&query).or_cancelled());
    assert_eq!(future.service(), &query);
    assert_eq!(
        [(); 3].map(|()| poll(future.as_mut(), &counter)),
        [Poll::Pending, Poll::Pending, Poll::Ready(Ok(3))]
    );
    assert_eq!(Arc::strong_count(&counter), 1);
    query.cancel("too late");
    assert_eq!(counter.0.load(SeqCst), 0, "it was ready before");
    // Who is not polled any more is not woken either.
    let given_up = Service::register("given up").unwrap();
    let mut future = Box::pin(std::future::pending::<()>().in_service(&given_up).or_cancelled());
    assert!(poll(future.as_mut(), &counter).is_pending());
    drop(future);
    assert_eq!(Arc::strong_count(&counter), 1);
    given_up.cancel("nobody hears it");
    assert_eq!(counter.0.load(SeqCst), 0);
    // One that is cancelled already does nothing.
    let mut future = pin!(async { unreachable!("it was polled") }.in_service(&given_up).or_cancelled());
    assert!(matches!(poll::<OrCancelled<_>>(future.as_mut(), &counter), Poll::Ready(Err::<(), _>(_))));
}

/// In its own poll: by itself, and so that the future is ready all the same.
#[test]
fn a_future_that_cancels_its_own_service_is_woken_or_ready() {
    let (first, second) = (register("cancels itself"), register("cancels itself and is ready"));
    let counter = Arc::new(Counter::default());
    let waits = poll_fn(|_| {
        first.cancel("by itself");
        Poll::<()>::Pending
    });
    let mut future = pin!(waits.in_service(&first).or_cancelled());
    assert!(poll(future.as_mut(), &counter).is_pending());
    assert_eq!(counter.0.load(SeqCst), 1);
    assert!(matches!(poll(future.as_mut(), &counter), Poll::Ready(Err(_))));
    let ready = poll_fn(|_| {
        second.cancel("by itself");
        Poll::Ready(7)
    });
    let mut future = pin!(ready.in_service(&second).or_cancelled());
    assert_eq!(poll(future.as_mut(), &counter), Poll::Ready(Ok(7)));
}

/// A waker's panic is its executor's.
#[test]
fn a_waker_that_panics_keeps_no_other_from_being_woken() {
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("on purpose");
        }
    }

    let query = register("wakes somebody who panics");
    let counter = Arc::new(Counter::default());
    let futures =
        || (0..10).map(|_| Box::pin(std::future::pending::<()>().in_service(&query).or_cancelled()));
    let (mut bad, mut good) = (futures().collect::<Vec<_>>(), futures().collect::<Vec<_>>());
    for (bad, good) in bad.iter_mut().zip(&mut good) {
        assert!(bad.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Panics)))).is_pending());
        assert!(poll(good.as_mut(), &counter).is_pending());
    }
    assert!(query.cancel("all of them"));
    assert_eq!(counter.0.load(SeqCst), 10);
}

#[test]
fn tasks_of_a_runtime_end_wherever_they_wait() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let query = register("query on a runtime");
    let tasks: Vec<_> = (0..100)
        .map(|task| {
            let service = if task % 2 == 0 {
                query.clone()
            } else {
                Service::builder(format!("stage {task}")).parent(&query).register().unwrap()
            };
            let work = async move {
                let rows = vec![0_u8; 1000];
                match task % 4 {
                    0 => std::future::pending().await,
                    1 => tokio::sync::Notify::new().notified().await,
                    2 => tokio::time::sleep(std::time::Duration::MAX).await,
                    _ => loop {
                        tokio::task::yield_now().await;
                    },
                }
                drop(rows);
            };
            runtime.spawn(work.in_service(&service).or_cancelled())
        })
        .collect();
    watch::eventually(|| match query.usage_with_children().blocks() {
        blocks if blocks >= 100 => Ok(()),
        blocks => Err(format!("{blocks} blocks")),
    });
    query.cancel("over");
    for task in tasks {
        assert_eq!(runtime.block_on(task).unwrap().unwrap_err().reason.to_string(), "over");
    }
    // With what its threads have for themselves.
    drop(runtime);
    watch::eventually(|| match query.usage_with_children() {
        usage if usage.bytes() == 0 => Ok(()),
        usage => Err(format!("{usage:?}")),
    });
}
