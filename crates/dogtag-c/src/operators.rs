//! C++'s `operator new` and `operator delete`, in all forms that C++17 has, by the names that
//! compilers for the Itanium ABI give them. So memory-check knows which of them a block is from,
//! and what they are told of it.
//!
//! They behave as the C++ library's: where there is no memory the new-handler is called, and if
//! there is none `std::bad_alloc` is thrown. Nothing of C++ is linked for that. A program that
//! calls these has a C++ library, which is asked for its functions when they are needed.
//!
//! A program may replace some of them. The standard has the others call those, so the library
//! looks at first whether all of them are its own; see [`are_replaced`].

use crate::{blocks, malloc_api};
use dogtag::__private::sys as stderr;
use std::ffi::{CStr, c_int, c_void};
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

type Block = *mut c_void;
type Nothrow = *const c_void;

/// Defines each function under its C++ name, and lists the names.
macro_rules! operators {
    ($($name:literal $function:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? = $body:expr;)*) => {
        $(
            /// The operator of this name. A caller of `delete` passes null or a live block of the
            /// `new` that it belongs to.
            #[allow(unused_unsafe, reason = "only the forms of delete require something of their caller")]
            #[unsafe(export_name = $name)]
            unsafe extern "C-unwind" fn $function($($argument: $type),*) $(-> $result)? {
                // SAFETY: `new` requires nothing. C++'s caller of `delete` passes null or a live
                // block of the `new` that belongs to it, and uses it no more.
                unsafe { $body }
            }
        )*

        const NAMES: &[&str] = &[$(concat!($name, "\0")),*];
    };
}

// Each with the one that it calls where the program has one of its own.
operators! {
    "_Znwm" new(size: usize) -> Block = new_or_throw::<false>(None, size, None);
    "_Znam" new_array(size: usize) -> Block = new_or_throw::<true>(None, size, Some(c"_Znwm"));
    "_ZnwmSt11align_val_t" new_aligned(size: usize, alignment: usize) -> Block =
        new_or_throw::<false>(Some(alignment), size, None);
    "_ZnamSt11align_val_t" new_array_aligned(size: usize, alignment: usize) -> Block =
        new_or_throw::<true>(Some(alignment), size, Some(c"_ZnwmSt11align_val_t"));
    "_ZnwmRKSt9nothrow_t" new_nothrow(size: usize, nothrow: Nothrow) -> Block =
        new_or_null::<false>(None, size, c"_Znwm", c"_ZnwmRKSt9nothrow_t", nothrow);
    "_ZnamRKSt9nothrow_t" new_array_nothrow(size: usize, nothrow: Nothrow) -> Block =
        new_or_null::<true>(None, size, c"_Znam", c"_ZnamRKSt9nothrow_t", nothrow);
    "_ZnwmSt11align_val_tRKSt9nothrow_t"
    new_aligned_nothrow(size: usize, alignment: usize, nothrow: Nothrow) -> Block =
        new_or_null::<false>(Some(alignment), size, c"_ZnwmSt11align_val_t", c"_ZnwmSt11align_val_tRKSt9nothrow_t", nothrow);
    "_ZnamSt11align_val_tRKSt9nothrow_t"
    new_array_aligned_nothrow(size: usize, alignment: usize, nothrow: Nothrow) -> Block =
        new_or_null::<true>(Some(alignment), size, c"_ZnamSt11align_val_t", c"_ZnamSt11align_val_tRKSt9nothrow_t", nothrow);

    "_ZdlPv" delete(block: Block) = give_back::<false>(block, None, None, None);
    "_ZdaPv" delete_array(block: Block) = give_back::<true>(block, None, None, Some(c"_ZdlPv"));
    "_ZdlPvRKSt9nothrow_t" delete_nothrow(block: Block, _nothrow: Nothrow) =
        give_back::<false>(block, None, None, Some(c"_ZdlPv"));
    "_ZdaPvRKSt9nothrow_t" delete_array_nothrow(block: Block, _nothrow: Nothrow) =
        give_back::<true>(block, None, None, Some(c"_ZdaPv"));
    "_ZdlPvm" delete_sized(block: Block, size: usize) =
        give_back::<false>(block, None, Some(size), Some(c"_ZdlPv"));
    "_ZdaPvm" delete_array_sized(block: Block, size: usize) =
        give_back::<true>(block, None, Some(size), Some(c"_ZdaPv"));
    "_ZdlPvSt11align_val_t" delete_aligned(block: Block, alignment: usize) =
        give_back::<false>(block, Some(alignment), None, None);
    "_ZdaPvSt11align_val_t" delete_array_aligned(block: Block, alignment: usize) =
        give_back::<true>(block, Some(alignment), None, Some(c"_ZdlPvSt11align_val_t"));
    "_ZdlPvSt11align_val_tRKSt9nothrow_t"
    delete_aligned_nothrow(block: Block, alignment: usize, _nothrow: Nothrow) =
        give_back::<false>(block, Some(alignment), None, Some(c"_ZdlPvSt11align_val_t"));
    "_ZdaPvSt11align_val_tRKSt9nothrow_t"
    delete_array_aligned_nothrow(block: Block, alignment: usize, _nothrow: Nothrow) =
        give_back::<true>(block, Some(alignment), None, Some(c"_ZdaPvSt11align_val_t"));
    "_ZdlPvmSt11align_val_t" delete_sized_aligned(block: Block, size: usize, alignment: usize) =
        give_back::<false>(block, Some(alignment), Some(size), Some(c"_ZdlPvSt11align_val_t"));
    "_ZdaPvmSt11align_val_t" delete_array_sized_aligned(block: Block, size: usize, alignment: usize) =
        give_back::<true>(block, Some(alignment), Some(size), Some(c"_ZdaPvSt11align_val_t"));
}

