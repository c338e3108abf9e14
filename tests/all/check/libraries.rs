//! Call stacks through libraries that are opened while the program runs.

use super::{LAYOUT, culprit, twice, victim};
use crate::child::dealloc;
use dogtag::check;
use std::ffi::{CString, c_void};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Calls another function, and returns what that does.
type Call = unsafe extern "C" fn(extern "C" fn() -> *mut u8) -> *mut u8;

/// Builds a library with two functions, `NAME_outer` and `NAME_inner`, one of which calls the other, and that one
/// what it is given. Their frames have that size, and no frame pointers lead through them.
fn build(name: &str, frame: usize) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libraries");
    std::fs::create_dir_all(&folder).unwrap();
    let (source, library) = (folder.join(format!("{name}.c")), folder.join(format!("lib{name}.so")));
    let function = |function: &str, calls: &str| {
        format!(
            "__attribute__((noinline)) void *{name}_{function}(void *(*given)(void)) {{
                 volatile char frame[{frame}];
                 frame[0] = frame[{frame} - 1] = 1;
                 void *block = {calls};
                 sink = frame[0];
                 return block;
             }}\n"
        )
    };
    let inner = function("inner", "given()");
    let outer = function("outer", &format!("{name}_inner(given)"));
    std::fs::write(&source, format!("static volatile char sink;\n{inner}{outer}")).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-fomit-frame-pointer", "-o"]).arg(&library).arg(&source);
    assert!(cc.status().unwrap().success(), "{cc:?}");
    library
}

/// An open library, until it is dropped.
struct Open {
    handle: *mut c_void,
    outer: Call,
}

impl Open {
    fn new(library: &Path, name: &str) -> Self {
        let [path, outer] =
            [library.to_str().unwrap(), &format!("{name}_outer")].map(|text| CString::new(text).unwrap());
        // SAFETY: the library does nothing when it is opened, and has that function.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null());
            let outer = libc::dlsym(handle, outer.as_ptr());
            assert!(!outer.is_null());
            Self { handle, outer: std::mem::transmute::<*mut c_void, Call>(outer) }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: from `dlopen`.
        unsafe { libc::dlclose(self.handle) };
    }
}

/// A block of the victim's, for whoever can call functions of C's only.
extern "C" fn allocates() -> *mut u8 {
    culprit()
}

/// As a library's functions, but the program's own.
unsafe extern "C" fn directly(given: extern "C" fn() -> *mut u8) -> *mut u8 {
    black_box(given())
}

#[inline(never)]
fn through(call: Call) -> *mut u8 {
    // SAFETY: such a function calls the other one.
    black_box(unsafe { call(allocates) })
}

/// The return addresses where a block was allocated.
fn stack(call: Call) -> Vec<usize> {
    let block = through(call);
    let live = check::live_blocks(&victim());
    let [known] = &live.blocks[..] else { panic!("{live}") };
    assert_eq!(known.address, block.addr());
    let addresses = known.backtrace.expect("call stacks are kept").addresses();
    // SAFETY: the block is live.
    unsafe { dealloc(block, LAYOUT) };
    addresses
}

/// The first call stack was taken before there was the library.
#[test]
fn a_report_goes_through_a_library_that_was_opened_since() {
    aborts!(
        "backtrace=1,patience=1000",
        "double free",
        "allocated at",
        "late_inner",
        "late_outer",
        "check::libraries::through",
        "check::twice"
    );
    assert!(stack(directly).len() > 3);
    let open = Open::new(&build("late", 1000), "late");
    twice(through(open.outer));
}
