//! C's handler of violations, with memory-check on.

use super::{Handler, Told};
use dogtag::__private::blocks::violation_number;
use dogtag::check::{self, Reaction, Violation};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::fmt::Write;
use std::ptr;

/// Sets the handler of violations; `None` brings the report on standard error back.
pub(crate) fn set_handler(handler: Option<Handler>) {
    match handler {
        Some(handler) => {
            HANDLER.store(handler as *mut (), Ordering::Release);
            check::set_handler(tell);
        }
        None => check::set_handler(check::report),
    }
}

/// The program's [`Handler`]; null before there is one.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Calls the program's handler with a violation.
fn tell(violation: &Violation) -> Reaction {
    let handler = HANDLER.load(Ordering::Acquire);
    let (mut service, mut report) = (Text::<128>::new(), Text::<4096>::new());
    let owner = violation.allocated();
    // Text that does not fit is cut.
    let _ = service.write_str(owner.map_or("", |access| access.service()));
    let _ = write!(report, "{violation}");
    let told = Told {
        struct_size: size_of::<Told>(),
        kind: violation_number(violation.kind()),
        address: ptr::with_exposed_provenance(violation.address()),
        block: ptr::with_exposed_provenance(violation.block().unwrap_or(0)),
        size: violation.layout().map_or(0, |layout| layout.size()),
        service: service.as_ptr(),
        handle: owner.map_or(0, |access| access.handle()),
        report: report.as_ptr(),
    };
    // SAFETY: only `set_handler` stores there, and it stores a `Handler`. What `told` points to lives
    // until the handler returns, as the header says.
    let reaction = unsafe {
        let handler = std::mem::transmute::<*mut (), Handler>(handler);
        handler(&told)
    };
    if reaction == 1 { Reaction::Leak } else { Reaction::Abort }
}

/// A C string of up to `SIZE - 1` bytes that is not allocated.
struct Text<const SIZE: usize> {
    bytes: [u8; SIZE],
    length: usize,
}

impl<const SIZE: usize> Text<SIZE> {
    const fn new() -> Self {
        Self { bytes: [0; SIZE], length: 0 }
    }

    const fn as_ptr(&self) -> *const std::ffi::c_char {
        self.bytes.as_ptr().cast()
    }
}

impl<const SIZE: usize> Write for Text<SIZE> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        // The last byte stays zero.
        let left = SIZE - 1 - self.length;
        let fits = left.min(text.len());
        self.bytes[self.length..self.length + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        if fits < text.len() { Err(std::fmt::Error) } else { Ok(()) }
    }
}
