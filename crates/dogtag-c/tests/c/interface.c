/*
 * Every function of the header but skynet's: results, errno, and figures to the byte.
 */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* Checks all four figures of a service. */
#define CHECK_USAGE(service, bytes, blocks, bytes_freed, blocks_freed) \
	do { \
		dogtag_figures usage = dogtag_usage(service); \
		CHECK_EQUAL(usage.allocated_bytes, bytes); \
		CHECK_EQUAL(usage.allocated_blocks, blocks); \
		CHECK_EQUAL(usage.freed_bytes, bytes_freed); \
		CHECK_EQUAL(usage.freed_blocks, blocks_freed); \
	} while (0)

/* Checks that an allocation has failed, and errno. */
#define CHECK_REFUSED(call, why) \
	do { \
		errno = 0; \
		CHECK((call) == NULL); \
		CHECK_EQUAL(errno, why); \
	} while (0)

/* Checks that there is a block, as large and as aligned as malloc's; returns its size. */
static size_t checked_size(const void *block, size_t requested)
{
	size_t usable = dogtag_usable_size(block);

	CHECK(block != NULL);
	CHECK(is_aligned(block, requested >= 16 ? 16 : 8));
	CHECK_USABLE(usable, requested);
	return usable;
}

static dogtag_service *registered(const char *name)
{
	dogtag_service *service = dogtag_service_register(name);

	CHECK(service != NULL);
	return service;
}

/* Not called in a service: the C library allocates for threads. */
static void on_another_thread(void *(*work)(void *), void *argument)
{
	pthread_t thread;

	CHECK_EQUAL(pthread_create(&thread, NULL, work, argument), 0);
	CHECK_EQUAL(pthread_join(thread, NULL), 0);
}

/* Blocks */

static const size_t LARGE[] = {
	8191, 8192, 8193, 16384, 20000, 65535, 65536, 100000, MIB - 1, MIB, MIB + 1, 3 * MIB, 8 * MIB + 1,
	/* From 32 MiB on the size does not stand beside the heap. */
	32 * MIB - 1, 32 * MIB, 32 * MIB + 1,
};

/* Each block is written from end to end while its neighbour is there. */
static void malloc_of_each_size(dogtag_service *service)
{
	void *neighbour = NULL;
	size_t neighbour_size = 0;
	size_t bytes = 0, blocks = 0;

	for (size_t i = 0; i < 5000 + COUNT(LARGE); i++) {
		size_t requested = i < 5000 ? i : LARGE[i - 5000];
		void *block;
		size_t size;

		errno = 0;
		block = dogtag_malloc(requested);
		CHECK_EQUAL(errno, 0);
		size = checked_size(block, requested);
		memset(block, (int)i, size);
		CHECK(is_filled(neighbour, (int)i - 1, neighbour_size));
		bytes += size;
		blocks++;
		dogtag_free(neighbour);
		CHECK_USAGE(service, bytes, blocks, bytes - size, blocks - 1);
		neighbour = block;
		neighbour_size = size;
	}
	dogtag_free(neighbour);
	CHECK_USAGE(service, bytes, blocks, bytes, blocks);
}

/* A size class less the two bytes that the owner of a small block takes. */
static void malloc_of_size_classes(void)
{
#ifndef CHECKED
	static const size_t SIZES[][2] = { { 14, 14 }, { 15, 30 }, { 4095, 4096 }, { 4096, 4096 } };

	for (size_t i = 0; i < COUNT(SIZES); i++) {
		void *block = dogtag_malloc(SIZES[i][0]);

		CHECK_EQUAL(dogtag_usable_size(block), SIZES[i][1]);
		dogtag_free(block);
	}
#endif
}

static void alignments(dogtag_service *service)
{
	static const size_t SIZES[] = { 0, 1, 13, 64, 100, 4000, 4095, 4096, 70000 };
	static const size_t BAD[] = { 0, 3, 5, 24, 48, 100, 4095, 4097, SIZE_MAX, SIZE_MAX / 2 };

	for (size_t alignment = 1; alignment <= MIB; alignment *= 2) {
		void *blocks[COUNT(SIZES)];
		size_t live = 0;

		for (size_t i = 0; i < COUNT(SIZES); i++) {
			size_t size;

			blocks[i] = dogtag_aligned_alloc(alignment, SIZES[i]);
			CHECK(blocks[i] != NULL && is_aligned(blocks[i], alignment));
			size = dogtag_usable_size(blocks[i]);
			CHECK_USABLE(size, SIZES[i]);
			memset(blocks[i], (int)i, size);
			live += size;
		}
		CHECK_LIVE(service, live, COUNT(SIZES));
		for (size_t i = 0; i < COUNT(SIZES); i++) {
			CHECK(is_filled(blocks[i], (int)i, dogtag_usable_size(blocks[i])));
			dogtag_free(blocks[i]);
		}
		CHECK_LIVE(service, 0, 0);
	}
	for (size_t i = 0; i < COUNT(BAD); i++)
		CHECK_REFUSED(dogtag_aligned_alloc(BAD[i], 100), EINVAL);
	CHECK_REFUSED(dogtag_aligned_alloc(64, SIZE_MAX), ENOMEM);
	CHECK_REFUSED(dogtag_aligned_alloc(64, PTRDIFF_MAX), ENOMEM);
	CHECK_REFUSED(dogtag_aligned_alloc(MIB, SIZE_MAX - MIB), ENOMEM);
	CHECK_LIVE(service, 0, 0);
}