#[inline(always)]
fn new_or_throw<const ARRAY: bool>(alignment: Option<usize>, size: usize, passed_to: Option<&CStr>) -> Block {
    if !are_known_as_own() || !is_alignment(alignment) {
        return new_or_throw_slow::<ARRAY>(alignment, size, passed_to);
    }
    let block: Block = blocks::new::<ARRAY>(alignment, size).cast();
    if block.is_null() {
        return new_in_need(alignment, || allocate::<ARRAY>(alignment, size));
    }
    block
}

/// Variant of [`new_or_throw`] where some operator is the program's, it is not known yet, or the alignment is
/// none.
#[cold]
#[inline(never)]
fn new_or_throw_slow<const ARRAY: bool>(
    alignment: Option<usize>,
    size: usize,
    passed_to: Option<&CStr>,
) -> Block {
    if are_replaced()
        && let Some(block) = passed_to.and_then(|name| program_allocates(name, alignment, size))
    {
        return block;
    }
    let block = allocate::<ARRAY>(alignment, size);
    if block.is_null() {
        return new_in_need(alignment, || allocate::<ARRAY>(alignment, size));
    }
    block
}

#[cold]
#[inline(never)]
fn new_in_need(alignment: Option<usize>, again: impl Fn() -> Block) -> Block {
    // For an alignment that is no power of two no handler finds memory.
    let is_possible = is_alignment(alignment);
    while is_possible && let Some(handler) = new_handler() {
        // SAFETY: the program set the handler for this call. It may leave by an exception, which passes
        // over no destructor.
        unsafe { handler() };
        let block = again();
        if !block.is_null() {
            return block;
        }
    }
    throw_bad_alloc()
}

/// Allocates for a form that does not throw. `name` is that form's, `throwing` that of the form
/// which does.
#[inline(always)]
fn new_or_null<const ARRAY: bool>(
    alignment: Option<usize>,
    size: usize,
    throwing: &CStr,
    name: &CStr,
    nothrow: Nothrow,
) -> Block {
    if !are_replaced() {
        let block = allocate::<ARRAY>(alignment, size);
        if !block.is_null() {
            return block;
        }
    }
    new_or_null_in_need(alignment, size, throwing, name, nothrow)
}

/// Leaves the allocation to the C++ library's function, which calls the form that throws. A handler
/// may throw, and so may the program's own operator, and only C++ can catch that.
#[cold]
#[inline(never)]
fn new_or_null_in_need(
    alignment: Option<usize>,
    size: usize,
    throwing: &CStr,
    name: &CStr,
    nothrow: Nothrow,
) -> Block {
    let are_replaced = are_replaced();
    if !are_replaced && (new_handler().is_none() || !is_alignment(alignment)) {
        return ptr::null_mut();
    }
    // SAFETY: the C++ library's functions with those names have these signatures.
    unsafe {
        match (cxx_function(name, libc::RTLD_NEXT), alignment) {
            (Some(next), None) => mem::transmute::<NonNull<c_void>, NewNothrow>(next)(size, nothrow),
            (Some(next), Some(alignment)) => {
                mem::transmute::<NonNull<c_void>, NewAlignedNothrow>(next)(size, alignment, nothrow)
            }
            (None, _) if are_replaced => {
                program_allocates(throwing, alignment, size).unwrap_or(ptr::null_mut())
            }
            (None, _) => ptr::null_mut(),
        }
    }
}

