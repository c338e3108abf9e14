/*
 * Violations that memory-check finds: `violations NAME` commits one, and should not survive
 * it; `violations handler NAME` sets a handler, which is called instead, goes on, and looks at
 * the figures; `violations list` prints all names, each with a tab and the word that its report
 * must contain (- for none).
 */
#include "check.h"
#include "dogtag.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <malloc.h>

#ifdef INTERPOSED
void free_sized(void *block, size_t size);
void free_aligned_sized(void *block, size_t alignment, size_t size);
void cfree(void *block);

/* C++'s operators, as its compilers name them: new, new[] and so on. */
void *_Znwm(size_t size);
void *_Znam(size_t size);
void *_ZnwmSt11align_val_t(size_t size, size_t alignment);
void *_ZnamSt11align_val_t(size_t size, size_t alignment);
void _ZdlPv(void *block);
void _ZdaPv(void *block);
void _ZdlPvm(void *block, size_t size);
void _ZdaPvm(void *block, size_t size);
void _ZdlPvSt11align_val_t(void *block, size_t alignment);
void _ZdaPvSt11align_val_t(void *block, size_t alignment);
void _ZdlPvmSt11align_val_t(void *block, size_t size, size_t alignment);
void _ZdaPvmSt11align_val_t(void *block, size_t size, size_t alignment);
#endif

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* The compiler must not see what is done to whose memory. */
static void *(*volatile allocate)(size_t) = dogtag_malloc;
static void *(*volatile resize)(void *, size_t) = dogtag_realloc;
static void (*volatile give_back)(void *) = dogtag_free;
static unsigned char *volatile victim;

/* How far the victim is in its block, if it is a pointer into one. */
static ptrdiff_t inside = 16;

static dogtag_service *culprit;
static dogtag_scope scope;

/* Changes a byte of the victim, whatever its value is. */
static void spoil(ptrdiff_t offset)
{
	victim[offset] ^= 1;
}

static void overrun(void)
{
	victim = allocate(13);
	spoil(13);
	give_back(victim);
}

static void overrun_calloc(void)
{
	victim = dogtag_calloc(3, 5);
	spoil(15);
	give_back(victim);
}

static void overrun_strdup(void)
{
	victim = (unsigned char *)dogtag_strdup("twelve bytes");
	spoil(13);
	give_back(victim);
}

static void overrun_realloc(void)
{
	victim = resize(allocate(13), 29);
	spoil(29);
	give_back(victim);
}

static void overrun_aligned(void)
{
	victim = dogtag_aligned_alloc(64, 50);
	spoil(50);
	give_back(victim);
}

static void underrun(void)
{
	victim = allocate(13);
	spoil(-1);
	give_back(victim);
}

static void double_free(void)
{
	victim = allocate(13);
	give_back(victim);
	give_back(victim);
}

static void *accomplice(void *unused)
{
	give_back(victim);
	return unused;
}

static void double_free_thread(void)
{
	pthread_t thread;

	victim = allocate(13);
	give_back(victim);
	/* What the C library allocates for a thread is none of the culprit's. */
	dogtag_leave(scope);
	CHECK_EQUAL(pthread_create(&thread, NULL, accomplice, NULL), 0);
	CHECK_EQUAL(pthread_join(thread, NULL), 0);
	scope = dogtag_enter(culprit);
}

static void write_after_free(void)
{
	victim = allocate(13);
	give_back(victim);
	spoil(5);
	CHECK_EQUAL(dogtag_verify(), 1);
	/* Reported once. */
	CHECK_EQUAL(dogtag_verify(), 0);
}

/* So large that nobody can access it when it is freed. */
#define LARGE 3000000

static volatile unsigned char sink;

static void large_write_after_free(void)
{
	victim = allocate(LARGE);
	give_back(victim);
	victim[0] = 1;
	/* Reported once, and let through. */
	victim[1] = 2;
	CHECK_EQUAL(victim[0], 1);
	CHECK_EQUAL(dogtag_verify(), 0);
}

static void large_read_after_free(void)
{
	victim = allocate(LARGE);
	give_back(victim);
	sink = victim[0];
	sink = victim[LARGE - 1];
	CHECK_EQUAL(dogtag_verify(), 0);
}

static void large_read_after_realloc(void)
{
	unsigned char *moved;

	victim = allocate(LARGE);
	victim[LARGE / 2] = 7;
	moved = resize(victim, LARGE + 1);
	CHECK_EQUAL(moved[LARGE / 2], 7);
	sink = victim[0];
	give_back(moved);
}