/* An aligned block that is resized may lose its alignment, but not its contents. */
static void realloc_of_aligned(dogtag_service *service)
{
	for (size_t alignment = 1; alignment <= 64 * KIB; alignment *= 2) {
		char *block = dogtag_aligned_alloc(alignment, 100);

		memset(block, 'a', 100);
		block = dogtag_realloc(block, 10000);
		CHECK(is_filled(block, 'a', 100));
		CHECK_LIVE(service, checked_size(block, 10000), 1);
		block = dogtag_realloc(block, 50);
		CHECK(is_filled(block, 'a', 50));
		CHECK_LIVE(service, checked_size(block, 50), 1);
		dogtag_free(block);
	}
	CHECK_LIVE(service, 0, 0);
}

/* Pairs whose product overflows, and is small or 0 where it wraps. */
static const size_t OVERFLOWS[][2] = {
	{ SIZE_MAX / 2, 3 },
	{ 3, SIZE_MAX / 2 },
	{ SIZE_MAX, 2 },
	{ SIZE_MAX, SIZE_MAX },
	{ (size_t)1 << 32, (size_t)1 << 32 },
	{ ((size_t)1 << 32) + 1, (size_t)1 << 32 },
	{ 2, ((size_t)1 << 63) + 8 },
	{ 1, SIZE_MAX },
	{ SIZE_MAX, 1 },
	{ 1, PTRDIFF_MAX },
};

static const size_t TOO_LARGE[] = {
	SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 2, SIZE_MAX - 15,
	SIZE_MAX - 80, SIZE_MAX / 2 + 2, (size_t)PTRDIFF_MAX, (size_t)PTRDIFF_MAX - 1,
};

/* Nothing is charged, nothing lost, and it is no limit that refuses. */
static void too_much(dogtag_service *service)
{
	dogtag_figures before = dogtag_usage(service), after;
	char *block = dogtag_malloc(100);
	char *large = dogtag_malloc(100000);
	size_t size = dogtag_usable_size(block) + dogtag_usable_size(large);

	memset(block, 'b', 100);
	memset(large, 'l', 100000);
	for (size_t i = 0; i < COUNT(TOO_LARGE); i++) {
		CHECK_REFUSED(dogtag_malloc(TOO_LARGE[i]), ENOMEM);
		CHECK_REFUSED(dogtag_realloc(NULL, TOO_LARGE[i]), ENOMEM);
		CHECK_REFUSED(dogtag_realloc(block, TOO_LARGE[i]), ENOMEM);
		CHECK_REFUSED(dogtag_realloc(large, TOO_LARGE[i]), ENOMEM);
	}
	for (size_t i = 0; i < COUNT(OVERFLOWS); i++) {
		size_t count = OVERFLOWS[i][0], each = OVERFLOWS[i][1];

		CHECK_REFUSED(dogtag_calloc(count, each), ENOMEM);
		CHECK_REFUSED(dogtag_reallocarray(NULL, count, each), ENOMEM);
		CHECK_REFUSED(dogtag_reallocarray(block, count, each), ENOMEM);
		CHECK_REFUSED(dogtag_reallocarray(large, count, each), ENOMEM);
	}
	CHECK(is_filled(block, 'b', 100));
	CHECK(is_filled(large, 'l', 100000));
	after = dogtag_usage(service);
	CHECK_EQUAL(after.allocated_bytes - before.allocated_bytes, size);
	CHECK_EQUAL(after.allocated_blocks - before.allocated_blocks, 2);
	CHECK_EQUAL(after.freed_blocks, before.freed_blocks);
	CHECK_EQUAL(after.denied, 0);
	dogtag_free(block);
	dogtag_free(large);
	CHECK_LIVE(service, 0, 0);
}

static void no_bytes(dogtag_service *service)
{
	void *blocks[] = {
		dogtag_malloc(0), dogtag_malloc(0), dogtag_calloc(0, 0),
		dogtag_calloc(0, SIZE_MAX), dogtag_calloc(5, 0), dogtag_realloc(NULL, 0),
		dogtag_reallocarray(NULL, 0, 5), dogtag_reallocarray(NULL, 5, 0),
	};
	size_t live = 0;
	char *block;
	dogtag_figures before, after;

	for (size_t i = 0; i < COUNT(blocks); i++) {
		live += checked_size(blocks[i], 0);
		for (size_t j = 0; j < i; j++)
			CHECK(blocks[i] != blocks[j]);
	}
	CHECK_LIVE(service, live, COUNT(blocks));
	/* Grows like any other. */
	block = blocks[0];
	live -= dogtag_usable_size(block);
	block = dogtag_realloc(block, 1000);
	memset(block, 1, 1000);
	live += checked_size(block, 1000);
	CHECK_LIVE(service, live, COUNT(blocks));
	blocks[0] = block;
	for (size_t i = 0; i < COUNT(blocks); i++)
		dogtag_free(blocks[i]);
	CHECK_LIVE(service, 0, 0);

	/* To resize to nothing is to free, and no error. */
	for (size_t size = 0; size < 20000; size += 4999) {
		block = dogtag_malloc(size);
		before = dogtag_usage(service);
		live = dogtag_usable_size(block);
		errno = 0;
		CHECK(dogtag_realloc(block, 0) == NULL);
		CHECK_EQUAL(errno, 0);
		after = dogtag_usage(service);
		CHECK_EQUAL(after.freed_bytes - before.freed_bytes, live);
		CHECK_EQUAL(after.freed_blocks - before.freed_blocks, 1);
		CHECK_EQUAL(after.allocated_blocks, before.allocated_blocks);
	}
	block = dogtag_malloc(10);
	CHECK(dogtag_reallocarray(block, 0, 7) == NULL);
	block = dogtag_malloc(10);
	CHECK(dogtag_reallocarray(block, 7, 0) == NULL);
	CHECK_LIVE(service, 0, 0);

	errno = 0;
	dogtag_free(NULL);
	CHECK_EQUAL(errno, 0);
	CHECK_EQUAL(dogtag_usable_size(NULL), 0);
}

