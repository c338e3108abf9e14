/*
 * A program that handles SIGSEGV itself, for pages of its own: what memory-check does about freed blocks does not
 * disturb it. `faults crime` reads a large block that was freed; `faults waits` writes to a small one, and does
 * nothing from then on.
 */
#include "check.h"
#include "dogtag.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGE 4096
#define LARGE 3000000

static unsigned char *volatile page;
static volatile int faults;
static volatile unsigned char sink;

static void open_page(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	CHECK(info->si_addr == page);
	faults++;
	CHECK_EQUAL(mprotect(page, PAGE, PROT_READ | PROT_WRITE), 0);
}

/* Pages that the program protects itself: of a block, and of a mapping. */
static void fault(void)
{
	unsigned char *block = dogtag_aligned_alloc(PAGE, LARGE);
	unsigned char *mapping = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(mapping != MAP_FAILED);
	page = mapping;
	faults = 0;
	page[0] = 1;
	CHECK_EQUAL(faults, 1);
	page = block;
	CHECK_EQUAL(mprotect(page, PAGE, PROT_READ), 0);
	page[0] = 2;
	CHECK_EQUAL(faults, 2);
	CHECK_EQUAL(block[0], 2);
	dogtag_free(block);
	CHECK_EQUAL(munmap(mapping, PAGE), 0);
}

static void work(void)
{
	for (size_t i = 0; i < 200; i++) {
		size_t size = 1 + i * 7919 % 400000;
		unsigned char *block = dogtag_calloc(1, size), *moved;

		CHECK(block[0] == 0 && block[size - 1] == 0);
		memset(block, 9, size);
		moved = dogtag_realloc(block, 400001 - size);
		CHECK_EQUAL(moved[0], 9);
		dogtag_free(moved);
	}
}

int main(int argc, char **argv)
{
	static unsigned char small[16384];
	stack_t other = { .ss_sp = small, .ss_size = sizeof(small) };
	struct sigaction action = { .sa_sigaction = open_page, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	unsigned char *volatile freed;
	int status;
	pid_t child;

	CHECK_EQUAL(sigaltstack(&other, NULL), 0);
	CHECK_EQUAL(sigaction(SIGSEGV, &action, NULL), 0);
	fault();
	work();
	fault();
	if (argc > 1 && strcmp(argv[1], "waits") == 0) {
		freed = dogtag_malloc(100);
		dogtag_free(freed);
		freed[5] = 1;
		for (;;)
			pause();
	}
	if (argc > 1) {
		freed = dogtag_malloc(LARGE);
		dogtag_free(freed);
		sink = freed[LARGE / 2];
		printf("ok\n");
		return 0;
	}
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		work();
		fault();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	work();
	printf("ok\n");
	return 0;
}
