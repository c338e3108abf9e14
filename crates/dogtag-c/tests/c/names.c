/*
 * Threads with names of every kind. Each allocates as the service with its name, also in a sandbox
 * that allows only the system calls of allocators.
 *
 * `names` runs all tests, `names PROGRAM` checks the first thread alone, whose name is the
 * executable's.
 */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <threads.h>

/* Checks that the calling thread allocates as the service of that name, or as none. */
static void check_charged_to(const char *name)
{
	dogtag_service *service = dogtag_service_register(*name ? name : "unattributed");
	dogtag_service *current = dogtag_service_current();
	dogtag_figures before, after;
	char *is = dogtag_service_name(current);
	void *volatile block;

	check_note = name;
	if (strcmp(is, *name ? name : "unattributed") != 0)
		fprintf(stderr, "  in \"%s\"\n", is);
	CHECK_EQUAL(current, service);
	dogtag_free(is);
	dogtag_service_release(current);
	before = dogtag_usage(service);
	block = malloc(3000);
	after = dogtag_usage(service);
	CHECK_EQUAL(after.allocated_blocks, before.allocated_blocks + 1);
	free(block);
	dogtag_service_release(service);
	check_note = "";
}

static void allocate_a_little(void)
{
	/* The compiler must not see that the block is unused. */
	void *volatile block = malloc(10);

	free(block);
}

/* Allocates sizes of all kinds, so that every path of the allocator is taken. */
static void use_memory(void)
{
	static __thread void *blocks[2000];

	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < 2000; i++) {
			size_t size = i % 50 ? i + 1 : i * 100;

			blocks[i] = i % 2 ? malloc(size) : calloc(1, size);
			CHECK(blocks[i] != NULL || size == 0);
			if (size)
				memset(blocks[i], 1, size);
		}
		for (size_t i = 0; i < 2000; i++) {
			if (i % 3 == 0)
				blocks[i] = realloc(blocks[i], i * 7 + 1);
			free(blocks[i]);
		}
	}
	char *volatile large = malloc(4 << 20);
	large[0] = large[(4 << 20) - 1] = 1;
	large = realloc(large, 7 << 20);
	free(large);
	large = aligned_alloc(1 << 16, 1 << 16);
	free(large);
}

