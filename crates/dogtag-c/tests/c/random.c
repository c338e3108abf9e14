/*
 * Exactness: `random [OPERATIONS] [THREADS] [SEED]`. Threads allocate, resize, free, enter
 * services and hand each other blocks at random. Each counts for itself, and in the end the sums
 * are dogtag's figures, to the byte and the block, for every service.
 */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	SERVICES = 16,
	/* Blocks that a thread has at once. */
	SLOTS = 4096,
	/* Blocks that any thread may take. */
	EXCHANGE = 1024,
	MOST_THREADS = 64,
	/* Services that a thread is in, one within the other. */
	DEPTH = 5,
	/* The bytes that are written at either end of a block. */
	END = 8,
};

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

#define OPERATIONS 5000000

struct block {
	unsigned char *address;
	size_t size;
	unsigned char service, byte;
};

/* A thread that finds the lock taken does something else. */
struct exchange {
	atomic_flag is_taken;
	struct block block;
};

struct books {
	uint64_t allocated_bytes, allocated_blocks, freed_bytes, freed_blocks;
};

struct worker {
	pthread_t thread;
	uint64_t random, operations;
	dogtag_scope scopes[DEPTH];
	unsigned char entered[DEPTH];
	int depth;
	struct block blocks[SLOTS];
	struct books books[SERVICES];
};

static dogtag_service *services[SERVICES];
static struct exchange exchange[EXCHANGE];
static struct worker workers[MOST_THREADS];
static atomic_int working;

/* Marsaglia's xorshift. */
static uint64_t next(struct worker *self)
{
	self->random ^= self->random << 13;
	self->random ^= self->random >> 7;
	self->random ^= self->random << 17;
	return self->random;
}

static size_t below(struct worker *self, size_t bound)
{
	return (next(self) >> 32) % bound;
}

static size_t random_size(struct worker *self)
{
	size_t dice = below(self, 20000);

	if (dice == 0)
		return below(self, 4 * MIB);
	if (dice < 200)
		return below(self, 64 * KIB);
	if (dice < 1000)
		return below(self, 5 * KIB);
	return below(self, 513);
}

static size_t end_of(const struct block *block)
{
	return block->size < END ? block->size : END;
}

static void mark(struct block *block)
{
	size_t end = end_of(block);

	memset(block->address, block->byte, end);
	memset(block->address + block->size - end, block->byte, end);
}

static void check_mark(const struct block *block)
{
	size_t end = end_of(block);

	CHECK(is_filled(block->address, block->byte, end));
	CHECK(is_filled(block->address + block->size - end, block->byte, end));
}

/* Counts a new block, and marks it. */
static void allocated(struct worker *self, struct block *block, void *address, size_t requested)
{
	size_t size = dogtag_usable_size(address);
	int service = self->entered[self->depth - 1];

	CHECK(address != NULL);
	CHECK_USABLE(size, requested);
	*block = (struct block){ address, size, service, (unsigned char)next(self) };
	self->books[service].allocated_bytes += size;
	self->books[service].allocated_blocks++;
	mark(block);
}

static void freed(struct worker *self, struct block *block)
{
	self->books[block->service].freed_bytes += block->size;
	self->books[block->service].freed_blocks++;
	block->address = NULL;
}

static void give_back(struct worker *self, struct block *block)
{
	check_mark(block);
	dogtag_free(block->address);
	freed(self, block);
}

static void allocate(struct worker *self, struct block *block)
{
	size_t size = random_size(self), alignment, end;
	unsigned char *address;

	switch (below(self, 8)) {
	case 0:
		address = dogtag_calloc(size / 8 + 1, 8);
		size = (size / 8 + 1) * 8;
		/* All of it would take too long. */
		end = size < 512 ? size : 64;
		CHECK(is_filled(address, 0, end) && is_filled(address + size - end, 0, end));
		break;
	case 1:
		alignment = (size_t)1 << below(self, 14);
		address = dogtag_aligned_alloc(alignment, size);
		CHECK(((uintptr_t)address & (alignment - 1)) == 0);
		break;
	case 2:
		address = dogtag_realloc(NULL, size);
		break;
	default:
		address = dogtag_malloc(size);
	}
	allocated(self, block, address, size);
}

static void resize(struct worker *self, struct block *block)
{
	struct block old = *block;
	size_t size = random_size(self), kept;
	unsigned char *address;

	check_mark(block);
	address = dogtag_realloc(old.address, size);
	freed(self, block);
	if (size == 0) {
		CHECK(address == NULL);
		return;
	}
	kept = old.size < size ? old.size : size;
	CHECK(is_filled(address, old.byte, kept < END ? kept : END));
	if (size >= old.size)
		CHECK(is_filled(address + old.size - end_of(&old), old.byte, end_of(&old)));
	allocated(self, block, address, size);
}

