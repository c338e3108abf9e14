/*
 * `processes PLUGIN FORKS`: the life of a process whose allocator is dogtag. Forks amid threads that
 * allocate, exec and posix_spawn, threads that come and go, destructors in every order, libraries that
 * are loaded and unloaded, and the end. The test that runs this kills it if it hangs.
 */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <threads.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static dogtag_service *registered(const char *name)
{
	dogtag_service *service = dogtag_service_register(name);

	CHECK(service != NULL);
	return service;
}

static void start(pthread_t *thread, void *(*work)(void *), void *argument)
{
	CHECK_EQUAL(pthread_create(thread, NULL, work, argument), 0);
}

static void join(pthread_t thread)
{
	CHECK_EQUAL(pthread_join(thread, NULL), 0);
}

static void check_child(pid_t child)
{
	int status;

	CHECK(child > 0);
	CHECK_EQUAL(waitpid(child, &status, 0), child);
	/* A signal's number if it crashed, or hung and was killed. */
	CHECK_EQUAL(status, 0);
}

/* Threads that allocate all the time, and register and release services. */

enum { NOISES = 3 };

struct noise {
	pthread_t thread;
	int number;
	dogtag_service *service;
	void *blocks[64];
};

static struct noise noises[NOISES];
static atomic_int is_quiet;

static void *make_noise(void *argument)
{
	struct noise *noise = argument;
	uint32_t random = (uint32_t)noise->number + 1;
	dogtag_scope scope = dogtag_enter(noise->service);

	for (unsigned round = 0; !atomic_load(&is_quiet); round++) {
		void **block;
		size_t size;

		random = random * 1664525 + 1013904223;
		block = &noise->blocks[random >> 26];
		size = (random >> 8) % 600 + (random % 100 == 0 ? 50000 : 1);
		if (random & 0x80000) {
			*block = realloc(*block, size);
		} else {
			free(*block);
			*block = random & 0x100000 ? malloc(size) : calloc(1, size);
		}
		CHECK(*block != NULL);
		memset(*block, (int)round, size < 100 ? size : 100);
		if (round % 256 == 0) {
			char name[48];
			dogtag_service *guest;

			/* A child must not meet the parent's. */
			snprintf(name, sizeof(name), "guest %d/%d/%u", (int)getpid(), noise->number, round);
			guest = registered(name);
			dogtag_scope inner = dogtag_enter(guest);
			void *gift = malloc(100);
			dogtag_leave(inner);
			CHECK_LIVE(guest, malloc_usable_size(gift), 1);
			dogtag_service_release(guest);
			free(gift);
		}
	}
	for (size_t i = 0; i < COUNT(noise->blocks); i++) {
		free(noise->blocks[i]);
		noise->blocks[i] = NULL;
	}
	dogtag_leave(scope);
	return NULL;
}

static void begin_noise(void)
{
	atomic_store(&is_quiet, 0);
	for (int i = 0; i < NOISES; i++) {
		char name[24];

		/* In a child, which was forked in the midst of it, the blocks are in any state. */
		memset(noises[i].blocks, 0, sizeof(noises[i].blocks));
		snprintf(name, sizeof(name), "noise %d", i);
		noises[i].number = i;
		noises[i].service = registered(name);
		start(&noises[i].thread, make_noise, &noises[i]);
	}
}

static void end_noise(void)
{
	atomic_store(&is_quiet, 1);
	for (int i = 0; i < NOISES; i++) {
		join(noises[i].thread);
		CHECK(dogtag_usage(noises[i].service).allocated_blocks > 0);
		CHECK_LIVE(noises[i].service, 0, 0);
		dogtag_service_release(noises[i].service);
	}
}

/* Forks */

static dogtag_service *forker;
static void *inherited[20];

static void *in_a_childs_thread(void *service)
{
	static void *blocks[300];
	dogtag_scope scope = dogtag_enter(service);

	for (size_t i = 0; i < COUNT(blocks); i++) {
		blocks[i] = malloc(i * 20);
		memset(blocks[i], 1, i * 20);
	}
	for (size_t i = 0; i < COUNT(blocks); i++)
		free(blocks[i]);
	dogtag_leave(scope);
	return NULL;
}