static void large_overrun(void)
{
	victim = allocate(LARGE);
	/* The last byte of a page. */
	spoil((LARGE + 64 + 4095) / 4096 * 4096 - 1);
	give_back(victim);
}

static void invalid_free_stack(void)
{
	_Alignas(16) unsigned char array[64] = { 0 };

	victim = array + 16;
	give_back(victim);
}

static void invalid_free_inside(void)
{
	unsigned char *block = allocate(64);

	victim = block + 16;
	give_back(victim);
	give_back(block);
}

static void invalid_free_static(void)
{
	static _Alignas(16) unsigned char array[64];

	victim = array + 16;
	give_back(victim);
}

static void invalid_free_unaligned(void)
{
	unsigned char *block = allocate(64);

	inside = 3;
	victim = block + inside;
	give_back(victim);
	give_back(block);
}

/* Addresses that are not mapped in any process. */
static void invalid_free_wild(void)
{
	victim = (unsigned char *)0xdead00000000beef;
	give_back(victim);
}

static void invalid_free_near_null(void)
{
	victim = (unsigned char *)16;
	give_back(victim);
}

static void realloc_stack(void)
{
	_Alignas(16) unsigned char array[64] = { 0 };

	victim = array + 16;
	CHECK(resize(victim, 100) == NULL);
}

static void realloc_inside(void)
{
	unsigned char *block = allocate(64);

	victim = block + inside;
	CHECK(resize(victim, 100) == NULL);
	give_back(block);
}

static void realloc_to_nothing(void)
{
	unsigned char *block = allocate(64);

	victim = block + inside;
	CHECK(resize(victim, 0) == NULL);
	give_back(block);
}

static size_t (*volatile usable_size)(const void *) = dogtag_usable_size;

static void usable_size_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	CHECK_EQUAL(usable_size(victim), 0);
}

static void usable_size_inside(void)
{
	unsigned char *block = allocate(64);

	victim = block + inside;
	CHECK_EQUAL(usable_size(victim), 0);
	give_back(block);
}

static void usable_size_unaligned(void)
{
	unsigned char *block = allocate(64);

	inside = 5;
	victim = block + inside;
	CHECK_EQUAL(usable_size(victim), 0);
	give_back(block);
}

static void usable_size_stack(void)
{
	_Alignas(16) unsigned char array[64] = { 0 };

	victim = array + 16;
	CHECK_EQUAL(usable_size(victim), 0);
}

static void usable_size_wild(void)
{
	victim = (unsigned char *)0xdead00000000bee0;
	CHECK_EQUAL(usable_size(victim), 0);
}

static void usable_size_overrun(void)
{
	victim = allocate(13);
	spoil(13);
	CHECK_EQUAL(usable_size(victim), 0);
	/* Reported once. */
	CHECK_EQUAL(usable_size(victim), 13);
	give_back(victim);
}

#ifdef INTERPOSED
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;
static char *(*volatile copy_text)(char *, const char *) = strcpy;
static int (*volatile print_text)(char *, size_t, const char *, ...) = snprintf;
static char elsewhere[64];

static void memcpy_over(void)
{
	victim = allocate(13);
	copy(victim, elsewhere, 14);
	give_back(victim);
}

static void memcpy_from_over(void)
{
	victim = allocate(13);
	copy(elsewhere, victim, 14);
	give_back(victim);
}

static void memcpy_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	copy(victim, elsewhere, 5);
}

static void memcpy_from_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	copy(elsewhere, victim, 5);
}

static void strcpy_over(void)
{
	victim = allocate(13);
	copy_text((char *)victim, "thirteen bytes");
	give_back(victim);
}

static void snprintf_over(void)
{
	victim = allocate(13);
	print_text((char *)victim, 20, "%s %d", "twelve and", 12);
	give_back(victim);
}

static void read_over(void)
{
	int ends[2];

	victim = allocate(13);
	CHECK_EQUAL(pipe(ends), 0);
	CHECK_EQUAL(write(ends[1], elsewhere, 14), 14);
	CHECK_EQUAL(read(ends[0], victim, 20), 14);
	give_back(victim);
}

/* The system cannot access it either. */
static void read_to_large_freed(void)
{
	int ends[2];

	victim = allocate(LARGE);
	give_back(victim);
	CHECK_EQUAL(pipe(ends), 0);
	CHECK_EQUAL(write(ends[1], elsewhere, 14), 14);
	CHECK_EQUAL(read(ends[0], victim, 14), -1);
	CHECK_EQUAL(errno, EFAULT);
}

