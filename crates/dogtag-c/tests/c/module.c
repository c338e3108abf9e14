/*
 * A module for `modules`: allocates blocks that the program frees, frees the program's, and opens
 * other modules by its own path.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

char *module_give(size_t size);
void module_take(char *block);
void *module_open(const char *name, int flags);

char *module_give(size_t size)
{
	char *block = malloc(size);

	memset(block, 'm', size);
	return block;
}

void module_take(char *block)
{
	free(block);
}

void *module_open(const char *name, int flags)
{
	/* Not the last call: its place is what the loader looks at. */
	void *volatile module = dlopen(name, flags);

	return module;
}
