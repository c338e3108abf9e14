/*
 * C's functions that copy, fill and print do what they always do, wherever they are called from: before
 * main, in signal handlers, over either kind of memory.
 */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <wchar.h>

/* Called as they are, not as the compiler likes. */
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;
static void *(*volatile move)(void *, const void *, size_t) = memmove;
static void *(*volatile move_on)(void *, const void *, size_t) = mempcpy;
static void *(*volatile fill)(void *, int, size_t) = memset;
static char *(*volatile text_copy)(char *, const char *) = strcpy;
static char *(*volatile text_end)(char *, const char *) = stpcpy;
static char *(*volatile text_ncopy)(char *, const char *, size_t) = strncpy;
static char *(*volatile text_nend)(char *, const char *, size_t) = stpncpy;
static char *(*volatile append)(char *, const char *) = strcat;
static char *(*volatile nappend)(char *, const char *, size_t) = strncat;
static int (*volatile print)(char *, const char *, ...) = sprintf;
static int (*volatile nprint)(char *, size_t, const char *, ...) = snprintf;
static int (*volatile wide_print)(wchar_t *, size_t, const wchar_t *, ...) = swprintf;

void *__memcpy_chk(void *, const void *, size_t, size_t);
char *__strcpy_chk(char *, const char *, size_t);
char *__strncat_chk(char *, const char *, size_t, size_t);
int __snprintf_chk(char *, size_t, int, size_t, const char *, ...);
int __sprintf_chk(char *, int, size_t, const char *, ...);

static void *(*volatile told_copy)(void *, const void *, size_t, size_t) = __memcpy_chk;
static char *(*volatile told_text)(char *, const char *, size_t) = __strcpy_chk;
static char *(*volatile told_nappend)(char *, const char *, size_t, size_t) = __strncat_chk;
static int (*volatile told_nprint)(char *, size_t, int, size_t, const char *, ...) = __snprintf_chk;
static int (*volatile told_print)(char *, int, size_t, const char *, ...) = __sprintf_chk;

static char early[64];

/* Before the library's own. */
__attribute__((constructor(101))) static void before_main(void)
{
	char *block = malloc(40);

	copy(early, "as early as can be", 19);
	move(early + 3, early, 19);
	fill(block, 'x', 39);
	block[39] = 0;
	append(text_copy(early + 30, "and"), " this");
	print(block, "%d %s %.1f", 12, "words", 2.5);
	CHECK(strcmp(early + 30, "and this") == 0 && strcmp(block, "12 words 2.5") == 0);
	free(block);
}

static void bytes(unsigned char *to, unsigned char *from)
{
	unsigned char expected[512];
	unsigned seed = 7;

	for (int round = 0; round < 20000; round++) {
		size_t from_at = (seed = seed * 1103515245 + 12345) >> 16 & 127;
		size_t to_at = (seed = seed * 1103515245 + 12345) >> 16 & 127;
		size_t length = (seed = seed * 1103515245 + 12345) >> 16 & 255;

		for (size_t i = 0; i < 512; i++)
			expected[i] = to[i];
		for (size_t i = 0; i < length; i++)
			expected[to_at + i] = from[from_at + i];
		CHECK(copy(to + to_at, from + from_at, length) == to + to_at);
		CHECK(memcmp(to, expected, 512) == 0);
		/* Onto itself. */
		for (size_t i = 0; i < length; i++)
			expected[from_at + i] = to[to_at + i];
		for (size_t i = 0; i < 512; i++)
			if (i < from_at || i >= from_at + length)
				expected[i] = to[i];
		CHECK(move(to + from_at, to + to_at, length) == to + from_at);
		CHECK(memcmp(to, expected, 512) == 0);
		CHECK(fill(from + from_at, round, length) == from + from_at);
		CHECK(is_filled(from + from_at, round, length));
		CHECK(move_on(to, from, length) == to + length);
	}
	bcopy("backwards", to, 10);
	bzero(to + 4, 3);
	CHECK(memcmp(to, "back\0\0\0ds", 10) == 0);
}

