/*
 * skynet's own interface, in a host that has what skynet has: a current handle, skynet_error, and
 * the functions of Lua that make a table. `skynet oom` asks for more memory than there is, and
 * should not survive it.
 */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

#define MIB ((size_t)1 << 20)

/* The handle of threads that run no service. */
#define NOBODY 0xffffffffu
#define ONE 0x0100000au
#define OTHER 0x0100000bu

/* The host */

uint32_t skynet_current_handle(void);
void skynet_error(void *context, const char *message, ...);
void lua_createtable(struct lua_State *lua, int elements, int records);
void lua_pushinteger(struct lua_State *lua, long long number);
void lua_rawseti(struct lua_State *lua, int index, long long key);

static __thread uint32_t current = NOBODY;
static __thread size_t asked;

uint32_t skynet_current_handle(void)
{
	asked++;
	return current;
}

static char lines[4000][100];
static size_t line_count;

void skynet_error(void *context, const char *message, ...)
{
	va_list arguments;

	CHECK(context == NULL);
	CHECK(line_count < COUNT(lines));
	va_start(arguments, message);
	vsnprintf(lines[line_count++], sizeof(*lines), message, arguments);
	va_end(arguments);
}

/* A stack with a table and a number on it. */
struct lua_State {
	int height;
	long long number;
	size_t count;
	struct {
		long long key, value;
	} table[4000];
};

void lua_createtable(struct lua_State *lua, int elements, int records)
{
	CHECK(elements >= 0 && records >= 0);
	CHECK_EQUAL(lua->height++, 0);
}

void lua_pushinteger(struct lua_State *lua, long long number)
{
	CHECK_EQUAL(lua->height++, 1);
	lua->number = number;
}

void lua_rawseti(struct lua_State *lua, int index, long long key)
{
	CHECK_EQUAL(lua->height--, 2);
	CHECK(index == -2);
	CHECK(lua->count < COUNT(lua->table));
	lua->table[lua->count].key = key;
	lua->table[lua->count++].value = lua->number;
}

/* Figures */

static size_t held_by(uint32_t handle)
{
	uint32_t previous = current;
	size_t bytes;

	current = handle;
	bytes = malloc_current_memory();
	current = previous;
	return bytes;
}

static size_t used, count;

static void begin(void)
{
	used = malloc_used_memory();
	count = malloc_memory_block();
}

#define CHECK_SINCE(bytes, blocks) \
	do { \
		CHECK_EQUAL(malloc_used_memory() - used, (size_t)(bytes)); \
		CHECK_EQUAL(malloc_memory_block() - count, (size_t)(blocks)); \
	} while (0)

static size_t checked_size(void *block, size_t requested, size_t alignment)
{
	size_t usable = dogtag_usable_size(block);

	CHECK(block != NULL);
	CHECK(is_aligned(block, alignment));
	CHECK_USABLE(usable, requested);
	memset(block, 0x5a, usable);
	return usable;
}

static size_t natural(size_t size)
{
	return size >= 16 ? 16 : 8;
}

static const size_t SIZES[] = {
	0, 1, 8, 13, 14, 15, 16, 100, 1000, 4093, 4095, 4096, 4097, 10000, 65536, MIB + 1, 5 * MIB,
};