/// Frees a block of `operator new`; does nothing for null. `passed_to` is the operator that the
/// standard has this one call.
///
/// # Safety
///
/// The block must be null, or live and of the operators that belong to this one.
#[inline(always)]
unsafe fn give_back<const ARRAY: bool>(
    block: Block,
    alignment: Option<usize>,
    size: Option<usize>,
    passed_to: Option<&CStr>,
) {
    // SAFETY: the caller passes null or a live block of the operators that belong to this one, which
    // are these.
    unsafe {
        if !are_known_as_own() {
            give_back_slow::<ARRAY>(block, alignment, size, passed_to);
        } else if !block.is_null() {
            malloc_api::keeping_errno(|| blocks::delete::<ARRAY>(block.cast(), alignment, size));
        }
    }
}

/// Variant of [`give_back`] where some operator is the program's, or it is not known yet.
///
/// # Safety
///
/// As for [`give_back`].
#[cold]
#[inline(never)]
unsafe fn give_back_slow<const ARRAY: bool>(
    block: Block,
    alignment: Option<usize>,
    size: Option<usize>,
    passed_to: Option<&CStr>,
) {
    // SAFETY: the caller passes null or a live block of the operators that belong to this one, which
    // are the program's if some are replaced, and these otherwise.
    unsafe {
        if are_replaced() {
            program_frees(passed_to, block, alignment);
        } else if !block.is_null() {
            malloc_api::keeping_errno(|| blocks::delete::<ARRAY>(block.cast(), alignment, size));
        }
    }
}

#[inline(always)]
fn allocate<const ARRAY: bool>(alignment: Option<usize>, size: usize) -> Block {
    if !is_alignment(alignment) {
        return ptr::null_mut();
    }
    if are_replaced() {
        // The program may give it to its own operator, or to free.
        return match alignment {
            None => malloc_api::malloc(size),
            Some(alignment) => malloc_api::aligned_alloc(alignment, size),
        };
    }
    blocks::new::<ARRAY>(alignment, size).cast()
}

fn is_alignment(alignment: Option<usize>) -> bool {
    alignment.is_none_or(usize::is_power_of_two)
}

/// Calls the `operator new` of that name, which may be this library's.
#[cold]
fn program_allocates(name: &CStr, alignment: Option<usize>, size: usize) -> Option<Block> {
    // SAFETY: a function of that C++ name has this signature, and requires nothing of its caller.
    unsafe {
        let found = NonNull::new(libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()))?;
        Some(match alignment {
            None => mem::transmute::<NonNull<c_void>, New>(found)(size),
            Some(alignment) => mem::transmute::<NonNull<c_void>, NewAligned>(found)(size, alignment),
        })
    }
}

/// Calls the `operator delete` of that name, or `free` if there is none.
///
/// # Safety
///
/// As for [`give_back`].
#[cold]
unsafe fn program_frees(name: Option<&CStr>, block: Block, alignment: Option<usize>) {
    // SAFETY: a function of that C++ name has this signature. It gets null or a live block of the
    // operators that belong to it, which are on top of `malloc` and `free` where it is missing.
    unsafe {
        let found = name.and_then(|name| NonNull::new(libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr())));
        match (found, alignment) {
            (Some(found), None) => mem::transmute::<NonNull<c_void>, Delete>(found)(block),
            (Some(found), Some(alignment)) => {
                mem::transmute::<NonNull<c_void>, DeleteAligned>(found)(block, alignment);
            }
            (None, _) => malloc_api::free(block),
        }
    }
}

type New = unsafe extern "C-unwind" fn(usize) -> Block;
type NewAligned = unsafe extern "C-unwind" fn(usize, usize) -> Block;
type NewNothrow = unsafe extern "C-unwind" fn(usize, Nothrow) -> Block;
type NewAlignedNothrow = unsafe extern "C-unwind" fn(usize, usize, Nothrow) -> Block;
type Delete = unsafe extern "C-unwind" fn(Block);
type DeleteAligned = unsafe extern "C-unwind" fn(Block, usize);

