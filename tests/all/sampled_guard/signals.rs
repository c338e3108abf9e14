//! Handlers of the guard's signals that others have set.

use super::{LAYOUT, PAGE, Place, allocates, frees};
use crate::child;
use dogtag::sampled_guard::{SampledGuard, is_guarded};
use std::alloc::Layout;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Whoever had the signals before is called for all that is not in the pool.
#[test]
fn other_handlers_are_called_as_they_asked() {
    const CODE: i32 = 42;

    extern "C" fn with_info(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: reads what the system has passed, and the thread's own mask.
        unsafe {
            let mut mask = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
            let is_right = signal == libc::SIGSEGV
                && (*info).si_addr().addr() == 64
                && libc::sigismember(&mask, libc::SIGUSR1) == 1;
            libc::_exit(if is_right { CODE } else { 1 });
        }
    }

    extern "C" fn without_info(signal: i32) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(if signal == libc::SIGSEGV { CODE } else { 1 }) };
    }

    static PROTECTED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

    extern "C" fn lets_through(_: i32) {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the block's only page.
        unsafe { libc::mprotect(PROTECTED.load(Ordering::Relaxed).cast(), PAGE, access) };
    }

    /// Sends the thread the signal as `sigqueue` does, with what would be an address if it were a fault.
    fn send_with(address: *mut u8) {
        // SAFETY: numbers; the kernel reads the rest, which is as large as it says.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (info.si_signo, info.si_code) = (libc::SIGSEGV, libc::SI_QUEUE);
            (&raw mut info).cast::<*mut u8>().add(2).write(address);
            assert_eq!(info.si_addr(), address.cast());
            let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
            let signal = libc::SIGSEGV;
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, &raw const info);
        }
    }

    fn overflow(depth: u64) -> u64 {
        let large = black_box([depth; 1000]);
        if depth == u64::MAX { 0 } else { overflow(depth + 1) + black_box(large)[7] }
    }

    if let Some(task) = child::task() {
        // SAFETY: sets handlers, and then commits what they are for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaddset(&mut action.sa_mask, libc::SIGUSR1);
            match task.as_str() {
                "info" => {
                    action.sa_sigaction = with_info as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO;
                }
                "plain" => action.sa_sigaction = without_info as *const () as usize,
                "ignored" => action.sa_sigaction = libc::SIG_IGN,
                "barrier" => action.sa_sigaction = lets_through as *const () as usize,
                _ => {}
            }
            if task != "overflow" {
                libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
            }
            SampledGuard::builder().rate(1).per_second(0).start().unwrap();
            match task.as_str() {
                "jump" | "jump after free" => {
                    let block = allocates(Place::Beginning);
                    if task != "jump" {
                        frees(block, LAYOUT, Place::Beginning);
                    }
                    std::mem::transmute::<*mut u8, extern "C" fn()>(block)();
                }
                "sent with an address" => {
                    let block = allocates(Place::Beginning);
                    frees(block, LAYOUT, Place::Beginning);
                    send_with(block);
                }
                "protected" | "barrier" => {
                    let block = black_box(std::alloc::alloc(Layout::from_size_align(PAGE, PAGE).unwrap()));
                    assert!(is_guarded(block));
                    PROTECTED.store(block, Ordering::Relaxed);
                    libc::mprotect(block.cast(), PAGE, libc::PROT_READ);
                    block.write_volatile(1);
                    println!("went on");
                }
                "overflow" => _ = black_box(overflow(0)),
                "sent" => _ = libc::raise(libc::SIGSEGV),
                "ignored" => {
                    libc::raise(libc::SIGSEGV);
                    println!("went on");
                }
                _ => std::ptr::with_exposed_provenance_mut::<u8>(64).write_volatile(1),
            }
        }
        return;
    }
    let test = here!();
    let run = |task| child::run(test, task, "");
    for task in ["info", "plain"] {
        assert_eq!(run(task).status.code(), Some(CODE), "{task}");
    }
    // A jump into a guarded block, and an access to one that the program has protected, are not the guard's.
    for task in ["default", "sent", "sent with an address", "jump", "jump after free", "protected"] {
        let output = run(task);
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{task}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("dogtag: "), "{task}: {output:?}");
    }
    for task in ["ignored", "barrier"] {
        assert!(run(task).status.success(), "{task}");
    }
    let overflown = run("overflow");
    assert!(String::from_utf8_lossy(&overflown.stderr).contains("has overflowed its stack"), "{overflown:?}");
}
