/*
 * Kinds of violations, in C and in C++: `kinds NAME SIZE` commits one to a block of that size, and says on
 * standard output how far it came: "c" after the crime, "n" after the next call of free, "e" at the end of
 * main. `kinds list` prints all names, each with a tab and what its report begins with.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <wchar.h>
#ifdef __cplusplus
#include <new>
#endif

#define COUNT(array) (sizeof(array) / sizeof(*(array)))
#define MIB ((size_t)1 << 20)

typedef unsigned char byte;

/* The compiler must not see what is done to whose memory. */
static byte *volatile block;
static volatile size_t size;
static volatile byte sink;
static byte *volatile source;
/* Larger than what libraries allocate before main, and allocated before all others. */
static byte *volatile first;

static void mark(const char *text)
{
	if (write(STDOUT_FILENO, text, strlen(text)) < 0)
		_exit(3);
}

static byte *allocate(size_t length)
{
	byte *fresh = (byte *)malloc(length);

	memset(fresh, 'b', length);
	return fresh;
}

static void after(void) { mark("c"); }

static void store(ptrdiff_t offset)
{
	block[offset] ^= 0x5a;
	after();
}

static void over_1(void) { store(size); }
static void over_16(void) { store(size + 16); }
static void over_31(void) { store(size + 31); }
static void over_63(void) { store(size + 63); }
static void over_zero(void) { block[size] = 0; after(); }
static void under_1(void) { store(-1); }
static void under_16(void) { store(-16); }
static void slack(void)
{
	store(size + 24);
}

static void copy_over_1(void) { memcpy(block, source, size + 1); after(); }
static void copy_over_32(void) { memcpy(block, source, size + 32); after(); }
static void copy_over_mib(void) { memcpy(block, source, size + MIB); after(); }
static void move_over_32(void) { memmove(block + 1, block, size + 31); after(); }
static void copy_under_8(void) { memcpy(block - 8, source, 8); after(); }
static void copy_under_32(void) { memmove(block - 32, source, 40); after(); }
static void set_over_1(void) { memset(block, 7, size + 1); after(); }
static void set_wide(void) { wmemset((wchar_t *)block, L'w', size / sizeof(wchar_t) + 1); after(); }
static void text_copy(void) { source[size] = 0; strcpy((char *)block, (char *)source); after(); }
static void text_ncopy(void) { strncpy((char *)block, (char *)source, size + 3); after(); }
static void text_append(void)
{
	block[size - 1] = 0;
	strcat((char *)block, "x");
	after();
}
static void text_print(void) { source[size] = 0; sprintf((char *)block, "%s", (char *)source); after(); }
static void text_nprint(void)
{
	source[size + 9] = 0;
	snprintf((char *)block, size + 8, "%s%d%f", (char *)source, 42, 1.5);
	after();
}
static void read_in(void)
{
	int ends[2];

	if (pipe(ends) || write(ends[1], source, 9) != 9)
		_exit(3);
	if (read(ends[0], block + size - 8, 9) != 9)
		_exit(3);
	after();
}
static void read_over_1(void) { memcpy(source, block, size + 1); after(); }
static void read_over_32(void) { memcpy(source, block, size + 32); after(); }
static void read_over_mib(void) { memcpy(source, block, size + MIB); after(); }
static void read_under(void) { memcpy(source, block - 8, 8); after(); }
static void write_out(void)
{
	int ends[2];

	if (pipe(ends) || write(ends[1], block + size - 8, 24) != 24)
		_exit(3);
	after();
}
static void load_over(void) { sink = block[size]; after(); }

static void freed_store(void) { free(block); store(size / 2); }
static void freed_store_first(void) { free(block); store(0); }
static void freed_load(void) { free(block); sink = block[size / 2]; after(); }
static void freed_copy_to(void) { free(block); memcpy(block, source, size); after(); }
static void freed_copy_from(void) { free(block); memcpy(source, block, size); after(); }
static void freed_late(void)
{
	free(block);
	for (int i = 0; i < 50; i++)
		free(allocate(size));
	store(size / 2);
}

static void twice(void) { free(block); free(block); after(); }
static void inside(void) { free(block + 4); after(); }
static void stack(void)
{
	byte local[64];

	byte *volatile pointer = local + 16;
	free(pointer);
	after();
}
static void wild(void) { free((void *)(uintptr_t)0x123456789ab0); after(); }
static void uninitialised(void)
{
	byte **place = (byte **)malloc(sizeof(byte *));

	free(*(byte *volatile *)place);
	after();
}
static void resize_freed(void) { free(block); block = (byte *)realloc(block, size + 8); after(); }
static void resize_inside(void) { block = (byte *)realloc(block + 4, size + 8); after(); }
static void ask_freed(void) { free(block); sink = (byte)malloc_usable_size(block); after(); }
static void ask_inside(void) { sink = (byte)malloc_usable_size(block + 4); after(); }
static void ask_wild(void) { sink = (byte)malloc_usable_size((void *)(uintptr_t)0x123456789ab0); after(); }
/* Not in every C library. */
static void free_sized(void *mine, size_t length)
{
	void (*found)(void *, size_t) = (void (*)(void *, size_t))dlsym(RTLD_DEFAULT, "free_sized");

	if (found)
		found(mine, length);
}

