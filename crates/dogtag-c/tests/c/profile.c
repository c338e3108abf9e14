/*
 * Heap profiles with each allocation sampled: results and errno of the functions, and blocks of all
 * kinds that come and go. The arguments are the paths of two profiles: of what is live in the middle,
 * and at the end. `blocks` is printed with the bytes that are live in the middle.
 */
#include "check.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

void *_Znwm(size_t size);
void *_Znam(size_t size);
void *_ZnwmSt11align_val_t(size_t size, size_t alignment);
void _ZdlPv(void *block);
void _ZdaPvm(void *block, size_t size);
void _ZdlPvSt11align_val_t(void *block, size_t alignment);

#define KIB ((size_t)1 << 10)
#define ROUNDS 50

#define CHECK_FAILS(call, why) \
	do { \
		errno = 0; \
		CHECK(!(call)); \
		CHECK_EQUAL(errno, why); \
	} while (0)

static const size_t SIZES[] = {
	0, 1, 10, 14, 100, 1000, 4 * KIB - 10, 4 * KIB - 1, 4 * KIB, 4 * KIB + 1, 14 * KIB, 16 * KIB, 100 * KIB, 2048 * KIB,
};
#define COUNT (sizeof(SIZES) / sizeof(*SIZES))

enum { WAYS = 9 };

static void *__attribute__((noinline)) made(int way, size_t size)
{
	void *block = NULL;

	switch (way) {
	case 0: return malloc(size);
	case 1: return calloc(1, size);
	case 2: return realloc(malloc(1), size + 1);
	case 3: return memalign(64, size);
	case 4: CHECK_EQUAL(posix_memalign(&block, 8 * KIB, size), 0); return block;
	case 5: return aligned_alloc(256, size);
	case 6: return _Znwm(size);
	case 7: return _Znam(size);
	default: return _ZnwmSt11align_val_t(size, 128);
	}
}

static void unmade(int way, void *block, size_t size)
{
	switch (way) {
	case 6: _ZdlPv(block); break;
	case 7: _ZdaPvm(block, size); break;
	case 8: _ZdlPvSt11align_val_t(block, 128); break;
	default: free(block);
	}
}

/* A block that is resized up and down, across the size from which its owner is noted beside the
 * heap. */
static void *resized(void)
{
	static const size_t STEPS[] = { 10, 3000, 5000, 100, 4096, 4000, 200 * KIB, 70 * KIB, 20, 6000 };
	unsigned char *block = malloc(1);

	for (size_t i = 0; i < sizeof(STEPS) / sizeof(*STEPS); i++) {
		block = realloc(block, STEPS[i]);
		CHECK(block != NULL);
		memset(block, (int)i, STEPS[i]);
	}
	return block;
}

struct batch {
	dogtag_service *service;
	void *blocks[WAYS][COUNT];
	void *resized;
};

static void make(struct batch *batch)
{
	dogtag_scope scope = dogtag_enter(batch->service);

	for (int way = 0; way < WAYS; way++)
		for (size_t i = 0; i < COUNT; i++) {
			unsigned char *block = made(way, SIZES[i]);
			CHECK(block != NULL);
			if (way == 1)
				CHECK(is_filled(block, 0, SIZES[i]));
			memset(block, way, malloc_usable_size(block));
			batch->blocks[way][i] = block;
		}
	batch->resized = resized();
	dogtag_leave(scope);
}

static void unmake(struct batch *batch)
{
	for (int way = 0; way < WAYS; way++)
		for (size_t i = 0; i < COUNT; i++) {
			CHECK(is_filled(batch->blocks[way][i], way, malloc_usable_size(batch->blocks[way][i])));
			unmade(way, batch->blocks[way][i], SIZES[i]);
		}
	free(batch->resized);
}

static size_t size_of(const struct batch *batch)
{
	size_t bytes = malloc_usable_size(batch->resized);

	for (int way = 0; way < WAYS; way++)
		for (size_t i = 0; i < COUNT; i++)
			bytes += malloc_usable_size(batch->blocks[way][i]);
	return bytes;
}

static void *unmake_elsewhere(void *batch)
{
	unmake(batch);
	return NULL;
}

int main(int argc, char **argv)
{
	struct batch batch, kept;
	dogtag_service *other = dogtag_service_register("other");
	dogtag_scope scope;
	void *last;

	if (argc == 2) {
		CHECK_EQUAL(chdir("/"), 0);
		if (!strcmp(argv[1], "fork")) {
			if (fork() == 0)
				exit(0);
			CHECK(wait(NULL) > 0);
		}
		puts("ok");
		return 0;
	}
	CHECK_EQUAL(argc, 3);
	CHECK_FAILS(dogtag_profile_start(0), EINVAL);
	CHECK_FAILS(dogtag_profile_write(NULL), EINVAL);
	dogtag_profile_stop();
	CHECK(dogtag_profile_start(1));
	CHECK_FAILS(dogtag_profile_start(1), EALREADY);
	CHECK_FAILS(dogtag_profile_write("/nowhere/heap.pb.gz"), ENOENT);
	CHECK_FAILS(dogtag_profile_write("/"), EISDIR);

	batch.service = kept.service = dogtag_service_register("sampled");
	for (int round = 0; round < ROUNDS; round++) {
		pthread_t thread;

		make(&batch);
		CHECK_LIVE(batch.service, size_of(&batch), WAYS * COUNT + 1);
		if (round % 2) {
			unmake(&batch);
		} else {
			CHECK_EQUAL(pthread_create(&thread, NULL, unmake_elsewhere, &batch), 0);
			CHECK_EQUAL(pthread_join(thread, NULL), 0);
		}
		CHECK_LIVE(batch.service, 0, 0);
	}

	/* Handed over: sampled of one service, and resized by another. */
	scope = dogtag_enter(other);
	last = malloc(5000);
	dogtag_leave(scope);
	scope = dogtag_enter(kept.service);
	last = realloc(last, 300);
	dogtag_leave(scope);
	CHECK_LIVE(other, 0, 0);

	make(&kept);
	CHECK_LIVE(kept.service, size_of(&kept) + malloc_usable_size(last), WAYS * COUNT + 2);
	CHECK(dogtag_profile_write(argv[1]));
	printf("%zu %zu\n", size_of(&kept) + malloc_usable_size(last), malloc_usable_size(last));
	unmake(&kept);
	CHECK_LIVE(kept.service, malloc_usable_size(last), 1);
	CHECK(dogtag_profile_write(argv[2]));

	/* Sampled blocks are known when the profiler has been stopped, and blocks without a sample when
	 * it runs again. */
	make(&batch);
	dogtag_profile_stop();
	dogtag_profile_stop();
	make(&kept);
	CHECK(dogtag_profile_start(1));
	unmake(&batch);
	unmake(&kept);
	free(last);
	CHECK_LIVE(kept.service, 0, 0);
	dogtag_service_release(other);
	dogtag_service_release(kept.service);
	puts("ok");
	return 0;
}