const UNKNOWN: u8 = 0;
const OWN: u8 = 1;
const REPLACED: u8 = 2;

static ARE_REPLACED: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Says whether all operators were found to be the library's own. What else there is takes a slow path, so
/// that the hot one has no call for which registers would be saved.
#[inline(always)]
fn are_known_as_own() -> bool {
    ARE_REPLACED.load(Ordering::Relaxed) == OWN
}

/// Says whether the program, or a library before this one, replaces some of the operators. The
/// others are then as the C++ library's: on top of those, of `malloc` and `free`.
#[inline(always)]
fn are_replaced() -> bool {
    match ARE_REPLACED.load(Ordering::Relaxed) {
        OWN => false,
        REPLACED => true,
        _ => learn(),
    }
}

/// Looks the operators' addresses up. The first call is before the program's `main`, since the
/// loader takes a lock for it.
#[cold]
#[inline(never)]
fn learn() -> bool {
    // What threads have found meanwhile is the same.
    // SAFETY: the names end with zeros, and any address may be passed to `dladdr`; both calls only
    // look something up.
    let are_replaced = unsafe {
        let own = file_of(ptr::from_ref(&ARE_REPLACED).cast());
        NAMES.iter().any(|name| {
            let found = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr().cast());
            !found.is_null() && file_of(found) != own
        })
    };
    ARE_REPLACED.store(if are_replaced { REPLACED } else { OWN }, Ordering::Relaxed);
    are_replaced
}

#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    are_replaced();
}

/// Returns where the program or library is loaded that an address is in; null for none.
fn file_of(address: *const c_void) -> *mut c_void {
    // SAFETY: any address may be passed, which is looked up and not read. Zeros are a valid
    // `Dl_info`, and it is a place for the result.
    unsafe {
        let mut found: libc::Dl_info = mem::zeroed();
        if libc::dladdr(address, &mut found) == 0 { ptr::null_mut() } else { found.dli_fbase }
    }
}

type Handler = unsafe extern "C-unwind" fn();

/// Returns the handler that the program has set with `std::set_new_handler`.
#[cold]
fn new_handler() -> Option<Handler> {
    let get_new_handler = cxx_function(c"_ZSt15get_new_handlerv", libc::RTLD_DEFAULT)?;
    // SAFETY: the C++ library's function with that name has this signature.
    unsafe { mem::transmute::<NonNull<c_void>, unsafe extern "C" fn() -> Option<Handler>>(get_new_handler)() }
}

#[cold]
fn throw_bad_alloc() -> ! {
    if let Some(throw) = cxx_function(c"_ZSt17__throw_bad_allocv", libc::RTLD_DEFAULT) {
        // SAFETY: the C++ library's function with that name has this signature. The exception
        // passes over no destructor.
        unsafe { mem::transmute::<NonNull<c_void>, unsafe extern "C-unwind" fn() -> !>(throw)() }
    }
    stderr::print(format_args!(
        "dogtag: operator new: out of memory, and no C++ library is there to throw std::bad_alloc\n"
    ));
    std::process::abort();
}

/// Looks up a function of the C++ library, if one is loaded: as it is found from here, or in a
/// library that was opened for others alone, as a plug-in's are.
fn cxx_function(name: &CStr, from: *mut c_void) -> Option<NonNull<c_void>> {
    const LIBRARIES: [&CStr; 3] = [c"libstdc++.so.6", c"libc++abi.so.1", c"libc++.so.1"];
    const IF_LOADED: c_int = libc::RTLD_LAZY | libc::RTLD_NOLOAD;

    // SAFETY: the names end with zeros, and a library that is loaded already is not loaded again, so no
    // code of its runs. Its count of references is raised, so it stays, whoever else closes it.
    unsafe {
        let found = NonNull::new(libc::dlsym(from, name.as_ptr()));
        found.or_else(|| {
            LIBRARIES.iter().find_map(|library| {
                let library = NonNull::new(libc::dlopen(library.as_ptr(), IF_LOADED))?;
                NonNull::new(libc::dlsym(library.as_ptr(), name.as_ptr()))
            })
        })
    }
}
