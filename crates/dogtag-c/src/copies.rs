//! C's functions that copy, fill and print into memory, with memory-check: what they read and write is
//! looked up before they do, and reported with the block's owner if it is no one live block's.
//!
//! These functions are called from everywhere: before this library is initialised, from signal handlers,
//! and from its own code. So they neither allocate nor wait nor use thread-locals; until the library is
//! loaded they copy byte by byte, unchecked; what they call is the C library's, found at load.
//!
//! What a function of the system or of stdio writes is known only when it has: `read`, `fgets`,
//! `snprintf` and their kin are checked when they return.

use crate::errno;
use crate::process::Next;
use dogtag::__private::blocks::{Accessor, check_access, check_accesses, set_fill};
use std::ffi::{c_char, c_int, c_void};
use std::mem;

type Any = *mut c_void;
type Text = *mut c_char;
type ConstText = *const c_char;
type Wide = *mut libc::wchar_t;
type ConstWide = *const libc::wchar_t;

static MEMMOVE: Next = Next::new(c"memmove");
static MEMSET: Next = Next::new(c"memset");

#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    MEMMOVE.get();
    let memset = MEMSET.get();
    READERS.iter().for_each(|next| _ = next.get());
    if !memset.is_null() {
        // SAFETY: C's function of that name has this signature.
        set_fill(unsafe { mem::transmute::<Any, unsafe extern "C" fn(*mut u8, c_int, usize) -> *mut u8>(memset) });
    }
    check_accesses();
}

/// A function as a reader and as a writer.
struct Name {
    reader: Accessor,
    writer: Accessor,
}

/// Makes the name of a function.
macro_rules! name {
    ($function:expr) => {
        &Name {
            reader: Accessor { function: $function, is_write: false },
            writer: Accessor { function: $function, is_write: true },
        }
    };
}

/// Checks what is about to be read.
#[inline(always)]
fn reads<T>(address: *const T, count: usize, name: &'static Name) {
    check_access(address.addr(), count.saturating_mul(size_of::<T>()), &name.reader);
}

/// Checks what is about to be written, or has been.
#[inline(always)]
fn writes<T>(address: *const T, count: usize, name: &'static Name) {
    check_access(address.addr(), count.saturating_mul(size_of::<T>()), &name.writer);
}

/// Copies bytes, which may overlap, unchecked.
///
/// # Safety
///
/// As for C's `memmove`.
#[inline(always)]
unsafe fn copy<T>(to: *mut T, from: *const T, count: usize) {
    let (to, from, length) = (to.cast::<u8>(), from.cast::<u8>(), count * size_of::<T>());
    // SAFETY: C's function of that name has this signature; the caller's memory is valid for the copy.
    unsafe {
        match mem::transmute::<Any, Option<unsafe extern "C" fn(*mut u8, *const u8, usize) -> Any>>(MEMMOVE.known()) {
            Some(memmove) => _ = memmove(to, from, length),
            None => copy_bytes(to, from, length),
        }
    }
}

/// Copies before the C library's function is known. Volatile, or the compiler would make it a call of
/// `memmove`.
///
/// # Safety
///
/// As for [`copy`].
#[cold]
unsafe fn copy_bytes(to: *mut u8, from: *const u8, length: usize) {
    let one = |index| {
        // SAFETY: within the memory that the caller says is valid.
        unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
    };
    if to.addr() <= from.addr() { (0..length).for_each(one) } else { (0..length).rev().for_each(one) }
}

/// Fills bytes, unchecked.
///
/// # Safety
///
/// As for C's `memset`.
#[inline(always)]
unsafe fn fill(to: *mut u8, byte: c_int, length: usize) {
    // SAFETY: C's function of that name has this signature; the caller's memory is valid for writes.
    unsafe {
        match mem::transmute::<Any, Option<unsafe extern "C" fn(*mut u8, c_int, usize) -> Any>>(MEMSET.known()) {
            Some(memset) => _ = memset(to, byte, length),
            None => (0..length).for_each(|index| to.add(index).write_volatile(byte as u8)),
        }
    }
}

