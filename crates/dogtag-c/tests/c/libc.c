/*
 * The C library's functions by their own names, which are dogtag's here: they do what POSIX and
 * glibc promise, and charge the current service, also with what the C library allocates.
 */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* In no header: one has left it, the others (C23) are not there yet. */
void cfree(void *block);
void free_sized(void *block, size_t size);
void free_aligned_sized(void *block, size_t alignment, size_t size);

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

#define MIB ((size_t)1 << 20)

/* A compiler knows what malloc does, and leaves out what has no effect; of these it
 * knows nothing. */
static void *(*volatile call_malloc)(size_t) = malloc;
static void *(*volatile call_calloc)(size_t, size_t) = calloc;
static void *(*volatile call_realloc)(void *, size_t) = realloc;
static void *(*volatile call_reallocarray)(void *, size_t, size_t) = reallocarray;
static void (*volatile call_free)(void *) = free;
static void (*volatile call_cfree)(void *) = cfree;
static void *(*volatile call_memalign)(size_t, size_t) = memalign;
static void *(*volatile call_aligned_alloc)(size_t, size_t) = aligned_alloc;
static int (*volatile call_posix_memalign)(void **, size_t, size_t) = posix_memalign;
static void *(*volatile call_valloc)(size_t) = valloc;
static void *(*volatile call_pvalloc)(size_t) = pvalloc;
static size_t (*volatile call_usable_size)(void *) = malloc_usable_size;
static void (*volatile call_free_sized)(void *, size_t) = free_sized;
static void (*volatile call_free_aligned_sized)(void *, size_t, size_t) = free_aligned_sized;
static char *(*volatile call_strdup)(const char *) = strdup;
static char *(*volatile call_strndup)(const char *, size_t) = strndup;

/* The service that everything here is charged to. */
static dogtag_service *service;
static dogtag_figures before;

static void begin(void)
{
	before = dogtag_usage(service);
}

/* Checks what was allocated and freed since the beginning. */
#define CHECK_SINCE(bytes, blocks, bytes_freed, blocks_freed) \
	do { \
		dogtag_figures now = dogtag_usage(service); \
		CHECK_EQUAL(now.allocated_bytes - before.allocated_bytes, bytes); \
		CHECK_EQUAL(now.allocated_blocks - before.allocated_blocks, blocks); \
		CHECK_EQUAL(now.freed_bytes - before.freed_bytes, bytes_freed); \
		CHECK_EQUAL(now.freed_blocks - before.freed_blocks, blocks_freed); \
		CHECK_EQUAL(now.denied, before.denied); \
	} while (0)

#define CHECK_REFUSED(call, why) \
	do { \
		begin(); \
		errno = 0; \
		CHECK((call) == NULL); \
		CHECK_EQUAL(errno, why); \
		CHECK_SINCE(0, 0, 0, 0); \
	} while (0)

static size_t live_blocks(void)
{
	dogtag_figures now = dogtag_usage(service);

	return now.allocated_blocks - now.freed_blocks;
}

static size_t live_bytes(void)
{
	dogtag_figures now = dogtag_usage(service);

	return now.allocated_bytes - now.freed_bytes;
}

/* Checks that this block alone was allocated since the beginning; returns its size. */
static size_t checked_size(void *block, size_t requested, size_t alignment)
{
	size_t usable = call_usable_size(block);

	CHECK(block != NULL);
	CHECK(is_aligned(block, alignment));
	CHECK_USABLE(usable, requested);
	CHECK_EQUAL(dogtag_usable_size(block), usable);
	CHECK_SINCE(usable, 1, 0, 0);
	memset(block, 0xa5, usable);
	return usable;
}

/* As glibc's blocks are, however small. */
enum { NATURAL = 16 };

static const size_t SIZES[] = {
	0, 1, 7, 8, 13, 14, 15, 16, 24, 100, 1000, 4080,
	4093, 4094, 4095, 4096, 4097, 8192, 10000, 65536, 300000, MIB + 1, 5 * MIB,
};

