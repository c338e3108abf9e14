/*
 * A fork copies the process's memory and its page tables. Neither grows with what was ever
 * allocated; and a child's work at its end does not grow with its parent's memory.
 */
#define DOGTAG_SKYNET
#include "check.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

#define MIB ((size_t)1 << 20)

static int ended(pid_t child)
{
	int status;

	CHECK(child > 0);
	CHECK_EQUAL(waitpid(child, &status, 0), child);
	return status;
}

/* Returns how many bytes of the process's own are in memory. */
static size_t in_memory(void)
{
	static char text[8192];
	int file = open("/proc/self/status", O_RDONLY);
	ssize_t length = read(file, text, sizeof(text) - 1);
	const char *line;

	CHECK(length > 0);
	text[length] = '\0';
	close(file);
	line = strstr(text, "RssAnon:");
	CHECK(line != NULL);
	return strtoul(line + strlen("RssAnon:"), NULL, 10) * 1024;
}

static char *blocks[MIB];

static void come_and_go(size_t size, size_t bytes)
{
	size_t count = bytes / size;

	CHECK(count <= COUNT(blocks));
	for (size_t i = 0; i < count; i++) {
		blocks[i] = malloc(size);
		memset(blocks[i], 1, size);
	}
	for (size_t i = 0; i < count; i++)
		free(blocks[i]);
}

static void forks(void)
{
	for (int i = 0; i < 100; i++) {
		pid_t child;

		come_and_go(100, 100 * 100);
		child = fork();
		if (child == 0)
			_exit(0);
		CHECK_EQUAL(ended(child), 0);
	}
	/* Gives back what jemalloc gives back within ten seconds. 4096 stands for all arenas. */
	CHECK_EQUAL(mallctl_cmd("thread.tcache.flush"), 0);
	CHECK_EQUAL(mallctl_cmd("arena.4096.purge"), 0);
}

static void a_forks_work(void)
{
	size_t before;

	memset(blocks, 1, sizeof(blocks));
	come_and_go(4096, MIB);
	forks();
	before = in_memory();
	come_and_go(60000, 300 * MIB);
	come_and_go(300, 20 * MIB);
	CHECK(in_memory() > before + 4 * MIB);
	forks();
	check_note = "more is in memory than before";
	CHECK(in_memory() <= before + 4 * MIB);
	check_note = "";
}

#ifdef CHECKED
/* A child that has done nothing does not check its parent's blocks at its end; a child that has
 * freed enough does. */
static void a_childs_end(void)
{
	volatile char *block = malloc(100);
	char kept;
	pid_t child;

	come_and_go(4096, 50 * MIB);
	kept = block[100];
	block[100] ^= 1;
	child = fork();
	if (child == 0)
		exit(0);
	CHECK_EQUAL(ended(child), 0);
	child = fork();
	if (child == 0) {
		/* The report is discarded. */
		int nowhere = open("/dev/null", O_WRONLY);

		dup2(nowhere, STDERR_FILENO);
		come_and_go(100, 10 * MIB);
		exit(0);
	}
	CHECK_EQUAL(ended(child) & 0x7f, SIGABRT);
	block[100] = kept;
	free((void *)block);
}
#endif

int main(void)
{
	a_forks_work();
#ifdef CHECKED
	a_childs_end();
#endif
	CHECK_EQUAL(dogtag_verify(), 0);
	puts("ok");
	return 0;
}
