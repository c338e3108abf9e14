/*
 * A library whose constructor registers handlers of forks, which allocate small and large blocks;
 * one library for each value of NUMBER. It does nothing else that would initialise the allocator.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define JOINED(a, b) a##b
#define NAME(number) JOINED(fork_library_, number)

static int before, in_parent, in_child;
/* A block that one handler leaves to the next. */
static char *carried;

static void use(size_t size)
{
	char *volatile block = malloc(size);

	block[0] = block[size - 1] = 1;
	block = realloc(block, 2 * size);
	free(block);
	block = calloc(1, size);
	free(block);
}

static void use_all(void)
{
	use(16);
	use(3000);
	use(100000);
	use(300000);
}

static void at_fork(void)
{
	before++;
	use_all();
	carried = malloc(200);
	memset(carried, 'f', 200);
}

static void take_up(void)
{
	use_all();
	if (carried[199] != 'f')
		abort();
	free(carried);
	carried = NULL;
}

static void as_parent(void)
{
	in_parent++;
	take_up();
}

static void as_child(void)
{
	in_child++;
	take_up();
}

__attribute__((constructor)) static void begin(void)
{
	pthread_atfork(at_fork, as_parent, as_child);
}

/* Says whether the handlers were called for so many forks, here or in the child. */
int NAME(NUMBER)(int forks, int is_child)
{
	return before == forks && in_parent == forks - is_child && in_child == is_child && carried == NULL;
}
