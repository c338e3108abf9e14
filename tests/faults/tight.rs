//! Random programs of a process that the system gives no more memory: its address space is
//! used up (`ulimit -v`), or the system promises no more than it has (strict overcommit, here
//! by a filter of system calls).
//!
//! Of threads that have begun before: jemalloc does not survive it if there is no memory
//! for a new thread's arena.

use crate::ALLOC;
use crate::backend::Plan;
use crate::child::watch;
use crate::programs::{Program, check, free, services};
use crate::random::{Random, seed};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};

const THREADS: u64 = 3;
const STEPS: usize = 30_000;

/// More than have their cells in one chunk, so that threads need more of them.
const SERVICES: usize = 700;

#[test]
fn an_address_space_that_is_used_up_ends_nothing() {
    alone!();
    goes_on(|| limit_address_space(watch::memory().mapped as libc::rlim_t), || {});
}

#[test]
fn strict_overcommit_ends_nothing() {
    alone!();
    goes_on(|| {}, promise_no_more);
}

/// Has threads run random programs after `close`, and `close_each` on each of them, had the
/// system refuse them memory.
fn goes_on(close: impl FnOnce(), close_each: impl Fn() + Sync) {
    let seed = seed();
    let services = services("tight", SERVICES);
    let post = Mutex::new(Vec::with_capacity(1_000_000));
    let (begun, closed, done) = (
        Barrier::new(THREADS as usize + 1),
        Barrier::new(THREADS as usize + 1),
        Barrier::new(THREADS as usize + 1),
    );
    let nulls = AtomicU64::new(0);
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let (services, post, nulls) = (&services, &post, &nulls);
            let (begun, closed, done, close_each) = (&begun, &closed, &done, &close_each);
            threads.spawn(move || {
                let random = Random::nth(seed, thread);
                let mut program = Program::new(&ALLOC, services, post, random, false);
                begun.wait();
                closed.wait();
                close_each();
                for _ in 0..STEPS {
                    program.step(Plan::None);
                }
                nulls.fetch_add(program.nulls, SeqCst);
                done.wait();
                program.end();
            });
        }
        begun.wait();
        close();
        closed.wait();
        done.wait();
        limit_address_space(libc::RLIM_INFINITY);
    });
    check(&services);
    println!("{} steps, {} refused", THREADS as usize * STEPS, nulls.load(SeqCst));
    // The system's own allocator has addresses in store.
    assert!(nulls.load(SeqCst) > 100 || !cfg!(feature = "jemalloc"), "there was memory");
    post.lock().unwrap().drain(..).for_each(|block| free(block, Plan::None));
    check(&services);
    assert!(services.iter().all(|(service, _)| service.usage().blocks() == 0));
}

pub fn limit_address_space(bytes: libc::rlim_t) {
    // SAFETY: the limits are read and written whole.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &raw mut limit), 0);
        limit.rlim_cur = bytes.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const limit), 0);
    }
}

/// From now on the calling thread gets no pages that it may write to and share with nobody,
/// which are what the system has to promise.
fn promise_no_more() {
    /// An instruction of the filter: what to do, with what, and how many to leave out if
    /// so and if not.
    const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const HAS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// Where the number of the call stands, and the lower halves of its arguments.
    const NUMBER: u32 = 0;
    const PROTECTION: u32 = 16 + 8 * 2;
    const FLAGS: u32 = 16 + 8 * 3;

    let mut filter = [
        instruction(LOAD, NUMBER, 0, 0),
        instruction(IS, libc::SYS_brk as u32, 8, 0),
        instruction(IS, libc::SYS_mprotect as u32, 3, 0),
        instruction(IS, libc::SYS_mmap as u32, 0, 4),
        instruction(LOAD, FLAGS, 0, 0),
        instruction(HAS, libc::MAP_PRIVATE as u32, 0, 2),
        instruction(LOAD, PROTECTION, 0, 0),
        instruction(HAS, libc::PROT_WRITE as u32, 1, 0),
        instruction(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        instruction(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32, 0, 0),
        // That call has no errors: it tells another end of the heap than the wanted one.
        instruction(RETURN, libc::SECCOMP_RET_ERRNO, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter is read while this runs.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
    #[cfg(target_os = "linux")]
    {
        use dogtag_mapped::{MapError, MappedRegion};
        let refused = MappedRegion::anonymous(1 << 20).unwrap_err();
        assert!(
            matches!(refused, MapError::OutOfMemory { len, source: Some(_) } if len == 1 << 20),
            "{refused}"
        );
    }
}
