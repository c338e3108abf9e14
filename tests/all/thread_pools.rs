//! Thread pools whose threads run other jobs while they wait: rayon, and a runtime of one thread.

use dogtag::{InServiceExt, Service};
use rayon::prelude::*;
use std::sync::mpsc::sync_channel;

/// Runs a job while the pool's only thread waits in a service, and returns what it made.
fn while_another_waits<T: Send + 'static>(waiting: &Service, job: impl FnOnce() -> T + Send + 'static) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let (sender, results) = sync_channel(1);
    let was_in = pool.install(move || {
        waiting.run(|| {
            rayon::scope(|jobs| {
                jobs.spawn(|_| ());
                rayon::spawn(move || sender.send((Service::current(), job())).unwrap());
            });
            results.try_recv()
        })
    });
    let (service, made) = was_in.expect("the thread ran it while it waited");
    // What the documentation warns of.
    assert_eq!(service, *waiting);
    made
}

#[test]
fn a_job_that_enters_no_service_is_whose_thread_waits() {
    let waiting = Service::register("waiting").unwrap();
    let made = while_another_waits(&waiting, || vec![0_u8; 7777]);
    let before = waiting.usage().bytes();
    drop(made);
    assert_eq!(before - waiting.usage().bytes(), 7777);
}

#[test]
fn a_job_that_enters_its_own_is_charged_to_that() {
    let [waiting, own] = ["waits", "works"].map(|name| Service::register(name).unwrap());
    let service = own.clone();
    let made = while_another_waits(&waiting, move || service.run(|| vec![0_u8; 7777]));
    assert_eq!(own.usage().bytes(), 7777);
    drop(made);
    assert_eq!(own.usage().bytes(), 0);
}

/// Jobs of four services, each waiting for jobs of its own and meanwhile running the others'.
#[test]
fn jobs_that_enter_are_told_apart_however_they_are_stolen() {
    const JOBS: usize = 500;
    let services: Vec<_> = (0..4).map(|i| Service::register(format!("jobs {i}")).unwrap()).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let made: Vec<Vec<_>> = pool.install(|| {
        services
            .par_iter()
            .enumerate()
            .map(|(i, service)| {
                let one = |size: usize| {
                    rayon::join(|| service.run(|| vec![0_u8; size]), || service.run(|| vec![0_u8; i + 1]))
                };
                // What rayon collects into is whoever's; the service is entered in each job.
                (1..=JOBS).into_par_iter().map(one).collect()
            })
            .collect()
    });
    for (i, service) in services.iter().enumerate() {
        let usage = service.usage();
        assert_eq!(usage.bytes(), (JOBS * (JOBS + 1) / 2 + JOBS * (i + 1)) as u64);
        assert_eq!(usage.blocks(), 2 * JOBS as u64);
    }
    drop(made);
    assert!(services.iter().all(|service| service.usage().blocks() == 0));
}

/// A runtime of one thread runs all its tasks where somebody waits for one of them.
#[test]
fn tasks_run_where_their_runtime_is_waited_for() {
    let [waiting, own] = ["blocks on it", "spawned"].map(|name| Service::register(name).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let stray = runtime.spawn(async { (Service::current(), vec![0_u8; 7777]) });
    let entered = runtime.spawn(async { vec![0_u8; 8888] }.in_service(&own));
    let (stray, entered) =
        waiting.run(|| runtime.block_on(async { (stray.await.unwrap(), entered.await.unwrap()) }));
    assert_eq!(stray.0, waiting);
    assert_eq!(own.usage().bytes(), 8888);
    drop((stray, entered));
    assert_eq!(own.usage().bytes(), 0);
}
