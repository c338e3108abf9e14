/*
 * dogtag for C: a malloc that knows, always and exactly, which service owns every
 * byte. The library is built from the Rust crate `dogtag-c`, whose README has the
 * commands. C99, C++98 and later.
 *
 * Sizes are in bytes. A block is as large as `dogtag_usable_size` says: the size that was
 * asked for, and what its size class adds. That size is counted, since C frees blocks without
 * saying one. With `memory-check` it is the size that was asked for, and a write of one byte
 * more is found.
 *
 * All functions may be called from any thread, and in a forked child. None may be called
 * from a signal handler.
 */
#ifndef DOGTAG_H
#define DOGTAG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Blocks
 *
 * These functions do what the C library's malloc, calloc and so on do, and charge blocks to the
 * service that the calling thread is in. With the feature `interpose` they have the C library's
 * names as well, and both may be mixed. Another library's `free` must not get these blocks, nor
 * `dogtag_free` another library's.
 */

/* Allocates a block, aligned to 16; of 0 bytes, one that can be freed. Null, with errno ENOMEM,
 * where memory or a limit is exhausted. */
void *dogtag_malloc(size_t size);

/* Allocates count times size bytes, all zeros. Null, with errno ENOMEM, where memory or a limit is
 * exhausted, or if the product overflows. */
void *dogtag_calloc(size_t count, size_t size);

/* Resizes a block, and makes it the current service's. Null, with errno ENOMEM, leaves it as it
 * was; a block that does not grow is never refused. `dogtag_realloc(block, 0)` frees the block and
 * returns null, as glibc does; `dogtag_realloc(NULL, size)` allocates one. */
void *dogtag_realloc(void *block, size_t size);

/* Resizes a block to count times size bytes, as dogtag_realloc does. Null, with errno ENOMEM, also if
 * the product overflows. */
void *dogtag_reallocarray(void *block, size_t count, size_t size);

/* Allocates a block of any alignment that is a power of two. Null, with errno EINVAL, for others, or
 * ENOMEM, where memory or a limit is exhausted. */
void *dogtag_aligned_alloc(size_t alignment, size_t size);

/* Copies a string to a block of its own. Null, with errno ENOMEM, where memory or a limit is
 * exhausted. */
char *dogtag_strdup(const char *string);

/* Frees a block; does nothing for null. Does not change errno. */
void dogtag_free(void *block);

/* Returns how many bytes may be written to a block; 0 for null. */
size_t dogtag_usable_size(const void *block);

/*
 * Services
 */

/* A reference to a service, which memory is accounted to. It is to be released; the service ends when
 * its last reference is released and its last block is freed. */
typedef struct dogtag_service dogtag_service;

/* Returns the service of that name, registered now if there is none. Null if it cannot be, with
 * errno EINVAL (no name, or not UTF-8), ENAMETOOLONG (more than 255 bytes), ENOSPC
 * (16,777,213 services) or ENOMEM. */
dogtag_service *dogtag_service_register(const char *name);

/* Returns the service of that name, registered now with a handle (0 to have one assigned) and below
 * a parent (or null) if there is none. Null, with the errno of dogtag_service_register, or EEXIST:
 * the name is registered with another handle or parent, or the handle with another name. */
dogtag_service *dogtag_service_register_as(const char *name, uint32_t handle, const dogtag_service *parent);

/* Returns the service that the calling thread is in; the one named `unattributed` if it is in
 * none. */
dogtag_service *dogtag_service_current(void);

/* Returns another reference to the same service. */
dogtag_service *dogtag_service_retain(const dogtag_service *service);

/* Gives a reference back; does nothing for null. */
void dogtag_service_release(dogtag_service *service);

/* Returns a service's handle: the number that was chosen, or the one that was assigned. */
uint32_t dogtag_service_handle(const dogtag_service *service);

/* Returns a service's name, as a text for dogtag_free; null where memory or a limit is exhausted. */
char *dogtag_service_name(const dogtag_service *service);

/* Sets how many bytes a service and its children may hold at most: an allocation over the limit
 * returns null. UINT64_MAX lifts the limit. */
void dogtag_service_set_hard_limit(const dogtag_service *service, uint64_t bytes);

/* Where a thread was before it entered a service. */
typedef struct dogtag_scope {
	const void *previous;
	/* For dogtag's own use. */
	const void *reserved;
} dogtag_scope;