/// Defines functions of C's under their names. `name` in their bodies is their own name.
macro_rules! functions {
    ($($function:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $function($($argument: $type),*) -> $result {
                #[allow(unused, reason = "not every body tells its name")]
                const NAME: &Name = name!(stringify!($function));
                // SAFETY: C's caller keeps to the function's contract, but for what is checked here.
                unsafe { $body(NAME) }
            }
        )*
    };
}

/// Defines the variants that compilers call where they know how large the destination is. If that is too
/// small, the C library's own function ends the process.
macro_rules! fortified {
    ($($function:ident($($argument:ident: $type:ty),*; $needed:expr) -> $result:ty = $plain:ident;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $function($($argument: $type,)* room: usize) -> $result {
                static NEXT: Next = Next::new(match std::ffi::CStr::from_bytes_with_nul(
                    concat!(stringify!($function), "\0").as_bytes(),
                ) {
                    Ok(name) => name,
                    Err(_) => c"",
                });
                type Function = unsafe extern "C" fn($($type,)* usize) -> $result;
                // SAFETY: C's caller keeps to the function's contract, but for what is checked. C's function of
                // that name has this signature.
                unsafe {
                    if $needed > room
                        && let Some(next) = mem::transmute::<Any, Option<Function>>(NEXT.get())
                    {
                        return next($($argument,)* room);
                    }
                    $plain($($argument),*)
                }
            }
        )*
    };
}

unsafe extern "C" {
    fn wcslen(text: ConstWide) -> usize;
    fn wcsnlen(text: ConstWide, most: usize) -> usize;
}

functions! {
    memcpy(to: Any, from: *const c_void, length: usize) -> Any = |name| copied(to.cast::<u8>(), from.cast(), length, name).cast();
    memmove(to: Any, from: *const c_void, length: usize) -> Any = |name| copied(to.cast::<u8>(), from.cast(), length, name).cast();
    mempcpy(to: Any, from: *const c_void, length: usize) -> Any =
        |name| copied(to.cast::<u8>(), from.cast(), length, name).add(length).cast();
    __mempcpy(to: Any, from: *const c_void, length: usize) -> Any =
        |name| copied(to.cast::<u8>(), from.cast(), length, name).add(length).cast();
    memset(to: Any, byte: c_int, length: usize) -> Any = |name| filled(to, byte, length, name);
    bzero(to: Any, length: usize) -> () = |name| _ = filled(to, 0, length, name);
    explicit_bzero(to: Any, length: usize) -> () = |name| _ = filled(to, 0, length, name);
    bcopy(from: *const c_void, to: Any, length: usize) -> () = |name| _ = copied(to.cast::<u8>(), from.cast(), length, name);

    strcpy(to: Text, from: ConstText) -> Text = |name| copied(to, from, libc::strlen(from) + 1, name);
    stpcpy(to: Text, from: ConstText) -> Text = |name| {
        let length = libc::strlen(from);
        copied(to, from, length + 1, name).add(length)
    };
    strncpy(to: Text, from: ConstText, size: usize) -> Text = |name| {
        padded(to, from, libc::strnlen(from, size), size, name);
        to
    };
    stpncpy(to: Text, from: ConstText, size: usize) -> Text = |name| {
        let length = libc::strnlen(from, size);
        padded(to, from, length, size, name);
        to.add(length)
    };
    strcat(to: Text, from: ConstText) -> Text =
        |name| appended(to, libc::strlen(to), from, libc::strlen(from), usize::MAX, name);
    strncat(to: Text, from: ConstText, size: usize) -> Text =
        |name| appended(to, libc::strlen(to), from, libc::strnlen(from, size), size, name);

    wmemcpy(to: Wide, from: ConstWide, count: usize) -> Wide = |name| copied(to, from, count, name);
    wmemmove(to: Wide, from: ConstWide, count: usize) -> Wide = |name| copied(to, from, count, name);
    wmempcpy(to: Wide, from: ConstWide, count: usize) -> Wide = |name| copied(to, from, count, name).add(count);
    wmemset(to: Wide, value: libc::wchar_t, count: usize) -> Wide = |name| {
        writes(to, count, name);
        (0..count).for_each(|index| to.add(index).write_volatile(value));
        to
    };
    wcscpy(to: Wide, from: ConstWide) -> Wide = |name| copied(to, from, wcslen(from) + 1, name);
    wcpcpy(to: Wide, from: ConstWide) -> Wide = |name| {
        let length = wcslen(from);
        copied(to, from, length + 1, name).add(length)
    };
    wcsncpy(to: Wide, from: ConstWide, size: usize) -> Wide = |name| {
        padded(to, from, wcsnlen(from, size), size, name);
        to
    };
    wcscat(to: Wide, from: ConstWide) -> Wide =
        |name| appended(to, wcslen(to), from, wcslen(from), usize::MAX, name);
    wcsncat(to: Wide, from: ConstWide, size: usize) -> Wide =
        |name| appended(to, wcslen(to), from, wcsnlen(from, size), size, name);
}