static void memcpy_large_freed(void)
{
	victim = allocate(LARGE);
	give_back(victim);
	copy(victim, elsewhere, 5);
}

static void (*volatile give_back_sized)(void *, size_t) = free_sized;
static void (*volatile give_back_aligned)(void *, size_t, size_t) = free_aligned_sized;
static void *(*volatile resize_array)(void *, size_t, size_t) = reallocarray;

static void wrong_size(void)
{
	victim = allocate(13);
	give_back_sized(victim, 14);
}

static void wrong_alignment(void)
{
	victim = memalign(64, 13);
	give_back_aligned(victim, 32, 13);
}

static void free_sized_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	give_back_sized(victim, 13);
}

static void free_aligned_inside(void)
{
	unsigned char *block = allocate(64);

	victim = block + inside;
	give_back_aligned(victim, 16, 48);
	give_back(block);
}

static void cfree_stack(void)
{
	_Alignas(16) unsigned char array[64] = { 0 };

	victim = array + 16;
	cfree(victim);
}

static void reallocarray_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	CHECK(resize_array(victim, 10, 10) == NULL);
}

static void malloc_usable_size_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	CHECK_EQUAL(malloc_usable_size(victim), 0);
}

/* Operators as they are meant are no violations: nothing is reported. */
static void operators(void)
{
	for (size_t size = 0; size < 300; size += 7) {
		_ZdlPv(_Znwm(size));
		_ZdaPv(_Znam(size));
		_ZdlPvm(_Znwm(size), size);
		_ZdaPvm(_Znam(size), size);
		for (size_t alignment = 1; alignment <= 4096; alignment *= 2) {
			_ZdlPvSt11align_val_t(_ZnwmSt11align_val_t(size, alignment), alignment);
			_ZdaPvSt11align_val_t(_ZnamSt11align_val_t(size, alignment), alignment);
			_ZdlPvmSt11align_val_t(_ZnwmSt11align_val_t(size, alignment), size, alignment);
			_ZdaPvmSt11align_val_t(_ZnamSt11align_val_t(size, alignment), size, alignment);
			give_back_aligned(memalign(alignment, size), alignment, size);
			give_back_aligned(memalign(alignment + 1, size), alignment + 1, size);
		}
	}
	_ZdlPv(NULL);
	_ZdaPvmSt11align_val_t(NULL, 100, 64);
	CHECK_EQUAL(dogtag_verify(), 0);
}

static void delete_of_new_array(void)
{
	victim = _Znam(13);
	_ZdlPv(victim);
}

static void delete_array_of_new(void)
{
	victim = _Znwm(13);
	_ZdaPv(victim);
}

static void delete_array_sized_of_new(void)
{
	victim = _Znwm(13);
	_ZdaPvm(victim, 13);
}

static void delete_aligned_of_new_array(void)
{
	victim = _ZnamSt11align_val_t(13, 64);
	_ZdlPvSt11align_val_t(victim, 64);
}

static void delete_wrong_size(void)
{
	victim = _Znwm(13);
	_ZdlPvm(victim, 12);
}

static void delete_array_wrong_size(void)
{
	victim = _Znam(13);
	_ZdaPvm(victim, 104);
}

static void delete_wrong_alignment(void)
{
	victim = _ZnwmSt11align_val_t(13, 64);
	_ZdlPvSt11align_val_t(victim, 128);
}

static void delete_without_alignment(void)
{
	victim = _ZnwmSt11align_val_t(13, 64);
	_ZdlPv(victim);
}

static void delete_with_alignment(void)
{
	victim = _Znam(13);
	_ZdaPvSt11align_val_t(victim, 64);
}

static void delete_aligned_wrong_size(void)
{
	victim = _ZnwmSt11align_val_t(13, 64);
	_ZdlPvmSt11align_val_t(victim, 64, 64);
}

static void delete_twice(void)
{
	victim = _Znwm(13);
	_ZdlPvm(victim, 13);
	_ZdlPvm(victim, 13);
}

static void delete_inside(void)
{
	unsigned char *block = _Znam(64);

	victim = block + inside;
	_ZdaPv(victim);
	_ZdaPv(block);
}

static void delete_overrun(void)
{
	victim = _Znwm(13);
	spoil(13);
	_ZdlPvm(victim, 13);
}

