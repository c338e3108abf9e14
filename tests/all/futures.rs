//! Futures in services, on a runtime that moves them between threads.

use crate::common::elsewhere;
use dogtag::{InServiceExt, Service};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

#[test]
fn in_service_attributes_every_poll_across_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let services: Vec<Service> = (0..4).map(|i| Service::register(format!("task {i}")).unwrap()).collect();
    let inner = Service::register("inner task").unwrap();

    let kept: Vec<(usize, Vec<Box<[u8; 100]>>)> = runtime.block_on(async {
        let tasks: Vec<_> = (0..200)
            .map(|task| {
                let inner = inner.clone();
                let work = async move {
                    // Boxed where the vector is, and nothing else allocates.
                    let mut boxes = Vec::with_capacity(20);
                    for _ in 0..20 {
                        boxes.push(Box::new([task as u8; 100]));
                        elsewhere().await;
                        let nested = async {
                            elsewhere().await;
                            drop(std::hint::black_box(Box::new([0_u8; 7])));
                        };
                        nested.in_service(&inner).await;
                    }
                    (task % 4, boxes)
                };
                tokio::spawn(work.in_service(&services[task % 4]))
            })
            .collect();
        let mut kept = Vec::new();
        for task in tasks {
            kept.push(task.await.unwrap());
        }
        kept
    });
    assert_eq!(Service::current(), Service::unattributed());
    for service in &services {
        let usage = service.usage();
        assert_eq!(usage.bytes(), 50 * (20 * 100 + 20 * 8), "{service:?}");
    }
    let usage = inner.usage();
    assert!(usage.allocated_bytes >= 200 * 20 * 7 && usage.bytes() == 0, "{usage:?}");
    drop(kept);
    for service in &services {
        assert_eq!(service.usage().blocks(), 0);
    }
}

/// Allocates when it is dropped.
struct Noisy(Service);

impl Drop for Noisy {
    fn drop(&mut self) {
        assert_eq!(Service::current(), self.0, "dropped in another service");
        drop(std::hint::black_box(Box::new([0_u8; 64])));
    }
}

impl Future for Noisy {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        assert_eq!(Service::current(), self.0, "polled in another service");
        Poll::Pending
    }
}

#[test]
fn in_service_drops_a_future_in_its_service() {
    let service = Service::register("cancelled").unwrap();
    let mut context = Context::from_waker(Waker::noop());

    // Cancelled after a poll, and before any.
    let mut future = Box::pin(Noisy(service.clone()).in_service(&service));
    assert!(future.as_mut().poll(&mut context).is_pending());
    assert_eq!(future.service(), &service);
    drop(future);
    drop(Noisy(service.clone()).in_service(&service));
    let usage = service.usage();
    assert_eq!((usage.allocated_bytes, usage.bytes()), (128, 0));

    // When the task that owns it is aborted, on the runtime's thread.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let task = runtime.spawn(Noisy(service.clone()).in_service(&service));
    task.abort();
    assert!(runtime.block_on(task).unwrap_err().is_cancelled());
    assert_eq!(service.usage().allocated_bytes - usage.allocated_bytes, 64);
}

#[test]
fn in_service_leaves_the_service_by_a_panic() {
    let service = Service::register("panics").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let caught = std::panic::catch_unwind(|| {
        runtime.block_on(async { std::panic::resume_unwind(Box::new("on purpose")) }.in_service(&service))
    });
    let caught: Result<(), _> = caught;
    assert!(caught.is_err());
    assert_eq!(Service::current(), Service::unattributed());
}