/* Enters a service with the calling thread, and keeps the service alive until it is left. Takes no
 * lock. */
dogtag_scope dogtag_enter(const dogtag_service *service);

/* Leaves a scope: the thread, which must be the one that entered it, goes back to where it was.
 * Scopes nest. */
void dogtag_leave(dogtag_scope scope);

/*
 * Figures
 */

/* Figures of what was allocated and freed. Live bytes are allocated_bytes - freed_bytes, which is
 * never negative. Later versions may have more fields at the end. */
typedef struct dogtag_figures {
	/* sizeof(dogtag_figures) as the program was compiled, which sets it before each call. */
	size_t struct_size;
	uint64_t allocated_bytes;
	uint64_t allocated_blocks;
	uint64_t freed_bytes;
	uint64_t freed_blocks;
	/* The most bytes that were live, to within 1 MiB for each thread. */
	uint64_t peak_bytes;
	/* Allocations that a limit has refused. */
	uint64_t denied;
} dogtag_figures;

/* Fills in the figures of one service: the fields that lie within struct_size, and 0 for fields
 * that the library does not know, which may be older or newer than the program. False, with errno
 * EINVAL, if struct_size leaves no field, or is more than 4096: it was not set. Reads a cell for each
 * thread; takes no lock. Also for signal handlers. */
bool dogtag_usage_into(const dogtag_service *service, dogtag_figures *figures);

/* Fills in the sums of all services, as dogtag_usage_into does for one: those that have ended are
 * included, and whatever C and Rust allocated. Also for signal handlers. */
bool dogtag_totals_into(dogtag_figures *figures);

/* Returns the figures of one service. */
static inline dogtag_figures dogtag_usage(const dogtag_service *service)
{
	dogtag_figures figures;
	figures.struct_size = sizeof(figures);
	dogtag_usage_into(service, &figures);
	return figures;
}

/* Returns the figures of all services. */
static inline dogtag_figures dogtag_totals(void)
{
	dogtag_figures figures;
	figures.struct_size = sizeof(figures);
	dogtag_totals_into(&figures);
	return figures;
}

/* Returns a table of who holds what, as a text for dogtag_free. Null where a limit is exhausted; a
 * process without any memory left ends there. */
char *dogtag_snapshot_text(void);

/* Returns the table of dogtag_snapshot_text, followed by where the process's physical memory (RSS)
 * is. */
char *dogtag_balance_text(void);

/*
 * Heap profiles: which code holds the memory (a library built with `profile`)
 */

/* Starts the heap profiler: of the bytes that are allocated from now on, one of `interval` is sampled on
 * average, with its call stack. 524288 costs next to nothing; 1 samples every allocation. False with
 * errno EINVAL (0), EALREADY (the profiler is running), or ENOTSUP (without `profile`). */
bool dogtag_profile_start(uint64_t interval);

/* Stops the heap profiler. Profiles still show what was sampled before. Does nothing if it is not
 * running. */
void dogtag_profile_stop(void);

/* Writes to a file, in place of what is there, what is live and what was allocated since sampling began,
 * by service and call stack: the gzipped format of pprof, with each service's exact sums. Looks up
 * functions' names, which may take a second. False with the errno of what failed, EINVAL for null, or
 * ENOTSUP without `profile`.
 *
 *     go tool pprof -top -tagfocus service=sessions heap.pb.gz
 */
bool dogtag_profile_write(const char *path);

/*
 * Violations, which a library built with `memory-check` finds
 */

/* The kinds of violations. Later versions may find more. */
typedef enum dogtag_violation_kind {
	DOGTAG_OVERRUN = 1,
	DOGTAG_UNDERRUN = 2,
	DOGTAG_DOUBLE_FREE = 3,
	DOGTAG_WRITE_AFTER_FREE = 4,
	/* Of C's blocks, by free_sized, free_aligned_sized, and C++'s operator delete. */
	DOGTAG_LAYOUT_MISMATCH = 5,
	DOGTAG_INVALID_FREE = 6,
	/* By Rust in the same process, whose mapped regions these are. */
	DOGTAG_REGION_IN_USE = 7,
	/* Of new by delete[] or free, of malloc by delete, and so on. */
	DOGTAG_ALLOC_DEALLOC_MISMATCH = 8,
	/* dogtag_usable_size or malloc_usable_size of what is no live block. */
	DOGTAG_BAD_USABLE_SIZE = 9,
	/* Reads past the end of a block or in front of one, by memcpy and other functions of C's. */
	DOGTAG_OVERREAD = 10,
	/* The same functions' reads of a freed block. */
	DOGTAG_READ_AFTER_FREE = 11,
	/* Writes to memory of the heap that holds no block: the block is the nearest one. */
	DOGTAG_WILD_WRITE = 12,
	/* Reads of such memory. */
	DOGTAG_WILD_READ = 13
} dogtag_violation_kind;

