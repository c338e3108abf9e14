/*
 * `modules FOLDER`: opens modules as hosts of plug-ins do. A module shares the program's heap, however
 * it is opened, and is looked for by the paths of the module that opens it.
 */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

static void *opened(const char *path, int flags)
{
	void *module = dlopen(path, flags);

	if (!module)
		fprintf(stderr, "%s\n", dlerror());
	CHECK(module != NULL);
	return module;
}

static void *function(void *module, const char *name)
{
	void *function = dlsym(module, name);

	CHECK(function != NULL);
	return function;
}

static void exchange(void *module)
{
	char *(*give)(size_t);
	void (*take)(char *);
	void *(*nested)(const char *, int);
	void *inner;

	*(void **)&give = function(module, "module_give");
	*(void **)&take = function(module, "module_take");
	for (size_t size = 1; size < 1000000; size = size * 3 + 1) {
		char *block = give(size);

		CHECK(is_filled(block, 'm', size));
		CHECK(malloc_usable_size(block) >= size);
		block = realloc(block, size + 1);
		CHECK(is_filled(block, 'm', size));
		free(block);
		block = malloc(size);
		memset(block, 'p', size);
		take(block);
	}
	/* By a name without a folder: the module knows where, by its own path, and nobody else. */
	CHECK(dlopen("libinner.so", RTLD_NOW) == NULL);
	CHECK(dlerror() != NULL);
	*(void **)&nested = function(module, "module_open");
	inner = nested("libinner.so", RTLD_NOW | RTLD_DEEPBIND);
	if (!inner)
		fprintf(stderr, "%s\n", dlerror());
	CHECK(inner != NULL);
	*(void **)&give = function(inner, "module_give");
	free(give(1000));
	CHECK_EQUAL(dlclose(inner), 0);
	CHECK(nested("libnowhere.so", RTLD_NOW) == NULL);
	CHECK(dlerror() != NULL);
}

int main(int argc, char **argv)
{
	static const int flags[] = { RTLD_LOCAL, RTLD_GLOBAL, RTLD_DEEPBIND, RTLD_DEEPBIND | RTLD_GLOBAL };
	char path[4096];
	void *module;

	CHECK_EQUAL(argc, 2);
	CHECK(snprintf(path, sizeof(path), "%s/module.so", argv[1]) < (int)sizeof(path));
	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		module = opened(path, RTLD_NOW | flags[i]);
		exchange(module);
		CHECK_EQUAL(dlclose(module), 0);
		module = opened(path, RTLD_LAZY | flags[i]);
		exchange(module);
		CHECK_EQUAL(dlclose(module), 0);
	}
	module = dlmopen(LM_ID_BASE, path, RTLD_NOW | RTLD_DEEPBIND);
	CHECK(module != NULL);
	exchange(module);
	/* The program itself. */
	CHECK(dlopen(NULL, RTLD_NOW) == opened(NULL, RTLD_LAZY));
	CHECK(dlopen("/no/such/module.so", RTLD_NOW) == NULL);
	CHECK(dlerror() != NULL);
	puts("ok");
	return 0;
}