/* From each size to each, with its contents. */
static void realloc_up_and_down(dogtag_service *service)
{
	static const size_t SIZES[] = {
		1, 6, 7, 8, 13, 14, 15, 16, 30, 31, 100, 126, 500, 1000,
		2047, 3000, 4093, 4094, 4095, 4096, 4097, 5000, 10000, 65536, 200000, MIB, 5 * MIB,
	};

	for (size_t i = 0; i < COUNT(SIZES); i++) {
		for (size_t j = 0; j < COUNT(SIZES); j++) {
			size_t from = SIZES[i], to = SIZES[j], kept = from < to ? from : to;
			unsigned char *block = (i + j) % 2 ? dogtag_malloc(from) : dogtag_realloc(NULL, from);

			CHECK_LIVE(service, checked_size(block, from), 1);
			for (size_t k = 0; k < from; k++)
				block[k] = (unsigned char)(k * 31 + (k >> 8));
			errno = 0;
			block = (i + j) % 3 ? dogtag_realloc(block, to) : dogtag_reallocarray(block, 1, to);
			CHECK_EQUAL(errno, 0);
			CHECK_LIVE(service, checked_size(block, to), 1);
			for (size_t k = 0; k < kept; k++)
				if (block[k] != (unsigned char)(k * 31 + (k >> 8)))
					CHECK_EQUAL(k, kept);
			memset(block, 0xee, dogtag_usable_size(block));
			dogtag_free(block);
			CHECK_LIVE(service, 0, 0);
		}
	}
}

/* Also where memory was somebody's before, and was left dirty. */
static void calloc_is_zeroed(dogtag_service *service)
{
	static void *dirty[400];

	for (size_t size = 1; size <= 6 * MIB; size += size / 7 + 1) {
		size_t many = size < 10000 ? COUNT(dirty) : 4;
		size_t live = 0;

		for (size_t i = 0; i < many; i++) {
			dirty[i] = dogtag_malloc(size);
			memset(dirty[i], 0xff, dogtag_usable_size(dirty[i]));
		}
		for (size_t i = 0; i < many; i++)
			dogtag_free(dirty[i]);
		for (size_t i = 0; i < many; i++) {
			size_t count = i % 3 + 1;

			dirty[i] = dogtag_calloc(count, (size + count - 1) / count);
			live += checked_size(dirty[i], (size + count - 1) / count * count);
			CHECK(is_filled(dirty[i], 0, size));
		}
		CHECK_LIVE(service, live, many);
		for (size_t i = 0; i < many; i++)
			dogtag_free(dirty[i]);
	}
	CHECK_LIVE(service, 0, 0);
}

static void strdup_copies(dogtag_service *service)
{
	static char text[10000];

	for (size_t length = 0; length < sizeof(text); length += length / 5 + 1) {
		char *copy;

		memset(text, 'x', length);
		text[length] = '\0';
		copy = dogtag_strdup(text);
		CHECK(copy != text && strcmp(copy, text) == 0);
		CHECK_LIVE(service, checked_size(copy, length + 1), 1);
		dogtag_free(copy);
	}
	CHECK_LIVE(service, 0, 0);
}

static void free_keeps_errno(void)
{
	for (size_t i = 0; i < COUNT(LARGE); i++) {
		void *small = dogtag_malloc(i * 10), *large = dogtag_malloc(LARGE[i]);

		errno = EXDEV;
		dogtag_free(small);
		dogtag_free(large);
		dogtag_free(NULL);
		CHECK_EQUAL(errno, EXDEV);
	}
}

static void blocks(void)
{
	static void (*const TESTS[])(dogtag_service *) = {
		malloc_of_each_size, alignments, realloc_of_aligned, too_much, no_bytes, realloc_up_and_down,
		calloc_is_zeroed, strdup_copies,
	};

	/* What the first allocation does to errno is its own business. */
	dogtag_free(dogtag_malloc(1));
	malloc_of_size_classes();
	free_keeps_errno();
	for (size_t i = 0; i < COUNT(TESTS); i++) {
		dogtag_service *service = registered("blocks");
		dogtag_scope scope = dogtag_enter(service);

		TESTS[i](service);
		CHECK_EQUAL(dogtag_usage(service).denied, 0);
		dogtag_leave(scope);
		dogtag_service_release(service);
	}
}

/* Services */

static void check_name(const dogtag_service *service, const char *expected)
{
	char *name = dogtag_service_name(service);

	CHECK(name != NULL && strcmp(name, expected) == 0);
	dogtag_free(name);
}