static void texts(char *to)
{
	CHECK(text_copy(to, "twelve chars") == to && strcmp(to, "twelve chars") == 0);
	CHECK(text_end(to, "end") == to + 3 && strcmp(to, "end") == 0);
	fill(to, '#', 20);
	CHECK(text_ncopy(to, "cut here", 3) == to && memcmp(to, "cut#", 4) == 0);
	CHECK(text_ncopy(to, "fill", 8) == to && memcmp(to, "fill\0\0\0\0#", 9) == 0);
	CHECK(text_nend(to, "fill", 8) == to + 4);
	CHECK(text_nend(to, "not filled", 3) == to + 3 && memcmp(to, "notl", 4) == 0);
	text_copy(to, "one");
	CHECK(append(to, " two") == to && strcmp(to, "one two") == 0);
	CHECK(nappend(to, " three", 3) == to && strcmp(to, "one two th") == 0);
	CHECK(nappend(to, "r", 9) == to && strcmp(to, "one two thr") == 0);
	CHECK(told_text(to, "fits", 5) == to && strcmp(to, "fits") == 0);
	CHECK(told_nappend(to, " too and more", 4, 9) == to && strcmp(to, "fits too") == 0);
	CHECK(told_copy(to, "bytes", 6, 6) == to && strcmp(to, "bytes") == 0);
}

static int listed(char *to, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	int length = vsprintf(to, format, list);
	va_end(list);
	return length;
}

static void printed(char *to)
{
	static const char LONG[] = "1 2 3 4 5 6 7 8 9 10 0.5 1.5 2.5 3.5 4.5 5.5 6.5 7.5 8.5 9.5 text 123456789012 c 0.125 %";

#define ARGUMENTS \
	"%d %d %d %d %d %d %d %d %d %d %.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f %s %lld %c %.3Lf %%", \
		1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, "text", \
		123456789012LL, 'c', 0.125L
	CHECK_EQUAL(print(to, ARGUMENTS), strlen(LONG));
	CHECK(strcmp(to, LONG) == 0);
	CHECK_EQUAL(nprint(to, 200, ARGUMENTS), strlen(LONG));
	CHECK(strcmp(to, LONG) == 0);
	CHECK_EQUAL(told_nprint(to, 200, 1, 200, ARGUMENTS), strlen(LONG));
	CHECK(strcmp(to, LONG) == 0);
	CHECK_EQUAL(told_print(to, 1, 200, ARGUMENTS), strlen(LONG));
	CHECK(strcmp(to, LONG) == 0);
	CHECK_EQUAL(listed(to, ARGUMENTS), strlen(LONG));
	CHECK(strcmp(to, LONG) == 0);
	to[8] = '#';
	CHECK_EQUAL(nprint(to, 8, "%s", "too long for it"), 15);
	CHECK(memcmp(to, "too lon\0#", 9) == 0);
	CHECK_EQUAL(nprint(NULL, 0, "%d", 12345), 5);
	CHECK_EQUAL(print(to, "%s", ""), 0);
	CHECK_EQUAL(wide_print((wchar_t *)to, 40, L"%ls %d %.2f", L"wide", 7, 0.25), 11);
	CHECK(wcscmp((wchar_t *)to, L"wide 7 0.25") == 0);
	CHECK(wide_print((wchar_t *)to, 3, L"%ls", L"too long") < 0);
}

static void wide(wchar_t *to)
{
	wchar_t *(*volatile wide_copy)(wchar_t *, const wchar_t *) = wcscpy;
	wchar_t *(*volatile wide_append)(wchar_t *, const wchar_t *) = wcscat;
	wchar_t *(*volatile wide_ncopy)(wchar_t *, const wchar_t *, size_t) = wcsncpy;
	wchar_t *(*volatile wide_fill)(wchar_t *, wchar_t, size_t) = wmemset;
	wchar_t *(*volatile wide_bytes)(wchar_t *, const wchar_t *, size_t) = wmempcpy;

	CHECK(wide_append(wide_copy(to, L"one"), L" two") == to && wcscmp(to, L"one two") == 0);
	CHECK(wide_ncopy(to, L"12", 5) == to && to[2] == 0 && to[4] == 0 && to[5] == L'w');
	CHECK(wide_fill(to, L'z', 6) == to && to[5] == L'z' && to[6] == L'o');
	CHECK(wide_bytes(to, L"abc", 3) == to + 3 && to[2] == L'c');
}

