//! What C is told of crimes, and can ask.

use std::ffi::{c_char, c_int, c_void};

/// `enum dogtag_crime`, `dogtag_reaction` and the like are `int`s.
#[repr(C)]
struct Told {
    crime: c_int,
    address: *const c_void,
    block: *const c_void,
    size: usize,
    service: *const c_char,
    handle: u32,
    report: *const c_char,
}

type Handler = unsafe extern "C" fn(*const Told) -> c_int;

#[unsafe(no_mangle)]
extern "C" fn dogtag_set_violation_handler(handler: Option<Handler>) -> bool {
    #[cfg(feature = "memory-check")]
    checked::set_handler(handler);
    let _ = handler;
    cfg!(feature = "memory-check")
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_verify() -> u64 {
    #[cfg(feature = "memory-check")]
    {
        crate::check::verify().violations
    }
    #[cfg(not(feature = "memory-check"))]
    0
}

#[cfg(feature = "memory-check")]
mod checked {
    use super::{Handler, Told};
    use crate::check::{self, Reaction, Violation, ViolationKind};
    use crate::sync::{AtomicPtr, Ordering};
    use std::fmt::Write;
    use std::ptr;

    pub(super) fn set_handler(handler: Option<Handler>) {
        match handler {
            Some(handler) => {
                HANDLER.store(handler as *mut (), Ordering::Release);
                check::set_handler(tell);
            }
            None => check::set_handler(check::report),
        }
    }

    /// A [`Handler`], once there is one.
    static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

    fn tell(violation: &Violation) -> Reaction {
        let handler = HANDLER.load(Ordering::Acquire);
        let (mut service, mut report) = (Text::<128>::new(), Text::<4096>::new());
        let owner = violation.allocated();
        // What does not fit is left out.
        let _ = service.write_str(owner.map_or("", |deed| deed.service()));
        let _ = write!(report, "{violation}");
        let told = Told {
            crime: number(violation.kind()),
            address: ptr::with_exposed_provenance(violation.address()),
            block: ptr::with_exposed_provenance(violation.block().unwrap_or(0)),
            size: violation.layout().map_or(0, |layout| layout.size()),
            service: service.as_ptr(),
            handle: owner.map_or(0, |deed| deed.handle()),
            report: report.as_ptr(),
        };
        // SAFETY: only `set_handler` stores there, such a function. It gets what the
        // header says.
        let reaction = unsafe {
            let handler = std::mem::transmute::<*mut (), Handler>(handler);
            handler(&told)
        };
        if reaction == 1 { Reaction::Leak } else { Reaction::Abort }
    }

    /// As in the header.
    fn number(crime: ViolationKind) -> i32 {
        match crime {
            ViolationKind::Overrun => 1,
            ViolationKind::Underrun => 2,
            ViolationKind::DoubleFree => 3,
            ViolationKind::WriteAfterFree => 4,
            ViolationKind::LayoutMismatch => 5,
            ViolationKind::InvalidFree => 6,
            ViolationKind::RegionInUse => 7,
            ViolationKind::AllocDeallocMismatch => 8,
            ViolationKind::BadUsableSize => 9,
        }
    }

    /// A C string that is not allocated.
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
            let room = SIZE - 1 - self.length;
            let fits = room.min(text.len());
            self.bytes[self.length..self.length + fits].copy_from_slice(&text.as_bytes()[..fits]);
            self.length += fits;
            if fits < text.len() { Err(std::fmt::Error) } else { Ok(()) }
        }
    }
}
