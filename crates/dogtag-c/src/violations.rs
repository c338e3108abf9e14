//! Violations for C: a handler, and a check of all blocks on demand.

use dogtag::__private::memory_check;
use std::ffi::{c_char, c_int, c_void};

/// `dogtag_violation` of the header, which later versions may make longer. The header's enums, such as
/// `dogtag_violation_kind` and `dogtag_reaction`, are `int`s.
#[repr(C)]
struct Told {
    struct_size: usize,
    kind: c_int,
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
    set_handler(handler);
    memory_check::IS_ON
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_verify() -> u64 {
    memory_check::verify()
}

dogtag::__memory_check! {
    on {
        mod checked;
        use checked::set_handler;
    }
    off {
        fn set_handler(_: Option<Handler>) {}
    }
}