static void sized_freed(void) { free(block); free_sized(block, size); after(); }
static void sized_wrong(void) { free_sized(block, size + 1); after(); }

/* Of no bytes: the size says only how many of them there are. */
static void nothing_store(void) { block = (byte *)malloc(0); store(0); }
static void nothing_load(void) { block = (byte *)malloc(0); sink = *block; after(); }
static void cleared_store(void) { block = (byte *)calloc(0, size); store(0); }
static void aligned_load(void) { block = (byte *)memalign(64, 0); sink = *block; after(); }
static void resized_store(void) { block = (byte *)realloc(NULL, 0); store(1); }
static void nothing_freed_store(void) { block = (byte *)malloc(0); free(block); store(0); }
static void nothing_freed_load(void) { block = (byte *)malloc(0); free(block); sink = *block; after(); }
static void nothing_grown_load(void)
{
	byte *grown;

	block = (byte *)malloc(0);
	grown = (byte *)realloc(block, size);
	sink = *block;
	after();
	free(grown);
}
static void nothing_twice(void) { block = (byte *)malloc(0); free(block); free(block); after(); }
static void nothing_copy_to(void) { block = (byte *)malloc(0); memcpy(block, source, 1); after(); }
static void nothing_copy_from(void) { block = (byte *)malloc(0); memcpy(source, block, 1); after(); }

/* Far away from a block beside which there is nothing else: of a thread that has no other. */
static void *far_past(void *store_too)
{
	block = allocate(size);
	if (store_too)
		store(size - 1 + MIB);
	sink = block[size - 1 + MIB];
	after();
	return NULL;
}
static void *far_front(void *store_too)
{
	block = allocate(size);
	if (store_too)
		store(-(ptrdiff_t)MIB);
	sink = block[-(ptrdiff_t)MIB];
	after();
	return NULL;
}
static void *far_copy(void *unused)
{
	block = allocate(size);
	memcpy(block - MIB, source, 8);
	after();
	return unused;
}
static void in_a_thread(void *(*work)(void *), void *argument)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, work, argument) || pthread_join(thread, NULL))
		_exit(3);
}
static void far_store_past(void) { in_a_thread(far_past, source); }
static void far_load_past(void) { in_a_thread(far_past, NULL); }
static void far_store_front(void) { in_a_thread(far_front, source); }
static void far_load_front(void) { in_a_thread(far_front, NULL); }
static void far_first(void) { block = first; store(-(ptrdiff_t)MIB); }
static void far_copy_front(void) { in_a_thread(far_copy, NULL); }

#ifdef __cplusplus
static void delete_of_array(void) { byte *mine = new byte[size]; operator delete(mine); after(); }
static void array_of_new(void) { void *mine = operator new(size); operator delete[](mine); after(); }
static void delete_size(void) { void *mine = operator new(size); operator delete(mine, (size_t)(size + 1)); after(); }
static void delete_alignment(void)
{
	operator delete(operator new(size, std::align_val_t(64)), std::align_val_t(128));
	after();
}
static void delete_of_malloc(void) { operator delete(block); after(); }
static void array_store(void) { block = new byte[0]; store(0); }
static void array_load(void) { block = new byte[0]; sink = *block; after(); }
static void array_freed_load(void) { block = new byte[0]; delete[] block; sink = *block; after(); }
static void array_delete(void) { block = new byte[0]; operator delete(block); after(); }
static void free_of_new(void) { free(operator new(size)); after(); }
#endif