fortified! {
    __memcpy_chk(to: Any, from: *const c_void, length: usize; length) -> Any = memcpy;
    __memmove_chk(to: Any, from: *const c_void, length: usize; length) -> Any = memmove;
    __mempcpy_chk(to: Any, from: *const c_void, length: usize; length) -> Any = mempcpy;
    __memset_chk(to: Any, byte: c_int, length: usize; length) -> Any = memset;
    __explicit_bzero_chk(to: Any, length: usize; length) -> () = explicit_bzero;
    __strcpy_chk(to: Text, from: ConstText; libc::strlen(from) + 1) -> Text = strcpy;
    __stpcpy_chk(to: Text, from: ConstText; libc::strlen(from) + 1) -> Text = stpcpy;
    __strncpy_chk(to: Text, from: ConstText, size: usize; size) -> Text = strncpy;
    __stpncpy_chk(to: Text, from: ConstText, size: usize; size) -> Text = stpncpy;
    __strcat_chk(to: Text, from: ConstText; libc::strlen(to) + libc::strlen(from) + 1) -> Text = strcat;
    __strncat_chk(to: Text, from: ConstText, size: usize; libc::strlen(to) + libc::strnlen(from, size) + 1) -> Text = strncat;
    __wmemcpy_chk(to: Wide, from: ConstWide, count: usize; count) -> Wide = wmemcpy;
    __wmemmove_chk(to: Wide, from: ConstWide, count: usize; count) -> Wide = wmemmove;
    __wmempcpy_chk(to: Wide, from: ConstWide, count: usize; count) -> Wide = wmempcpy;
    __wmemset_chk(to: Wide, value: libc::wchar_t, count: usize; count) -> Wide = wmemset;
    __wcscpy_chk(to: Wide, from: ConstWide; wcslen(from) + 1) -> Wide = wcscpy;
    __wcpcpy_chk(to: Wide, from: ConstWide; wcslen(from) + 1) -> Wide = wcpcpy;
    __wcsncpy_chk(to: Wide, from: ConstWide, size: usize; size) -> Wide = wcsncpy;
    __wcscat_chk(to: Wide, from: ConstWide; wcslen(to) + wcslen(from) + 1) -> Wide = wcscat;
    __wcsncat_chk(to: Wide, from: ConstWide, size: usize; wcslen(to) + wcsnlen(from, size) + 1) -> Wide = wcsncat;
}

/// Copies what may overlap, and returns the destination.
///
/// # Safety
///
/// As for C's `memmove`.
#[inline(always)]
unsafe fn copied<T>(to: *mut T, from: *const T, count: usize, name: &'static Name) -> *mut T {
    // What is written does more harm, and is told if both are wrong.
    writes(to, count, name);
    reads(from, count, name);
    // SAFETY: the caller's memory is valid for the copy.
    unsafe { copy(to, from, count) };
    to
}