static void free_of_new(void)
{
	victim = _Znwm(13);
	give_back(victim);
}

static void delete_of_malloc(void)
{
	victim = allocate(13);
	_ZdlPv(victim);
}

static void realloc_of_new(void)
{
	victim = _Znwm(13);
	give_back(resize(victim, 100));
}

/* Without a C++ library nobody can throw. (No violation, so there is no handler.) */
static void new_without_memory(void)
{
	_Znwm(SIZE_MAX / 2);
}
#endif

static void realloc_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	CHECK(resize(victim, 100) == NULL);
}

/* No violation, but not a byte less is one: usable is what was asked for. */
static void usable_size_is_requested(void)
{
	for (size_t size = 0; size <= 300; size++) {
		unsigned char *block = allocate(size);

		CHECK_EQUAL(dogtag_usable_size(block), size);
		memset(block, 0xff, size);
		block = resize(block, size + 1);
		CHECK_EQUAL(dogtag_usable_size(block), size + 1);
		give_back(block);
		block = dogtag_calloc(size, 3);
		CHECK_EQUAL(dogtag_usable_size(block), size * 3);
		memset(block, 0xff, size * 3);
		give_back(block);
		block = dogtag_aligned_alloc(32, size);
		CHECK_EQUAL(dogtag_usable_size(block), size);
		memset(block, 0xff, size);
		give_back(block);
	}
	CHECK_EQUAL(dogtag_verify(), 0);
}

#define MISMATCH "alloc-dealloc mismatch"
#define BAD_SIZE "bad malloc_usable_size"

