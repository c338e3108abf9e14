//! dogtag for C and C++: an allocator that knows, always and exactly, which service owns every byte.
//!
//! The header `include/dogtag.h` declares and documents the functions. There are four parts.
//!
//! - `dogtag_malloc`, `dogtag_free` and so on allocate and free blocks that are charged like Rust's.
//!   `dogtag_service_register`, `dogtag_enter`, `dogtag_usage`, `dogtag_snapshot_text` and others do
//!   for C what [`Service`](dogtag::Service) and [`snapshot`](dogtag::snapshot()) do for Rust. Both
//!   share one ledger.
//! - The feature `interpose` replaces the C library's `malloc`, `calloc`, `realloc`, `free` and all
//!   other allocation functions: in a C program that is linked with the library, in the C libraries
//!   of a Rust program, and in any program that the library is preloaded into.
//! - Preloaded, the library is a tool: `DOGTAG_REPORT` makes it print who holds what, and
//!   `DOGTAG_SERVICE` makes each thread a service.
//! - The feature `skynet` adds [skynet](https://github.com/cloudwu/skynet)'s own interface,
//!   `skynet_malloc` to `dump_mem_lua`; a thread allocates as the service whose handle is current in
//!   the host.
//!
//! The feature `interpose` also replaces C++'s operators (`new`, `new[]`, `delete` and `delete[]`, in
//! all forms of C++17). They call new-handlers and throw `std::bad_alloc` as the C++ library does,
//! which is not linked and need not be there. If a program replaces some of the operators, the others
//! call those, as C++ requires.
//!
//! The feature `memory-check` finds violations by C and C++ as it finds Rust's. The feature `profile`
//! adds the heap profiler: `dogtag_profile_start`, `dogtag_profile_write`, and profiles of preloaded
//! programs.
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
//! `interpose`, C libraries in the program allocate from dogtag:
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
//! // SAFETY: any size may be asked of `malloc`.
//! let block = codec.run(|| unsafe { libc::malloc(1000) });
//! assert!(codec.usage().bytes() >= 1000);             // C's blocks are rounded up.
//! // SAFETY: the block is live, and not used again.
//! unsafe { libc::free(block) };
//! assert_eq!(codec.usage().bytes(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! Without that feature this crate defines none of the C library's symbols, whatever features other
//! crates turn on in dogtag itself.
//!
//! # In skynet itself
//!
//! Build the library with `--features interpose,skynet`, take `malloc_hook.c` out of `SKYNET_SRC` in
//! skynet's `Makefile`, and have the linker take in what only skynet's services use:
//!
//! ```sh
//! make linux MALLOC_STATICLIB=…/libdogtag_c.a JEMALLOC_INC=. EXPORT='-Wl,-E -Wl,-u,skynet_lalloc'
//! ```
//!
//! # How large a block is
//!
//! C frees blocks without their size. So a block is as large as its size class in jemalloc, less the
//! cookie at its end (2 bytes, or 6 beyond the first 65,533 services; none from 4 KiB on). That is
//! the size which `malloc_usable_size` returns, which the program may write to, and which is counted.
//! With `memory-check` it is the requested size.
//!
//! # Preloading
//!
//! ```sh
//! LD_PRELOAD=target/release/libdogtag_c.so DOGTAG_REPORT=exit DOGTAG_SERVICE=thread redis-server
//! ```
//!
//! | variable | what it does |
//! | --- | --- |
//! | `DOGTAG_REPORT` | `exit`, the name of a signal such as `SIGUSR2`, `every=60s`, or several of them, separated by commas: the table and the balance, on standard error at the end of each process, whenever it gets the signal, or each time that so much time has passed |
//! | | `file=PATH` among them: to the end of that file; `%p` in it is the process's number |
//! | | `socket` among them: `dogtag top` of the same user may look at the process, [`ReportBuilder::on_socket`](https://docs.rs/dogtag/latest/dogtag/report/struct.ReportBuilder.html#method.on_socket) |
//! | | `json` among them: as lines of JSON, [`Report::to_json`](https://docs.rs/dogtag/latest/dogtag/report/struct.Report.html#method.to_json) |
//! | `DOGTAG_PROFILE` | with the feature `profile`: heap profiles for pprof, at the end of each process and whenever it gets `SIGUSR2`. `1`, or [settings](https://docs.rs/dogtag/latest/dogtag/profile/struct.Profiler.html#method.from_env): `interval=64K,depth=100` |
//! | | `file=PATH` among them: the file, instead of `heap.%p.%n.pb.gz` in the directory where the process began; `%p` in it is the process's number, and `%n` counts the files that the process has written. Without it each one takes the place of the one before |
//! | `DOGTAG_SAMPLED_GUARD` | with the feature `sampled-guard`: one allocation in some thousands stands alone between pages without access, and violations there end the process with a report. `1`, or [settings](https://docs.rs/dogtag/latest/dogtag/sampled_guard/struct.SampledGuard.html#method.from_env): `rate=5000,per-second=100,slots=256,patience=10` |
//! | `DOGTAG_SERVICE` | `thread`: a thread that is in no scope allocates as a service with the thread's name; digits at its end are one `*`, so that the threads of a pool are one service (`worker-*`) |
//! | `DOGTAG_CHECK` | with `memory-check`: its [settings](https://docs.rs/dogtag/latest/dogtag/check/index.html#settings). At its end a process checks all blocks that are live or in quarantine, unless it is a forked child that has freed less than some 64 blocks for each MiB of the heap |
//!
//! Processes with more rights than the user who runs them (setuid) ignore the variables. What is not
//! understood, and files that cannot be written, give a line on standard error; the program goes on.
//!
//! # Names of threads
//!
//! The library does not ask the kernel for names, since a sandbox may end a process that asks. The
//! first thread has the executable's name, and each other one the name of the thread that began it,
//! until it is renamed by `pthread_setname_np`, by itself or by another thread, or by `prctl`. Bytes of
//! a name that are not UTF-8, such as half a character where the kernel cut it after 15 bytes, are
//! shown as U+FFFD. A thread with an empty name allocates for nobody.
//!
//! The library does not notice names that are written to `/proc/self/task/*/comm`, nor system calls
//! that bypass the C library's functions. A thread that is begun by `clone`, or inside the C library
//! (a timer's), has the executable's name.
//!
//! # Forks, and modules
//!
//! Handlers of forks (`pthread_atfork`) may allocate, whenever and by whichever module they are
//! registered.
//!
//! `dlopen` and `dlmopen` drop the flag `RTLD_DEEPBIND`: a module that is opened with it (by PHP, by
//! Apache) would pass this library's blocks to the C library's `free`. Where two libraries have
//! functions of one name, such a module may then get the other library's.
//!
//! # Differences from glibc
//!
//! All sizes and alignments have the results of glibc 2.36, with the same `errno`: every block is
//! aligned to 16, `memalign` and `aligned_alloc` round any alignment up to a power of two,
//! `realloc(block, 0)` frees. These differ:
//!
//! | function | glibc | here |
//! | --- | --- | --- |
//! | `malloc_usable_size` | at least 24 | 14 for the smallest blocks; with `memory-check` the requested size |
//! | `aligned_alloc` | from 2.38 on EINVAL for an alignment that is no power of two | as before 2.38 |
//! | `malloc` of more than there is memory | null by the kernel's heuristic | a block, where the kernel lets allocators overcommit; only pages that are touched take memory |
//! | an allocation beyond a service's hard limit | – | null, ENOMEM |
//! | `free_sized`, `free_aligned_sized` | not in 2.36 | present; `memory-check` compares the size and alignment |
//! | `mallinfo`, `mallopt`, `malloc_trim`, `malloc_info`, `MALLOC_…`, `GLIBC_TUNABLES` | of its heap | of its heap, which is empty |
//!
//! # Limits
//!
//! A C++ program that is linked with the static library must not define the operators itself, as
//! a C program must not define `malloc`; preloaded or shared, it may.
//!
//! A thread that first allocates as a service looks the service up and perhaps registers it; a process
//! without any memory left for that ends there.
//!
//! With a signal, a time or `socket` in `DOGTAG_REPORT`, or with `DOGTAG_PROFILE`, a process and each child that it forks have one more thread,
//! which waits for them: calls that only processes of one thread may make (`unshare` of user
//! namespaces, say) fail. A program that handles the signal itself gets it instead. Standard error is kept open for the report under a number from 500 on, so a
//! reader of its pipe sees the end only when the process ends.
//!
//! Functions of the C library's own heap (`mallinfo`, `mallopt`, `malloc_trim`) still act on that
//! heap, which is empty. A report reads `/proc/self/smaps`, which a sandbox has to allow. A program
//! that contains the whole C library (`cc -static`) needs the library built with
//! `-C target-feature=+crt-static`. A Rust program that interposes should have jemalloc as its
//! backend, as it is by default: blocks of [`System`](std::alloc::System) would be counted twice.
//! Preload the library, or link it; a library that is to be opened with
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
mod profile;
mod services;
#[cfg(feature = "skynet")]
mod skynet;
#[cfg(feature = "interpose")]
mod thread_name;
mod violations;

dogtag::__memory_check! {
    on {
        // Only a shared glibc has a second copy of these functions.
        #[cfg(all(feature = "interpose", target_env = "gnu", not(target_feature = "crt-static")))]
        mod copies;
    }
    off {}
}