/* Each way to get a block with each way to give it back. */
static void pairs(void)
{
	for (size_t i = 0; i < COUNT(SIZES); i++) {
		size_t size = SIZES[i], usable;
		void *block;

		begin();
		errno = 0;
		block = call_malloc(size);
		CHECK_EQUAL(errno, 0);
		usable = checked_size(block, size, NATURAL);
		errno = ENOTTY;
		call_free(block);
		CHECK_EQUAL(errno, ENOTTY);
		CHECK_SINCE(usable, 1, usable, 1);

		begin();
		block = call_calloc(3, size);
		CHECK(is_filled(block, 0, 3 * size));
		usable = checked_size(block, 3 * size, NATURAL);
		errno = ENOTTY;
		call_cfree(block);
		CHECK_EQUAL(errno, ENOTTY);
		CHECK_SINCE(usable, 1, usable, 1);

		begin();
		block = call_realloc(NULL, size);
		usable = checked_size(block, size, NATURAL);
		errno = ENOTTY;
		call_free_sized(block, size);
		CHECK_EQUAL(errno, ENOTTY);
		CHECK_SINCE(usable, 1, usable, 1);

		begin();
		block = call_reallocarray(NULL, size, 2);
		usable = checked_size(block, 2 * size, NATURAL);
		call_free(block);
		CHECK_SINCE(usable, 1, usable, 1);

		begin();
		block = call_valloc(size);
		usable = checked_size(block, size, 4096);
		call_free(block);
		CHECK_SINCE(usable, 1, usable, 1);

		/* As much as was asked for, and the rest of the page. */
		if (size == 0)
			continue;
		begin();
		block = call_pvalloc(size);
		usable = checked_size(block, (size + 4095) / 4096 * 4096, 4096);
		call_free(block);
		CHECK_SINCE(usable, 1, usable, 1);
	}
	begin();
	errno = ENOTTY;
	call_free(NULL);
	call_cfree(NULL);
	call_free_sized(NULL, 0);
	call_free_sized(NULL, 10);
	call_free_aligned_sized(NULL, 64, 10);
	CHECK_EQUAL(errno, ENOTTY);
	CHECK_EQUAL(call_usable_size(NULL), 0);
	CHECK_SINCE(0, 0, 0, 0);
}

static void alignments(void)
{
	for (size_t alignment = 1; alignment <= MIB; alignment *= 2) {
		for (size_t i = 0; i < COUNT(SIZES); i++) {
			size_t size = SIZES[i], usable;
			void *block;

			begin();
			errno = 0;
			block = call_aligned_alloc(alignment, size);
			CHECK_EQUAL(errno, 0);
			usable = checked_size(block, size, alignment);
			call_free_aligned_sized(block, alignment, size);
			CHECK_SINCE(usable, 1, usable, 1);

			begin();
			block = call_memalign(alignment, size);
			usable = checked_size(block, size, alignment);
			call_free(block);
			CHECK_SINCE(usable, 1, usable, 1);

			if (alignment < sizeof(void *))
				continue;
			begin();
			block = NULL;
			errno = ENOTTY;
			CHECK_EQUAL(call_posix_memalign(&block, alignment, size), 0);
			CHECK_EQUAL(errno, ENOTTY);
			usable = checked_size(block, size, alignment);
			call_free(block);
			CHECK_SINCE(usable, 1, usable, 1);
		}
	}
}