/* With a block that is there all the time, so that the service is. */
static void functions(void)
{
	void *anchor, *block;
	size_t anchored, usable;
	char *copy;

	current = ONE;
	asked = 0;
	anchor = skynet_malloc(10);
	CHECK(asked > 0);
	anchored = dogtag_usable_size(anchor);
	CHECK_EQUAL(malloc_current_memory(), anchored);

	for (size_t i = 0; i < COUNT(SIZES); i++) {
		size_t size = SIZES[i];

		begin();
		block = skynet_malloc(size);
		usable = checked_size(block, size, natural(size));
		CHECK_SINCE(usable, 1);
		CHECK_EQUAL(malloc_current_memory(), anchored + usable);
		skynet_free(block);
		CHECK_SINCE(0, 0);
		CHECK_EQUAL(malloc_current_memory(), anchored);

		block = skynet_realloc(NULL, size);
		usable = checked_size(block, size, natural(size));
		CHECK_SINCE(usable, 1);
		skynet_free(block);
		CHECK_SINCE(0, 0);

		/* What was dirty a moment ago. */
		if (size > 0) {
			block = skynet_calloc(size, 3);
			CHECK(is_filled(block, 0, size * 3));
			usable = checked_size(block, size * 3, natural(size * 3));
			CHECK_SINCE(usable, 1);
			CHECK_EQUAL(malloc_current_memory(), anchored + usable);
			skynet_free(block);
			CHECK_SINCE(0, 0);
		}

		for (size_t alignment = 8; alignment <= 65536; alignment *= 2) {
			block = skynet_memalign(alignment, size);
			usable = checked_size(block, size, alignment);
			CHECK_SINCE(usable, 1);
			skynet_free(block);
			block = skynet_aligned_alloc(alignment, size);
			usable = checked_size(block, size, alignment);
			CHECK_SINCE(usable, 1);
			skynet_free(block);
			block = NULL;
			CHECK_EQUAL(skynet_posix_memalign(&block, alignment, size), 0);
			usable = checked_size(block, size, alignment);
			CHECK_SINCE(usable, 1);
			CHECK_EQUAL(malloc_current_memory(), anchored + usable);
			skynet_free(block);
			CHECK_SINCE(0, 0);
		}

		for (size_t j = 0; j < COUNT(SIZES); j++) {
			size_t to = SIZES[j], kept = size < to ? size : to;

			block = skynet_malloc(size);
			memset(block, (int)(i * j), size);
			block = skynet_realloc(block, to);
			CHECK(is_filled(block, (int)(i * j), kept));
			/* Also of no bytes. */
			usable = checked_size(block, to, natural(to));
			CHECK_SINCE(usable, 1);
			CHECK_EQUAL(malloc_current_memory(), anchored + usable);
			skynet_free(block);
			CHECK_SINCE(0, 0);
		}
	}
	copy = skynet_strdup("");
	CHECK_EQUAL(*copy, '\0');
	checked_size(copy, 1, 8);
	skynet_free(copy);
	copy = skynet_strdup("lua-cjson");
	CHECK(strcmp(copy, "lua-cjson") == 0);
	usable = checked_size(copy, 10, 8);
	CHECK_SINCE(usable, 1);
	skynet_free(copy);
	skynet_free(NULL);
	CHECK_SINCE(0, 0);

	/* All of a program's memory is its current service's. */
	block = dogtag_malloc(1234);
	CHECK_EQUAL(malloc_current_memory(), anchored + dogtag_usable_size(block));
	CHECK_SINCE(dogtag_usable_size(block), 1);
	skynet_free(block);
	block = skynet_malloc(1234);
	dogtag_free(block);
	CHECK_SINCE(0, 0);
#ifdef INTERPOSED
	void *(*volatile call_malloc)(size_t) = malloc;

	block = call_malloc(4321);
	CHECK_EQUAL(malloc_current_memory(), anchored + dogtag_usable_size(block));
	skynet_free(block);
	CHECK_SINCE(0, 0);
#endif
	skynet_free(anchor);
	CHECK_EQUAL(malloc_current_memory(), 0);
	current = NOBODY;
}

/* As Lua calls it, with the kind of object for the old size of a new one. */
static void lalloc(void)
{
	void *anchor;
	char *block;
	size_t anchored;

	current = ONE;
	anchor = skynet_malloc(10);
	anchored = dogtag_usable_size(anchor);
	begin();
	CHECK(skynet_lalloc(NULL, 0, 0) == NULL);
	for (size_t i = 1; i < COUNT(SIZES); i++) {
		for (size_t j = 1; j < COUNT(SIZES); j++) {
			size_t from = SIZES[i], to = SIZES[j];

			block = skynet_lalloc(NULL, j % 9, from);
			CHECK(block != NULL && is_aligned(block, natural(from)));
			memset(block, (int)i, from);
			CHECK_SINCE(0, 0);
			block = skynet_lalloc(block, from, to);
			CHECK(block != NULL && is_aligned(block, natural(to)));
			CHECK(is_filled(block, (int)i, from < to ? from : to));
			memset(block, (int)j, to);
			CHECK_SINCE(0, 0);
			CHECK_EQUAL(malloc_current_memory(), anchored);
			CHECK(skynet_lalloc(block, to, 0) == NULL);
			CHECK_SINCE(0, 0);
		}
	}
	/* Lua collects its garbage then, and tries again. */
	block = skynet_lalloc(NULL, 0, 100);
	memset(block, 'l', 100);
	CHECK(skynet_lalloc(NULL, 0, (size_t)1 << 62) == NULL);
	CHECK(skynet_lalloc(block, 100, (size_t)1 << 62) == NULL);
	CHECK(is_filled(block, 'l', 100));
	skynet_lalloc(block, 100, 0);
	CHECK_SINCE(0, 0);
	CHECK_EQUAL(malloc_current_memory(), anchored);
	skynet_free(anchor);
	CHECK_EQUAL(malloc_current_memory(), 0);
	current = NOBODY;
}

