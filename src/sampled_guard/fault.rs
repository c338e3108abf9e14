//! The signal handler: tells a fault in the pool from all others, which go to whoever had the signal before.
//!
//! The handler takes no lock, allocates nothing, and needs little stack: it may be on a small one of its own
//! (`sigaltstack`), which a stack overflow needs.

use super::entry::State;
use super::pool::{Part, PoolSlot};
use super::reaction;
use super::report;
use super::violation::{Found, Kind, Violation};
use crate::sync::{AtomicUsize, Ordering};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

/// What was done about a signal before. Written before the handler is there, and never again.
struct Former(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: see `Former`.
unsafe impl Sync for Former {}

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];
static FORMER: [Former; 2] = [const { Former(UnsafeCell::new(MaybeUninit::zeroed())) }; 2];

/// Sets the handler. Call it once.
pub(super) fn install() {
    for (signal, former) in SIGNALS.into_iter().zip(&FORMER) {
        // SAFETY: all zeros are a valid action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: `action` is ours; `former` is read by the handler only, which is not there yet.
        unsafe {
            libc::sigaction(signal, ptr::null(), (*former.0.get()).as_mut_ptr());
            // As the former one had it: a handler that wants its own signal to come through gets it.
            let flags = (*former.0.get()).assume_init_ref().sa_flags & libc::SA_NODEFER;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | flags;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system's; of signals that a fault has, the address is there.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let errno = Errno::save();
    let done = if denies_access(signal, code) { tell_of(address, context) } else { Done::Nothing };
    match done {
        Done::LetThrough => {}
        Done::Told => take_default(signal, info),
        Done::Nothing => pass_on(signal, info, context),
    }
    errno.restore();
}

/// Whether a signal may be of an access that pages do not grant. Those of memory that cannot be had, such as one
/// that the system cannot swap in, are not: opening a page does not help there.
fn denies_access(signal: c_int, code: c_int) -> bool {
    /// `SEGV_ACCERR`
    const NO_ACCESS: c_int = 2;

    if cfg!(target_os = "linux") { signal == libc::SIGSEGV && code == NO_ACCESS } else { code > 0 }
}

/// What was done about a fault.
enum Done {
    /// The program may try again.
    LetThrough,
    /// It was told of, but the system refuses to let it through.
    Told,
    /// It is not the pool's.
    Nothing,
}

/// Whether a thread may try an access again that nothing seems to forbid, since there may have come a block
/// meanwhile. Not twice in a row: then the program has protected the block itself, or cannot use it so.
fn may_try_again(address: usize) -> bool {
    static LAST: AtomicUsize = AtomicUsize::new(0);

    let attempt = report::own_thread().rotate_left(32) ^ address;
    LAST.swap(attempt, Ordering::Relaxed) != attempt
}

/// Tells of a fault that is in the pool.
fn tell_of(address: usize, context: *mut c_void) -> Done {
    let Some((slot, part)) = PoolSlot::of(address) else { return Done::Nothing };
    // SAFETY: what the system has passed to the handler.
    let Some(found) = (unsafe { access(context) }) else { return Done::Nothing };
    let (entry, offset) = (slot.entry, slot.entry.offset_of(address));
    let size = entry.size.load(Ordering::Relaxed) as isize;
    let has_mark = entry.has_mark.load(Ordering::Relaxed);
    let kind = match (slot.state.get(), part) {
        _ if !entry.is_used() => Kind::WildAccess,
        (State::Live | State::Retired, Part::Page) => {
            return if may_try_again(address) { Done::LetThrough } else { Done::Nothing };
        }
        (State::Live | State::Retired, Part::Before) => Kind::Underrun,
        (State::Live | State::Retired, _) => Kind::Overrun,
        // The mark: a free has looked for it.
        (State::Free(_), _)
            if has_mark && found != Found::Write && (offset == size || offset == size + 1) =>
        {
            Kind::DoubleFree
        }
        _ => Kind::UseAfterFree,
    };
    let (found, offset) = if kind == Kind::DoubleFree { (Found::Dealloc, 0) } else { (found, offset) };
    report::tell(Violation { kind, found, address, offset, slot }, context);
    debug_assert!(reaction::goes_on());
    if slot.open(part) { Done::LetThrough } else { Done::Told }
}

/// Has the former action done.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(place) = SIGNALS.iter().position(|&known| known == signal) else { return };
    // SAFETY: written before this handler was set.
    let former = unsafe { (*FORMER[place].0.get()).assume_init_ref() };
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
                type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                std::mem::transmute::<usize, Handler>(former.sa_sigaction)(signal, info, context);
            } else {
                type Handler = unsafe extern "C" fn(c_int);
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

/// What the program did; `None` if it was about to run what is there, which no page of the pool's lets it.
///
/// # Safety
///
/// `context` must be what a signal handler was given for a fault.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
unsafe fn access(context: *mut c_void) -> Option<Found> {
    const IS_WRITE: i64 = 1 << 1;
    const IS_FETCH: i64 = 1 << 4;

    // SAFETY: the caller's context, which on this system is one of these.
    let error = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] };
    if error & IS_FETCH != 0 {
        return None;
    }
    Some(if error & IS_WRITE != 0 { Found::Write } else { Found::Read })
}

/// What the program did: by the register ESR, which is among the records behind the others. `None` if it was about
/// to run what is there, which no page of the pool's lets it.
///
/// # Safety
///
/// `context` must be what a signal handler was given for a fault.
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
unsafe fn access(context: *mut c_void) -> Option<Found> {
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
                    return Some(if esr & IS_WRITE != 0 { Found::Write } else { Found::Read });
                }
                (0, _) | (_, 0..16) => break,
                (_, length) => at += length,
            }
        }
    }
    Some(Found::Access)
}

/// What the program did, which this system does not tell.
///
/// # Safety
///
/// None.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
unsafe fn access(_: *mut c_void) -> Option<Found> {
    Some(Found::Access)
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
