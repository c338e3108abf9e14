/*
 * `fork_handlers MODULE`: forks while libraries have registered handlers that allocate, in their
 * constructors, which run before the allocator's own. Linked with some of `fork_library`, and
 * opens another one; each says by its function whether its handlers were called as they should be.
 */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/* Seconds after which a child that does next to nothing hangs. */
enum { CHILD_TIME = 300 };

int fork_library_1(int forks, int in_child);
int fork_library_2(int forks, int in_child);

static int (*module)(int forks, int in_child);
static int forks, module_forks;

static void use_memory(void)
{
	/* The compiler must not see that the block is unused. */
	char *volatile block = malloc(50);

	free(block);
	block = malloc(50000);
	free(block);
}

static void fork_once(void)
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	forks++;
	if (module)
		module_forks++;
	if (child == 0) {
		alarm(CHILD_TIME);
		use_memory();
		CHECK(fork_library_1(forks, 1));
		CHECK(fork_library_2(forks, 1));
		if (module)
			CHECK(module(module_forks, 1));
		_exit(0);
	}
	CHECK_EQUAL(waitpid(child, &status, 0), child);
	CHECK_EQUAL(status, 0);
	CHECK(fork_library_1(forks, 0));
	CHECK(fork_library_2(forks, 0));
	if (module)
		CHECK(module(module_forks, 0));
}

enum { NOISY = 2 };

static atomic_int is_quiet;

static void *make_noise(void *number)
{
	void *blocks[32] = { 0 };

	for (unsigned i = (unsigned)(uintptr_t)number; !atomic_load(&is_quiet); i = i * 1664525 + 1013904223) {
		unsigned place = i >> 27;

		free(blocks[place]);
		blocks[place] = malloc(i % 64 ? i >> 22 : i >> 16);
	}
	for (unsigned place = 0; place < 32; place++)
		free(blocks[place]);
	return NULL;
}

static void fork_amid_noise(void)
{
	pthread_t threads[NOISY];

	atomic_store(&is_quiet, 0);
	for (uintptr_t i = 0; i < NOISY; i++)
		CHECK_EQUAL(pthread_create(&threads[i], NULL, make_noise, (void *)i), 0);
	for (int i = 0; i < 5; i++)
		fork_once();
	atomic_store(&is_quiet, 1);
	for (int i = 0; i < NOISY; i++)
		CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
}

/* The program's own constructor is the last one. */
__attribute__((constructor)) static void begin(void)
{
	CHECK_EQUAL(pthread_atfork(use_memory, use_memory, use_memory), 0);
}

int main(int argc, char **argv)
{
	void *library;

	/* Before anything was allocated. */
	fork_once();
	fork_amid_noise();
	CHECK_EQUAL(argc, 2);
	library = dlopen(argv[1], RTLD_NOW);
	if (!library)
		fprintf(stderr, "%s\n", dlerror());
	CHECK(library != NULL);
	*(void **)&module = dlsym(library, "fork_library_3");
	CHECK(module != NULL);
	fork_once();
	fork_amid_noise();
	module = NULL;
	/* Its handlers go with it. */
	CHECK_EQUAL(dlclose(library), 0);
	fork_amid_noise();
	puts("ok");
	return 0;
}