/* A violation. Later versions may have more fields at the end. */
typedef struct dogtag_violation {
	/* The struct's size in bytes in the library that found it: read no field beyond that. */
	size_t struct_size;
	dogtag_violation_kind kind;
	/* The pointer that was passed, or at which it was found. */
	const void *address;
	/* The block, with the size that was asked for; null if there is none. */
	const void *block;
	size_t size;
	/* The service that allocated the block, and its handle; empty and 0 if it is not known. */
	const char *service;
	uint32_t handle;
	/* The report, as it would be printed. */
	const char *report;
} dogtag_violation;

/* What happens when a handler has returned. */
typedef enum dogtag_reaction {
	/* The process aborts. */
	DOGTAG_ABORT = 0,
	/* The process goes on; the block's memory is never used again. */
	DOGTAG_LEAK = 1
} dogtag_reaction;

/* A handler of violations. */
typedef dogtag_reaction (*dogtag_violation_handler)(const dogtag_violation *violation);

/* Sets the handler that is called when a violation is found, on the thread that found it; null for
 * the report on standard error. The handler must not wait for a lock that the program may hold there.
 * The violation and its texts are gone when it returns. False without `memory-check`. */
bool dogtag_set_violation_handler(dogtag_violation_handler handler);

/* Checks every block now, and reports each violation. Returns their number; 0 without
 * `memory-check`. */
uint64_t dogtag_verify(void);

/*
 * skynet's own interface (feature `skynet`), as in its skynet_malloc.h and malloc_hook.h. The
 * former defines `skynet_malloc` as `malloc`, so skynet itself needs `interpose`, too: `malloc`,
 * `free` and so on are skynet's functions then.
 *
 * While the host program has a function `skynet_current_handle`, a thread allocates as the
 * service with that handle, named as skynet prints it (":0100000a"), and registered when it
 * first allocates. The host's skynet_error, lua_createtable, lua_pushinteger and lua_rawseti
 * are called by dump_c_mem, mallctl_opt and dump_mem_lua.
 */
#ifdef DOGTAG_SKYNET

struct lua_State;

/* These print a message and abort where memory is exhausted, as skynet does. */
void *skynet_malloc(size_t size);
void *skynet_calloc(size_t count, size_t size);
/* Resizes a block; to 0 bytes, too, unlike realloc. */
void *skynet_realloc(void *block, size_t size);
void skynet_free(void *block);
char *skynet_strdup(const char *string);
void *skynet_memalign(size_t alignment, size_t size);
void *skynet_aligned_alloc(size_t alignment, size_t size);
int skynet_posix_memalign(void **block, size_t alignment, size_t size);

/* Allocates, resizes and frees for Lua, which counts its memory itself: straight from jemalloc, in no
 * service's figures. */
void *skynet_lalloc(void *block, size_t old_size, size_t new_size);

/* Return live bytes and live blocks of all services, and live bytes of the current one. Handle 0 is no
 * service's, as in skynet: blocks allocated while it is current (threads between two services) are in
 * no sum but its own, and so is dogtag's own memory: names and tables, of which up to 130 KB for
 * services that have ended. */
size_t malloc_used_memory(void);
size_t malloc_memory_block(void);
size_t malloc_current_memory(void);

/* Print jemalloc's report on standard error, and read and write its settings. */
void memory_info_dump(const char *options);
size_t mallctl_int64(const char *name, size_t *new_value);
int mallctl_opt(const char *name, int *new_value);
bool mallctl_bool(const char *name, bool *new_value);
int mallctl_cmd(const char *name);

/* Print every service's live bytes through skynet_error, and push them as a Lua table, by handle.
 * Without handle 0. */
void dump_c_mem(void);
int dump_mem_lua(struct lua_State *lua);

/* Prints the current service's live bytes on standard error. */
void skynet_debug_memory(const char *info);

#endif /* DOGTAG_SKYNET */

#ifdef __cplusplus
}
#endif

#endif /* DOGTAG_H */