/* glibc's memalign and aligned_alloc take the next power of two, posix_memalign none but those. */
static void odd_alignments(void)
{
	static const size_t ODD[][2] = {
		{ 0, 16 }, { 3, 16 }, { 5, 16 }, { 9, 16 }, { 17, 32 },
		{ 24, 32 }, { 48, 64 }, { 100, 128 }, { 129, 256 }, { 3000, 4096 },
		{ 4097, 8192 }, { 100000, 131072 },
	};
	static const size_t BAD[] = { 0, 3, 12, 24, 48, 4095, 4097, MIB + 1, SIZE_MAX, SIZE_MAX - 7 };
	static const size_t TOO_SMALL[] = { 1, 2, 4 };

	for (size_t i = 0; i < COUNT(ODD); i++) {
		begin();
		void *block = call_memalign(ODD[i][0], 100);
		size_t usable = checked_size(block, 100, ODD[i][1]);
		call_free_aligned_sized(block, ODD[i][0], 100);
		CHECK_SINCE(usable, 1, usable, 1);
		begin();
		block = call_aligned_alloc(ODD[i][0], 100);
		usable = checked_size(block, 100, ODD[i][1]);
		call_free(block);
		CHECK_SINCE(usable, 1, usable, 1);
	}
	/* There is no next one. */
	CHECK_REFUSED(call_memalign(SIZE_MAX / 2 + 2, 100), EINVAL);
	CHECK_REFUSED(call_memalign(SIZE_MAX, 100), EINVAL);
	CHECK_REFUSED(call_aligned_alloc(SIZE_MAX / 2 + 2, 100), EINVAL);
	CHECK_REFUSED(call_aligned_alloc(SIZE_MAX, 100), EINVAL);

	for (size_t i = 0; i < COUNT(BAD); i++) {
		char untouched;
		void *block = &untouched;

		begin();
		errno = ENOTTY;
		CHECK_EQUAL(call_posix_memalign(&block, BAD[i], 100), EINVAL);
		CHECK_EQUAL(errno, ENOTTY);
		CHECK(block == &untouched);
		CHECK_SINCE(0, 0, 0, 0);
	}
	for (size_t i = 0; i < COUNT(TOO_SMALL); i++) {
		char untouched;
		void *block = &untouched;

		errno = ENOTTY;
		CHECK_EQUAL(call_posix_memalign(&block, TOO_SMALL[i], 100), EINVAL);
		CHECK_EQUAL(errno, ENOTTY);
		CHECK(block == &untouched);
	}
}

static void no_bytes(void)
{
	void *blocks[9];
	size_t usable;

	begin();
	blocks[0] = call_malloc(0);
	blocks[1] = call_malloc(0);
	blocks[2] = call_calloc(0, 8);
	blocks[3] = call_calloc(8, 0);
	blocks[4] = call_realloc(NULL, 0);
	blocks[5] = call_aligned_alloc(64, 0);
	blocks[6] = call_memalign(64, 0);
	CHECK_EQUAL(call_posix_memalign(&blocks[7], 64, 0), 0);
	blocks[8] = call_valloc(0);
	for (size_t i = 0; i < COUNT(blocks); i++) {
		CHECK(blocks[i] != NULL);
		for (size_t j = 0; j < i; j++)
			CHECK(blocks[i] != blocks[j]);
	}
	CHECK_EQUAL(live_blocks() - (before.allocated_blocks - before.freed_blocks), COUNT(blocks));
	for (size_t i = 0; i < COUNT(blocks); i++)
		call_free(blocks[i]);
	CHECK_EQUAL(live_blocks(), before.allocated_blocks - before.freed_blocks);

	/* To resize to nothing is to free. */
	for (size_t i = 0; i < COUNT(SIZES); i++) {
		begin();
		blocks[0] = call_malloc(SIZES[i]);
		usable = call_usable_size(blocks[0]);
		errno = 0;
		CHECK(call_realloc(blocks[0], 0) == NULL);
		CHECK_EQUAL(errno, 0);
		CHECK_SINCE(usable, 1, usable, 1);
		begin();
		blocks[0] = call_malloc(SIZES[i]);
		usable = call_usable_size(blocks[0]);
		CHECK(call_reallocarray(blocks[0], 5, 0) == NULL);
		CHECK_SINCE(usable, 1, usable, 1);
	}
}