/// Fills memory, and returns where it begins.
///
/// # Safety
///
/// As for C's `memset`.
#[inline(always)]
unsafe fn filled(to: Any, byte: c_int, length: usize, name: &'static Name) -> Any {
    writes(to.cast::<u8>(), length, name);
    // SAFETY: the caller's memory is valid for writes.
    unsafe { fill(to.cast(), byte, length) };
    to
}

/// Copies a text of that length, with zeros behind it up to `size`.
///
/// # Safety
///
/// As for C's `strncpy`.
unsafe fn padded<T>(to: *mut T, from: *const T, length: usize, size: usize, name: &'static Name) {
    reads(from, size.min(length + 1), name);
    writes(to, size, name);
    // SAFETY: the caller's memory is valid for the text, and for writes up to the size.
    unsafe {
        copy(to, from, length);
        fill(to.add(length).cast(), 0, (size - length) * size_of::<T>());
    }
}

/// Appends a text to another one, with a zero behind it. Of the source no more is read than `size`.
///
/// # Safety
///
/// As for C's `strncat`.
unsafe fn appended<T: Default>(
    to: *mut T,
    before: usize,
    from: *const T,
    length: usize,
    size: usize,
    name: &'static Name,
) -> *mut T {
    reads(from, size.min(length + 1), name);
    writes(to, before + length + 1, name);
    // SAFETY: the caller's memory is valid for the text, which ends where the other one goes.
    unsafe {
        copy(to.add(before), from, length);
        to.add(before + length).write(T::default());
    }
    to
}

// What is printed.

/// Says how many units were written, the zero included, that a function of C's returns.
fn printed(result: c_int, size: usize) -> usize {
    usize::try_from(result).map_or(0, |length| size.min(length + 1))
}

/// The C library's `va_list`: a place that the functions read on from.
type Arguments = *mut c_void;

static VSPRINTF: Next = Next::new(c"vsprintf");
static VSNPRINTF: Next = Next::new(c"vsnprintf");
static VSPRINTF_CHK: Next = Next::new(c"__vsprintf_chk");
static VSNPRINTF_CHK: Next = Next::new(c"__vsnprintf_chk");
static VSWPRINTF: Next = Next::new(c"vswprintf");
static VSWPRINTF_CHK: Next = Next::new(c"__vswprintf_chk");