/* A thread runs one service after the other, and each has what it allocated. */
static void handles(void)
{
	static const uint32_t HANDLES[] = { ONE, OTHER, NOBODY };
	static void *blocks[3000];
	size_t first[COUNT(HANDLES)], sums[COUNT(HANDLES)] = { 0 }, all = 0;
	void *anchors[COUNT(HANDLES)], *block;

	for (size_t i = 0; i < COUNT(HANDLES); i++) {
		current = HANDLES[i];
		anchors[i] = skynet_malloc(1);
	}
	for (size_t i = 0; i < COUNT(HANDLES); i++)
		first[i] = held_by(HANDLES[i]);
	CHECK_EQUAL(first[0], dogtag_usable_size(anchors[0]));
	CHECK_EQUAL(first[1], dogtag_usable_size(anchors[1]));
	begin();
	for (size_t i = 0; i < COUNT(blocks); i++) {
		current = HANDLES[i % 3];
		blocks[i] = skynet_malloc(i * 3);
		sums[i % 3] += dogtag_usable_size(blocks[i]);
		all += dogtag_usable_size(blocks[i]);
		if (i % 100 == 0)
			CHECK_EQUAL(malloc_current_memory(), first[i % 3] + sums[i % 3]);
	}
	CHECK_SINCE(all, COUNT(blocks));
	for (size_t i = 0; i < COUNT(HANDLES); i++)
		CHECK_EQUAL(held_by(HANDLES[i]), first[i] + sums[i]);

	/* A free is refunded to the service that allocated. */
	for (size_t i = 0; i < COUNT(blocks); i += 2) {
		current = HANDLES[(i + 1) % 3];
		sums[i % 3] -= dogtag_usable_size(blocks[i]);
		all -= dogtag_usable_size(blocks[i]);
		skynet_free(blocks[i]);
	}
	CHECK_SINCE(all, COUNT(blocks) / 2);
	for (size_t i = 0; i < COUNT(HANDLES); i++)
		CHECK_EQUAL(held_by(HANDLES[i]), first[i] + sums[i]);

	/* A resized block is the current service's. */
	for (size_t i = 1; i < COUNT(blocks); i += 2) {
		size_t size = dogtag_usable_size(blocks[i]);

		current = HANDLES[(i + 1) % 3];
		sums[i % 3] -= size;
		all -= size;
		blocks[i] = skynet_realloc(blocks[i], i % 4 == 1 ? size : i * 5);
		size = dogtag_usable_size(blocks[i]);
		sums[(i + 1) % 3] += size;
		all += size;
	}
	CHECK_SINCE(all, COUNT(blocks) / 2);
	for (size_t i = 0; i < COUNT(HANDLES); i++)
		CHECK_EQUAL(held_by(HANDLES[i]), first[i] + sums[i]);
	for (size_t i = 1; i < COUNT(blocks); i += 2)
		skynet_free(blocks[i]);
	CHECK_SINCE(0, 0);

	/* dogtag knows them by skynet's names. */
	dogtag_service *service = dogtag_service_register_as(":0100000a", ONE, NULL);
	CHECK(service != NULL);
	dogtag_figures usage = dogtag_usage(service);
	CHECK_EQUAL(usage.allocated_bytes - usage.freed_bytes, first[0]);
	CHECK_EQUAL(usage.allocated_blocks - usage.freed_blocks, 1);
	dogtag_service_release(service);

	for (size_t i = 0; i < COUNT(HANDLES); i++)
		skynet_free(anchors[i]);
	CHECK_EQUAL(held_by(ONE), 0);
	CHECK_EQUAL(held_by(OTHER), 0);

	/* A handle comes again after it was gone. */
	for (int i = 0; i < 100; i++) {
		current = ONE;
		block = skynet_malloc(100);
		CHECK_EQUAL(malloc_current_memory(), dogtag_usable_size(block));
		current = OTHER;
		CHECK_EQUAL(malloc_current_memory(), 0);
		skynet_free(block);
		CHECK_EQUAL(held_by(ONE), 0);
	}
	current = NOBODY;
}

