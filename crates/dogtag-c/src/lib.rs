//! dogtag for C and C++: an allocator that knows, always and exactly, which service owns every byte.
//!
//! The header `include/dogtag.h` declares and documents the functions. There are four parts.
//!
//! - `dogtag_malloc` and its kin allocate blocks that are charged like Rust's, and
//!   `dogtag_service_register`, `dogtag_enter`, `dogtag_usage`, `dogtag_snapshot_text` and
//!   others are for C what [`Service`](dogtag::Service) and [`snapshot`](dogtag::snapshot())
//!   are for Rust. Both share one ledger.
//! - With the feature `interpose`, `malloc`, `calloc`, `realloc`, `free` and all others of the
//!   C library are these: of a C program that is linked with the library, of the C libraries
//!   in a Rust program, and of any program at all that the library is preloaded into.
//! - Preloaded, it is a tool: `DOGTAG_REPORT` has who holds what printed, and
//!   `DOGTAG_SERVICE` makes services of threads.
//! - With the feature `skynet`, there is [skynet](https://github.com/cloudwu/skynet)'s own
//!   interface, `skynet_malloc` to `dump_mem_lua`, and a thread allocates as the service
//!   whose handle the host says is current.
//!
//! With `interpose` C++'s operators (`new`, `new[]`, `delete` and `delete[]`, in all forms of C++17)
//! are these as well: new-handlers are called and `std::bad_alloc` is thrown as by the C++ library,
//! which is not linked and need not be there. Where a program replaces some of the operators, the
//! others call those, as C++ has it.
//!
//! With `memory-check` violations by C and C++ are found as Rust's are.
//!
//! # Building the libraries
//!
//! ```sh
//! cargo build --release -p dogtag-c
//! cargo build --release -p dogtag-c --features interpose
//! ```
//!
//! Each leaves `libdogtag_c.a` and `libdogtag_c.so` in `target/release`.
//!
//! # In a Rust program
//!
//! Depend on this crate and name it once (`use dogtag_c as _;`), so that it is linked. With
//! `interpose` C libraries in the program allocate from dogtag then:
//!
//! ```
//! use dogtag_c as _;
//!
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! # #[cfg(not(feature = "interpose"))]
//! # fn main() {}
//! # #[cfg(feature = "interpose")]
//! # fn main() -> Result<(), dogtag::RegisterError> {
//! let codec = dogtag::Service::register("codec")?;
//! // SAFETY: any size will do.
//! let block = codec.run(|| unsafe { libc::malloc(1000) });
//! assert!(codec.usage().bytes() >= 1000);             // C's blocks are rounded up.
//! // SAFETY: live, and not used again.
//! unsafe { libc::free(block) };
//! assert_eq!(codec.usage().bytes(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! Without that feature no symbol of the C library's is defined, whatever features other crates
//! turn on in dogtag itself.
//!
//! # How large a block is
//!
//! C frees blocks without their size. So a block is as large as what jemalloc allocates for
//! it, less the cookie at its end (2 bytes, or 6 beyond the first 65,533 services; none from
//! 4 KiB on): that is what `malloc_usable_size` says, what the program may write to, and what
//! is counted. With `memory-check` it is just what was requested.
//!
//! # Preloading
//!
//! ```sh
//! LD_PRELOAD=target/release/libdogtag_c.so DOGTAG_REPORT=exit DOGTAG_SERVICE=thread redis-server
//! ```
//!
//! | variable | what it does |
//! | --- | --- |
//! | `DOGTAG_REPORT` | `exit`, the name of a signal such as `SIGUSR2`, or both, separated by commas: the table and the balance, on standard error at the end of each process or whenever it gets the signal |
//! | | `file=PATH` among them: to the end of that file; `%p` in it is the process's number |
//! | `DOGTAG_SERVICE` | `thread`: a thread that is in no scope allocates as a service with the thread's name |
//! | `DOGTAG_CHECK` | with `memory-check`: its [settings](https://docs.rs/dogtag/latest/dogtag/check/index.html#settings). At the end of a process all blocks are looked at that are live or in quarantine; not by a forked child that has freed less than some 64 blocks for each MiB of the heap |
//!
//! Processes with more rights than whoever runs them (setuid) do not look at the variables.
//!
//! # Names of threads
//!
//! The kernel is not asked for them, since a sandbox may end who asks. The first thread has the
//! executable's name, and each other one the name of the thread that began it, until it is renamed
//! by `pthread_setname_np`, by itself or by another thread, or by `prctl`. What is not UTF-8 in a
//! name, such as half a character where the kernel cut it after 15 bytes, is shown as U+FFFD. A
//! thread with an empty name allocates for nobody.
//!
//! Not noticed: what is written to `/proc/self/task/*/comm`, and system calls without the C
//! library's functions. A thread that is begun by `clone`, or inside the C library (a timer's),
//! has the executable's name.
//!
//! # Forks, and modules
//!
//! Whoever registers handlers of forks (`pthread_atfork`) may allocate in them, whenever and
//! wherever he does it.
//!
//! `dlopen` and `dlmopen` leave out `RTLD_DEEPBIND`, as sanitizers do: a module that is opened with
//! it (by PHP, by Apache) would use the C library's `free` for blocks that are from here. Where two
//! libraries have functions of one name, such a module may then get the other one's.
//!
//! # Differences from glibc
//!
//! Sizes and alignments get what glibc 2.36 gives them, with the same `errno`: every block is aligned
//! to 16, `memalign` and `aligned_alloc` take the next power of two for any alignment,
//! `realloc(block, 0)` frees. What differs:
//!
//! | function | glibc | here |
//! | --- | --- | --- |
//! | `malloc_usable_size` | at least 24 | 14 for the smallest blocks; with `memory-check` what was requested |
//! | `aligned_alloc` | from 2.38 on EINVAL for what is no power of two | as before that |
//! | `malloc` of more than there is memory | null by the kernel's heuristic | a block, of which only what is touched takes memory, where the kernel lets allocators overcommit |
//! | an allocation beyond a service's hard limit | – | null, ENOMEM |
//! | `free_sized`, `free_aligned_sized` | not in 2.36 | there; what is said is looked at with `memory-check` |
//! | `mallinfo`, `mallopt`, `malloc_trim`, `malloc_info`, `MALLOC_…`, `GLIBC_TUNABLES` | of its heap | of its heap, which is empty |
//!
//! # Limits
//!
//! A C++ program that is linked with the static library must not define the operators itself, as
//! a C program must not define `malloc`; preloaded or shared, it may.
//!
//! Where a thread is to allocate as a service that it has not been in before, the service is
//! looked up and perhaps registered; a process without any memory left for that ends there.
//!
//! With a signal in `DOGTAG_REPORT` a process and each child that it forks have a thread more,
//! which waits for the signal: what only processes of one thread may do (`unshare` of user
//! namespaces, say) fails. Standard error is kept open for the report under a number
//! from 500 on, so who waits for its end waits until the process ends.
//!
//! Functions that are about the C library's own heap (`mallinfo`, `mallopt`, `malloc_trim`)
//! are left to it, and it is empty. A report reads `/proc/self/smaps`, which a sandbox has to let
//! through. A program that has the whole C library in it (`cc -static`) needs the library built
//! with `-C target-feature=+crt-static`. A Rust program that interposes should have jemalloc as
//! its backend, as it is by default: [`System`](std::alloc::System) would come here too, and
//! be counted twice. Preload the library, or link it; a library that is to be opened with
//! `dlopen` needs the feature `disable-initial-exec-tls` ([Plug-ins](https://docs.rs/dogtag/latest/dogtag/guide/index.html#plug-ins)).

#![deny(missing_docs)]

#[cfg(not(target_os = "linux"))]
compile_error!("dogtag-c is for Linux");

mod blocks;
mod current_owner;
mod errno;
#[cfg(feature = "skynet")]
mod host;
#[cfg(any(feature = "interpose", feature = "skynet"))]
mod implicit_services;
#[cfg(feature = "interpose")]
mod interpose;
mod malloc_api;
#[cfg(feature = "interpose")]
mod names;
#[cfg(feature = "interpose")]
mod operators;
#[cfg(feature = "interpose")]
mod preload;
#[cfg(feature = "interpose")]
mod process;
mod services;
#[cfg(feature = "skynet")]
mod skynet;
#[cfg(feature = "interpose")]
mod thread_name;
mod violations;
