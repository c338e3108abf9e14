//! Services and figures for C. A `dogtag_service *` is what a [`Service`] points to, and stands for one of its clones.

use crate::{current_owner, errno, malloc_api};
use dogtag::__private::Record;
use dogtag::__private::service::{Entered, MOST, enter, from_record, leave, record, unattributed};
use dogtag::{RegisterError, Service, Usage};
use std::ffi::{CStr, c_char, c_int};
use std::mem::ManuallyDrop;
use std::ptr;

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_register(name: *const c_char) -> *const Record {
    // SAFETY: C's caller passes a C string or null; there is no parent.
    unsafe { dogtag_service_register_as(name, 0, ptr::null()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_register_as(
    name: *const c_char,
    handle: u32,
    parent: *const Record,
) -> *const Record {
    // SAFETY: C's caller passes a C string or null, and a reference that is live or null.
    let (name, parent) = unsafe {
        let name = (!name.is_null()).then(|| CStr::from_ptr(name).to_str().ok()).flatten();
        (name, (!parent.is_null()).then(|| borrowed(parent)))
    };
    let Some(name) = name else { return failed(libc::EINVAL) };
    let mut builder = Service::builder(name);
    if handle != 0 {
        builder = builder.handle(handle);
    }
    if let Some(parent) = &parent {
        builder = builder.parent(parent);
    }
    match builder.register() {
        Ok(service) => given(service),
        Err(RegisterError::NoName) => failed(libc::EINVAL),
        Err(RegisterError::NameTooLong { .. }) => failed(libc::ENAMETOOLONG),
        Err(RegisterError::Full) => failed(libc::ENOSPC),
        Err(RegisterError::NoMemory) => failed(libc::ENOMEM),
        Err(_) => failed(libc::EEXIST),
    }
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_service_current() -> *const Record {
    current_owner::refresh();
    current_owner::refresh_name();
    given(Service::current())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_retain(service: *const Record) -> *const Record {
    // SAFETY: C's caller passes a live reference, which stays its own.
    given((*unsafe { borrowed(service) }).clone())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_release(service: *const Record) {
    if !service.is_null() {
        // SAFETY: C's caller passes a live reference, and uses it no more.
        drop(ManuallyDrop::into_inner(unsafe { borrowed(service) }));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_handle(service: *const Record) -> u32 {
    // SAFETY: C's caller passes a live reference.
    unsafe { borrowed(service) }.handle()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_name(service: *const Record) -> *mut c_char {
    // SAFETY: C's caller passes a live reference.
    malloc_api::text(unsafe { borrowed(service) }.name())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_set_hard_limit(service: *const Record, bytes: u64) {
    // SAFETY: C's caller passes a live reference.
    unsafe { borrowed(service) }.set_hard_limit((bytes != u64::MAX).then_some(bytes));
}

// `Entered` is `dogtag_scope` of the header.
const _: () = assert!(size_of::<Entered>() == 2 * size_of::<*const ()>());

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_enter(service: *const Record) -> Entered {
    // SAFETY: C's caller passes a live reference, so it points to a record; records are never
    // unmapped.
    enter(unsafe { &*service })
}

/// C's caller passes what the same thread's `dogtag_enter` returned.
#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_leave(scope: Entered) {
    leave(scope);
}

/// `dogtag_figures` of the header, which later versions may make longer: words, of which the first
/// is its size.
#[repr(C)]
struct Figures {
    struct_size: usize,
    allocated_bytes: u64,
    allocated_blocks: u64,
    freed_bytes: u64,
    freed_blocks: u64,
    peak_bytes: u64,
    denied: u64,
}

/// The largest size of a struct that is believed; a larger one was not set.
const MOST_STRUCT: usize = 4096;

/// Fills in the figures that lie within the caller's struct, and zeros behind the last known one.
///
/// # Safety
///
/// `place` must be valid for a word, its size, and if that is between 16 and [`MOST_STRUCT`], for
/// writes of so many bytes.
unsafe fn fill(place: *mut Figures, usage: Usage) -> bool {
    let figures = Figures {
        struct_size: size_of::<Figures>(),
        allocated_bytes: usage.allocated_bytes,
        allocated_blocks: usage.allocated_blocks,
        freed_bytes: usage.freed_bytes,
        freed_blocks: usage.freed_blocks,
        peak_bytes: usage.peak_bytes,
        denied: usage.denied,
    };
    const WORD: usize = size_of::<u64>();
    const KNOWN: usize = size_of::<Figures>() / WORD;
    let place = place.cast::<u64>();
    // SAFETY: the place is valid for its first word, the struct's size. Nothing is written beyond
    // that size, up to which the place is valid for writes.
    unsafe {
        let size = place.cast::<usize>().read();
        if !(2 * WORD..=MOST_STRUCT).contains(&size) {
            errno::set(libc::EINVAL);
            return false;
        }
        let (words, source) = (size / WORD, ptr::from_ref(&figures).cast::<u64>());
        ptr::copy_nonoverlapping(source.add(1), place.add(1), words.min(KNOWN) - 1);
        if words > KNOWN {
            place.add(KNOWN).write_bytes(0, words - KNOWN);
        }
    }
    true
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_usage_into(service: *const Record, figures: *mut Figures) -> bool {
    // SAFETY: C's caller passes a live reference, and a struct as long as its first word says.
    unsafe { fill(figures, borrowed(service).usage()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_totals_into(figures: *mut Figures) -> bool {
    // SAFETY: C's caller passes a struct as long as its first word says.
    unsafe { fill(figures, dogtag::totals()) }
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_snapshot_text() -> *mut c_char {
    let text = unattributed(|| dogtag::snapshot().to_string());
    malloc_api::text(&text)
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_balance_text() -> *mut c_char {
    let text = unattributed(|| dogtag::snapshot().with_balance().to_string());
    malloc_api::text(&text)
}

/// Gives a reference to the caller, who releases it.
fn given(service: Service) -> *const Record {
    record(&ManuallyDrop::new(service))
}

/// Returns the service behind a reference that stays the caller's.
///
/// # Safety
///
/// It must be live.
unsafe fn borrowed(reference: *const Record) -> ManuallyDrop<Service> {
    // SAFETY: the reference is live, so it points to a record, which is never unmapped, and stands
    // for a clone of the service; without a drop that stays the caller's.
    unsafe { ManuallyDrop::new(from_record(&*reference)) }
}

/// Sets `errno` and returns null.
fn failed(errno: c_int) -> *const Record {
    errno::set(errno);
    ptr::null()
}

// The header says how many services there can be.
const _: () = assert!(MOST == 16_777_213);
