/*
 * What memory-check finds: `crimes NAME` commits a crime, and should not survive it;
 * `crimes handler NAME` has a handler told of it instead, goes on, and looks at the
 * figures; `crimes list` has all names, each with a tab and the word that its report
 * must contain (- for none).
 */
#include "check.h"
#include "dogtag.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#ifdef INTERPOSED
void free_sized(void *block, size_t size);
#endif

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* The compiler must not see what is done to whose memory. */
static void *(*volatile allocate)(size_t) = dogtag_malloc;
static void *(*volatile resize)(void *, size_t) = dogtag_realloc;
static void (*volatile give_back)(void *) = dogtag_free;
static unsigned char *volatile victim;

static dogtag_service *culprit;
static dogtag_scope scope;

/* Certainly a change. */
static void spoil(ptrdiff_t offset)
{
	victim[offset] ^= 1;
}

static void overrun(void)
{
	victim = allocate(13);
	spoil(13);
	give_back(victim);
}

static void overrun_calloc(void)
{
	victim = dogtag_calloc(3, 5);
	spoil(15);
	give_back(victim);
}

static void overrun_strdup(void)
{
	victim = (unsigned char *)dogtag_strdup("twelve bytes");
	spoil(13);
	give_back(victim);
}

static void overrun_realloc(void)
{
	victim = resize(allocate(13), 29);
	spoil(29);
	give_back(victim);
}

static void overrun_aligned(void)
{
	victim = dogtag_aligned_alloc(64, 50);
	spoil(50);
	give_back(victim);
}

static void underrun(void)
{
	victim = allocate(13);
	spoil(-1);
	give_back(victim);
}

static void double_free(void)
{
	victim = allocate(13);
	give_back(victim);
	give_back(victim);
}

static void *accomplice(void *unused)
{
	give_back(victim);
	return unused;
}

static void double_free_thread(void)
{
	pthread_t thread;

	victim = allocate(13);
	give_back(victim);
	/* What the C library allocates for a thread is none of the culprit's. */
	dogtag_leave(scope);
	CHECK_EQUAL(pthread_create(&thread, NULL, accomplice, NULL), 0);
	CHECK_EQUAL(pthread_join(thread, NULL), 0);
	scope = dogtag_enter(culprit);
}

static void write_after_free(void)
{
	victim = allocate(13);
	give_back(victim);
	spoil(5);
	CHECK_EQUAL(dogtag_verify(), 1);
	/* Told once. */
	CHECK_EQUAL(dogtag_verify(), 0);
}

static void invalid_free_stack(void)
{
	_Alignas(16) unsigned char array[64] = { 0 };

	victim = array + 16;
	give_back(victim);
}

static void invalid_free_inside(void)
{
	unsigned char *block = allocate(64);

	victim = block + 16;
	give_back(victim);
	give_back(block);
}

static void invalid_free_static(void)
{
	static _Alignas(16) unsigned char array[64];

	victim = array + 16;
	give_back(victim);
}

#ifdef INTERPOSED
static void (*volatile give_back_sized)(void *, size_t) = free_sized;

static void wrong_size(void)
{
	victim = allocate(13);
	give_back_sized(victim, 14);
}
#endif

static void realloc_freed(void)
{
	victim = allocate(13);
	give_back(victim);
	CHECK(resize(victim, 100) == NULL);
}

/* No crime: nothing is left between what was asked for and what a crime is. */
static void usable_size_is_requested(void)
{
	for (size_t size = 0; size <= 300; size++) {
		unsigned char *block = allocate(size);

		CHECK_EQUAL(dogtag_usable_size(block), size);
		memset(block, 0xff, size);
		block = resize(block, size + 1);
		CHECK_EQUAL(dogtag_usable_size(block), size + 1);
		give_back(block);
		block = dogtag_calloc(size, 3);
		CHECK_EQUAL(dogtag_usable_size(block), size * 3);
		memset(block, 0xff, size * 3);
		give_back(block);
		block = dogtag_aligned_alloc(32, size);
		CHECK_EQUAL(dogtag_usable_size(block), size);
		memset(block, 0xff, size);
		give_back(block);
	}
	CHECK_EQUAL(dogtag_verify(), 0);
}