static const struct test_case {
	const char *name, *word;
	void (*commit)(void);
	/* The kind and size that a handler must get; 0 for no violation, and size 0 for no block. */
	int number;
	size_t size;
} CASES[] = {
	{ "overrun", "overrun", overrun, DOGTAG_OVERRUN, 13 },
	{ "overrun-calloc", "overrun", overrun_calloc, DOGTAG_OVERRUN, 15 },
	{ "overrun-strdup", "overrun", overrun_strdup, DOGTAG_OVERRUN, 13 },
	{ "overrun-realloc", "overrun", overrun_realloc, DOGTAG_OVERRUN, 29 },
	{ "overrun-aligned", "overrun", overrun_aligned, DOGTAG_OVERRUN, 50 },
	{ "underrun", "underrun", underrun, DOGTAG_UNDERRUN, 13 },
	{ "double-free", "double free", double_free, DOGTAG_DOUBLE_FREE, 13 },
	{ "double-free-thread", "double free", double_free_thread, DOGTAG_DOUBLE_FREE, 13 },
	{ "write-after-free", "write after free", write_after_free, DOGTAG_WRITE_AFTER_FREE, 13 },
#ifdef __x86_64__
	{ "large-write", "write after free", large_write_after_free, DOGTAG_WRITE_AFTER_FREE, LARGE },
	{ "large-read", "read after free", large_read_after_free, DOGTAG_READ_AFTER_FREE, LARGE },
	{ "large-realloc", "read after free", large_read_after_realloc, DOGTAG_READ_AFTER_FREE, LARGE },
	{ "large-overrun", "overrun", large_overrun, DOGTAG_OVERRUN, LARGE },
#endif
	{ "invalid-free-stack", "invalid free", invalid_free_stack, DOGTAG_INVALID_FREE, 0 },
	{ "invalid-free-inside", "invalid free", invalid_free_inside, DOGTAG_INVALID_FREE, 64 },
	{ "invalid-free-static", "invalid free", invalid_free_static, DOGTAG_INVALID_FREE, 0 },
	{ "realloc-freed", "double free", realloc_freed, DOGTAG_DOUBLE_FREE, 13 },
	{ "usable-size-is-requested", "-", usable_size_is_requested, 0, 0 },
	{ "invalid-free-unaligned", "invalid free", invalid_free_unaligned, DOGTAG_INVALID_FREE, 64 },
	{ "invalid-free-wild", "invalid free", invalid_free_wild, DOGTAG_INVALID_FREE, 0 },
	{ "invalid-free-near-null", "invalid free", invalid_free_near_null, DOGTAG_INVALID_FREE, 0 },
	{ "realloc-stack", "invalid free", realloc_stack, DOGTAG_INVALID_FREE, 0 },
	{ "realloc-inside", "invalid free", realloc_inside, DOGTAG_INVALID_FREE, 64 },
	{ "realloc-to-nothing", "invalid free", realloc_to_nothing, DOGTAG_INVALID_FREE, 64 },
	{ "usable-size-freed", BAD_SIZE, usable_size_freed, DOGTAG_BAD_USABLE_SIZE, 13 },
	{ "usable-size-inside", BAD_SIZE, usable_size_inside, DOGTAG_BAD_USABLE_SIZE, 64 },
	{ "usable-size-unaligned", BAD_SIZE, usable_size_unaligned, DOGTAG_BAD_USABLE_SIZE, 64 },
	{ "usable-size-stack", BAD_SIZE, usable_size_stack, DOGTAG_BAD_USABLE_SIZE, 0 },
	{ "usable-size-wild", BAD_SIZE, usable_size_wild, DOGTAG_BAD_USABLE_SIZE, 0 },
	{ "usable-size-overrun", "overrun", usable_size_overrun, DOGTAG_OVERRUN, 13 },
#ifdef INTERPOSED
	{ "memcpy-over", "overrun", memcpy_over, DOGTAG_OVERRUN, 13 },
	{ "memcpy-from-over", "overread", memcpy_from_over, DOGTAG_OVERREAD, 13 },
	{ "memcpy-freed", "write after free", memcpy_freed, DOGTAG_WRITE_AFTER_FREE, 13 },
	{ "memcpy-from-freed", "read after free", memcpy_from_freed, DOGTAG_READ_AFTER_FREE, 13 },
	{ "strcpy-over", "overrun", strcpy_over, DOGTAG_OVERRUN, 13 },
	{ "snprintf-over", "overrun", snprintf_over, DOGTAG_OVERRUN, 13 },
	{ "read-over", "overrun", read_over, DOGTAG_OVERRUN, 13 },
	{ "memcpy-large-freed", "write after free", memcpy_large_freed, DOGTAG_WRITE_AFTER_FREE, LARGE },
#ifdef __x86_64__
	{ "read-large-freed", "write after free", read_to_large_freed, DOGTAG_WRITE_AFTER_FREE, LARGE },
#endif
	{ "free-sized", "layout mismatch", wrong_size, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "free-aligned", "layout mismatch", wrong_alignment, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "free-sized-freed", "double free", free_sized_freed, DOGTAG_DOUBLE_FREE, 13 },
	{ "free-aligned-inside", "invalid free", free_aligned_inside, DOGTAG_INVALID_FREE, 64 },
	{ "cfree-stack", "invalid free", cfree_stack, DOGTAG_INVALID_FREE, 0 },
	{ "reallocarray-freed", "double free", reallocarray_freed, DOGTAG_DOUBLE_FREE, 13 },
	{ "malloc_usable_size-freed", BAD_SIZE, malloc_usable_size_freed, DOGTAG_BAD_USABLE_SIZE, 13 },
	{ "operators", "-", operators, 0, 0 },
	{ "delete-of-new[]", MISMATCH, delete_of_new_array, DOGTAG_ALLOC_DEALLOC_MISMATCH, 13 },
	{ "delete[]-of-new", MISMATCH, delete_array_of_new, DOGTAG_ALLOC_DEALLOC_MISMATCH, 13 },
	{ "delete[]-sized-of-new", MISMATCH, delete_array_sized_of_new, DOGTAG_ALLOC_DEALLOC_MISMATCH, 13 },
	{ "delete-aligned-of-new[]", MISMATCH, delete_aligned_of_new_array, DOGTAG_ALLOC_DEALLOC_MISMATCH, 13 },
	{ "delete-wrong-size", "layout mismatch", delete_wrong_size, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "delete[]-wrong-size", "layout mismatch", delete_array_wrong_size, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "delete-wrong-alignment", "layout mismatch", delete_wrong_alignment, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "delete-no-alignment", "layout mismatch", delete_without_alignment, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "delete[]-an-alignment", "layout mismatch", delete_with_alignment, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "delete-aligned-wrong-size", "layout mismatch", delete_aligned_wrong_size, DOGTAG_LAYOUT_MISMATCH, 13 },
	{ "delete-twice", "double free", delete_twice, DOGTAG_DOUBLE_FREE, 13 },
	{ "delete[]-inside", "invalid free", delete_inside, DOGTAG_INVALID_FREE, 64 },
	{ "delete-overrun", "overrun", delete_overrun, DOGTAG_OVERRUN, 13 },
	{ "free-of-new", MISMATCH, free_of_new, DOGTAG_ALLOC_DEALLOC_MISMATCH, 13 },
	{ "delete-of-malloc", MISMATCH, delete_of_malloc, DOGTAG_ALLOC_DEALLOC_MISMATCH, 13 },
	{ "realloc-of-new", MISMATCH, realloc_of_new, DOGTAG_ALLOC_DEALLOC_MISMATCH, 13 },
#endif
};