static void names_and_handles(void)
{
	static const char *const NAMES[] = { "a", "with space", "\xc3\xbcn\xc3\xaf \xe2\x9c\x93", "new\nline", "%s%n" };
	static const char *const NOT_UTF_8[] = { "\xff\xfe", "cut \xc3", "\xc0\x80", "\xed\xa0\x80", "a\x80" };
	static char long_name[5000];
	dogtag_service *one, *again, *other, *chosen;
	uint32_t handle;

	one = registered("one");
	again = registered("one");
	other = registered("other");
	handle = dogtag_service_handle(one);
	CHECK(handle != 0);
	CHECK_EQUAL(dogtag_service_handle(again), handle);
	CHECK(dogtag_service_handle(other) != handle && dogtag_service_handle(other) != 0);
	check_name(one, "one");
	check_name(again, "one");
	check_name(other, "other");
	/* One service: what is counted for one is counted for the other. */
	dogtag_scope scope = dogtag_enter(one);
	void *block = dogtag_malloc(77);
	dogtag_leave(scope);
	CHECK_LIVE(again, dogtag_usable_size(block), 1);
	CHECK_LIVE(other, 0, 0);
	dogtag_free(block);
	CHECK_LIVE(again, 0, 0);

	chosen = dogtag_service_register_as("chosen", 0x0100000a, NULL);
	CHECK(chosen != NULL);
	CHECK_EQUAL(dogtag_service_handle(chosen), 0x0100000a);
	check_name(chosen, "chosen");
	/* Who asks for no handle gets the service that is there. */
	dogtag_service_release(again);
	again = dogtag_service_register_as("chosen", 0, NULL);
	CHECK_EQUAL(dogtag_service_handle(again), 0x0100000a);
	dogtag_service_release(again);
	again = dogtag_service_register_as("chosen", 0x0100000a, NULL);
	CHECK_EQUAL(dogtag_service_handle(again), 0x0100000a);
	dogtag_service_release(again);
	again = registered("chosen");
	CHECK_EQUAL(dogtag_service_handle(again), 0x0100000a);
	dogtag_service_release(again);

	CHECK_REFUSED(dogtag_service_register_as("chosen", 0x0100000b, NULL), EEXIST);
	CHECK_REFUSED(dogtag_service_register_as("thief", 0x0100000a, NULL), EEXIST);
	CHECK_REFUSED(dogtag_service_register_as("one", handle + 1, NULL), EEXIST);
	CHECK_REFUSED(dogtag_service_register_as("unattributed", 7, NULL), EEXIST);
	CHECK_REFUSED(dogtag_service_register(NULL), EINVAL);
	CHECK_REFUSED(dogtag_service_register(""), EINVAL);
	CHECK_REFUSED(dogtag_service_register_as("", 5, one), EINVAL);
	CHECK_REFUSED(dogtag_service_register_as(NULL, 5, NULL), EINVAL);
	CHECK_REFUSED(dogtag_service_register_as(NULL, 0, one), EINVAL);
	for (size_t i = 0; i < COUNT(NOT_UTF_8); i++) {
		CHECK_REFUSED(dogtag_service_register(NOT_UTF_8[i]), EINVAL);
		CHECK_REFUSED(dogtag_service_register_as(NOT_UTF_8[i], 5, one), EINVAL);
	}
	/* What was refused has left nothing behind. */
	again = dogtag_service_register_as("thief", 5, NULL);
	CHECK_EQUAL(dogtag_service_handle(again), 5);
	dogtag_service_release(again);

	/* Names and handles are free when their service has ended. */
	dogtag_service_release(chosen);
	chosen = dogtag_service_register_as("successor", 0x0100000a, NULL);
	CHECK_EQUAL(dogtag_service_handle(chosen), 0x0100000a);
	again = dogtag_service_register_as("chosen", 0x0100000b, NULL);
	CHECK_EQUAL(dogtag_service_handle(again), 0x0100000b);
	dogtag_service_release(again);
	dogtag_service_release(chosen);

	memset(long_name, 'n', sizeof(long_name) - 1);
	CHECK_REFUSED(dogtag_service_register(long_name), ENAMETOOLONG);
	CHECK_REFUSED(dogtag_service_register_as(long_name, 5, one), ENAMETOOLONG);
	long_name[255] = 0;
	again = registered(long_name);
	check_name(again, long_name);
	dogtag_service_release(again);
	for (size_t i = 0; i < COUNT(NAMES); i++) {
		again = registered(NAMES[i]);
		check_name(again, NAMES[i]);
		dogtag_service_release(again);
	}
	dogtag_service_release(other);
	dogtag_service_release(one);
	dogtag_service_release(NULL);

	/* Handles up to the last one. */
	again = dogtag_service_register_as("last", UINT32_MAX, NULL);
	CHECK_EQUAL(dogtag_service_handle(again), UINT32_MAX);
	dogtag_service_release(again);
}

static void parents(void)
{
	dogtag_service *parent = registered("parent"), *stranger = registered("stranger");
	dogtag_service *child = dogtag_service_register_as("child", 0, parent);
	dogtag_service *again;

	CHECK(child != NULL);
	again = dogtag_service_register_as("child", 0, parent);
	CHECK_EQUAL(dogtag_service_handle(again), dogtag_service_handle(child));
	dogtag_service_release(again);
	again = registered("child");
	CHECK_EQUAL(dogtag_service_handle(again), dogtag_service_handle(child));
	dogtag_service_release(again);
	CHECK_REFUSED(dogtag_service_register_as("child", 0, stranger), EEXIST);
	CHECK_REFUSED(dogtag_service_register_as("parent", 0, stranger), EEXIST);
	/* A child is counted for itself. */
	dogtag_scope scope = dogtag_enter(child);
	void *block = dogtag_malloc(10);
	dogtag_leave(scope);
	CHECK_LIVE(child, dogtag_usable_size(block), 1);
	CHECK_LIVE(parent, 0, 0);
	dogtag_free(block);
	/* And keeps its parent. */
	uint32_t handle = dogtag_service_handle(parent);
	dogtag_service_release(parent);
	parent = registered("parent");
	CHECK_EQUAL(dogtag_service_handle(parent), handle);
	dogtag_service_release(parent);
	dogtag_service_release(child);
	dogtag_service_release(stranger);
}

static void check_current(const char *name, uint32_t handle)
{
	dogtag_service *current = dogtag_service_current();

	CHECK_EQUAL(dogtag_service_handle(current), handle);
	check_name(current, name);
	dogtag_service_release(current);
}

static void *begins_in_none(void *service)
{
	check_current("unattributed", 0);
	dogtag_scope scope = dogtag_enter(service);
	check_current("outer", dogtag_service_handle(service));
	dogtag_leave(scope);
	check_current("unattributed", 0);
	return NULL;
}

