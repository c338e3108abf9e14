//! Faults: one handler of `SIGSEGV` and `SIGBUS` for all modules that take the access to pages away. It tells
//! their faults from all others, which go to whoever had the signal before.
//!
//! The handler takes no lock, allocates nothing, and needs little stack: it may be on a small one of its own
//! (`sigaltstack`), which a stack overflow needs.

use crate::registered::Registered;
use crate::sync::{AtomicBool, AtomicUsize, Ordering};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

/// What a module does about faults, which may be in pages of its own.
pub(crate) struct FaultHook {
    /// Called inside the signal handler.
    pub(crate) handle: fn(&Fault) -> Outcome,
}

/// An access that a page did not grant.
pub(crate) struct Fault {
    pub(crate) address: usize,
    pub(crate) access: Access,
    /// The registers of the thread, as a signal handler is given them.
    pub(crate) context: *mut c_void,
}

/// What the program did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))),
    allow(dead_code)
)]
pub(crate) enum Access {
    Read,
    Write,
    /// One of both: not every system tells.
    #[cfg_attr(target_arch = "x86_64", allow(dead_code))]
    Either,
}

/// What was done about a fault.
pub(crate) enum Outcome {
    /// The program may try again.
    TryAgain,
    /// It was told of, but the system refuses to let the program go on.
    Told,
    /// It is not the module's.
    Nothing,
}

static HOOKS: Registered<FaultHook> = Registered::new();