/* Every service's figures */

static void dumps(void)
{
	static struct lua_State lua;
	static const uint32_t HANDLES[] = { NOBODY, ONE, OTHER, 1, 0x7fffffff, 0x80000000 };
	void *blocks[COUNT(HANDLES)];
	size_t held[COUNT(HANDLES)], sum = 0, total;
	int end;

	for (size_t i = 0; i < COUNT(HANDLES); i++) {
		current = HANDLES[i];
		blocks[i] = skynet_malloc(12345 + i * 100000);
	}
	current = NOBODY;
	for (size_t i = 0; i < COUNT(HANDLES); i++)
		held[i] = held_by(HANDLES[i]);
	CHECK_EQUAL(held[1], dogtag_usable_size(blocks[1]));

	line_count = 0;
	dump_c_mem();
	CHECK(line_count >= 2 + COUNT(HANDLES));
	CHECK(strcmp(lines[0], "dump all service mem:") == 0);
	for (size_t i = 1; i < line_count - 1; i++) {
		unsigned handle;
		size_t kilobytes, bytes;

		check_note = lines[i];
		end = 0;
		CHECK_EQUAL(sscanf(lines[i], ":%8x -> %zukb %zub%n", &handle, &kilobytes, &bytes, &end), 3);
		CHECK(end > 0 && lines[i][end] == '\0');
		CHECK_EQUAL(kilobytes, bytes >> 10);
		CHECK(handle != 0);
		sum += bytes;
	}
	check_note = lines[line_count - 1];
	end = 0;
	CHECK_EQUAL(sscanf(lines[line_count - 1], "+total: %zukb%n", &total, &end), 1);
	CHECK(end > 0 && lines[line_count - 1][end] == '\0');
	CHECK_EQUAL(total, sum >> 10);
	check_note = "";
	CHECK_EQUAL(malloc_used_memory(), sum);
	for (size_t i = 0; i < COUNT(HANDLES); i++) {
		char expected[100];
		int found = 0;

		snprintf(expected, sizeof(expected), ":%08x -> %zukb %zub", HANDLES[i], held[i] >> 10, held[i]);
		for (size_t j = 1; j < line_count - 1; j++)
			found += strcmp(lines[j], expected) == 0;
		check_note = expected;
		CHECK_EQUAL(found, 1);
		check_note = "";
	}

	CHECK_EQUAL(dump_mem_lua(&lua), 1);
	/* The table alone is left. */
	CHECK_EQUAL(lua.height, 1);
	for (size_t i = 0; i < COUNT(HANDLES); i++) {
		int found = 0;

		for (size_t j = 0; j < lua.count; j++) {
			if (lua.table[j].key != (long long)HANDLES[i])
				continue;
			found++;
			CHECK_EQUAL(lua.table[j].value, held[i]);
		}
		CHECK_EQUAL(found, 1);
	}
	for (size_t j = 0; j < lua.count; j++)
		CHECK(lua.table[j].key != 0);
	for (size_t i = 0; i < COUNT(HANDLES); i++)
		skynet_free(blocks[i]);
	CHECK_EQUAL(held_by(ONE), 0);
}

/* Between two services a thread has handle 0, which is no service's and in no sum. */
static void handle_0(void)
{
	void *blocks[100];
	size_t held = held_by(0), sum = 0;

	begin();
	current = 0;
	for (size_t i = 0; i < COUNT(blocks); i++) {
		blocks[i] = skynet_malloc(i * 1000);
		sum += dogtag_usable_size(blocks[i]);
	}
	CHECK_EQUAL(malloc_current_memory(), held + sum);
	CHECK_SINCE(0, 0);

	/* A resized block is the current service's. */
	sum -= dogtag_usable_size(blocks[0]);
	current = ONE;
	blocks[0] = skynet_realloc(blocks[0], 500);
	CHECK_EQUAL(malloc_current_memory(), dogtag_usable_size(blocks[0]));
	CHECK_SINCE(dogtag_usable_size(blocks[0]), 1);
	skynet_free(blocks[0]);
	CHECK_SINCE(0, 0);
	/* What it took to make the service is counted with handle 0. */
	held = held_by(0) - sum;
	for (size_t i = 1; i < COUNT(blocks); i++)
		skynet_free(blocks[i]);
	CHECK_EQUAL(held_by(0), held);
	CHECK_SINCE(0, 0);
	current = NOBODY;
}