static void scopes(void)
{
	dogtag_service *outer = registered("outer"), *inner = registered("inner");
	uint32_t outer_handle = dogtag_service_handle(outer), inner_handle = dogtag_service_handle(inner);
	void *blocks[4];

	check_current("unattributed", 0);
	dogtag_scope first = dogtag_enter(outer);
	check_current("outer", outer_handle);
	blocks[0] = dogtag_malloc(100);
	dogtag_scope second = dogtag_enter(inner);
	check_current("inner", inner_handle);
	blocks[1] = dogtag_malloc(200);
	dogtag_scope third = dogtag_enter(outer);
	blocks[2] = dogtag_malloc(300);
	check_current("outer", outer_handle);
	dogtag_scope fourth = dogtag_enter(outer);
	check_current("outer", outer_handle);
	dogtag_leave(fourth);
	check_current("outer", outer_handle);
	dogtag_leave(third);
	check_current("inner", inner_handle);
	dogtag_leave(second);
	check_current("outer", outer_handle);
	blocks[3] = dogtag_malloc(400);
	dogtag_leave(first);
	check_current("unattributed", 0);
	CHECK_LIVE(outer,
		dogtag_usable_size(blocks[0]) + dogtag_usable_size(blocks[2]) + dogtag_usable_size(blocks[3]), 3);
	CHECK_LIVE(inner, dogtag_usable_size(blocks[1]), 1);
	for (size_t i = 0; i < COUNT(blocks); i++)
		dogtag_free(blocks[i]);
	CHECK_LIVE(outer, 0, 0);
	CHECK_LIVE(inner, 0, 0);

	/* The scopes of one thread are no other's. */
	on_another_thread(begins_in_none, outer);

	/* A service that is entered lives on until it is left. */
	first = dogtag_enter(inner);
	dogtag_service_release(inner);
	check_current("inner", inner_handle);
	blocks[0] = dogtag_malloc(10);
	inner = dogtag_service_current();
	CHECK_LIVE(inner, dogtag_usable_size(blocks[0]), 1);
	dogtag_free(blocks[0]);
	CHECK_LIVE(inner, 0, 0);
	dogtag_service_release(inner);
	dogtag_leave(first);
	check_current("unattributed", 0);
	dogtag_service_release(outer);

	/* It has a name of its own, too. */
	inner = registered("unattributed");
	CHECK_EQUAL(dogtag_service_handle(inner), 0);
	first = dogtag_enter(inner);
	check_current("unattributed", 0);
	dogtag_leave(first);
	dogtag_service_release(inner);
}

static void references(void)
{
	static dogtag_service *many[1000];
	dogtag_service *first = registered("referred"), *second = dogtag_service_retain(first);
	uint32_t handle = dogtag_service_handle(first);

	CHECK_EQUAL(dogtag_service_handle(second), handle);
	dogtag_service_release(first);
	/* Still the same one. */
	first = registered("referred");
	CHECK_EQUAL(dogtag_service_handle(first), handle);
	dogtag_service_release(first);
	check_name(second, "referred");
	for (size_t i = 0; i < COUNT(many); i++) {
		many[i] = dogtag_service_retain(second);
		CHECK_EQUAL(dogtag_service_handle(many[i]), handle);
	}
	for (size_t i = 0; i < COUNT(many); i++)
		dogtag_service_release(many[i]);
	check_name(second, "referred");
	dogtag_service_release(second);
}

/* Figures */

static void exact_figures(void)
{
	dogtag_service *mine = registered("mine"), *yours = registered("yours");
	dogtag_scope scope = dogtag_enter(mine);
	char *blocks[5];
	size_t sizes[5], sum = 0;

	CHECK_USAGE(mine, 0, 0, 0, 0);
	blocks[0] = dogtag_malloc(14);
	blocks[1] = dogtag_calloc(3, 1000);
	blocks[2] = dogtag_realloc(NULL, 5000);
	blocks[3] = dogtag_aligned_alloc(256, 700);
	blocks[4] = dogtag_strdup("figures");
	for (size_t i = 0; i < 5; i++)
		sum += sizes[i] = dogtag_usable_size(blocks[i]);
	CHECK_USAGE(mine, sum, 5, 0, 0);
	dogtag_leave(scope);
	CHECK_USAGE(mine, sum, 5, 0, 0);

	/* Freed in another service, or in none: refunded to who allocated. */
	scope = dogtag_enter(yours);
	dogtag_free(blocks[0]);
	CHECK_USAGE(mine, sum, 5, sizes[0], 1);
	CHECK_USAGE(yours, 0, 0, 0, 0);
	/* A resized block is the current service's, even if it stays in its place. */
	blocks[1] = dogtag_realloc(blocks[1], 3000);
	size_t resized = dogtag_usable_size(blocks[1]);
	CHECK_USAGE(mine, sum, 5, sizes[0] + sizes[1], 2);
	CHECK_USAGE(yours, resized, 1, 0, 0);
	blocks[2] = dogtag_realloc(blocks[2], 100000);
	size_t grown = dogtag_usable_size(blocks[2]);
	CHECK_USAGE(mine, sum, 5, sizes[0] + sizes[1] + sizes[2], 3);
	CHECK_USAGE(yours, resized + grown, 2, 0, 0);
	/* Where that fails it stays whose it was. */
	CHECK_REFUSED(dogtag_realloc(blocks[3], PTRDIFF_MAX), ENOMEM);
	CHECK_USAGE(mine, sum, 5, sizes[0] + sizes[1] + sizes[2], 3);
	CHECK_USAGE(yours, resized + grown, 2, 0, 0);
	dogtag_leave(scope);
	dogtag_free(blocks[2]);
	CHECK_USAGE(yours, resized + grown, 2, grown, 1);
	scope = dogtag_enter(mine);
	dogtag_free(blocks[1]);
	dogtag_free(blocks[3]);
	dogtag_free(blocks[4]);
	dogtag_leave(scope);
	CHECK_USAGE(mine, sum, 5, sum, 5);
	CHECK_USAGE(yours, resized + grown, 2, resized + grown, 2);
	dogtag_service_release(mine);
	dogtag_service_release(yours);
}

