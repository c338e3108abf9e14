/*
 * What the test programs have in common: checks that say where and what failed.
 */
#ifndef CHECK_H
#define CHECK_H

#include "dogtag.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* Told with each failure, if there is something to tell: a seed, say. */
static const char *check_note = "";

/* Not exit: a check may fail in a forked child, in a destructor, or under a lock. */
static inline void check_stop(void)
{
	if (*check_note)
		fprintf(stderr, "  %s\n", check_note);
	_exit(1);
}

static inline void check_true(const char *file, int line, const char *text, int holds)
{
	if (holds)
		return;
	fprintf(stderr, "%s:%d: %s\n", file, line, text);
	check_stop();
}

static inline void check_equal(const char *file, int line, const char *text, uintmax_t a, uintmax_t b)
{
	if (a == b)
		return;
	fprintf(stderr, "%s:%d: %s\n  %" PRIuMAX " (0x%" PRIxMAX ") is not %" PRIuMAX " (0x%" PRIxMAX ")\n", file,
		line, text, a, a, b, b);
	check_stop();
}

#define CHECK(condition) check_true(__FILE__, __LINE__, #condition, (condition) != 0)

/* Of integers and pointers. */
#define CHECK_EQUAL(a, b) check_equal(__FILE__, __LINE__, #a " == " #b, (uintmax_t)(a), (uintmax_t)(b))

/* What a block may hold, and that it is what was asked for, or more. */
#ifdef CHECKED
#define CHECK_USABLE(usable, requested) CHECK_EQUAL(usable, requested)
#else
#define CHECK_USABLE(usable, requested) CHECK((usable) >= (requested))
#endif

/* What a service has. */
#define CHECK_LIVE(service, bytes, blocks) \
	do { \
		dogtag_figures usage = dogtag_usage(service); \
		CHECK_EQUAL(usage.allocated_bytes - usage.freed_bytes, bytes); \
		CHECK_EQUAL(usage.allocated_blocks - usage.freed_blocks, blocks); \
	} while (0)

static inline int is_aligned(const void *block, size_t alignment)
{
	return ((uintptr_t)block & (alignment - 1)) == 0;
}

static inline int is_filled(const void *block, int byte, size_t size)
{
	const unsigned char *bytes = block;

	for (size_t i = 0; i < size; i++)
		if (bytes[i] != (unsigned char)byte)
			return 0;
	return 1;
}

#endif /* CHECK_H */