/* jemalloc's settings */

static void settings(void)
{
	size_t wide = 1, epoch;
	int number;
	bool flag;

	epoch = mallctl_int64("epoch", NULL);
	CHECK_EQUAL(mallctl_int64("epoch", &wide), epoch + 1);
	CHECK_EQUAL(mallctl_int64("epoch", NULL), epoch + 1);
	CHECK(mallctl_int64("arenas.page", NULL) >= 4096);
	CHECK_EQUAL(mallctl_int64("arenas.quantum", NULL), 16);
	/* Of 32 bits. */
	mallctl_int64("opt.narenas", NULL);
	mallctl_int64("no.such.setting", NULL);
	mallctl_int64("no.such.setting", &wide);

	CHECK(!mallctl_bool("opt.abort", NULL));
	CHECK(mallctl_bool("thread.tcache.enabled", NULL));
	flag = false;
	CHECK(mallctl_bool("thread.tcache.enabled", &flag));
	CHECK(!mallctl_bool("thread.tcache.enabled", NULL));
	flag = true;
	CHECK(!mallctl_bool("thread.tcache.enabled", &flag));
	CHECK(mallctl_bool("thread.tcache.enabled", NULL));
	CHECK(!mallctl_bool("no.such.setting", NULL));

	line_count = 0;
	CHECK(mallctl_opt("opt.narenas", NULL) > 0);
	CHECK_EQUAL(line_count, 0);
	number = mallctl_opt("thread.arena", NULL);
	CHECK(number >= 0);
	CHECK_EQUAL(mallctl_opt("thread.arena", &number), number);
	CHECK_EQUAL(line_count, 1);
	CHECK(strstr(lines[0], "thread.arena") && strstr(lines[0], "succeed"));
	CHECK(!strstr(lines[0], "failed"));
	/* One that cannot be written. */
	mallctl_opt("opt.narenas", &number);
	CHECK_EQUAL(line_count, 2);
	CHECK(strstr(lines[1], "opt.narenas") && strstr(lines[1], "failed"));

	CHECK_EQUAL(mallctl_cmd("no.such.command"), ENOENT);
	CHECK_EQUAL(mallctl_cmd("thread.tcache.flush"), 0);
}

/* Standard error */

static char told[1 << 18];

static void listen_to(void (*talk)(void))
{
	int file = memfd_create("stderr", 0), stderr_before = dup(STDERR_FILENO);
	ssize_t length;

	CHECK(file >= 0 && stderr_before >= 0);
	fflush(stderr);
	CHECK_EQUAL(dup2(file, STDERR_FILENO), STDERR_FILENO);
	talk();
	fflush(stderr);
	CHECK_EQUAL(dup2(stderr_before, STDERR_FILENO), STDERR_FILENO);
	close(stderr_before);
	length = pread(file, told, sizeof(told) - 1, 0);
	CHECK(length >= 0);
	told[length] = '\0';
	close(file);
}

static void report(void)
{
	memory_info_dump("mga");
}

static void debug(void)
{
	skynet_debug_memory("after the match");
}

static void standard_error(void)
{
	char expected[100];
	void *block;

	listen_to(report);
	CHECK(strstr(told, "jemalloc statistics") != NULL);
	current = ONE;
	block = skynet_malloc(12345);
	snprintf(expected, sizeof(expected), "[:0100000a] after the match 0x%zx\n", dogtag_usable_size(block));
	listen_to(debug);
	check_note = told;
	CHECK(strcmp(told, expected) == 0);
	check_note = "";
	skynet_free(block);
	current = NOBODY;
}

/* Threads, each running a hundred services in turn */

enum { THREADS = 4, HANDLES = 100, ALLOCATIONS = 1000000 / THREADS, KEPT = 1000 };

#define FIRST_OF_MANY 0x02000000u

struct runner {
	pthread_t thread;
	uint32_t random;
	struct {
		void *address;
		size_t size;
		int handle;
	} blocks[KEPT];
	size_t live[HANDLES];
};

static struct runner runners[THREADS];

