use super::{capture, prepare, refresh_if_needed};
use std::ffi::{CString, c_int, c_void};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

mod foreign;
mod libraries;

/// A call stack as dogtag and as libgcc take it, at one place.
#[derive(Clone, Default)]
struct Both {
    ours: Vec<usize>,
    libgccs: Vec<usize>,
}

impl Both {
    /// Both begin with this function, at different places in it.
    #[inline(never)]
    fn take() -> Self {
        let mut ours = vec![0; 200];
        let mut libgccs = Vec::with_capacity(250);
        let count = capture(&mut ours);
        ours.truncate(count);
        // SAFETY: looks up no names.
        unsafe {
            backtrace::trace_unsynchronized(|frame| {
                libgccs.push(frame.ip() as usize);
                libgccs.len() < 240
            });
        }
        // It tells of the end, too.
        libgccs.retain(|ip| *ip != 0);
        black_box(Self { ours, libgccs })
    }

    /// Both say the same. Where a signal interrupted the thread, ours is one more.
    #[track_caller]
    fn assert_same(&self) {
        let callers = &self.ours[1..];
        assert!(!callers.is_empty(), "no stack: {:x?}, libgcc has {:x?}", self.ours, self.libgccs);
        let from = self.libgccs.iter().position(|ip| *ip == callers[0]);
        let from = from.unwrap_or_else(|| panic!("{:x?} is not in {:x?}", callers, self.libgccs));
        let theirs = &self.libgccs[from..];
        let same = callers.len() == theirs.len()
            && callers.iter().zip(theirs).all(|(ours, theirs)| *ours == *theirs || *ours == theirs + 1);
        let inexact = callers.iter().zip(theirs).filter(|(ours, theirs)| ours != theirs).count();
        assert!(same && inexact <= 1, "ours: {callers:x?}\nlibgcc's: {theirs:x?}\n{:#?}", names(callers));
    }

    /// How many of the innermost frames both have alike, from the caller of [`Both::take`] on.
    fn common(&self) -> usize {
        let callers = &self.ours[1..];
        let Some(from) = self.libgccs.iter().position(|ip| callers.first() == Some(ip)) else { return 0 };
        callers.iter().zip(&self.libgccs[from..]).take_while(|(ours, theirs)| ours == theirs).count()
    }
}

/// The functions of a stack.
fn names(frames: &[usize]) -> Vec<String> {
    let mut names = Vec::new();
    for frame in frames {
        backtrace::resolve((frame - 1) as *mut c_void, |symbol| {
            names.push(symbol.name().map_or_else(String::new, |name| format!("{name:#}")));
        });
    }
    names
}

#[inline(never)]
fn innermost(frames: &mut [usize]) -> usize {
    let count = capture(frames);
    black_box(count)
}

#[inline(never)]
fn middle(frames: &mut [usize], local: [u64; 20]) -> usize {
    let count = innermost(frames);
    black_box(local);
    black_box(count)
}

#[inline(never)]
fn outermost(frames: &mut [usize]) -> usize {
    let count = middle(frames, black_box([1; 20]));
    black_box(count)
}

#[test]
fn a_stack_has_the_functions_in_order() {
    prepare();
    let mut frames = [0; 64];
    let count = outermost(&mut frames);
    let names = names(&frames[..count]);
    // Inlined functions of this module stand before them.
    let names: Vec<_> = names.into_iter().skip_while(|name| name.ends_with("capture")).collect();
    let own = ["innermost", "middle", "outermost", "a_stack_has_the_functions_in_order"];
    let mut rest = names.iter();
    assert!(names[0].ends_with("tests::innermost"), "{names:#?}");
    for own in own {
        assert!(rest.any(|name| name.ends_with(own)), "no {own} in its place: {names:#?}");
    }
}