static const struct crime {
	const char *name, *word;
	void (*commit)(void);
	/* What a handler must be told; 0 for no crime, and size 0 for no block. */
	int number;
	size_t size;
} CRIMES[] = {
	{ "overrun", "overrun", overrun, DOGTAG_OVERRUN, 13 },
	{ "overrun-calloc", "overrun", overrun_calloc, DOGTAG_OVERRUN, 15 },
	{ "overrun-strdup", "overrun", overrun_strdup, DOGTAG_OVERRUN, 13 },
	{ "overrun-realloc", "overrun", overrun_realloc, DOGTAG_OVERRUN, 29 },
	{ "overrun-aligned", "overrun", overrun_aligned, DOGTAG_OVERRUN, 50 },
	{ "underrun", "underrun", underrun, DOGTAG_UNDERRUN, 13 },
	{ "double-free", "double free", double_free, DOGTAG_DOUBLE_FREE, 13 },
	{ "double-free-thread", "double free", double_free_thread, DOGTAG_DOUBLE_FREE, 13 },
	{ "write-after-free", "write after free", write_after_free, DOGTAG_WRITE_AFTER_FREE, 13 },
	{ "invalid-free-stack", "invalid free", invalid_free_stack, DOGTAG_INVALID_FREE, 0 },
	{ "invalid-free-inside", "invalid free", invalid_free_inside, DOGTAG_INVALID_FREE, 64 },
	{ "invalid-free-static", "invalid free", invalid_free_static, DOGTAG_INVALID_FREE, 0 },
#ifdef INTERPOSED
	{ "free-sized", "layout mismatch", wrong_size, DOGTAG_LAYOUT_MISMATCH, 13 },
#endif
	{ "realloc-freed", "double free", realloc_freed, DOGTAG_DOUBLE_FREE, 13 },
	{ "usable-size-is-requested", "-", usable_size_is_requested, 0, 0 },
};

static const struct crime *crime;
static int told;

/* Not printf, whose buffer would be the culprit's. */
static void say(const char *text)
{
	CHECK_EQUAL(write(STDOUT_FILENO, text, strlen(text)), strlen(text));
}

static dogtag_reaction handle(const dogtag_violation *violation)
{
	int is_known = *violation->service != '\0';
	const char *report = violation->report;
	char line[200];

	told++;
	snprintf(line, sizeof(line), "crime=%d size=%zu service=%s report=%s\n", (int)violation->crime,
		violation->size, violation->service, report && *report ? "yes" : "no");
	say(line);
	CHECK_EQUAL(violation->crime, crime->number);
	CHECK_EQUAL(violation->size, crime->size);
	CHECK(violation->address == victim);
	/* Who owns a block is known, and who owns none is not. */
	CHECK_EQUAL(is_known, crime->size != 0);
	CHECK(strcmp(violation->service, is_known ? "culprit" : "") == 0);
	CHECK_EQUAL(violation->handle, is_known ? dogtag_service_handle(culprit) : 0);
	if (crime->number == DOGTAG_INVALID_FREE)
		CHECK(violation->block == (is_known ? victim - 16 : NULL));
	else
		CHECK(violation->block == victim);
	CHECK(strstr(report, crime->word) != NULL);
	CHECK(!is_known || strstr(report, "culprit") != NULL);
	return DOGTAG_LEAK;
}

/* The process goes on, with true figures. */
static void go_on(void)
{
	static void *blocks[1000];
	dogtag_figures usage = dogtag_usage(culprit);

	CHECK_EQUAL(told, crime->number != 0);
	CHECK_EQUAL(usage.allocated_bytes - usage.freed_bytes, 0);
	CHECK_EQUAL(usage.allocated_blocks - usage.freed_blocks, 0);
	for (size_t i = 0; i < COUNT(blocks); i++) {
		blocks[i] = allocate(i);
		memset(blocks[i], 0xff, i);
		for (size_t j = i < 20 ? 0 : i - 20; j < i; j++)
			CHECK(blocks[j] != blocks[i]);
		CHECK(!crime->size || blocks[i] != victim);
	}
	for (size_t i = 0; i < COUNT(blocks); i++)
		give_back(blocks[i]);
	usage = dogtag_usage(culprit);
	CHECK_EQUAL(usage.allocated_bytes - usage.freed_bytes, 0);
	CHECK_EQUAL(usage.allocated_blocks - usage.freed_blocks, 0);
	CHECK_EQUAL(dogtag_verify(), 0);
	CHECK_EQUAL(told, crime->number != 0);
}

int main(int argc, char **argv)
{
	int is_handled = argc == 3 && strcmp(argv[1], "handler") == 0;
	const char *name = is_handled ? argv[2] : argc == 2 ? argv[1] : "";

	if (strcmp(name, "list") == 0) {
		for (size_t i = 0; i < COUNT(CRIMES); i++)
			printf("%s\t%s\n", CRIMES[i].name, CRIMES[i].word);
		return 0;
	}
	for (size_t i = 0; i < COUNT(CRIMES); i++)
		if (strcmp(CRIMES[i].name, name) == 0)
			crime = &CRIMES[i];
	if (!crime) {
		fprintf(stderr, "usage: crimes list | [handler] NAME\n");
		return 2;
	}

	culprit = dogtag_service_register("culprit");
	CHECK(culprit != NULL);
	if (is_handled)
		CHECK(dogtag_set_violation_handler(handle));
	scope = dogtag_enter(culprit);
	crime->commit();
	if (is_handled)
		go_on();
	dogtag_leave(scope);
	if (crime->number && !is_handled) {
		fprintf(stderr, "%s: nobody has noticed\n", name);
		return 1;
	}
	dogtag_service_release(culprit);
	say("ok\n");
	return 0;
}
