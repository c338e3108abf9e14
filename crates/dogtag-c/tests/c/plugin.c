/*
 * A library that `processes` loads and unloads: it allocates in its constructor, when it is called,
 * and in its destructor.
 */
#include <stdlib.h>
#include <string.h>

int plugin(void);

/* Volatile, so that the compiler leaves no allocation out. */
static char *volatile from_constructor;
static char *volatile from_function;
static char *volatile from_destructor;

__attribute__((constructor)) static void come(void)
{
	from_constructor = malloc(100);
	memset(from_constructor, 'c', 100);
}

/* Allocates two blocks, frees one, and keeps one. */
int plugin(void)
{
	char *gone = calloc(10, 10);
	char *kept = realloc(gone, 5000);

	if (!from_constructor || !kept || from_constructor[99] != 'c' || kept[99] != 0)
		return 0;
	kept[4999] = 'p';
	free(from_function);
	from_function = kept;
	return 42;
}

__attribute__((destructor)) static void leave(void)
{
	from_destructor = strdup("gone");
	free(from_function);
	free(from_constructor);
	free(from_destructor);
}