static void too_much(void)
{
	static const size_t TOO_LARGE[] = { SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 4096, PTRDIFF_MAX, SIZE_MAX / 2 + 2 };
	static const size_t OVERFLOWS[][2] = {
		{ SIZE_MAX / 2, 3 },
		{ 2, ((size_t)1 << 63) + 8 },
		{ (size_t)1 << 32, (size_t)1 << 32 },
		{ SIZE_MAX, SIZE_MAX },
		{ 1, SIZE_MAX },
	};
	char *block = call_malloc(100), *large = call_malloc(200000), untouched;

	memset(block, 'b', 100);
	memset(large, 'l', 200000);
	for (size_t i = 0; i < COUNT(TOO_LARGE); i++) {
		size_t size = TOO_LARGE[i];
		void *pointer = &untouched;

		CHECK_REFUSED(call_malloc(size), ENOMEM);
		CHECK_REFUSED(call_realloc(NULL, size), ENOMEM);
		CHECK_REFUSED(call_realloc(block, size), ENOMEM);
		CHECK_REFUSED(call_realloc(large, size), ENOMEM);
		CHECK_REFUSED(call_memalign(64, size), ENOMEM);
		CHECK_REFUSED(call_aligned_alloc(64, size), ENOMEM);
		CHECK_REFUSED(call_valloc(size), ENOMEM);
		CHECK_REFUSED(call_pvalloc(size), ENOMEM);
		begin();
		errno = ENOTTY;
		CHECK_EQUAL(call_posix_memalign(&pointer, 64, size), ENOMEM);
		CHECK_EQUAL(errno, ENOMEM);
		CHECK(pointer == &untouched);
		CHECK_SINCE(0, 0, 0, 0);
	}
	for (size_t i = 0; i < COUNT(OVERFLOWS); i++) {
		size_t count = OVERFLOWS[i][0], size = OVERFLOWS[i][1];

		CHECK_REFUSED(call_calloc(count, size), ENOMEM);
		CHECK_REFUSED(call_reallocarray(NULL, count, size), ENOMEM);
		CHECK_REFUSED(call_reallocarray(block, count, size), ENOMEM);
		CHECK_REFUSED(call_reallocarray(large, count, size), ENOMEM);
	}
	CHECK(is_filled(block, 'b', 100));
	CHECK(is_filled(large, 'l', 200000));
	call_free(block);
	call_free(large);
}

static void resized(void)
{
	for (size_t i = 1; i < COUNT(SIZES); i++) {
		for (size_t j = 1; j < COUNT(SIZES); j++) {
			size_t from = SIZES[i], to = SIZES[j], kept = from < to ? from : to;
			size_t old, new;
			char *block;

			begin();
			block = call_malloc(from);
			memset(block, (int)(i + j), from);
			old = call_usable_size(block);
			errno = 0;
			block = j % 2 ? call_realloc(block, to) : call_reallocarray(block, to, 1);
			CHECK_EQUAL(errno, 0);
			CHECK(block != NULL && is_aligned(block, NATURAL));
			CHECK(is_filled(block, (int)(i + j), kept));
			new = call_usable_size(block);
			CHECK_USABLE(new, to);
			CHECK_SINCE(old + new, 2, old, 1);
			call_free(block);
			CHECK_SINCE(old + new, 2, old + new, 2);
		}
	}
}

/* The two families of names are one allocator. */
static void mixed_with_dogtag(void)
{
	char *block;
	size_t usable;

	for (size_t i = 0; i < COUNT(SIZES); i++) {
		begin();
		block = call_malloc(SIZES[i]);
		usable = dogtag_usable_size(block);
		dogtag_free(block);
		CHECK_SINCE(usable, 1, usable, 1);
		begin();
		block = dogtag_malloc(SIZES[i]);
		CHECK_EQUAL(call_usable_size(block), dogtag_usable_size(block));
		usable = dogtag_usable_size(block);
		call_free(block);
		CHECK_SINCE(usable, 1, usable, 1);
		begin();
		block = dogtag_aligned_alloc(256, SIZES[i]);
		usable = dogtag_usable_size(block);
		call_free_aligned_sized(block, 256, SIZES[i]);
		CHECK_SINCE(usable, 1, usable, 1);
		begin();
		block = call_memalign(256, SIZES[i]);
		usable = dogtag_usable_size(block);
		dogtag_free(block);
		CHECK_SINCE(usable, 1, usable, 1);
	}
	block = call_strdup("resized by both");
	block = dogtag_realloc(block, 5000);
	block = call_realloc(block, 50);
	CHECK(strcmp(block, "resized by both") == 0);
	dogtag_free(block);
	block = dogtag_strdup("resized by both");
	block = call_realloc(block, 5000);
	block = dogtag_realloc(block, 50);
	CHECK(strcmp(block, "resized by both") == 0);
	call_free(block);
	block = dogtag_service_name(service);
	CHECK(strcmp(block, "libc") == 0);
	call_free(block);
}