struct parcel {
	dogtag_service *service;
	void *blocks[200];
	size_t bytes;
};

static void *pack(void *argument)
{
	struct parcel *parcel = argument;
	dogtag_scope scope = dogtag_enter(parcel->service);

	for (size_t i = 0; i < COUNT(parcel->blocks); i++) {
		parcel->blocks[i] = dogtag_malloc(i * 53);
		parcel->bytes += dogtag_usable_size(parcel->blocks[i]);
	}
	dogtag_leave(scope);
	return NULL;
}

static void *unpack(void *argument)
{
	struct parcel *parcel = argument;

	for (size_t i = 0; i < COUNT(parcel->blocks); i++)
		dogtag_free(parcel->blocks[i]);
	return NULL;
}

static void figures_across_threads(void)
{
	struct parcel parcel = { .service = registered("parcel") };

	on_another_thread(pack, &parcel);
	CHECK_USAGE(parcel.service, parcel.bytes, 200, 0, 0);
	unpack(&parcel);
	CHECK_USAGE(parcel.service, parcel.bytes, 200, parcel.bytes, 200);
	pack(&parcel);
	CHECK_USAGE(parcel.service, parcel.bytes, 400, parcel.bytes / 2, 200);
	on_another_thread(unpack, &parcel);
	CHECK_USAGE(parcel.service, parcel.bytes, 400, parcel.bytes, 400);
	dogtag_service_release(parcel.service);
}

static void totals_are_of_all(void)
{
	dogtag_service *one = registered("one of all"), *two = registered("two of all");
	dogtag_figures before, after;
	void *first, *second, *third;
	size_t sum;

	dogtag_totals();
	before = dogtag_totals();
	dogtag_scope scope = dogtag_enter(one);
	first = dogtag_malloc(1000);
	dogtag_leave(scope);
	scope = dogtag_enter(two);
	second = dogtag_malloc(10000);
	dogtag_leave(scope);
	third = dogtag_malloc(100);
	after = dogtag_totals();
	sum = dogtag_usable_size(first) + dogtag_usable_size(second) + dogtag_usable_size(third);
	CHECK_EQUAL(after.allocated_bytes - before.allocated_bytes, sum);
	CHECK_EQUAL(after.allocated_blocks - before.allocated_blocks, 3);
	CHECK_EQUAL(after.freed_bytes, before.freed_bytes);
	CHECK_EQUAL(after.freed_blocks, before.freed_blocks);
	before = after;
	dogtag_free(first);
	dogtag_free(second);
	dogtag_free(third);
	after = dogtag_totals();
	CHECK_EQUAL(after.freed_bytes - before.freed_bytes, sum);
	CHECK_EQUAL(after.freed_blocks - before.freed_blocks, 3);
	CHECK_EQUAL(after.allocated_bytes, before.allocated_bytes);
	CHECK_EQUAL(after.allocated_blocks, before.allocated_blocks);
	CHECK(after.peak_bytes >= before.allocated_bytes - before.freed_bytes);

	/* Outside of any scope blocks are the unattributed service's. */
	dogtag_service *nobody = dogtag_service_current();
	before = dogtag_usage(nobody);
	first = dogtag_malloc(3333);
	after = dogtag_usage(nobody);
	CHECK_EQUAL(after.allocated_bytes - before.allocated_bytes, dogtag_usable_size(first));
	CHECK_EQUAL(after.allocated_blocks - before.allocated_blocks, 1);
	dogtag_free(first);
	dogtag_service_release(nobody);
	dogtag_service_release(one);
	dogtag_service_release(two);
}

static void peaks(void)
{
	dogtag_service *service = registered("peak");
	dogtag_scope scope = dogtag_enter(service);
	void *block = dogtag_malloc(16 * MIB);
	size_t size = dogtag_usable_size(block);
	dogtag_figures usage;

	dogtag_free(block);
	block = dogtag_malloc(100);
	usage = dogtag_usage(service);
	CHECK(usage.peak_bytes + MIB >= size && usage.peak_bytes <= size + MIB);
	dogtag_free(block);
	dogtag_leave(scope);
	dogtag_service_release(service);
}

/* Says whether a table has a row of that name with that figure. */
static int has_row(const char *table, const char *name, const char *figure)
{
	size_t length = strlen(name);

	for (const char *line = table; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, length) == 0) {
			const char *end = strchr(line, '\n');
			const char *found = strstr(line, figure);

			return found && end && found < end;
		}
	}
	return 0;
}

/* A service lives on in its blocks, though its name is free for the next one. */
static void blocks_keep_their_service(void)
{
	dogtag_service *first = registered("survivor"), *second;
	dogtag_scope scope = dogtag_enter(first);
	void *small = dogtag_malloc(100), *large = dogtag_malloc(3 * MIB);
	size_t small_size = dogtag_usable_size(small), large_size = dogtag_usable_size(large);
	dogtag_figures before, after;
	char *text;

	dogtag_leave(scope);
	CHECK_LIVE(first, small_size + large_size, 2);
	dogtag_service_release(first);
	text = dogtag_snapshot_text();
	CHECK(has_row(text, "survivor", "3.0 MiB"));
	dogtag_free(text);

	second = registered("survivor");
	CHECK_USAGE(second, 0, 0, 0, 0);
	scope = dogtag_enter(second);
	void *other = dogtag_malloc(50);
	dogtag_leave(scope);
	before = dogtag_totals();
	dogtag_free(small);
	dogtag_free(large);
	after = dogtag_totals();
	CHECK_EQUAL(after.freed_bytes - before.freed_bytes, small_size + large_size);
	CHECK_EQUAL(after.freed_blocks - before.freed_blocks, 2);
	CHECK_USAGE(second, dogtag_usable_size(other), 1, 0, 0);
	dogtag_free(other);
	dogtag_service_release(second);
	text = dogtag_snapshot_text();
	CHECK(!has_row(text, "survivor", ""));
	dogtag_free(text);
}

