/*
 * Calls malloc and the other functions with sizes and alignments of all kinds, and prints a line for
 * each call: whether there is a block, its alignment up to 16, and errno. The lines of the C
 * library's functions are compared with those of dogtag's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* The compiler knows what these do, and would leave calls out. */
static void *(*volatile call_malloc)(size_t) = malloc;
static void *(*volatile call_calloc)(size_t, size_t) = calloc;
static void *(*volatile call_realloc)(void *, size_t) = realloc;
static void *(*volatile call_reallocarray)(void *, size_t, size_t) = reallocarray;
static void *(*volatile call_memalign)(size_t, size_t) = memalign;
static void *(*volatile call_aligned_alloc)(size_t, size_t) = aligned_alloc;
static int (*volatile call_posix_memalign)(void **, size_t, size_t) = posix_memalign;
static void *(*volatile call_valloc)(size_t) = valloc;
static void *(*volatile call_pvalloc)(size_t) = pvalloc;
static size_t (*volatile call_usable_size)(void *) = malloc_usable_size;
static void (*volatile call_free)(void *) = free;

static const size_t SIZES[] = {
	0, 1, 3, 6, 7, 8, 9, 15, 16, 17, 24, 100, 4095, 4096, 4097, 100001, (size_t)PTRDIFF_MAX - 4096,
	PTRDIFF_MAX, (size_t)PTRDIFF_MAX + 1, SIZE_MAX - 4095, SIZE_MAX - 4094, SIZE_MAX - 1, SIZE_MAX,
};

static const size_t ALIGNMENTS[] = {
	0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 100, 1000, 4095, 4096, 4097, 65536,
	(size_t)PTRDIFF_MAX, (size_t)PTRDIFF_MAX + 1, (size_t)PTRDIFF_MAX + 2, SIZE_MAX - 7, SIZE_MAX,
};

/* Before the output buffer or anything else changes errno. */
static void say(const char *call, size_t one, size_t other, int is_right, void *block, size_t alignment)
{
	int error = errno;
	int is_aligned = !block || ((uintptr_t)block & 15) == 0;
	int is_more_aligned = !block || alignment == 0 || (uintptr_t)block % alignment == 0;
	int is_enough = !block || call_usable_size(block) >= (is_right ? other : 0);

	printf("%s(%zu, %zu): %s%s%s%s, errno %d\n", call, one, other, block ? "a block" : "null",
		is_aligned ? "" : ", not aligned to 16", is_more_aligned ? "" : ", not aligned as it should be",
		is_enough ? "" : ", too small", error);
	call_free(block);
}

static size_t power_of_two(size_t alignment)
{
	size_t power = 1;

	while (power < alignment && power << 1)
		power <<= 1;
	return power;
}

int main(void)
{
	static char output[1 << 16];

	setvbuf(stdout, output, _IOFBF, sizeof(output));
	printf("malloc_usable_size(null): %zu\n", call_usable_size(NULL));
	for (size_t i = 0; i < COUNT(SIZES); i++) {
		size_t size = SIZES[i];
		void *block;

		errno = 0;
		say("malloc", 0, size, 1, call_malloc(size), 0);
		errno = 0;
		say("valloc", 0, size, 1, call_valloc(size), 4096);
		errno = 0;
		say("pvalloc", 0, size, 1, call_pvalloc(size), 4096);
		errno = 0;
		say("realloc of null", 0, size, 1, call_realloc(NULL, size), 0);
		for (size_t from = 1; from < 300000; from = from * 7 + 5) {
			block = call_malloc(from);
			errno = 0;
			void *moved = call_realloc(block, size);
			say("realloc", from, size, 1, moved, 0);
			if (!moved && size != 0)
				call_free(block);
		}
		for (size_t j = 0; j < COUNT(SIZES); j++) {
			size_t count = SIZES[j];

			if (count > 4097 && count < 200000 && size > 4097 && size < 200000)
				continue;
			errno = 0;
			say("calloc", count, size, 0, call_calloc(count, size), 0);
			errno = 0;
			say("reallocarray of null", count, size, 0, call_reallocarray(NULL, count, size), 0);
			block = call_malloc(100);
			errno = 0;
			void *moved = call_reallocarray(block, count, size);
			say("reallocarray", count, size, 0, moved, 0);
			if (!moved && count != 0 && size != 0)
				call_free(block);
		}
		for (size_t j = 0; j < COUNT(ALIGNMENTS); j++) {
			size_t alignment = ALIGNMENTS[j], power = power_of_two(alignment);
			char untouched;

			errno = 0;
			say("memalign", alignment, size, 1, call_memalign(alignment, size), power);
			/* From 2.38 on glibc's takes no other alignment than a power of two. */
			if (power == alignment || (__GLIBC__ == 2 && __GLIBC_MINOR__ < 38)) {
				errno = 0;
				say("aligned_alloc", alignment, size, 1, call_aligned_alloc(alignment, size), power);
			}
			block = &untouched;
			errno = 0;
			int result = call_posix_memalign(&block, alignment, size), error = errno;
			if (block == &untouched)
				block = NULL;
			errno = error;
			printf("%d, ", result);
			say("posix_memalign", alignment, size, 1, block, power);
		}
	}
	return 0;
}