static void live_as_child(dogtag_figures before)
{
	dogtag_figures usage = dogtag_usage(forker);
	dogtag_service *own;
	pthread_t thread;
	char *text;
	void *block;

	/* What the parent had, to the byte. */
	CHECK_EQUAL(usage.allocated_bytes, before.allocated_bytes);
	CHECK_EQUAL(usage.allocated_blocks, before.allocated_blocks);
	CHECK_EQUAL(usage.freed_bytes, before.freed_bytes);
	CHECK_EQUAL(usage.freed_blocks, before.freed_blocks);
	for (size_t i = 0; i < COUNT(inherited); i++)
		free(inherited[i]);
	CHECK_LIVE(forker, 0, 0);

	own = registered("child");
	dogtag_scope scope = dogtag_enter(own);
	block = malloc(12345);
	CHECK_LIVE(own, malloc_usable_size(block), 1);
	dogtag_leave(scope);
	start(&thread, in_a_childs_thread, own);
	join(thread);
	CHECK_LIVE(own, malloc_usable_size(block), 1);
	CHECK_EQUAL(dogtag_usage(own).allocated_blocks, 301);
	free(block);
	CHECK_LIVE(own, 0, 0);
	dogtag_service_release(own);
	text = dogtag_snapshot_text();
	CHECK(strstr(text, "forker") != NULL);
	dogtag_free(text);
}

static void forks(int rounds)
{
	forker = registered("forker");
	for (int round = 0; round < rounds; round++) {
		dogtag_scope scope = dogtag_enter(forker);
		pid_t child;

		for (size_t i = 0; i < COUNT(inherited); i++)
			inherited[i] = malloc(i * i * 20);
		dogtag_figures before = dogtag_usage(forker);
		dogtag_leave(scope);
		child = fork();
		if (child == 0) {
			live_as_child(before);
			if (round % 2)
				exit(0);
			_exit(0);
		}
		check_child(child);
		CHECK_EQUAL(dogtag_usage(forker).freed_blocks, before.freed_blocks);
		for (size_t i = 0; i < COUNT(inherited); i++)
			free(inherited[i]);
		CHECK_LIVE(forker, 0, 0);
	}
	dogtag_service_release(forker);
}

/* Programs that are begun */

static char program[] = "/proc/self/exe", executed_mode[] = "executed";
static char *const executed[] = { program, executed_mode, NULL };

/* Runs in a program that was executed: the figures are a new process's. */
static int is_executed(void)
{
	dogtag_service *service = registered("forker");
	dogtag_figures usage = dogtag_usage(service);

	CHECK_EQUAL(usage.allocated_blocks, 0);
	CHECK(dogtag_totals().allocated_blocks < 10000);
	dogtag_scope scope = dogtag_enter(service);
	void *block = malloc(5000);
	CHECK_LIVE(service, malloc_usable_size(block), 1);
	free(block);
	dogtag_leave(scope);
	CHECK_LIVE(service, 0, 0);
	dogtag_service_release(service);
	return 0;
}

static void programs(void)
{
	char *const nothing[] = { "true", NULL };

	for (int round = 0; round < 20; round++) {
		pid_t child = fork();

		if (child == 0) {
			/* The parent's are not here: others, in the midst of whose work it ends. */
			begin_noise();
			usleep(2000);
			execv(program, executed);
			_exit(127);
		}
		check_child(child);

		child = vfork();
		if (child == 0) {
			execv(program, executed);
			_exit(127);
		}
		check_child(child);

		child = vfork();
		if (child == 0)
			_exit(0);
		check_child(child);

		CHECK_EQUAL(posix_spawn(&child, program, NULL, NULL, executed, environ), 0);
		check_child(child);
		CHECK_EQUAL(posix_spawnp(&child, "true", NULL, NULL, nothing, environ), 0);
		check_child(child);
	}
}

/* Destructors */

int __cxa_thread_atexit_impl(void (*destructor)(void *), void *argument, void *library);
extern void *__dso_handle;

/* The destructor is called this often for each thread, the most that POSIX guarantees for keys. */
enum { CALLS = 4 };

enum kind { EARLY_KEY, LATE_KEY, C11_KEY, THREAD_LOCAL, KINDS };

struct estate {
	enum kind kind;
	int calls;
	char *block;
};