/// What was done about a signal before. Written before the handler is there, and never again.
struct Former(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: see `Former`.
unsafe impl Sync for Former {}

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// How often the handler may be set: each time it is a function of its own, so that a handler between them, which calls
/// the one that it has replaced, comes to an end.
const TIMES: usize = if cfg!(feature = "memory-check") { 2 } else { 1 };
static FORMER: [[Former; 2]; TIMES] =
    [const { [const { Former(UnsafeCell::new(MaybeUninit::zeroed())) }; 2] }; TIMES];

/// Registers a module's hook. Sets the handler, the first time. Takes no lock and allocates
/// nothing. Where another thread is setting the handler at this moment, it may not be there yet.
pub(crate) fn register_fault_hook(hook: &'static FaultHook) {
    static IS_SET: AtomicBool = AtomicBool::new(false);

    HOOKS.add(hook);
    if !IS_SET.swap(true, Ordering::AcqRel) {
        install::<0>();
    }
}

/// Sets the handler once more, if the program has set another one since, which is called for all that is no module's
/// from then on. The first time that this is called.
#[cfg(feature = "memory-check")]
pub(crate) fn install_again() {
    static WAS_ASKED: AtomicBool = AtomicBool::new(false);

    if !WAS_ASKED.load(Ordering::Relaxed) && !WAS_ASKED.swap(true, Ordering::AcqRel) && !is_installed() {
        install::<1>();
    }
}

fn install<const TIME: usize>() {
    for (signal, former) in SIGNALS.into_iter().zip(&FORMER[TIME]) {
        // SAFETY: all zeros are a valid action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler::<TIME> as *const () as usize;
        // SAFETY: `action` is ours; `former` is read by the handler only, which is not there yet.
        unsafe {
            libc::sigaction(signal, ptr::null(), (*former.0.get()).as_mut_ptr());
            // As the former handler had them, which is called on this stack.
            let former = (*former.0.get()).assume_init_ref();
            let flags = match former.sa_sigaction {
                libc::SIG_DFL | libc::SIG_IGN => libc::SA_ONSTACK,
                _ => former.sa_flags & (libc::SA_NODEFER | libc::SA_ONSTACK | libc::SA_RESTART),
            };
            action.sa_flags = libc::SA_SIGINFO | flags;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

/// Whether the handler is there, and nobody has set another one since.
#[cfg(feature = "memory-check")]
pub(crate) fn is_installed() -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: `action` is a place for the result, and read only if it was filled.
    unsafe {
        libc::sigaction(SIGNALS[0], ptr::null(), action.as_mut_ptr()) == 0
            && [handler::<0> as *const () as usize, handler::<1> as *const () as usize]
                .contains(&action.assume_init_ref().sa_sigaction)
    }
}

extern "C-unwind" fn handler<const TIME: usize>(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    // SAFETY: the system's; of signals that a fault has, the address is there.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let errno = Errno::save();
    let done = if denies_access(signal, code) { ask_hooks(address, context) } else { Outcome::Nothing };
    match done {
        Outcome::TryAgain => {}
        Outcome::Told => take_default(signal, info),
        Outcome::Nothing => pass_on(&FORMER[TIME], signal, info, context),
    }
    errno.restore();
}

/// Asks each module whose page it is.
fn ask_hooks(address: usize, context: *mut c_void) -> Outcome {
    // SAFETY: what the system has passed to the handler.
    let Some(access) = (unsafe { access(context) }) else { return Outcome::Nothing };
    let fault = Fault { address, access, context };
    let mut done = HOOKS.iter().map(|hook| (hook.handle)(&fault));
    done.find(|done| !matches!(done, Outcome::Nothing)).unwrap_or(Outcome::Nothing)
}

/// Whether a signal may be of an access that pages do not grant. Those of memory that cannot be had, such as one
/// that the system cannot swap in, are not: opening a page does not help there.
fn denies_access(signal: c_int, code: c_int) -> bool {
    /// `SEGV_ACCERR`
    const NO_ACCESS: c_int = 2;

    if cfg!(target_os = "linux") { signal == libc::SIGSEGV && code == NO_ACCESS } else { code > 0 }
}

/// Whether a thread may try an access again that nothing seems to forbid, since that may have changed meanwhile.
/// Not twice in a row: then the program has protected the page itself, or cannot use it so. `turn` is another one whenever
/// pages may have lost their access since: threads and addresses are used again.
pub(crate) fn may_try_again(address: usize, turn: usize) -> bool {
    const PLACES: usize = 256;
    /// Each thread's last attempt. Threads that share a place may try more often.
    static LAST: [AtomicUsize; PLACES] = [const { AtomicUsize::new(0) }; PLACES];

    // SAFETY: asks for a number, and has no preconditions.
    let thread = unsafe { libc::pthread_self() as usize };
    // What differs between threads is above a page; 2^64 by the golden ratio mixes it.
    let place = ((thread as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize % PLACES;
    let attempt = thread.rotate_left(32) ^ address ^ turn.rotate_right(12);
    LAST[place].swap(attempt, Ordering::Relaxed) != attempt
}

/// Calls the former handler, or does what the system does without one.
fn pass_on(former: &[Former; 2], signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(place) = SIGNALS.iter().position(|&known| known == signal) else { return };
    // SAFETY: written before this handler was set.
    let former = unsafe { (*former[place].0.get()).assume_init_ref() };
    match former.sa_sigaction {
        libc::SIG_DFL => take_default(signal, info),
        // A fault cannot be ignored; what was sent by somebody can.
        // SAFETY: the system's.
        libc::SIG_IGN if unsafe { (*info).si_code } > 0 => take_default(signal, info),
        libc::SIG_IGN => {}
        // SAFETY: the former handler, called as its flags say, with its signals blocked.
        _ => unsafe {
            let mut mask = MaybeUninit::uninit();
            libc::pthread_sigmask(libc::SIG_BLOCK, &former.sa_mask, mask.as_mut_ptr());
            if former.sa_flags & libc::SA_RESETHAND != 0 {
                reset(signal);
            }
            if former.sa_flags & libc::SA_SIGINFO != 0 {
                type Handler = unsafe extern "C-unwind" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                std::mem::transmute::<usize, Handler>(former.sa_sigaction)(signal, info, context);
            } else {
                type Handler = unsafe extern "C-unwind" fn(c_int);
                std::mem::transmute::<usize, Handler>(former.sa_sigaction)(signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), ptr::null_mut());
        },
    }
}

/// Has the system do what it does without a handler: when this one returns, the fault comes again.
fn take_default(signal: c_int, info: *mut libc::siginfo_t) {
    reset(signal);
    // SAFETY: the system's. A signal that was sent does not come again by itself; it is blocked until this
    // handler returns.
    unsafe {
        if (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}

fn reset(signal: c_int) {
    // SAFETY: sets the default action, which is all zeros.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

/// What the program did; `None` for an instruction fetch: no module's page is executable.
///
/// # Safety
///
/// `context` must be what a signal handler was given for a fault.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
unsafe fn access(context: *mut c_void) -> Option<Access> {
    const IS_WRITE: i64 = 1 << 1;
    const IS_FETCH: i64 = 1 << 4;

    // SAFETY: the caller's context, which on this system is one of these.
    let error = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] };
    if error & IS_FETCH != 0 {
        return None;
    }
    Some(if error & IS_WRITE != 0 { Access::Write } else { Access::Read })
}

/// What the program did: by the register ESR, which is among the records behind the others. `None` for an
/// instruction fetch: no module's page is executable.
///
/// # Safety
///
/// `context` must be what a signal handler was given for a fault.
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
unsafe fn access(context: *mut c_void) -> Option<Access> {
    const ESR: u32 = 0x4553_5201;
    const IS_WRITE: u64 = 1 << 6;
    /// The classes of instruction aborts, from a lower level of privileges and from the same one.
    const FETCHES: [u64; 2] = [0x20, 0x21];
    const RECORDS: usize = 4096;

    // SAFETY: the caller's context, which on this system is one of these. The records are behind the registers,
    // aligned to 16; each begins with what it is and its length.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        let registers = ptr::from_ref(&(*context).uc_mcontext.pstate).add(1).cast::<u8>();
        let records = registers.add(registers.align_offset(16));
        let mut at = 0;
        while at + 16 <= RECORDS {
            let [kind, length] = records.add(at).cast::<[u32; 2]>().read();
            match (kind, length as usize) {
                (ESR, _) => {
                    let esr = records.add(at + 8).cast::<u64>().read();
                    if FETCHES.contains(&((esr >> 26) & 0x3F)) {
                        return None;
                    }
                    return Some(if esr & IS_WRITE != 0 { Access::Write } else { Access::Read });
                }
                (0, _) | (_, 0..16) => break,
                (_, length) => at += length,
            }
        }
    }
    Some(Access::Either)
}

/// What the program did, which this system does not tell.
///
/// # Safety
///
/// None.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
unsafe fn access(_: *mut c_void) -> Option<Access> {
    Some(Access::Either)
}

/// Does `work`, which leaves the thread's `errno` as it was.
#[cfg(feature = "memory-check")]
pub(crate) fn keep_errno<R>(work: impl FnOnce() -> R) -> R {
    let errno = Errno::save();
    let done = work();
    errno.restore();
    done
}

/// The thread's `errno`, which a handler must not change.
struct Errno(c_int);

impl Errno {
    fn save() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    fn restore(self) {
        #[cfg(target_os = "linux")]
        // SAFETY: the calling thread's.
        unsafe {
            *libc::__errno_location() = self.0;
        }
    }
}

/// Has `work` done on the stack that the fault has interrupted, where the handler is on another one, and with the
/// handler's signals let through: for work that takes as much stack as it likes, and may fault itself. It must not
/// unwind. Where that stack is not usable, as `is_usable` says of its top, the work is done on the handler's.
///
/// # Safety
///
/// `context` must be what the signal handler was given that is running on this thread.
#[cfg(feature = "memory-check")]
pub(crate) unsafe fn work_as_interrupted(
    context: *mut c_void,
    is_usable: impl FnOnce(usize) -> bool,
    work: impl FnOnce(),
) {
    // SAFETY: the caller's context.
    let stack = unsafe { interrupted_stack(context) }.filter(|stack| is_usable(*stack));
    match stack.and_then(|stack| Some((stack, OtherStack::current(stack)?))) {
        Some((stack, other)) => {
            // What comes on the other stack meanwhile would begin at its top, where this handler is.
            let blocked = Signals::block_all();
            let mut work = Some(|| {
                other.disable();
                let among = Signals::let_faults_through(&blocked);
                work();
                among.restore();
                other.enable();
            });
            // SAFETY: the thread's own stack, which is not used below there while this runs.
            unsafe { call_on(stack, &mut work) };
            blocked.restore();
        }
        None => {
            let former = Signals::let_faults_through(&Signals::current());
            work();
            former.restore();
        }
    }
}

/// A thread's stack for signals.
#[cfg(feature = "memory-check")]
struct OtherStack(libc::stack_t);

#[cfg(feature = "memory-check")]
impl OtherStack {
    /// The one that the calling handler is on, unless that has interrupted another one there.
    fn current(interrupted: usize) -> Option<Self> {
        let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: `stack` is a place for the result; all zeros are valid.
        let stack = unsafe {
            libc::sigaltstack(ptr::null(), stack.as_mut_ptr());
            stack.assume_init()
        };
        let is_within = (stack.ss_sp.addr()..=stack.ss_sp.addr() + stack.ss_size).contains(&interrupted);
        (stack.ss_flags & libc::SS_ONSTACK != 0 && !is_within).then_some(Self(stack))
    }

    /// Call it on the thread's own stack.
    fn disable(&self) {
        self.set(libc::SS_DISABLE);
    }

    fn enable(&self) {
        self.set(0);
    }

    fn set(&self, flags: c_int) {
        let stack = libc::stack_t { ss_flags: flags, ..self.0 };
        // SAFETY: the stack that the thread has had before.
        unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    }
}

/// A thread's signals that are blocked.
#[cfg(feature = "memory-check")]
struct Signals(libc::sigset_t);

#[cfg(feature = "memory-check")]
impl Signals {
    fn current() -> Self {
        Self::change(libc::SIG_BLOCK, |_| ())
    }

    /// Blocks all, and returns those that were blocked before.
    fn block_all() -> Self {
        // SAFETY: a set to be filled.
        Self::change(libc::SIG_BLOCK, |set| _ = unsafe { libc::sigfillset(set) })
    }

    /// Blocks those alone that are blocked in `others`, and no faults; returns those that were blocked before.
    fn let_faults_through(others: &Self) -> Self {
        Self::change(libc::SIG_SETMASK, |set| {
            *set = others.0;
            // SAFETY: the set is valid.
            SIGNALS.iter().for_each(|signal| _ = unsafe { libc::sigdelset(set, *signal) });
        })
    }

    fn restore(self) {
        let _ = Self::change(libc::SIG_SETMASK, |set| *set = self.0);
    }

    fn change(how: c_int, fill: impl FnOnce(&mut libc::sigset_t)) -> Self {
        let (mut set, mut former) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the sets are places for results, read once they are filled.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            fill(set.assume_init_mut());
            libc::pthread_sigmask(how, set.as_ptr(), former.as_mut_ptr());
            Self(former.assume_init())
        }
    }
}

/// Where the interrupted stack may be used from, downwards. `None` where that is not known.
///
/// # Safety
///
/// As for [`access`].
#[cfg(all(feature = "memory-check", target_os = "linux", target_arch = "x86_64"))]
unsafe fn interrupted_stack(context: *mut c_void) -> Option<usize> {
    /// What a function uses below its stack pointer.
    const RED_ZONE: usize = 128;

    // SAFETY: the caller's context, which on this system is one of these.
    let stack = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RSP as usize] };
    Some((stack as usize).checked_sub(RED_ZONE)? & !15)
}

/// Where the interrupted stack may be used from, downwards.
///
/// # Safety
///
/// As for [`access`].
#[cfg(all(feature = "memory-check", target_os = "linux", target_arch = "aarch64"))]
unsafe fn interrupted_stack(context: *mut c_void) -> Option<usize> {
    // SAFETY: the caller's context, which on this system is one of these.
    Some(unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.sp as usize } & !15)
}

#[cfg(all(
    feature = "memory-check",
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))
))]
unsafe fn interrupted_stack(_: *mut c_void) -> Option<usize> {
    None
}