/* A free is refunded to the service that allocated; a resized block is the current service's. */
static void across_services(void)
{
	dogtag_service *other = dogtag_service_register("other");
	char *freed = call_malloc(1000), *resized = call_malloc(2000), *refused = call_malloc(3000);
	size_t first = call_usable_size(freed), second = call_usable_size(resized);
	dogtag_figures usage;

	begin();
	dogtag_scope scope = dogtag_enter(other);
	call_free(freed);
	CHECK_SINCE(0, 0, first, 1);
	resized = call_realloc(resized, 20000);
	CHECK_SINCE(0, 0, first + second, 2);
	CHECK(call_realloc(refused, PTRDIFF_MAX) == NULL);
	CHECK_SINCE(0, 0, first + second, 2);
	dogtag_leave(scope);
	usage = dogtag_usage(other);
	CHECK_EQUAL(usage.allocated_bytes, call_usable_size(resized));
	CHECK_EQUAL(usage.allocated_blocks, 1);
	CHECK_EQUAL(usage.freed_blocks, 0);
	call_free(resized);
	call_free(refused);
	usage = dogtag_usage(other);
	CHECK_EQUAL(usage.freed_bytes, usage.allocated_bytes);
	CHECK_EQUAL(usage.freed_blocks, 1);
	dogtag_service_release(other);
}

static void totals(void)
{
	dogtag_figures earlier, later;
	void *blocks[3];
	size_t sum = 0;

	dogtag_totals();
	earlier = dogtag_totals();
	blocks[0] = call_malloc(100);
	blocks[1] = call_calloc(7, 1000);
	blocks[2] = call_memalign(64, 100000);
	for (size_t i = 0; i < COUNT(blocks); i++)
		sum += call_usable_size(blocks[i]);
	later = dogtag_totals();
	CHECK_EQUAL(later.allocated_bytes - earlier.allocated_bytes, sum);
	CHECK_EQUAL(later.allocated_blocks - earlier.allocated_blocks, COUNT(blocks));
	CHECK_EQUAL(later.freed_blocks, earlier.freed_blocks);
	for (size_t i = 0; i < COUNT(blocks); i++)
		call_free(blocks[i]);
	later = dogtag_totals();
	CHECK_EQUAL(later.freed_bytes - earlier.freed_bytes, sum);
	CHECK_EQUAL(later.freed_blocks - earlier.freed_blocks, COUNT(blocks));
}

/* The C library allocates for the program. */

static void texts(void)
{
	static char text[3000];
	char *copy;
	int length;

	memset(text, 't', sizeof(text) - 1);
	begin();
	copy = call_strdup(text);
	CHECK(strcmp(copy, text) == 0);
	memset(copy, 0, checked_size(copy, sizeof(text), 16));
	call_free(copy);
	begin();
	copy = call_strndup(text, 20);
	CHECK(strlen(copy) == 20);
	checked_size(copy, 21, 16);
	call_free(copy);

	begin();
	length = asprintf(&copy, "%s %d", text, 42);
	CHECK_EQUAL(length, sizeof(text) - 1 + 3);
	CHECK_EQUAL(live_blocks(), before.allocated_blocks - before.freed_blocks + 1);
	CHECK_EQUAL(live_bytes() - (before.allocated_bytes - before.freed_bytes), call_usable_size(copy));
	call_free(copy);
	CHECK_EQUAL(live_blocks(), before.allocated_blocks - before.freed_blocks);
	CHECK_EQUAL(live_bytes(), before.allocated_bytes - before.freed_bytes);

	begin();
	copy = realpath("/proc/self/../self/fd/..", NULL);
	CHECK(copy != NULL);
	CHECK_EQUAL(live_blocks(), before.allocated_blocks - before.freed_blocks + 1);
	call_free(copy);
	CHECK_EQUAL(live_blocks(), before.allocated_blocks - before.freed_blocks);
}