static dogtag_service *heirs;
static atomic_int destructor_calls;
static pthread_key_t early_key, late_key;
static tss_t c11_key;

static void inherit(void *argument);

static void bequeath(struct estate *estate)
{
	switch (estate->kind) {
	case EARLY_KEY:
		CHECK_EQUAL(pthread_setspecific(early_key, estate), 0);
		break;
	case LATE_KEY:
		CHECK_EQUAL(pthread_setspecific(late_key, estate), 0);
		break;
	case C11_KEY:
		CHECK_EQUAL(tss_set(c11_key, estate), thrd_success);
		break;
	default:
		CHECK_EQUAL(__cxa_thread_atexit_impl(inherit, estate, &__dso_handle), 0);
	}
}

static void allocate_for(struct estate *estate)
{
	dogtag_scope scope = dogtag_enter(heirs);

	estate->block = malloc(1000 + (size_t)estate->calls);
	dogtag_leave(scope);
	CHECK(estate->block != NULL);
	memset(estate->block, estate->calls, 1000);
}

static void inherit(void *argument)
{
	struct estate *estate = argument;
	char *old = estate->block;

	atomic_fetch_add(&destructor_calls, 1);
	CHECK(old[0] == estate->calls && old[999] == estate->calls);
	estate->calls++;
	allocate_for(estate);
	free(old);
	/* As a destructor finds it that knows of no service. */
	free(realloc(strdup("nobody's"), 2000));
	if (estate->calls < CALLS)
		bequeath(estate);
	else
		free(estate->block);
}

/* Created before the library's first call, and so before keys of its own. */
__attribute__((constructor(101))) static void make_early_key(void)
{
	CHECK_EQUAL(pthread_key_create(&early_key, inherit), 0);
}

/* Runs a thread's steps, in one order of many. */
struct will {
	int order[KINDS + 1];
	struct estate estates[KINDS];
};

static void *die(void *argument)
{
	struct will *will = argument;

	for (int i = 0; i <= KINDS; i++) {
		int kind = will->order[i];

		/* The first touch of the allocator may be anywhere among them. */
		if (kind == KINDS) {
			free(realloc(malloc(10), 100000));
			continue;
		}
		will->estates[kind] = (struct estate){ .kind = kind };
		allocate_for(&will->estates[kind]);
		bequeath(&will->estates[kind]);
	}
	return NULL;
}

/* Makes the permutation of that number. */
static void arrange(int *order, int count, int number)
{
	for (int i = 0; i < count; i++)
		order[i] = i;
	for (int i = count; i > 1; i--) {
		int chosen = number % i, other = order[chosen];

		number /= i;
		order[chosen] = order[i - 1];
		order[i - 1] = other;
	}
}

static void destructors(void)
{
	enum { ORDERS = 2 * 3 * 4 * 5 };
	static struct will wills[ORDERS];
	pthread_t threads[ORDERS];
	dogtag_figures usage;

	heirs = registered("heirs");
	CHECK_EQUAL(pthread_key_create(&late_key, inherit), 0);
	CHECK_EQUAL(tss_create(&c11_key, inherit), thrd_success);
	for (int round = 1; round <= 3; round++) {
		for (int i = 0; i < ORDERS; i++) {
			arrange(wills[i].order, KINDS + 1, i);
			start(&threads[i], die, &wills[i]);
			/* One after the other, or many at once. */
			if (round == 1)
				join(threads[i]);
		}
		for (int i = 0; i < ORDERS && round > 1; i++)
			join(threads[i]);
		CHECK_EQUAL(atomic_load(&destructor_calls), round * ORDERS * KINDS * CALLS);
		usage = dogtag_usage(heirs);
		CHECK_EQUAL(usage.allocated_blocks, round * ORDERS * KINDS * (CALLS + 1));
		CHECK_EQUAL(usage.freed_blocks, usage.allocated_blocks);
		CHECK_EQUAL(usage.freed_bytes, usage.allocated_bytes);
	}
	dogtag_service_release(heirs);
}

/* Threads that come and go */

enum { THREADS = 2000, AT_ONCE = 50, EACH = 20 };

struct guest {
	pthread_t thread;
	dogtag_service *service;
	void *blocks[EACH];
	size_t bytes;
};