static const struct {
	const char *name, *service;
} kinds[] = {
	{ "plain", "plain" },
	{ "\xff", "\xef\xbf\xbd" },
	{ "half of \xc3", "half of \xef\xbf\xbd" },
	/* Cut after fifteen bytes, in the middle of the fifth. */
	{ "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac x\xf0\x9f\x98\x80",
		"\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac x\xef\xbf\xbd" },
	{ "\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xff\xfe\xfd\xfc\xfb\xfa\xf9",
		"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
		"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
	{ "a/b/c", "a/b/c" },
	{ "pool-17", "pool-*" },
	{ "17", "*" },
	{ "/", "/" },
	{ " ", " " },
	{ "unattributed", "unattributed" },
	{ "longer than what fits", "longer than wha" },
	{ "", "" },
};

enum { KINDS = sizeof(kinds) / sizeof(*kinds) };

static void rename_by_prctl(const char *name)
{
	CHECK_EQUAL(prctl(PR_SET_NAME, name), 0);
}

/* Which takes no more than fifteen bytes. */
static void rename_by_pthread(pthread_t thread, const char *name)
{
	char cut[16] = "";

	strncpy(cut, name, 15);
	CHECK_EQUAL(pthread_setname_np(thread, cut), 0);
}

static void *inherits(void *name)
{
	/* At the first allocation, or before. */
	allocate_a_little();
	check_charged_to(name);
	for (int i = 0; i < 100; i++)
		allocate_a_little();
	check_charged_to(name);
	return name;
}

static int inherits_in_c11(void *name)
{
	inherits(name);
	return 7;
}

static void begin_heirs(const char *service)
{
	pthread_t heir;
	thrd_t c11_heir;
	void *result;
	int c11_result;

	CHECK_EQUAL(pthread_create(&heir, NULL, inherits, (void *)service), 0);
	CHECK_EQUAL(pthread_join(heir, &result), 0);
	CHECK_EQUAL(result, service);
	CHECK_EQUAL(thrd_create(&c11_heir, inherits_in_c11, (void *)service), thrd_success);
	CHECK_EQUAL(thrd_join(c11_heir, &c11_result), thrd_success);
	CHECK_EQUAL(c11_result, 7);
}

static void *renames_itself(void *unused)
{
	for (size_t i = 0; i < KINDS; i++) {
		rename_by_prctl(kinds[i].name);
		/* Nothing in between that would allocate elsewhere. */
		use_memory();
		check_charged_to(kinds[i].service);
		rename_by_pthread(pthread_self(), "other");
		check_charged_to("other");
		rename_by_pthread(pthread_self(), kinds[i].name);
		check_charged_to(kinds[i].service);
		begin_heirs(kinds[i].service);
	}
	errno = 77;
	rename_by_prctl("errno");
	allocate_a_little();
	CHECK_EQUAL(errno, 77);
	return unused;
}

/* Installs a filter: any other system call than these ends the process. */
#define ALLOW(name) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void enter_sandbox(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(brk), ALLOW(mmap), ALLOW(munmap), ALLOW(mremap), ALLOW(madvise), ALLOW(mprotect), ALLOW(futex),
		ALLOW(sched_yield), ALLOW(write), ALLOW(exit), ALLOW(exit_group),
		/* For threads, as glibc begins them, and for whoever waits for them. */
		ALLOW(clone), ALLOW(clone3), ALLOW(set_robust_list), ALLOW(rseq), ALLOW(rt_sigprocmask),
		/* To rename itself, which is not to ask for the name. */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_NAME, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

	CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	CHECK_EQUAL(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static void *is_sandboxed(void *unused)
{
	enter_sandbox();
	return renames_itself(unused);
}

/* Threads that others rename */

struct renamed {
	pthread_t thread;
	sem_t ready, go;
	int allocates_first, in_sandbox;
	const char *service;
};

static void *is_renamed(void *argument)
{
	struct renamed *renamed = argument;

	if (renamed->in_sandbox)
		enter_sandbox();
	if (renamed->allocates_first)
		allocate_a_little();
	sem_post(&renamed->ready);
	while (sem_wait(&renamed->go) != 0)
		;
	if (renamed->service) {
		check_charged_to(renamed->service);
		use_memory();
		check_charged_to(renamed->service);
		begin_heirs(renamed->service);
	}
	return NULL;
}

static void rename_others(void)
{
	for (size_t i = 0; i < 4 * KINDS; i++) {
		struct renamed renamed = { .allocates_first = i & 1, .in_sandbox = i & 2 };

		renamed.service = kinds[i / 4].service;
		sem_init(&renamed.ready, 0, 0);
		sem_init(&renamed.go, 0, 0);
		CHECK_EQUAL(pthread_create(&renamed.thread, NULL, is_renamed, &renamed), 0);
		/* Perhaps before it runs for the first time. */
		rename_by_pthread(renamed.thread, "too early");
		sem_wait(&renamed.ready);
		rename_by_pthread(renamed.thread, "too early, too");
		rename_by_pthread(renamed.thread, kinds[i / 4].name);
		sem_post(&renamed.go);
		CHECK_EQUAL(pthread_join(renamed.thread, NULL), 0);
	}
}

/* A new thread does not take the name of an ended one whose pthread_t it has. */
static void names_end_with_their_threads(void)
{
	static char program[] = "first";

	rename_by_prctl(program);
	for (int round = 0; round < 20; round++) {
		struct renamed renamed = { .allocates_first = round & 1 };

		sem_init(&renamed.ready, 0, 0);
		sem_init(&renamed.go, 0, 0);
		CHECK_EQUAL(pthread_create(&renamed.thread, NULL, is_renamed, &renamed), 0);
		sem_wait(&renamed.ready);
		rename_by_pthread(renamed.thread, "never used");
		sem_post(&renamed.go);
		CHECK_EQUAL(pthread_join(renamed.thread, NULL), 0);
		begin_heirs(program);
	}
}

/* Threads that end in every way */

static void *ends_by_exit(void *service)
{
	inherits(service);
	pthread_exit(service);
}

static void *is_cancelled(void *service)
{
	inherits(service);
	while (pause() != 0)
		;
	return NULL;
}

static void end_in_every_way(void)
{
	static char program[] = "ends";
	pthread_t thread;
	void *result;

	rename_by_prctl(program);
	CHECK_EQUAL(pthread_create(&thread, NULL, ends_by_exit, program), 0);
	CHECK_EQUAL(pthread_join(thread, &result), 0);
	CHECK_EQUAL(result, program);
	CHECK_EQUAL(pthread_create(&thread, NULL, is_cancelled, program), 0);
	CHECK_EQUAL(pthread_cancel(thread), 0);
	CHECK_EQUAL(pthread_join(thread, &result), 0);
	CHECK_EQUAL(result, PTHREAD_CANCELED);
}

static void in_children(void)
{
	pid_t child;
	int status;

	rename_by_prctl("forks");
	allocate_a_little();
	child = fork();
	if (child == 0) {
		check_charged_to("forks");
		begin_heirs("forks");
		rename_by_prctl("child");
		check_charged_to("child");
		begin_heirs("child");
		rename_others();
		_exit(0);
	}
	CHECK_EQUAL(waitpid(child, &status, 0), child);
	CHECK_EQUAL(status, 0);
	check_charged_to("forks");
}

static void in_a_thread(void *(*work)(void *))
{
	pthread_t thread;

	CHECK_EQUAL(pthread_create(&thread, NULL, work, NULL), 0);
	CHECK_EQUAL(pthread_join(thread, NULL), 0);
}

int main(int argc, char **argv)
{
	check_charged_to(argc > 1 ? argv[1] : "names-shared");
	begin_heirs(argc > 1 ? argv[1] : "names-shared");
	if (argc == 1) {
		in_a_thread(renames_itself);
		in_a_thread(is_sandboxed);
		rename_others();
		names_end_with_their_threads();
		end_in_every_way();
		in_children();
	}
	puts("ok");
	return 0;
}