static void streams(void)
{
	size_t at_first = live_blocks(), open, capacity = 0, lines = 0;
	char *line = NULL, *memory, path[32];
	FILE *stream;
	int file = memfd_create("lines", 0);

	/* A path that works in every sandbox. */
	CHECK(file >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	stream = fopen(path, "w");
	CHECK(stream != NULL);
	open = live_blocks();
	CHECK(open > at_first);
	for (int i = 0; i < 1000; i++)
		fprintf(stream, "%0*d\n", i + 1, i);
	/* Its buffer. */
	CHECK(live_blocks() > open);
	CHECK_EQUAL(fclose(stream), 0);
	CHECK_EQUAL(live_blocks(), at_first);

	stream = fopen(path, "r");
	CHECK(stream != NULL);
	while (getline(&line, &capacity, stream) > 0) {
		lines++;
		CHECK_EQUAL(strlen(line), lines + 1);
		CHECK_EQUAL(strtoul(line, NULL, 10), lines - 1);
		CHECK(call_usable_size(line) >= capacity && capacity > lines + 1);
	}
	CHECK_EQUAL(lines, 1000);
	CHECK_EQUAL(fclose(stream), 0);
	CHECK_EQUAL(live_blocks(), at_first + 1);
	call_free(line);
	CHECK_EQUAL(live_blocks(), at_first);
	close(file);

	stream = open_memstream(&memory, &capacity);
	for (int i = 0; i < 100000; i++)
		fputc('m', stream);
	fclose(stream);
	CHECK_EQUAL(capacity, 100000);
	CHECK(is_filled(memory, 'm', capacity));
	CHECK_EQUAL(live_blocks(), at_first + 1);
	call_free(memory);
	CHECK_EQUAL(live_blocks(), at_first);
}

static int by_value(const void *a, const void *b)
{
	const uint32_t *left = a, *right = b;

	return (*left > *right) - (*left < *right);
}

static void sorted(void)
{
	const size_t count = 300000;
	uint32_t *numbers = call_malloc(count * sizeof(*numbers)), random = 1;

	begin();
	for (size_t i = 0; i < count; i++)
		numbers[i] = random = random * 1664525 + 1013904223;
	qsort(numbers, count, sizeof(*numbers), by_value);
	for (size_t i = 1; i < count; i++)
		CHECK(numbers[i - 1] <= numbers[i]);
	/* A merge sort takes as much again, which glibc has had but for a while. */
#if __GLIBC__ == 2 && __GLIBC_MINOR__ < 37
	CHECK(dogtag_usage(service).allocated_bytes - before.allocated_bytes >= count * sizeof(*numbers));
#endif
	CHECK_EQUAL(live_blocks(), before.allocated_blocks - before.freed_blocks);
	CHECK_EQUAL(live_bytes(), before.allocated_bytes - before.freed_bytes);
	call_free(numbers);
}

static void environment(void)
{
	size_t at_first = live_blocks(), set;

	CHECK_EQUAL(setenv("DOGTAG_LIBC", "for the first time", 1), 0);
	set = live_blocks();
	CHECK(set > at_first);
	/* The same value is kept once. */
	for (int i = 0; i < 1000; i++)
		CHECK_EQUAL(setenv("DOGTAG_LIBC", i % 2 ? "odd" : "even", 1), 0);
	CHECK(live_blocks() < set + 20);
	CHECK(strcmp(getenv("DOGTAG_LIBC"), "odd") == 0);
	CHECK_EQUAL(unsetenv("DOGTAG_LIBC"), 0);
	CHECK(getenv("DOGTAG_LIBC") == NULL);
}

static void in_the_service(void (*test)(void))
{
	dogtag_scope scope = dogtag_enter(service);

	test();
	dogtag_leave(scope);
}

int main(void)
{
	static void (*const CLEAN[])(void) = {
		pairs, alignments, odd_alignments, no_bytes, too_much, resized, mixed_with_dogtag,
		across_services, totals, texts, streams, sorted,
	};

	service = dogtag_service_register("libc");
	CHECK(service != NULL);
	for (size_t i = 0; i < COUNT(CLEAN); i++) {
		in_the_service(CLEAN[i]);
		CHECK_EQUAL(live_blocks(), 0);
		CHECK_EQUAL(live_bytes(), 0);
	}
	in_the_service(environment);
	CHECK_EQUAL(dogtag_verify(), 0);
	dogtag_service_release(service);
	puts("ok");
	return 0;
}