static void *visit(void *argument)
{
	struct guest *guest = argument;
	dogtag_scope scope = dogtag_enter(guest->service);

	for (size_t i = 0; i < EACH; i++) {
		guest->blocks[i] = malloc(i * i * 20);
		guest->bytes += malloc_usable_size(guest->blocks[i]);
	}
	for (size_t i = 0; i < EACH; i += 2)
		free(guest->blocks[i]);
	dogtag_leave(scope);
	return NULL;
}

static void threads_come_and_go(void)
{
	static struct guest guests[AT_ONCE];
	dogtag_service *service = registered("guests");
	size_t bytes = 0;
	dogtag_figures usage;

	for (int round = 0; round < THREADS / AT_ONCE; round++) {
		for (int i = 0; i < AT_ONCE; i++) {
			guests[i] = (struct guest){ .service = service };
			start(&guests[i].thread, visit, &guests[i]);
		}
		for (int i = 0; i < AT_ONCE; i++)
			join(guests[i].thread);
		for (int i = 0; i < AT_ONCE; i++) {
			bytes += guests[i].bytes;
			for (size_t j = 1; j < EACH; j += 2)
				free(guests[i].blocks[j]);
		}
	}
	usage = dogtag_usage(service);
	CHECK_EQUAL(usage.allocated_bytes, bytes);
	CHECK_EQUAL(usage.allocated_blocks, THREADS * EACH);
	CHECK_EQUAL(usage.freed_bytes, bytes);
	CHECK_EQUAL(usage.freed_blocks, THREADS * EACH);
	dogtag_service_release(service);
}

/* Libraries */

static void libraries(const char *path)
{
	dogtag_service *service = registered("libraries");
	dogtag_scope scope = dogtag_enter(service);
	dogtag_figures settled = { 0 }, before, after;

	for (int round = 0; round < 100; round++) {
		void *library;
		int (*plugin)(void);

		/* The loader has allocated its own memory by now. */
		if (round == 10)
			settled = dogtag_usage(service);
		library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
		if (!library)
			fprintf(stderr, "%s\n", dlerror());
		CHECK(library != NULL);
		*(void **)&plugin = dlsym(library, "plugin");
		CHECK(plugin != NULL);
		before = dogtag_usage(service);
		CHECK_EQUAL(plugin(), 42);
		after = dogtag_usage(service);
		CHECK_EQUAL(after.allocated_blocks - before.allocated_blocks, 2);
		CHECK_EQUAL(after.freed_blocks - before.freed_blocks, 1);
		CHECK_EQUAL(dlclose(library), 0);
		/* The library has freed its blocks. */
		after = dogtag_usage(service);
		CHECK(after.freed_blocks - before.freed_blocks >= 4);
	}
	dogtag_leave(scope);
	CHECK_LIVE(service, settled.allocated_bytes - settled.freed_bytes,
		settled.allocated_blocks - settled.freed_blocks);
	dogtag_service_release(service);
}

/* The end */

static void *kept_to_the_end;

static void at_the_end(void)
{
	dogtag_service *service = registered("the end");
	dogtag_scope scope = dogtag_enter(service);
	void *block = malloc(777);

	CHECK_LIVE(service, malloc_usable_size(block), 1);
	dogtag_leave(scope);
	free(block);
	CHECK_LIVE(service, 0, 0);
	dogtag_service_release(service);
	free(kept_to_the_end);
	kept_to_the_end = malloc(100);
}

/* Runs after all functions of atexit. */
__attribute__((destructor(101))) static void at_the_very_end(void)
{
	at_the_end();
	free(kept_to_the_end);
	kept_to_the_end = NULL;
}

__attribute__((constructor(102))) static void before_the_beginning(void)
{
	CHECK_EQUAL(atexit(at_the_end), 0);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], executed_mode) == 0)
		return is_executed();
	if (argc != 3) {
		fprintf(stderr, "usage: processes PLUGIN FORKS\n");
		return 2;
	}
	kept_to_the_end = malloc(10);
	begin_noise();
	forks(atoi(argv[2]));
	programs();
	end_noise();
	destructors();
	threads_come_and_go();
	libraries(argv[1]);
	CHECK_EQUAL(atexit(at_the_end), 0);
	CHECK_EQUAL(dogtag_verify(), 0);
	puts("ok");
	return 0;
}