static const struct kind {
	const char *name, *word;
	void (*commit)(void);
} KINDS[] = {
	{ "store 1 past the end", "overrun", over_1 },
	{ "store a zero past the end", "overrun", over_zero },
	{ "store 17 past the end", "overrun", over_16 },
	{ "store 25 past the end", "overrun", slack },
	{ "store 32 past the end", "overrun", over_31 },
	{ "store 64 past the end", "overrun", over_63 },
	{ "store 1 in front", "underrun", under_1 },
	{ "store 16 in front", "underrun", under_16 },
	{ "memcpy 1 over the end", "overrun", copy_over_1 },
	{ "memcpy 32 over the end", "overrun", copy_over_32 },
	{ "memcpy 1 MiB over the end", "overrun", copy_over_mib },
	{ "memmove 32 over the end", "overrun", move_over_32 },
	{ "memcpy 8 in front", "underrun", copy_under_8 },
	{ "memmove from 32 in front", "underrun", copy_under_32 },
	{ "memset 1 over the end", "overrun", set_over_1 },
	{ "wmemset over the end", "overrun", set_wide },
	{ "strcpy over the end", "overrun", text_copy },
	{ "strncpy over the end", "overrun", text_ncopy },
	{ "strcat over the end", "overrun", text_append },
	{ "sprintf over the end", "overrun", text_print },
	{ "snprintf over the end", "overrun", text_nprint },
	{ "read over the end", "overrun", read_in },
	{ "memcpy from 1 over the end", "overread", read_over_1 },
	{ "memcpy from 32 over the end", "overread", read_over_32 },
	{ "memcpy from 1 MiB over the end", "overread", read_over_mib },
	{ "memcpy from in front", "overread", read_under },
	{ "write from over the end", "overread", write_out },
	{ "load past the end", "overread", load_over },
	{ "store to freed", "write after free", freed_store },
	{ "store to freed, first byte", "write after free", freed_store_first },
	{ "store to freed, 50 frees later", "write after free", freed_late },
	{ "load from freed", "read after free", freed_load },
	{ "memcpy to freed", "write after free", freed_copy_to },
	{ "memcpy from freed", "read after free", freed_copy_from },
	{ "free twice", "double free", twice },
	{ "free inside", "invalid free", inside },
	{ "free the stack", "invalid free", stack },
	{ "free a wild pointer", "invalid free", wild },
	{ "free an uninitialised pointer", "invalid free", uninitialised },
	{ "realloc freed", "double free", resize_freed },
	{ "realloc inside", "invalid free", resize_inside },
	{ "malloc_usable_size freed", "bad malloc_usable_size", ask_freed },
	{ "malloc_usable_size inside", "bad malloc_usable_size", ask_inside },
	{ "malloc_usable_size wild", "bad malloc_usable_size", ask_wild },
	{ "free_sized freed", "double free", sized_freed },
	{ "free_sized wrong", "layout mismatch", sized_wrong },
	{ "store to 0 bytes", "overrun", nothing_store },
	{ "load from 0 bytes", "overread", nothing_load },
	{ "store to 0 bytes of calloc", "overrun", cleared_store },
	{ "load from 0 bytes, aligned", "overread", aligned_load },
	{ "store to 0 bytes of realloc", "overrun", resized_store },
	{ "store to 0 bytes freed", "write after free", nothing_freed_store },
	{ "load from 0 bytes freed", "read after free", nothing_freed_load },
	{ "load from 0 bytes once grown", "read after free", nothing_grown_load },
	{ "free 0 bytes twice", "double free", nothing_twice },
	{ "memcpy to 0 bytes", "overrun", nothing_copy_to },
	{ "memcpy from 0 bytes", "overread", nothing_copy_from },
	{ "store 1 MiB past the end", "wild write", far_store_past },
	{ "load 1 MiB past the end", "wild read", far_load_past },
	{ "store 1 MiB in front", "wild write", far_store_front },
	{ "load 1 MiB in front", "wild read", far_load_front },
	{ "memcpy 1 MiB in front", "wild write", far_copy_front },
	{ "store 1 MiB in front of the first", "wild write", far_first },
#ifdef __cplusplus
	{ "delete of new[]", "alloc-dealloc mismatch", delete_of_array },
	{ "delete[] of new", "alloc-dealloc mismatch", array_of_new },
	{ "delete with another size", "layout mismatch", delete_size },
	{ "delete with another alignment", "layout mismatch", delete_alignment },
	{ "delete of malloc", "alloc-dealloc mismatch", delete_of_malloc },
	{ "free of new", "alloc-dealloc mismatch", free_of_new },
	{ "store to new[0]", "overrun", array_store },
	{ "load from new[0]", "overread", array_load },
	{ "load from new[0], deleted", "read after free", array_freed_load },
	{ "delete of new[0]", "alloc-dealloc mismatch", array_delete },
#endif
};

int main(int argc, char **argv)
{
	const struct rlimit none = { 0, 0 };
	byte *others[64], *victim;

	setrlimit(RLIMIT_CORE, &none);
	if (argc == 2 && strcmp(argv[1], "list") == 0) {
		for (size_t i = 0; i < COUNT(KINDS); i++)
			printf("%s\t%s\n", KINDS[i].name, KINDS[i].word);
		return 0;
	}
	if (argc != 3)
		return 2;
	size = strtoul(argv[2], NULL, 0);
	first = allocate(size + 1000);
	source = (byte *)malloc(size + MIB + 64);
	memset(source, 's', size + MIB + 64);
	/* Neighbours, live and freed, as any program has. */
	for (size_t i = 0; i < COUNT(others); i++)
		others[i] = allocate(size);
	victim = block = allocate(size);
	for (size_t i = 0; i < COUNT(others); i += 2)
		free(others[i]);
	for (size_t i = 0; i < COUNT(KINDS); i++) {
		if (strcmp(KINDS[i].name, argv[1]))
			continue;
		errno = 77;
		KINDS[i].commit();
		if (getenv("KINDS_ERRNO"))
			return errno;
		/* The next call: of what is still the program's, that block, or else another one. */
		if (block == victim && strstr(argv[1], "free") == NULL && strstr(argv[1], "malloc_u") == NULL)
			free(block);
		else
			free(others[1]);
		mark("n");
		mark("e");
		return 0;
	}
	return 2;
}