static void texts(void)
{
	dogtag_service *service = registered("told of");
	dogtag_scope scope = dogtag_enter(service);
	void *block = dogtag_malloc(5 * MIB);
	char *text;

	dogtag_leave(scope);
	text = dogtag_snapshot_text();
	CHECK(text != NULL);
	CHECK(has_row(text, "told of", "5.0 MiB"));
	CHECK(has_row(text, "total", "MiB"));
	CHECK(has_row(text, "unattributed", ""));
	CHECK(strstr(text, "RSS") == NULL);
	CHECK(dogtag_usable_size(text) > strlen(text));
	dogtag_free(text);

	text = dogtag_balance_text();
	CHECK(text != NULL);
	CHECK(has_row(text, "told of", "5.0 MiB"));
	CHECK(has_row(text, "total", "MiB"));
	CHECK(has_row(text, "RSS", "100.0 %"));
	dogtag_free(text);

	/* Making the texts leaves no block with the service that asks. */
	scope = dogtag_enter(service);
	for (int i = 0; i < 20; i++) {
		dogtag_free(dogtag_service_name(service));
		dogtag_free(dogtag_snapshot_text());
		dogtag_free(dogtag_balance_text());
		dogtag_service_release(dogtag_service_current());
	}
	dogtag_leave(scope);
	CHECK_LIVE(service, dogtag_usable_size(block), 1);
	dogtag_free(block);
	CHECK_LIVE(service, 0, 0);
	dogtag_service_release(service);
}

/* A block that does not grow stays its owner's over another service's limit. */
static void shrinking(void)
{
	static const size_t SIZES[][2] = {
		{ 100, 50 }, { 100, 100 }, { 3000, 1 }, { 4096, 4000 }, { 8192, 4096 }, { 9000, 10 },
		{ 100000, 100000 }, { MIB, 70000 },
	};
	dogtag_service *owner = registered("owner");
	dogtag_service *full = registered("full");
	dogtag_scope scope;

	dogtag_service_set_hard_limit(full, 0);
	for (size_t i = 0; i < COUNT(SIZES); i++) {
		size_t from = SIZES[i][0], to = SIZES[i][1];
		unsigned char *block;

		scope = dogtag_enter(owner);
		block = i % 2 ? dogtag_malloc(from) : dogtag_aligned_alloc(64, from);
		memset(block, 's', from);
		dogtag_leave(scope);
		scope = dogtag_enter(full);
		block = dogtag_realloc(block, to);
		CHECK(block != NULL);
		CHECK(is_filled(block, 's', to));
		CHECK_LIVE(owner, dogtag_usable_size(block), 1);
		CHECK(dogtag_usable_size(block) >= to);
		CHECK_USAGE(full, 0, 0, 0, 0);
		CHECK_REFUSED(dogtag_realloc(block, 2 * MIB), ENOMEM);
		CHECK_EQUAL(dogtag_usage(full).denied, i + 1);
		dogtag_leave(scope);
		dogtag_free(block);
		CHECK_LIVE(owner, 0, 0);
	}
	dogtag_service_release(owner);
	dogtag_service_release(full);
}

/* Last, since limits may start a thread of the library's own. */
static void limits(void)
{
	static void *blocks[1100];
	dogtag_service *tenant = registered("tenant");
	dogtag_service *query = dogtag_service_register_as("query", 0, tenant);
	dogtag_service *stranger = registered("stranger");
	dogtag_figures usage;
	size_t count = 0, live = 0;
	char *block;

	dogtag_service_set_hard_limit(tenant, MIB);
	dogtag_scope scope = dogtag_enter(query);
	CHECK_REFUSED(dogtag_malloc(2 * MIB), ENOMEM);
	CHECK_EQUAL(dogtag_usage(query).denied, 1);
	CHECK_EQUAL(dogtag_usage(tenant).denied, 0);
	CHECK_REFUSED(dogtag_calloc(2, MIB), ENOMEM);
	CHECK_REFUSED(dogtag_aligned_alloc(4096, 2 * MIB), ENOMEM);
	CHECK_EQUAL(dogtag_usage(query).denied, 3);
	CHECK_USAGE(query, 0, 0, 0, 0);

	/* A block stays as it is if realloc is denied. */
	block = dogtag_malloc(1000);
	memset(block, 'q', 1000);
	live = dogtag_usable_size(block);
	CHECK_REFUSED(dogtag_realloc(block, 2 * MIB), ENOMEM);
	CHECK_EQUAL(dogtag_usage(query).denied, 4);
	CHECK(is_filled(block, 'q', 1000));
	CHECK_USAGE(query, live, 1, 0, 0);
	dogtag_free(block);

	/* One thread fills it, and never gets past it. */
	errno = 0;
	for (live = 0; (blocks[count] = dogtag_malloc(1000)); count++) {
		live += dogtag_usable_size(blocks[count]);
		CHECK(live <= MIB);
	}
	CHECK_EQUAL(errno, ENOMEM);
	CHECK(live > MIB - 64 * KIB);
	CHECK_LIVE(query, live, count);
	CHECK_EQUAL(dogtag_usage(query).denied, 5);
	/* Within the other service's limit. */
	dogtag_leave(scope);
	scope = dogtag_enter(stranger);
	block = dogtag_malloc(2 * MIB);
	CHECK(block != NULL);
	dogtag_free(block);
	dogtag_leave(scope);
	/* Freed bytes can be allocated again. */
	scope = dogtag_enter(query);
	for (size_t i = 0; i < count; i++)
		dogtag_free(blocks[i]);
	CHECK_LIVE(query, 0, 0);
	block = dogtag_malloc(MIB / 2);
	CHECK(block != NULL);
	dogtag_free(block);
	CHECK_EQUAL(dogtag_usage(query).denied, 5);

	/* Over its own limit, too. */
	dogtag_service_set_hard_limit(query, 10000);
	CHECK_REFUSED(dogtag_malloc(20000), ENOMEM);
	CHECK_EQUAL(dogtag_usage(query).denied, 6);
	dogtag_service_set_hard_limit(query, UINT64_MAX);
	block = dogtag_malloc(20000);
	CHECK(block != NULL);
	dogtag_free(block);
	CHECK_REFUSED(dogtag_malloc(2 * MIB), ENOMEM);
	CHECK_EQUAL(dogtag_usage(query).denied, 7);

	/* The limit is lifted. */
	dogtag_service_set_hard_limit(tenant, UINT64_MAX);
	block = dogtag_malloc(2 * MIB);
	CHECK(block != NULL);
	CHECK_LIVE(query, dogtag_usable_size(block), 1);
	dogtag_free(block);
	dogtag_leave(scope);
	usage = dogtag_usage(query);
	CHECK_EQUAL(usage.denied, 7);
	CHECK_EQUAL(usage.allocated_bytes, usage.freed_bytes);
	CHECK(dogtag_totals().denied >= 7);
	dogtag_service_release(query);
	dogtag_service_release(tenant);
	dogtag_service_release(stranger);
}

