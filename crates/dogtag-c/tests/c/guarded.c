/*
 * Blocks of the sampled guard, every one that there is a place for: sizes and contents as functions of
 * the C library have them, and a violation, which the argument names.
 */
#include "check.h"

#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SIZE 100
#define PAGE 4096

static void *volatile last;

/* At the end of its page, or with a pointer to its beginning. */
static char *__attribute__((noinline)) make(int at_end)
{
	for (int i = 0; i < 100; i++) {
		char *block = malloc(SIZE);
		uintptr_t offset = (uintptr_t)block % PAGE;

		last = block;
		if (malloc_usable_size(block) == SIZE && (at_end ? offset == PAGE - 112 : offset == 0))
			return block;
	}
	CHECK(!"no block is guarded");
	return NULL;
}

static void __attribute__((noinline)) commit(const char *what, volatile char *block)
{
	if (!strcmp(what, "write after free")) {
		block[5] = 1;
	} else if (!strcmp(what, "read after free")) {
		last = (void *)(uintptr_t)block[6];
	} else if (!strcmp(what, "overrun by 1")) {
		block[SIZE] = 1;
	} else if (!strcmp(what, "overrun by 32")) {
		for (int i = 0; i < 32; i++)
			block[SIZE + i] = 1;
	} else if (!strcmp(what, "read past")) {
		last = (void *)(uintptr_t)block[SIZE + 12];
	} else if (!strcmp(what, "underrun")) {
		block[-1] = 1;
	} else if (!strcmp(what, "double free")) {
		last = (void *)block;
		free(last);
	} else if (!strcmp(what, "inner free")) {
		last = (void *)(block + 16);
		free(last);
	} else if (!strcmp(what, "size after free")) {
		last = (void *)malloc_usable_size((void *)block);
	}
}

static void use(void)
{
	for (int round = 0; round < 2000; round++) {
		size_t size = 1 + (size_t)round * 7 % 5000;
		unsigned char *block = round % 3 ? malloc(size) : calloc(1, size), *moved;

		CHECK(malloc_usable_size(block) >= size && (uintptr_t)block % 16 == 0);
		for (size_t i = 0; round % 3 == 0 && i < size; i++)
			CHECK(!block[i]);
		memset(block, round, malloc_usable_size(block));
		moved = realloc(block, 5001 - size);
		for (size_t i = 0; i < size && i < 5001 - size; i++)
			CHECK(moved[i] == (unsigned char)round);
		free(moved);
		block = aligned_alloc(256, 256 * (size_t)(1 + round % 20));
		CHECK((uintptr_t)block % 256 == 0);
		free(block);
	}
}

int main(int count, char **arguments)
{
	const char *what = count > 1 ? arguments[1] : "";
	char *block;

	use();
	block = make(strcmp(what, "underrun"));
	if (strstr(what, "after free") || !strcmp(what, "double free"))
		free(block);
	commit(what, block);
	free(block);
	puts("ok");
	return 0;
}