/// Defines a function that prints to memory by the C library's one, and is checked when it returns. Where
/// there is none, it fails. The second name is that of what is called with more arguments than are named:
/// `$gp` is how many bytes of general registers the named ones take, `$list` where the list of the
/// others goes.
macro_rules! printing {
    ($($function:ident, $variadic:ident, $named:ident, $gp:literal, $list:literal, $next:ident
       ($to:ident: $to_type:ty, $($argument:ident: $type:ty),*; $size:expr);)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $function($to: $to_type, $($argument: $type,)* list: Arguments) -> c_int {
                type Function = unsafe extern "C" fn($to_type, $($type,)* Arguments) -> c_int;
                // SAFETY: C's function of that name has this signature, and gets what C's caller passed for it.
                unsafe {
                    let Some(print) = mem::transmute::<Any, Option<Function>>($next.get()) else { return -1 };
                    let result = print($to, $($argument,)* list);
                    writes($to, printed(result, $size), name!(stringify!($function)));
                    result
                }
            }

            #[cfg(target_arch = "x86_64")]
            unsafe extern "C" fn $named($to: $to_type, $($argument: $type,)* list: Arguments) -> c_int {
                type Function = unsafe extern "C" fn($to_type, $($type,)* Arguments) -> c_int;
                // SAFETY: C's function of that name has this signature, and gets what C's caller passed for it,
                // of which the list is made.
                unsafe {
                    let Some(print) = mem::transmute::<Any, Option<Function>>($next.get()) else { return -1 };
                    let result = print($to, $($argument,)* list);
                    writes($to, printed(result, $size), name!(stringify!($variadic)));
                    result
                }
            }

            /// Makes a `va_list` of the arguments that are not named, as the System V ABI has it: the six
            /// general registers, the eight of vectors if the caller says that there are some in them (al),
            /// and what is on the stack.
            #[cfg(target_arch = "x86_64")]
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $variadic() {
                std::arch::naked_asm!(
                    // Whoever unwinds through it finds the caller.
                    ".cfi_startproc",
                    "sub rsp, 216",
                    ".cfi_adjust_cfa_offset 216",
                    "mov [rsp + 32], rdi",
                    "mov [rsp + 40], rsi",
                    "mov [rsp + 48], rdx",
                    "mov [rsp + 56], rcx",
                    "mov [rsp + 64], r8",
                    "mov [rsp + 72], r9",
                    "test al, al",
                    "je 2f",
                    "movaps [rsp + 80], xmm0",
                    "movaps [rsp + 96], xmm1",
                    "movaps [rsp + 112], xmm2",
                    "movaps [rsp + 128], xmm3",
                    "movaps [rsp + 144], xmm4",
                    "movaps [rsp + 160], xmm5",
                    "movaps [rsp + 176], xmm6",
                    "movaps [rsp + 192], xmm7",
                    "2:",
                    concat!("mov dword ptr [rsp], ", $gp),
                    "mov dword ptr [rsp + 4], 48",
                    "lea rax, [rsp + 224]",
                    "mov [rsp + 8], rax",
                    "lea rax, [rsp + 32]",
                    "mov [rsp + 16], rax",
                    concat!("mov ", $list, ", rsp"),
                    "call {named}",
                    "add rsp, 216",
                    ".cfi_adjust_cfa_offset -216",
                    "ret",
                    ".cfi_endproc",
                    named = sym $named,
                )
            }
        )*
    };
}

printing! {
    vsprintf, sprintf, named_sprintf, 16, "rdx", VSPRINTF (to: Text, format: ConstText; usize::MAX);
    vsnprintf, snprintf, named_snprintf, 24, "rcx", VSNPRINTF (to: Text, size: usize, format: ConstText; size);
    __vsprintf_chk, __sprintf_chk, named_sprintf_chk, 32, "r8", VSPRINTF_CHK
        (to: Text, flag: c_int, room: usize, format: ConstText; usize::MAX);
    __vsnprintf_chk, __snprintf_chk, named_snprintf_chk, 40, "r9", VSNPRINTF_CHK
        (to: Text, size: usize, flag: c_int, room: usize, format: ConstText; size);
    vswprintf, swprintf, named_swprintf, 24, "rcx", VSWPRINTF (to: Wide, size: usize, format: ConstWide; size);
    __vswprintf_chk, __swprintf_chk, named_swprintf_chk, 40, "r9", VSWPRINTF_CHK
        (to: Wide, size: usize, flag: c_int, room: usize, format: ConstWide; size);
}

// What the system and stdio read and write. Threads may be cancelled in these.

/// Defines functions that pass on to the C library's own, and are checked before (what they read) or when
/// they return (what they have written).
macro_rules! passed_on {
    ($($function:ident, $next:ident ($($argument:ident: $type:ty),*) -> $result:ty,
       before: $before:expr, after: $after:expr;)*) => {
        $(
            static $next: Next = Next::new(match std::ffi::CStr::from_bytes_with_nul(
                concat!(stringify!($function), "\0").as_bytes(),
            ) {
                Ok(name) => name,
                Err(_) => c"",
            });

            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $function($($argument: $type),*) -> $result {
                type Function = unsafe extern "C-unwind" fn($($type),*) -> $result;
                const NAME: &Name = name!(stringify!($function));
                // SAFETY: C's function of that name has this signature, and gets what C's caller passed for it.
                unsafe {
                    let Some(next) = mem::transmute::<Any, Option<Function>>($next.get()) else {
                        return mem::zeroed();
                    };
                    $before(NAME);
                    let result = next($($argument),*);
                    $after(result, NAME);
                    result
                }
            }
        )*

        /// All of them, to be found at load: a signal handler may call one.
        static READERS: &[&Next] = &[
            $(&$next,)* &VSPRINTF, &VSNPRINTF, &VSPRINTF_CHK, &VSNPRINTF_CHK, &VSWPRINTF, &VSWPRINTF_CHK,
        ];
    };
}

