//! skynet's own interface: the functions that its `skynet_malloc.h` and `malloc_hook.h` declare,
//! with the same meaning. skynet counts in a table of 65,536 slots, where services whose handles end
//! in the same 16 bits share one; here each service has a slot of its own.
//!
//! The host, skynet itself or a program like it, knows which service a thread works for. It is
//! asked before each allocation, which is a call and a comparison; a service is looked up only when
//! the answer has changed.

use crate::host::end_out_of_memory;
use crate::{current_owner, host, malloc_api};
use dogtag::__private::service::{unattributed, usage, usages};
use dogtag::__private::{sys, thread};
use dogtag::Usage;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use tikv_jemalloc_sys as jemalloc;

#[unsafe(no_mangle)]
extern "C" fn skynet_malloc(size: usize) -> *mut c_void {
    or_end(malloc_api::malloc(size), size)
}

#[unsafe(no_mangle)]
extern "C" fn skynet_calloc(count: usize, size: usize) -> *mut c_void {
    or_end(malloc_api::calloc(count, size), count.wrapping_mul(size))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn skynet_realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return skynet_malloc(size);
    }
    // SAFETY: the block is not null, so the host passed a live one of this library.
    or_end(unsafe { malloc_api::resize(block, size) }, size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn skynet_free(block: *mut c_void) {
    // SAFETY: the host passes null or a live block of this library, and uses it no more.
    unsafe { malloc_api::free(block) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn skynet_strdup(string: *const c_char) -> *mut c_char {
    // SAFETY: the host passes a string that ends with a zero.
    unsafe {
        let copy = malloc_api::strdup(string);
        or_end(copy.cast(), libc::strlen(string)).cast()
    }
}

#[unsafe(no_mangle)]
extern "C" fn skynet_memalign(alignment: usize, size: usize) -> *mut c_void {
    or_end(malloc_api::aligned_alloc(alignment, size), size)
}

#[unsafe(no_mangle)]
extern "C" fn skynet_aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    or_end(malloc_api::aligned_alloc(alignment, size), size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn skynet_posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    // SAFETY: the host passes a place that is valid for writes.
    let error = unsafe { malloc_api::posix_memalign(place, alignment, size) };
    if error != 0 {
        end_out_of_memory(size);
    }
    error
}

/// Allocates, resizes and frees for Lua, straight from jemalloc. Lua states count their own memory,
/// so it is in no service's figures, as in skynet.
#[unsafe(no_mangle)]
unsafe extern "C" fn skynet_lalloc(block: *mut c_void, _old_size: usize, new_size: usize) -> *mut c_void {
    // SAFETY: the host passes null or a live block of this very function, so it is jemalloc's. Lua
    // uses a block that was freed or moved no more.
    unsafe {
        if new_size == 0 {
            jemalloc::free(block);
            ptr::null_mut()
        } else if block.is_null() {
            // `realloc` does the same by a longer way.
            jemalloc::malloc(new_size)
        } else {
            jemalloc::realloc(block, new_size)
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn malloc_used_memory() -> usize {
    let mut bytes = 0;
    each_row(|_, usage| bytes += usage.bytes());
    bytes as usize
}

#[unsafe(no_mangle)]
extern "C" fn malloc_memory_block() -> usize {
    let mut blocks = 0;
    each_row(|_, usage| blocks += usage.blocks());
    blocks as usize
}

#[unsafe(no_mangle)]
extern "C" fn malloc_current_memory() -> usize {
    current_owner::refresh();
    usage(thread::current_record()).bytes() as usize
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memory_info_dump(options: *const c_char) {
    // SAFETY: the host passes a C string or null; without a function to write with, jemalloc writes
    // to standard error.
    unsafe { jemalloc::malloc_stats_print(None, ptr::null_mut(), options) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mallctl_int64(name: *const c_char, new_value: *mut usize) -> usize {
    // SAFETY: the host passes a C string, and null or a place that holds a `usize`.
    unsafe { mallctl(name, new_value) }.0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mallctl_bool(name: *const c_char, new_value: *mut bool) -> bool {
    // SAFETY: the host passes a C string, and null or a place that holds a `bool`, which is a byte:
    // jemalloc's flags are 0 or 1.
    unsafe { mallctl::<u8>(name, new_value.cast()) }.0 != 0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mallctl_opt(name: *const c_char, new_value: *mut c_int) -> c_int {
    // SAFETY: the host passes a C string, and null or a place that holds a `c_int`.
    unsafe {
        let (value, error) = mallctl(name, new_value);
        if let Some(new_value) = new_value.as_ref() {
            let name = CStr::from_ptr(name).to_string_lossy();
            host::print(&match error {
                0 => format!("set new value({new_value}) for ({name}) succeed\n"),
                _ => format!("set new value({new_value}) for ({name}) failed: error -> {error}\n"),
            });
        }
        value
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mallctl_cmd(name: *const c_char) -> c_int {
    // SAFETY: the host passes a C string; no value is read or written.
    unsafe { jemalloc::mallctl(name, ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0) }
}

/// Reads a setting or figure of jemalloc's, and sets it to the new value if one is passed. Returns
/// the value it had, and jemalloc's error.
///
/// # Safety
///
/// `name` must be a C string, and `new_value` null or valid for reads.
unsafe fn mallctl<T: Default>(name: *const c_char, new_value: *mut T) -> (T, c_int) {
    let (mut value, mut size) = (T::default(), size_of::<T>());
    let new_size = if new_value.is_null() { 0 } else { size };
    // SAFETY: the name is a C string, and both places hold a `T`; jemalloc refuses sizes that are not
    // the setting's, so it neither reads nor writes more.
    let error =
        unsafe { jemalloc::mallctl(name, (&raw mut value).cast(), &mut size, new_value.cast(), new_size) };
    (value, error)
}

#[unsafe(no_mangle)]
extern "C" fn dump_c_mem() {
    host::print("dump all service mem:");
    let live = live();
    for (handle, bytes) in &live {
        host::print(&format!(":{handle:08x} -> {}kb {bytes}b", bytes >> 10));
    }
    host::print(&format!("+total: {}kb", live.values().sum::<u64>() >> 10));
}

/// Pushes a table of live bytes by handle on the stack of a Lua state.
#[unsafe(no_mangle)]
unsafe extern "C" fn dump_mem_lua(lua: *mut c_void) -> c_int {
    let Some(lua_functions) = host::lua() else { return 0 };
    // Lua leaves by a jump if it has no memory. That may pass over nothing that has a
    // destructor, so what is given here is leaked then.
    let live: Box<[(u32, u64)]> = live().into_iter().collect();
    let live = Box::into_raw(live);
    // SAFETY: the host passes a Lua state, whose stack holds at least the 20 values (`LUA_MINSTACK`)
    // that any C function may push. The box was made above and is dropped once.
    unsafe {
        (lua_functions.create_table)(lua, 0, 0);
        for index in 0..live.len() {
            let (handle, bytes) = (*live)[index];
            (lua_functions.push_integer)(lua, bytes as i64);
            (lua_functions.raw_set)(lua, -2, handle.into());
        }
        drop(Box::from_raw(live));
    }
    1
}

#[unsafe(no_mangle)]
unsafe extern "C" fn skynet_debug_memory(info: *const c_char) {
    let memory = malloc_current_memory();
    let handle = host::current_handle().unwrap_or(0);
    // SAFETY: the host passes a string that ends with a zero.
    let info = unsafe { CStr::from_ptr(info) }.to_string_lossy();
    // skynet prints bytes as a pointer, and so prints glibc none.
    let memory = if memory == 0 { "(nil)".to_owned() } else { format!("{memory:#x}") };
    sys::print(format_args!("[:{handle:08x}] {info} {memory}\n"));
}

/// Sums live bytes of all services by handle. A handle may have been another service's before,
/// whose blocks are still live.
fn live() -> BTreeMap<u32, u64> {
    unattributed(|| {
        let mut found: Vec<(u32, Usage)> = Vec::new();
        each_row(|handle, usage| found.push((handle, usage)));
        let mut live = BTreeMap::new();
        for (handle, usage) in found {
            *live.entry(handle).or_default() += usage.bytes();
        }
        live
    })
}

/// Calls a function with each service that skynet shows: every handle but 0, which no service
/// has. Handle 0 is current on threads between two services, and has dogtag's own memory.
fn each_row(mut row: impl FnMut(u32, Usage)) {
    usages(|record, usage| {
        if record.handle() != 0 {
            row(record.handle(), usage);
        }
    });
}

/// Ends the process instead of returning null, as skynet does.
fn or_end(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        end_out_of_memory(size);
    }
    block
}
