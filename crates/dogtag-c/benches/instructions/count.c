/*
 * Does an operation so many times, for those who count its instructions:
 *
 *     count OPERATION NUMBER
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The compiler must not see through them. */
static void *(*volatile allocate)(size_t) = malloc;
static void *(*volatile allocate_zeros)(size_t, size_t) = calloc;
static void *(*volatile enlarge)(void *, size_t) = realloc;
static void (*volatile release)(void *) = free;

static void pairs(size_t size, long number)
{
	for (long i = 0; i < number; i++)
		release(allocate(size));
}

static void zeros(size_t size, long number)
{
	for (long i = 0; i < number; i++)
		release(allocate_zeros(1, size));
}

static void enlarged(size_t size, long number)
{
	for (long i = 0; i < number; i++)
		release(enlarge(allocate(size), 2 * size));
}

int main(int count, char **arguments)
{
	long number = count == 3 ? atol(arguments[2]) : 0;

	if (number == 0)
		return 2;
	if (strcmp(arguments[1], "pair-64") == 0)
		pairs(64, number);
	else if (strcmp(arguments[1], "pair-4096") == 0)
		pairs(4096, number);
	else if (strcmp(arguments[1], "zeroed-64") == 0)
		zeros(64, number);
	else if (strcmp(arguments[1], "realloc-64-128") == 0)
		enlarged(64, number);
	else
		return 2;
	return 0;
}
