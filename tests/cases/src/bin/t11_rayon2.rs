//! Two services share a rayon pool; a thread that waits within one takes the other's job.
use dogtag::Service;
#[global_allocator]
static A: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    let inner = std::env::args().nth(1).as_deref() == Some("inner");
    let (a, b) = (Service::register("a").unwrap(), Service::register("b").unwrap());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    // one worker: a's job waits for its own sub-job by join, while b's job was spawned before
    let (tx, rx) = std::sync::mpsc::channel::<Vec<u8>>();
    let (a1, b1) = (a.clone(), b.clone());
    pool.install(|| {
        a1.run(|| {
            rayon::scope(|s| {
                let b2 = b1.clone();
                let tx = tx.clone();
                s.spawn(|_| {
                    std::hint::black_box(vec![0u8; 10]);
                });
                // somebody else's job: not of this scope in spirit, but in this pool
                rayon::spawn(move || {
                    let v = if inner { b2.run(|| vec![0u8; 7777]) } else { vec![0u8; 7777] };
                    tx.send(v).unwrap();
                });
            });
        });
        // the waiting thread may have run it already, in a
        while let Some(rayon::Yield::Executed) = rayon::yield_now() {}
    });
    let v = rx.recv().unwrap();
    println!("inner scope {inner}: a {} b {}", a.usage().bytes(), b.usage().bytes());
    drop(v);
}