type File = *mut libc::FILE;
type Address = *mut libc::sockaddr;
type Length = *mut libc::socklen_t;

fn nothing(_: &'static Name) {}

/// Checks what a system call has written; or, where it could not access something, the first byte that it was to
/// write: nobody can access large freed blocks. (How many it would have written is not known.)
fn received(to: Any, size: usize, result: isize, name: &'static Name) {
    let length = match usize::try_from(result) {
        Ok(length) => length.min(size),
        Err(_) if errno::get() == libc::EFAULT => size.min(1),
        Err(_) => 0,
    };
    writes(to.cast::<u8>(), length, name);
}

passed_on! {
    read, READ (file: c_int, to: Any, size: usize) -> isize,
        before: nothing, after: |got, name| received(to, size, got, name);
    __read_chk, READ_CHK (file: c_int, to: Any, size: usize, room: usize) -> isize,
        before: nothing, after: |got, name| received(to, size, got, name);
    pread, PREAD (file: c_int, to: Any, size: usize, at: libc::off_t) -> isize,
        before: nothing, after: |got, name| received(to, size, got, name);
    pread64, PREAD64 (file: c_int, to: Any, size: usize, at: libc::off64_t) -> isize,
        before: nothing, after: |got, name| received(to, size, got, name);
    recv, RECV (file: c_int, to: Any, size: usize, flags: c_int) -> isize,
        before: nothing, after: |got: isize, name| received(to, size, got, name);
    recvfrom, RECVFROM (file: c_int, to: Any, size: usize, flags: c_int, from: Address, length: Length) -> isize,
        before: nothing, after: |got: isize, name| received(to, size, got, name);
    fread, FREAD (to: Any, size: usize, count: usize, file: File) -> usize,
        before: nothing, after: |got: usize, name| writes(to.cast::<u8>(), got.saturating_mul(size), name);
    fread_unlocked, FREAD_UNLOCKED (to: Any, size: usize, count: usize, file: File) -> usize,
        before: nothing, after: |got: usize, name| writes(to.cast::<u8>(), got.saturating_mul(size), name);
    fgets, FGETS (to: Text, size: c_int, file: File) -> Text,
        before: nothing, after: |got: Text, name| if !got.is_null() { writes(got, libc::strlen(got) + 1, name) };
    __fgets_chk, FGETS_CHK (to: Text, room: usize, size: c_int, file: File) -> Text,
        before: nothing, after: |got: Text, name| if !got.is_null() { writes(got, libc::strlen(got) + 1, name) };

    write, WRITE (file: c_int, from: *const c_void, size: usize) -> isize,
        before: |name| reads(from.cast::<u8>(), size, name), after: |_, _| ();
    pwrite, PWRITE (file: c_int, from: *const c_void, size: usize, at: libc::off_t) -> isize,
        before: |name| reads(from.cast::<u8>(), size, name), after: |_, _| ();
    pwrite64, PWRITE64 (file: c_int, from: *const c_void, size: usize, at: libc::off64_t) -> isize,
        before: |name| reads(from.cast::<u8>(), size, name), after: |_, _| ();
    send, SEND (file: c_int, from: *const c_void, size: usize, flags: c_int) -> isize,
        before: |name| reads(from.cast::<u8>(), size, name), after: |_, _| ();
    fwrite, FWRITE (from: *const c_void, size: usize, count: usize, file: File) -> usize,
        before: |name| reads(from.cast::<u8>(), size.saturating_mul(count), name), after: |_, _| ();
}