static void *run(void *argument)
{
	struct runner *self = argument;

	for (int i = 0; i < ALLOCATIONS; i++) {
		int place, handle = i / 10 % HANDLES;
		size_t size;
		void *address;

		self->random = self->random * 1664525 + 1013904223;
		place = (self->random >> 8) % KEPT;
		size = (self->random >> 16) % (i % 100 == 0 ? 20000 : 300);
		current = FIRST_OF_MANY + (uint32_t)handle;
		address = self->blocks[place].address;
		if (address && i % 5 == 0) {
			self->live[self->blocks[place].handle] -= self->blocks[place].size;
			address = skynet_realloc(address, size);
		} else {
			if (address)
				self->live[self->blocks[place].handle] -= self->blocks[place].size;
			skynet_free(address);
			address = skynet_malloc(size);
		}
		self->blocks[place].address = address;
		self->blocks[place].size = dogtag_usable_size(address);
		self->blocks[place].handle = handle;
		self->live[handle] += self->blocks[place].size;
	}
	current = NOBODY;
	return NULL;
}

static void *clean_up(void *argument)
{
	struct runner *other = argument;

	current = OTHER;
	for (int i = 0; i < KEPT; i++)
		skynet_free(other->blocks[i].address);
	return NULL;
}

static void in_threads(void *(*work)(void *))
{
	for (int i = 0; i < THREADS; i++)
		CHECK_EQUAL(pthread_create(&runners[i].thread, NULL, work, &runners[i]), 0);
	for (int i = 0; i < THREADS; i++)
		CHECK_EQUAL(pthread_join(runners[i].thread, NULL), 0);
}

static void threads(void)
{
	size_t all = 0;

	for (int i = 0; i < THREADS; i++)
		runners[i].random = (uint32_t)i * 7919;
	in_threads(run);
	for (int handle = 0; handle < HANDLES; handle++) {
		size_t sum = 0;

		for (int i = 0; i < THREADS; i++)
			sum += runners[i].live[handle];
		CHECK_EQUAL(held_by(FIRST_OF_MANY + (uint32_t)handle), sum);
		all += sum;
	}
	CHECK(all > 0 && all <= malloc_used_memory());
	in_threads(clean_up);
	for (int handle = 0; handle < HANDLES; handle++)
		CHECK_EQUAL(held_by(FIRST_OF_MANY + (uint32_t)handle), 0);
	CHECK_EQUAL(held_by(OTHER), 0);
}

/* Services that come and go */

static size_t resident(void)
{
	char text[200];
	int file = open("/proc/self/statm", O_RDONLY);
	ssize_t length = read(file, text, sizeof(text) - 1);
	char *second;

	CHECK(file >= 0 && length > 0);
	close(file);
	text[length] = '\0';
	strtoul(text, &second, 10);
	return strtoul(second, NULL, 10) * (size_t)sysconf(_SC_PAGESIZE);
}

static void short_life(uint32_t handle)
{
	void *blocks[5];
	size_t sum = 0;

	current = handle;
	for (size_t i = 0; i < COUNT(blocks); i++) {
		blocks[i] = skynet_malloc(i == 4 ? 5000 : i * 100);
		sum += dogtag_usable_size(blocks[i]);
	}
	CHECK_EQUAL(malloc_current_memory(), sum);
	for (size_t i = 0; i < COUNT(blocks); i++)
		skynet_free(blocks[i]);
	CHECK_EQUAL(malloc_current_memory(), 0);
	current = NOBODY;
}

static void short_lives(void)
{
	/* A quarantine holds freed blocks back, 16 MiB of them. */
#ifdef CHECKED
	const size_t allowed = 144 * MIB;
#else
	const size_t allowed = 64 * MIB;
#endif
	uint32_t handle = 0x03000000;
	size_t before, after, own;

	for (int i = 0; i < 1000; i++)
		short_life(handle++);
	before = resident();
	own = held_by(0);
	for (int i = 0; i < 200000; i++)
		short_life(handle++);
	after = resident();
	CHECK(after <= before || after - before <= allowed);
	/* Names and tables are of the last thousand, not of all that there were. */
	CHECK(held_by(0) <= own + MIB / 4);
	/* The table does not show all of them. */
	line_count = 0;
	dump_c_mem();
	CHECK(line_count < 1000);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "oom") == 0) {
		skynet_malloc((size_t)1 << 62);
		fprintf(stderr, "there was that much memory\n");
		return 1;
	}
	functions();
	lalloc();
	handles();
	dumps();
	handle_0();
	settings();
	standard_error();
	threads();
	short_lives();
	CHECK_EQUAL(dogtag_verify(), 0);
	puts("ok");
	return 0;
}
