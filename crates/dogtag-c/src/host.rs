//! The host's functions, found by name. On x86-64 a function that the host does not have is not
//! called, so the feature can be built into anything; elsewhere the host must have them all.

use dogtag::__private::sys::print as print_error;
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem;

/// Reads the address of a symbol, 0 if there is none. The reference is weak, which stable Rust has no
/// syntax for.
#[cfg(target_arch = "x86_64")]
macro_rules! symbol {
    ($name:ident) => {{
        let address: usize;
        std::arch::asm!(
            concat!(".weak ", stringify!($name)),
            concat!("mov {address}, qword ptr [rip + ", stringify!($name), "@GOTPCREL]"),
            address = out(reg) address,
            options(pure, nomem, nostack, preserves_flags),
        );
        address
    }};
}

#[cfg(not(target_arch = "x86_64"))]
macro_rules! symbol {
    ($name:ident) => {{
        unsafe extern "C" {
            fn $name();
        }
        $name as usize
    }};
}

type CurrentHandle = unsafe extern "C" fn() -> u32;
type Error = unsafe extern "C" fn(*mut c_void, *const c_char, ...);

/// Returns the handle of the service that the calling thread works for; `None` without a host.
#[inline(always)]
pub(crate) fn current_handle() -> Option<u32> {
    // SAFETY: the host's function has this signature.
    unsafe {
        let current_handle: Option<CurrentHandle> = mem::transmute(symbol!(skynet_current_handle));
        Some(current_handle?())
    }
}

/// Says whether the program is a host.
#[cfg(feature = "interpose")]
pub(crate) fn is_there() -> bool {
    current_handle().is_some()
}

/// Ends the host's process with a message: skynet does not check for null.
#[cold]
#[inline(never)]
pub(crate) fn end_out_of_memory(size: usize) -> ! {
    print_error(format_args!("xmalloc: Out of memory trying to allocate {size} bytes\n"));
    std::process::abort();
}

/// Makes a C string of a text, without the zeros in it.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

/// Logs a line with the host's function, or prints it on standard error if there is none.
pub(crate) fn print(line: &str) {
    // SAFETY: the host's function has this signature; there may be no context. The line
    // and its format are C strings.
    unsafe {
        let error: Option<Error> = mem::transmute(symbol!(skynet_error));
        match error {
            Some(error) => error(std::ptr::null_mut(), c"%s".as_ptr(), c_string(line).as_ptr()),
            None => print_error(format_args!("{line}\n")),
        }
    }
}

/// The functions of Lua that are needed.
pub(crate) struct Lua {
    pub(crate) create_table: unsafe extern "C" fn(*mut c_void, c_int, c_int),
    pub(crate) push_integer: unsafe extern "C" fn(*mut c_void, i64),
    pub(crate) raw_set: unsafe extern "C" fn(*mut c_void, c_int, i64),
}

/// Finds the functions of Lua in the program.
pub(crate) fn lua() -> Option<Lua> {
    // SAFETY: Lua's functions, since 5.3, have these signatures.
    unsafe {
        Some(Lua {
            create_table: mem::transmute::<usize, Option<_>>(symbol!(lua_createtable))?,
            push_integer: mem::transmute::<usize, Option<_>>(symbol!(lua_pushinteger))?,
            raw_set: mem::transmute::<usize, Option<_>>(symbol!(lua_rawseti))?,
        })
    }
}
