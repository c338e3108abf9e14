/*
 * What the drivers of APR's and nginx's pools share. A driver reads scripts of operations, one
 * on a line, each script up to a line "end"; it carries them out on its pools, and prints what a
 * user would notice. `pool_peers.rs` writes the scripts, and says what each operation does.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { POOLS = 1000, BLOCKS = 10000, CLEANUPS = 10000, WORDS = 10 };

/* Bytes that the pools have of the system: what is asked for while they are at work, and not
 * given back. Their calls come here since a program's functions go before its libraries'. */
static long long held;
static int pools_at_work;

#define PEER(call) \
	do { \
		pools_at_work++; \
		call; \
		pools_at_work--; \
	} while (0)

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *block);

static void *counted(void *block)
{
	if (pools_at_work && block)
		held += (long long)malloc_usable_size(block);
	return block;
}

void *malloc(size_t size)
{
	return counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
	return counted(__libc_calloc(count, size));
}

int posix_memalign(void **place, size_t alignment, size_t size)
{
	*place = counted(__libc_memalign(alignment, size));
	return *place ? 0 : 12;
}

void free(void *block)
{
	if (pools_at_work && block)
		held -= (long long)malloc_usable_size(block);
	__libc_free(block);
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset)
{
	if (pools_at_work)
		held += (long long)size;
	return (void *)syscall(SYS_mmap, address, size, protection, flags, file, offset);
}

int munmap(void *address, size_t size)
{
	if (pools_at_work)
		held -= (long long)size;
	return (int)syscall(SYS_munmap, address, size);
}

/* What was allocated, filled with a pattern. */
static struct {
	unsigned char *memory;
	size_t size;
	int pool;
} blocks[BLOCKS];

static unsigned char pattern(int id)
{
	return (unsigned char)(id * 7 + 1);
}

static void add_block(int id, int pool, void *memory, size_t size)
{
	blocks[id].memory = memory;
	blocks[id].size = size;
	blocks[id].pool = pool;
	if (size > 0)
		memset(memory, pattern(id), size);
}

static int is_filled(const unsigned char *memory, unsigned char byte, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != byte)
			return 0;
	return 1;
}

/* Nobody else has written there. */
static void check_block(int id)
{
	if (blocks[id].memory && !is_filled(blocks[id].memory, pattern(id), blocks[id].size))
		printf("block %d was overwritten\n", id);
}

static void check_alignment(const void *memory, size_t alignment)
{
	if ((uintptr_t)memory % alignment != 0)
		printf("not aligned\n");
}

static char *words[WORDS];
static int word_count;

static long number(int word)
{
	return word < word_count ? strtol(words[word], NULL, 10) : 0;
}

/* From the start of one block to that of another. */
static void print_distance(int id, int other)
{
	printf("distance: %td\n", blocks[other].memory - blocks[id].memory);
}

static void step(void);
static void end(void);

int main(void)
{
	static char output[1 << 22], line[1000];

	setvbuf(stdout, output, _IOFBF, sizeof(output));
	while (fgets(line, sizeof(line), stdin)) {
		word_count = 0;
		for (char *word = strtok(line, " \n"); word && word_count < WORDS; word = strtok(NULL, " \n"))
			words[word_count++] = word;
		if (word_count == 0)
			continue;
		if (strcmp(words[0], "end") == 0) {
			end();
			printf("end\n");
			memset(blocks, 0, sizeof(blocks));
		} else {
			step();
		}
	}
	fflush(stdout);
	return 0;
}
