//! On stacks that are not the thread's own, and with registers that say nothing.

use super::*;
use std::arch::global_asm;

global_asm!(
    // On another stack, calls a function; with unwind tables.
    ".globl dogtag_test_switch",
    ".hidden dogtag_test_switch",
    ".type dogtag_test_switch, @function",
    "dogtag_test_switch:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsp, rdi",
    "mov rdi, rdx",
    "call rsi",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size dogtag_test_switch, . - dogtag_test_switch",
    // Calls a function with anything in the frame pointer; without unwind tables.
    ".globl dogtag_test_garbage",
    ".hidden dogtag_test_garbage",
    ".type dogtag_test_garbage, @function",
    "dogtag_test_garbage:",
    "push rbp",
    "push r12",
    "push r13",
    "sub rsp, 48",
    "mov rbp, rdi",
    "mov rdi, rdx",
    "call rsi",
    "add rsp, 48",
    "pop r13",
    "pop r12",
    "pop rbp",
    "ret",
    ".size dogtag_test_garbage, . - dogtag_test_garbage",
);

type Callback = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn dogtag_test_switch(stack: *mut c_void, call: Callback, argument: *mut c_void);
    fn dogtag_test_garbage(frame_pointer: usize, call: Callback, argument: *mut c_void);
}

/// Calls a closure by way of C's calling convention.
fn through(call: impl FnOnce(Callback, *mut c_void), closure: &mut dyn FnMut()) {
    extern "C" fn callback(argument: *mut c_void) {
        // SAFETY: what is passed on below, while it is borrowed.
        let closure = unsafe { &mut *argument.cast::<&mut dyn FnMut()>() };
        closure();
    }
    let mut closure = closure;
    call(callback, (&raw mut closure).cast());
}

/// Pages, with one that cannot be read below and another above.
struct Stack {
    start: *mut c_void,
    length: usize,
}

impl Stack {
    fn new(pages: usize) -> Self {
        let length = (pages + 2) * 4096;
        // SAFETY: new pages.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: in the mapping.
        let readable = unsafe {
            libc::mprotect(start.byte_add(4096), length - 8192, libc::PROT_READ | libc::PROT_WRITE)
        };
        assert_eq!(readable, 0);
        Self { start, length }
    }

    fn top(&self) -> *mut c_void {
        self.start.wrapping_byte_add(self.length - 4096)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody is on it.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

#[test]
fn a_coroutines_stack_goes_on_at_whoever_runs_it() {
    prepare();
    std::thread::spawn(|| {
        let stack = Stack::new(64);
        // Often, since a thread looks for its own stack some times only.
        for _ in 0..10 {
            let mut both = Both::default();
            // SAFETY: switches to the stack and back.
            let switch =
                |call: Callback, argument| unsafe { dogtag_test_switch(stack.top(), call, argument) };
            through(switch, &mut || both = Both::take());
            both.assert_same();
            Both::take().assert_same();
        }
    })
    .join()
    .unwrap();
}

#[test]
fn a_handler_on_a_stack_of_its_own_has_what_was_interrupted() {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handle(_: c_int) {
        // `raise` interrupts a thread that has no lock, so this may allocate.
        TAKEN.store(Box::into_raw(Box::new(Both::take())).expose_provenance(), Ordering::Relaxed);
    }

    prepare();
    std::thread::spawn(|| {
        let pages = Stack::new(64);
        let stack = libc::stack_t {
            ss_sp: pages.start.wrapping_byte_add(4096),
            ss_flags: 0,
            ss_size: pages.length - 8192,
        };
        // SAFETY: the stack is there until the thread ends, which has no signal then.
        unsafe {
            let mut before = std::mem::zeroed();
            assert_eq!(libc::sigaltstack(&stack, &mut before), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as extern "C" fn(c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGUSR2, &action, ptr::null_mut()), 0);
            for _ in 0..10 {
                libc::raise(libc::SIGUSR2);
                let taken = ptr::with_exposed_provenance_mut::<Both>(TAKEN.swap(0, Ordering::Relaxed));
                let both = Box::from_raw(taken);
                both.assert_same();
                let names = names(&both.ours);
                assert!(
                    names.iter().any(|name| name.contains("a_handler_on_a_stack_of_its_own")),
                    "{names:#?}"
                );
            }
            assert_eq!(libc::sigaltstack(&before, ptr::null_mut()), 0);
        }
    })
    .join()
    .unwrap();
}

#[test]
fn a_thread_with_a_small_stack_that_the_program_gave_it() {
    extern "C" fn run(argument: *mut c_void) -> *mut c_void {
        // SAFETY: the place below.
        unsafe { *argument.cast::<Both>() = Both::take() };
        ptr::null_mut()
    }

    prepare();
    let stack = Stack::new(16);
    let mut both = Both::default();
    // SAFETY: as the manual says.
    unsafe {
        let mut attributes = std::mem::zeroed();
        libc::pthread_attr_init(&mut attributes);
        assert_eq!(
            libc::pthread_attr_setstack(&mut attributes, stack.start.byte_add(4096), stack.length - 8192),
            0
        );
        let mut thread = 0;
        assert_eq!(libc::pthread_create(&mut thread, &attributes, run, (&raw mut both).cast()), 0);
        libc::pthread_join(thread, ptr::null_mut());
        libc::pthread_attr_destroy(&mut attributes);
    }
    both.assert_same();
}

/// Whatever the frame pointer has in code without tables: the stack ends, or goes on where it points to.
#[test]
fn garbage_in_the_frame_pointer_ends_the_stack() {
    prepare();
    let stack = Stack::new(4);
    let (top, guard) = (stack.top().addr(), stack.start.addr());
    let local = 0_usize;
    let here = ptr::from_ref(&local).addr();
    let mut values = vec![0, 1, 7, 8, 4096, usize::MAX, usize::MAX - 7, usize::MAX - 15, 1 << 47, 1 << 63];
    for near in
        [top, guard, guard + 4096, here, here + 4096, here / 4096 * 4096, names as fn(&[usize]) -> _ as usize]
    {
        values.extend((0..6).flat_map(|words| [near + words * 8, near - words * 8, near + words]));
    }
    // Each place in the stack, in which there are frames' addresses as well.
    values.extend((0..600).map(|words| here - 1200 + words * 8));
    let mut taken = 0;
    for value in values {
        let mut frames = [0; 64];
        let mut count = 0;
        // SAFETY: calls the function.
        let call = |call: Callback, argument| unsafe { dogtag_test_garbage(value, call, argument) };
        through(call, &mut || count = innermost(&mut frames));
        // Up to the code without tables: the function here, the closure, the callback.
        assert!(count >= 3, "{count} frames with {value:#x}");
        taken += count;
    }
    black_box(taken);
}

/// A coroutine's first frame, with nothing above it but a page that cannot be read.
#[test]
fn a_stack_that_ends_at_an_unreadable_page_is_not_left() {
    prepare();
    let stack = Stack::new(16);
    for below in 0..64 {
        let mut frames = [0; 64];
        let mut count = 0;
        let top = stack.top().wrapping_byte_sub(below * 16);
        let inner = |call: Callback, argument| {
            // SAFETY: calls the function.
            unsafe { dogtag_test_garbage(top.addr() - 16, call, argument) }
        };
        // SAFETY: switches to the stack and back.
        let switch = |call: Callback, argument| unsafe { dogtag_test_switch(top, call, argument) };
        through(switch, &mut || through(inner, &mut || count = innermost(&mut frames)));
        assert!(count >= 3);
    }
}