static void trade(struct worker *self, struct block *block)
{
	struct exchange *place = &exchange[below(self, EXCHANGE)];
	struct block mine = *block;

	if (atomic_flag_test_and_set_explicit(&place->is_taken, memory_order_acquire))
		return;
	*block = place->block;
	place->block = mine;
	atomic_flag_clear_explicit(&place->is_taken, memory_order_release);
}

static void enter(struct worker *self, int service)
{
	self->scopes[self->depth] = dogtag_enter(services[service]);
	self->entered[self->depth++] = (unsigned char)service;
}

static void leave(struct worker *self)
{
	dogtag_leave(self->scopes[--self->depth]);
}

static void *work(void *argument)
{
	struct worker *self = argument;

	enter(self, 0);
	for (uint64_t i = 0; i < self->operations; i++) {
		struct block *block = &self->blocks[below(self, SLOTS)];
		size_t dice = below(self, 16);

		if (dice == 0) {
			trade(self, block);
		} else if (dice == 1) {
			if (self->depth == DEPTH || (self->depth > 1 && below(self, 2)))
				leave(self);
			else
				enter(self, (int)below(self, SERVICES));
		} else if (!block->address) {
			allocate(self, block);
		} else if (dice < 4) {
			resize(self, block);
		} else {
			give_back(self, block);
		}
	}
	while (self->depth > 0)
		leave(self);
	atomic_fetch_sub(&working, 1);
	return NULL;
}

static void balance(int threads)
{
	for (int i = 0; i < SERVICES; i++) {
		struct books sum = { 0 };
		dogtag_figures usage = dogtag_usage(services[i]);

		for (int j = 0; j < threads; j++) {
			const struct books *books = &workers[j].books[i];

			sum.allocated_bytes += books->allocated_bytes;
			sum.allocated_blocks += books->allocated_blocks;
			sum.freed_bytes += books->freed_bytes;
			sum.freed_blocks += books->freed_blocks;
		}
		CHECK_EQUAL(usage.allocated_bytes, sum.allocated_bytes);
		CHECK_EQUAL(usage.allocated_blocks, sum.allocated_blocks);
		CHECK_EQUAL(usage.freed_bytes, sum.freed_bytes);
		CHECK_EQUAL(usage.freed_blocks, sum.freed_blocks);
		CHECK_EQUAL(usage.denied, 0);
	}
}

static uint64_t live(void)
{
	uint64_t bytes = 0;

	for (int i = 0; i < SERVICES; i++) {
		dogtag_figures usage = dogtag_usage(services[i]);

		CHECK(usage.allocated_bytes >= usage.freed_bytes);
		CHECK(usage.allocated_blocks >= usage.freed_blocks);
		bytes += usage.allocated_bytes - usage.freed_bytes;
	}
	return bytes;
}

int main(int argc, char **argv)
{
	uint64_t operations = argc > 1 ? strtoull(argv[1], NULL, 0) : OPERATIONS;
	int threads = argc > 2 ? atoi(argv[2]) : 4;
	uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 20140605;
	struct timespec moment = { 0, 1000000 };
	static char note[64];

	CHECK(threads > 0 && threads <= MOST_THREADS);
	snprintf(note, sizeof(note), "the seed is %" PRIu64, seed);
	check_note = note;
	for (int i = 0; i < SERVICES; i++) {
		char name[16];

		snprintf(name, sizeof(name), "random %d", i);
		services[i] = dogtag_service_register(name);
		CHECK(services[i] != NULL);
	}
	for (int i = 0; i < EXCHANGE; i++)
		atomic_flag_clear(&exchange[i].is_taken);
	atomic_store(&working, threads);
	for (int i = 0; i < threads; i++) {
		/* Seeds that differ in a bit must not begin alike, nor may any be zero. */
		workers[i].random = (seed + (uint64_t)i + 1) * 0x9e3779b97f4a7c15 | 1;
		workers[i].operations = operations / (uint64_t)threads;
		CHECK_EQUAL(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	/* Live figures are never negative, read at any time by any thread. */
	while (atomic_load(&working) > 0) {
		live();
		nanosleep(&moment, NULL);
	}
	for (int i = 0; i < threads; i++)
		CHECK_EQUAL(pthread_join(workers[i].thread, NULL), 0);

	/* With the blocks that are left, and without. */
	balance(threads);
	CHECK(operations < 1000 || live() > 0);
	for (int i = 0; i < EXCHANGE; i++)
		if (exchange[i].block.address)
			give_back(&workers[0], &exchange[i].block);
	for (int i = 0; i < threads; i++)
		for (int j = 0; j < SLOTS; j++)
			if (workers[i].blocks[j].address)
				give_back(&workers[0], &workers[i].blocks[j]);
	balance(threads);
	CHECK_EQUAL(live(), 0);
	CHECK_EQUAL(dogtag_verify(), 0);
	for (int i = 0; i < SERVICES; i++)
		dogtag_service_release(services[i]);
	puts("ok");
	return 0;
}
