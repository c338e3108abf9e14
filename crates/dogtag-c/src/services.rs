//! Services and figures for C. A `dogtag_service *` is a [`Service`], which is one pointer.

use crate::{current_owner, errno, malloc_api};
use dogtag::__private::Record;
use dogtag::__private::service::{MOST, enter, from_record, leave, record, unattributed};
use dogtag::{RegisterError, Service, Usage};
use std::ffi::{CStr, c_char, c_int};
use std::mem::ManuallyDrop;
use std::ptr;

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_register(name: *const c_char) -> *const Record {
    // SAFETY: the caller's promise.
    unsafe { dogtag_service_register_as(name, 0, ptr::null()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_register_as(
    name: *const c_char,
    handle: u32,
    parent: *const Record,
) -> *const Record {
    // SAFETY: a C string or null, by the caller's promise, and a reference or null.
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
    // SAFETY: the caller's promise.
    given((*unsafe { borrowed(service) }).clone())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_release(service: *const Record) {
    if !service.is_null() {
        // SAFETY: the caller's promise, who gives the reference back.
        drop(ManuallyDrop::into_inner(unsafe { borrowed(service) }));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_handle(service: *const Record) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { borrowed(service) }.handle()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_name(service: *const Record) -> *mut c_char {
    // SAFETY: the caller's promise.
    malloc_api::text(unsafe { borrowed(service) }.name())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_service_set_hard_limit(service: *const Record, bytes: u64) {
    // SAFETY: the caller's promise.
    unsafe { borrowed(service) }.set_hard_limit((bytes != u64::MAX).then_some(bytes));
}

/// `dogtag_scope`.
#[repr(C)]
struct Entered {
    previous: *const Record,
    reserved: *const Record,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_enter(service: *const Record) -> Entered {
    // SAFETY: a live reference, by the caller's promise; records are never unmapped.
    let record: &'static Record = unsafe { &*service };
    Entered { previous: enter(record), reserved: ptr::null() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_leave(scope: Entered) {
    // SAFETY: of the same thread's `dogtag_enter`, by the caller's promise.
    leave(unsafe { &*scope.previous });
}

/// `dogtag_figures`, which later versions may make longer: words, the first of which is its size.
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

/// No struct is larger: its size was not set.
const MOST_STRUCT: usize = 4096;

/// Fills in as many figures as lie within the caller's struct, and zeros behind those that there
/// are.
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
    // SAFETY: the first word is the struct's size, and its other words lie within that.
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
    // SAFETY: the caller's reference is live, and the struct as long as it says.
    unsafe { fill(figures, borrowed(service).usage()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_totals_into(figures: *mut Figures) -> bool {
    // SAFETY: the struct is as long as it says.
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

/// A reference becomes the caller's.
fn given(service: Service) -> *const Record {
    record(&ManuallyDrop::new(service))
}

/// The service behind a reference that stays the caller's.
///
/// # Safety
///
/// It must be live.
unsafe fn borrowed(reference: *const Record) -> ManuallyDrop<Service> {
    // SAFETY: records are never unmapped, and the caller's reference is a clone.
    unsafe { ManuallyDrop::new(from_record(&*reference)) }
}

fn failed(errno: c_int) -> *const Record {
    errno::set(errno);
    ptr::null()
}

// The header says how many services there can be.
const _: () = assert!(MOST == 16_777_213);