static void files(char *to)
{
	int ends[2], sockets[2];
	FILE *file = tmpfile();

	CHECK_EQUAL(pipe(ends), 0);
	CHECK_EQUAL(write(ends[1], "through a pipe", 15), 15);
	CHECK_EQUAL(read(ends[0], to, 100), 15);
	CHECK(strcmp(to, "through a pipe") == 0);
	errno = 0;
	CHECK(read(-1, to, 1) == -1 && errno == EBADF);
	CHECK_EQUAL(socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets), 0);
	CHECK_EQUAL(send(sockets[0], "through a socket", 17, 0), 17);
	/* More than was asked for. */
	CHECK_EQUAL(recv(sockets[1], to, 7, MSG_TRUNC), 17);
	CHECK(memcmp(to, "through", 7) == 0);
	CHECK(file != NULL);
	CHECK_EQUAL(fwrite("a line\nand another", 1, 18, file), 18);
	rewind(file);
	CHECK(fgets(to, 100, file) == to && strcmp(to, "a line\n") == 0);
	CHECK_EQUAL(fread(to, 4, 10, file), 2);
	CHECK(memcmp(to, "and anot", 8) == 0);
	CHECK(fgets(to, 100, file) == NULL);
	CHECK_EQUAL(pread(fileno(file), to, 4, 2), 4);
	CHECK(memcmp(to, "line", 4) == 0);
	fclose(file);
	for (int i = 0; i < 2; i++)
		close(ends[i]), close(sockets[i]);
}

/* What the system could not access need not be the destination. */
static void refused_by_the_system(void)
{
	char *volatile to = malloc(10);
	volatile size_t more = 100;
	struct sockaddr from;
	int sockets[2];

	CHECK_EQUAL(socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets), 0);
	CHECK_EQUAL(send(sockets[0], "short", 5, 0), 5);
	errno = 0;
	CHECK(recvfrom(sockets[1], to, more, 0, &from, (socklen_t *)8) == -1 && errno == EFAULT);
	close(sockets[0]), close(sockets[1]);
	free(to);
}

/* The functions that know the destination's size end the process themselves. */
static void too_small(void)
{
	char *volatile to = malloc(64);
	int status;
	pid_t child = fork();

	if (child == 0) {
		close(STDERR_FILENO);
		told_text(to, "longer", 3);
		_exit(0);
	}
	CHECK_EQUAL(waitpid(child, &status, 0), child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	free(to);
}

static char *volatile shared;
static volatile sig_atomic_t signals;

static void on_signal(int number)
{
	char local[100];

	(void)number;
	copy(local, shared, 100);
	copy(shared + 50, local, 50);
	move(shared, shared + 1, 30);
	nprint(local, 100, "%d", 7);
	signals++;
}

static void *copying(void *over)
{
	char local[100];

	while (!*(volatile int *)over) {
		copy(local, shared + 3, 90);
		copy(shared, local, 10);
		free(malloc(200));
	}
	return NULL;
}

/* While the interrupted thread copies, allocates and frees, and others do. */
static void in_signal_handlers(void)
{
	struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	pthread_t threads[2];
	int over = 0;

	shared = calloc(1, 100);
	CHECK_EQUAL(sigaction(SIGALRM, &action, NULL), 0);
	for (int i = 0; i < 2; i++)
		CHECK_EQUAL(pthread_create(&threads[i], NULL, copying, &over), 0);
	CHECK_EQUAL(setitimer(ITIMER_REAL, &often, NULL), 0);
	while (signals < 1000) {
		char *block = malloc(300);

		fill(block, 1, 300);
		copy(block + 7, shared, 100);
		move(shared + 1, block + 5, 99);
		CHECK_EQUAL(dogtag_verify(), 0);
		free(block);
	}
	CHECK_EQUAL(setitimer(ITIMER_REAL, &never, NULL), 0);
	over = 1;
	for (int i = 0; i < 2; i++)
		CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
	free(shared);
}

int main(void)
{
	static char still[1024], other[1024];
	char local[1024], from[1024] = { 0 };
	char *blocks[] = { malloc(512), malloc(512) };

	for (int i = 0; i < 512; i++)
		blocks[0][i] = blocks[1][i] = (char)(i * 7);
	bytes((unsigned char *)still, (unsigned char *)other);
	bytes((unsigned char *)local, (unsigned char *)from);
	bytes((unsigned char *)blocks[0], (unsigned char *)blocks[1]);
	for (int i = 0; i < 3; i++) {
		char *to = i == 0 ? still : i == 1 ? local : blocks[0];

		texts(to);
		printed(to);
		wide((wchar_t *)to);
		files(to);
	}
	refused_by_the_system();
	too_small();
	in_signal_handlers();
	free(blocks[0]);
	free(blocks[1]);
	CHECK_EQUAL(dogtag_verify(), 0);
	printf("ok\n");
	return 0;
}