/// Does `work`, which is taken out, on a stack that is used from `stack` downwards.
///
/// # Safety
///
/// There must be a stack that nobody else uses below, and `work` must not unwind.
#[cfg(all(
    feature = "memory-check",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
unsafe fn call_on<W: FnOnce()>(stack: usize, work: &mut Option<W>) {
    extern "C" fn call<W: FnOnce()>(work: *mut Option<W>) {
        // SAFETY: the one below.
        if let Some(work) = unsafe { (*work).take() } {
            work();
        }
    }

    // SAFETY: the stack is there, and aligned to 16; the register that keeps the former one is one that a call
    // preserves.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "xchg rsp, r12",
            "call {call}",
            "mov rsp, r12",
            call = in(reg) call::<W>,
            inout("r12") stack => _,
            in("rdi") ptr::from_mut(work),
            clobber_abi("C"),
        );
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "mov x20, sp",
            "mov sp, {stack}",
            "blr {call}",
            "mov sp, x20",
            call = in(reg) call::<W>,
            stack = in(reg) stack,
            in("x0") ptr::from_mut(work),
            out("x20") _,
            clobber_abi("C"),
        );
    }
}

#[cfg(all(
    feature = "memory-check",
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))
))]
unsafe fn call_on<W: FnOnce()>(_: usize, work: &mut Option<W>) {
    if let Some(work) = work.take() {
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_another_one_when_pages_have_lost_their_access_since() {
        let address = 0x7f12_3456_7000;
        assert!(may_try_again(address, 1) && !may_try_again(address, 1));
        // A thread of the same number, and a block at the same address.
        assert!(may_try_again(address, 2) && !may_try_again(address, 2));
        assert!(may_try_again(address + 1, 2));
    }
}
