/*
 * malloc and free in C: prints, for some patterns, nanoseconds for a malloc and a free.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define OPERATIONS 2000000
#define LIVE 1024

/* The compiler must not see through them. */
static void *(*volatile allocate)(size_t) = malloc;
static void (*volatile release)(void *) = free;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static void pairs(size_t size)
{
	double begin = now();

	for (int i = 0; i < OPERATIONS; i++) {
		char *volatile block = allocate(size);

		*block = 1;
		release(block);
	}
	printf("C pair, %zu B\t%f\n", size, (now() - begin) / OPERATIONS);
}

static void mixed(void)
{
	static char *live[LIVE];
	unsigned random = 1;
	double begin = now();

	for (int i = 0; i < OPERATIONS; i++) {
		char **block;

		random = random * 1664525 + 1013904223;
		block = &live[random >> 22];
		release(*block);
		*block = allocate(1 + (random >> 10) % 128);
		**block = 1;
	}
	printf("C, 1-128 B, 1 k live\t%f\n", (now() - begin) / OPERATIONS);
}

int main(void)
{
	pairs(16);
	pairs(64);
	pairs(1024);
	pairs(8192);
	mixed();
	return 0;
}