#[test]
fn a_deep_stack_is_cut_at_the_length_of_the_buffer() {
    #[inline(never)]
    fn recurse(depth: usize, frames: &mut [usize]) -> usize {
        let count = if depth == 0 { capture(frames) } else { recurse(depth - 1, frames) };
        black_box(count)
    }
    prepare();
    let mut frames = [0; 100];
    for length in [0, 1, 2, 64, 99] {
        frames.fill(usize::MAX);
        assert_eq!(recurse(5000, &mut frames[..length]), length);
        assert!(frames[..length].iter().all(|frame| *frame != usize::MAX));
        assert!(frames[length..].iter().all(|frame| *frame == usize::MAX));
    }
    let names = names(&frames[..20]);
    assert!(names.iter().filter(|name| name.ends_with("recurse")).count() >= 19, "{names:#?}");
}

/// Through inlined functions, closures, the C library, and large frames.
fn through_much() -> Both {
    #[inline(never)]
    fn large() -> Both {
        let large = black_box([1_u8; 200_000]);
        let both = Both::take();
        black_box(&large);
        both
    }

    extern "C" fn compare(_: *const c_void, _: *const c_void) -> c_int {
        let both = large();
        FOUND.with(|found| found.replace(both));
        0
    }

    thread_local! {
        static FOUND: std::cell::RefCell<Both> = const { std::cell::RefCell::new(Both { ours: Vec::new(), libgccs: Vec::new() }) };
    }

    let mut values = [2_u32, 1];
    let mut compared = 0;
    [3, 2, 1].sort_by(|a: &i32, b| {
        compared += 1;
        if compared == 1 {
            // SAFETY: sorts two numbers.
            unsafe { libc::qsort(values.as_mut_ptr().cast(), 2, 4, Some(compare)) };
        }
        a.cmp(b)
    });
    FOUND.take()
}

#[test]
fn stacks_are_those_of_libgcc() {
    prepare();
    Both::take().assert_same();
    through_much().assert_same();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    Both::take().assert_same();
                    through_much().assert_same();
                }
            });
        }
    });
}

#[test]
fn a_thread_that_ends_has_a_stack() {
    struct AtEnd(&'static std::sync::Mutex<Both>);
    impl Drop for AtEnd {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = Both::take();
        }
    }
    thread_local!(static AT_END: std::cell::RefCell<Option<AtEnd>> = const { std::cell::RefCell::new(None) });

    prepare();
    let taken: &'static _ = Box::leak(Box::new(std::sync::Mutex::new(Both::default())));
    std::thread::spawn(move || AT_END.with(|at_end| *at_end.borrow_mut() = Some(AtEnd(taken))))
        .join()
        .unwrap();
    taken.lock().unwrap().assert_same();
}

#[test]
fn taking_a_stack_leaves_errno_alone() {
    prepare();
    std::thread::spawn(|| {
        // SAFETY: the thread's own.
        let errno = unsafe { &mut *libc::__errno_location() };
        *errno = 77;
        black_box(innermost(&mut [0; 64]));
        assert_eq!(*errno, 77);
    })
    .join()
    .unwrap();
}

#[test]
fn signals_may_come_while_a_stack_is_taken() {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handle(_: c_int) {
        let mut frames = [0; 64];
        TAKEN.fetch_add(usize::from(capture(&mut frames) > 3), Ordering::Relaxed);
    }

    prepare();
    // SAFETY: the handler does what is safe in one.
    unsafe { libc::signal(libc::SIGUSR1, handle as extern "C" fn(c_int) as usize) };
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let worker = scope.spawn(move || {
            // SAFETY: asks who it is.
            sender.send(unsafe { libc::pthread_self() }).unwrap();
            let mut frames = [0; 64];
            let expected = outermost(&mut frames);
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(outermost(&mut frames), expected);
            }
        });
        let thread = receiver.recv().unwrap();
        while TAKEN.load(Ordering::Relaxed) < 2000 && !worker.is_finished() {
            // SAFETY: the thread ends later.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(TAKEN.load(Ordering::Relaxed) >= 2000);
}