static const struct test_case *current;
static int told;

/* Not printf, whose buffer would be the culprit's. */
static void say(const char *text)
{
	CHECK_EQUAL(write(STDOUT_FILENO, text, strlen(text)), strlen(text));
}

static dogtag_reaction handle(const dogtag_violation *violation)
{
	int is_known = *violation->service != '\0';
	const char *report = violation->report;
	char line[200];

	told++;
	snprintf(line, sizeof(line), "violation=%d size=%zu service=%s report=%s\n", (int)violation->kind,
		violation->size, violation->service, report && *report ? "yes" : "no");
	say(line);
	CHECK_EQUAL(violation->kind, current->number);
	CHECK_EQUAL(violation->struct_size, sizeof(*violation));
	CHECK_EQUAL(violation->size, current->size);
	CHECK(violation->address == victim);
	/* The owner of a block is known; without a block there is none. */
	CHECK_EQUAL(is_known, current->size != 0);
	CHECK(strcmp(violation->service, is_known ? "culprit" : "") == 0);
	CHECK_EQUAL(violation->handle, is_known ? dogtag_service_handle(culprit) : 0);
	if (current->number == DOGTAG_INVALID_FREE || (current->number == DOGTAG_BAD_USABLE_SIZE && current->size != 13))
		CHECK(violation->block == (is_known ? victim - inside : NULL));
	else
		CHECK(violation->block == victim);
	CHECK(strstr(report, current->word) != NULL);
	CHECK(!is_known || strstr(report, "culprit") != NULL);
	return DOGTAG_LEAK;
}

/* The process goes on, with true figures. */
static void go_on(void)
{
	static void *blocks[1000];
	dogtag_figures usage = dogtag_usage(culprit);

	CHECK_EQUAL(told, current->number != 0);
	CHECK_EQUAL(usage.allocated_bytes - usage.freed_bytes, 0);
	CHECK_EQUAL(usage.allocated_blocks - usage.freed_blocks, 0);
	for (size_t i = 0; i < COUNT(blocks); i++) {
		blocks[i] = allocate(i);
		memset(blocks[i], 0xff, i);
		for (size_t j = i < 20 ? 0 : i - 20; j < i; j++)
			CHECK(blocks[j] != blocks[i]);
		CHECK(!current->size || blocks[i] != victim);
	}
	for (size_t i = 0; i < COUNT(blocks); i++)
		give_back(blocks[i]);
	usage = dogtag_usage(culprit);
	CHECK_EQUAL(usage.allocated_bytes - usage.freed_bytes, 0);
	CHECK_EQUAL(usage.allocated_blocks - usage.freed_blocks, 0);
	CHECK_EQUAL(dogtag_verify(), 0);
	CHECK_EQUAL(told, current->number != 0);
}

int main(int argc, char **argv)
{
	int is_handled = argc == 3 && strcmp(argv[1], "handler") == 0;
	const char *name = is_handled ? argv[2] : argc == 2 ? argv[1] : "";

	if (strcmp(name, "list") == 0) {
		for (size_t i = 0; i < COUNT(CASES); i++)
			printf("%s\t%s\n", CASES[i].name, CASES[i].word);
		return 0;
	}
	for (size_t i = 0; i < COUNT(CASES); i++)
		if (strcmp(CASES[i].name, name) == 0)
			current = &CASES[i];
#ifdef INTERPOSED
	if (strcmp(name, "new-without-memory") == 0)
		new_without_memory();
#endif
	if (!current) {
		fprintf(stderr, "usage: violations list | [handler] NAME\n");
		return 2;
	}

	culprit = dogtag_service_register("culprit");
	CHECK(culprit != NULL);
	if (is_handled)
		CHECK(dogtag_set_violation_handler(handle));
	scope = dogtag_enter(culprit);
	current->commit();
	if (is_handled)
		go_on();
	dogtag_leave(scope);
	if (current->number && !is_handled) {
		fprintf(stderr, "%s: nobody has noticed\n", name);
		return 1;
	}
	dogtag_service_release(culprit);
	say("ok\n");
	return 0;
}