/* Violations: their own program commits them. */

static dogtag_reaction never(const dogtag_violation *violation)
{
	fprintf(stderr, "%s\n", violation->report);
	CHECK(!"there was no violation");
	return DOGTAG_ABORT;
}

static void no_violations(void)
{
#ifdef CHECKED
	const bool has_check = true;
#else
	const bool has_check = false;
#endif

	CHECK_EQUAL(dogtag_set_violation_handler(never), has_check);
	CHECK_EQUAL(dogtag_verify(), 0);
	CHECK_EQUAL(dogtag_set_violation_handler(NULL), has_check);
	CHECK_EQUAL(dogtag_verify(), 0);
}

/* Programs may be compiled with an older header or a newer one, or not set the size. */
static void figures_of_any_size(void)
{
	dogtag_service *sized = registered("sized");
	dogtag_scope scope = dogtag_enter(sized);
	void *block = dogtag_malloc(1000);
	size_t size = dogtag_usable_size(block);
	struct {
		dogtag_figures known;
		uint64_t newer[3], behind;
	} figures;
	size_t sizes[] = { 0, sizeof(size_t), 4097, SIZE_MAX };

	dogtag_leave(scope);
	memset(&figures, 0x5a, sizeof(figures));
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		figures.known.struct_size = sizes[i];
		errno = 0;
		CHECK(!dogtag_usage_into(sized, &figures.known) && errno == EINVAL);
		errno = 0;
		CHECK(!dogtag_totals_into(&figures.known) && errno == EINVAL);
		CHECK_EQUAL(figures.known.allocated_bytes, 0x5a5a5a5a5a5a5a5a);
	}
	/* Two fields, and a part of the third. */
	figures.known.struct_size = offsetof(dogtag_figures, freed_bytes) + 7;
	CHECK(dogtag_usage_into(sized, &figures.known));
	CHECK_EQUAL(figures.known.struct_size, offsetof(dogtag_figures, freed_bytes) + 7);
	CHECK_EQUAL(figures.known.allocated_bytes, size);
	CHECK_EQUAL(figures.known.allocated_blocks, 1);
	CHECK_EQUAL(figures.known.freed_bytes, 0x5a5a5a5a5a5a5a5a);
	CHECK_EQUAL(figures.known.denied, 0x5a5a5a5a5a5a5a5a);
	/* Three fields that the library does not know. */
	figures.known.struct_size = sizeof(figures.known) + sizeof(figures.newer);
	CHECK(dogtag_usage_into(sized, &figures.known));
	CHECK_EQUAL(figures.known.allocated_bytes, size);
	CHECK_EQUAL(figures.known.freed_bytes, 0);
	CHECK_EQUAL(figures.known.denied, 0);
	for (int i = 0; i < 3; i++)
		CHECK_EQUAL(figures.newer[i], 0);
	CHECK_EQUAL(figures.behind, 0x5a5a5a5a5a5a5a5a);
	dogtag_free(block);
	CHECK_EQUAL(dogtag_usage(sized).freed_bytes, size);
	CHECK_EQUAL(dogtag_usage(sized).struct_size, sizeof(dogtag_figures));
	dogtag_service_release(sized);
}

/* Without the feature; profile.c is with it. */
static void no_profiles(void)
{
	errno = 0;
	CHECK(!dogtag_profile_start(1));
	CHECK_EQUAL(errno, ENOTSUP);
	dogtag_profile_stop();
	errno = 0;
	CHECK(!dogtag_profile_write("/dev/null"));
	CHECK_EQUAL(errno, ENOTSUP);
	CHECK_REFUSED(dogtag_profile_write(NULL) ? "" : NULL, EINVAL);
}

int main(void)
{
	blocks();
	names_and_handles();
	parents();
	scopes();
	references();
	exact_figures();
	figures_of_any_size();
	figures_across_threads();
	totals_are_of_all();
	peaks();
	blocks_keep_their_service();
	texts();
	limits();
	shrinking();
	no_violations();
	no_profiles();
	puts("ok");
	return 0;
}
