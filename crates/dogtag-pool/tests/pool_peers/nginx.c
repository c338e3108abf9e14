/* Carries out scripts on nginx's pools. */
#include <ngx_config.h>
#include <ngx_core.h>
#include "driver.h"

static struct {
	ngx_pool_t *pool;
	ngx_pool_t *current;
} pools[POOLS];

static struct {
	int pool;
	ngx_pool_cleanup_t *cleanup;
	char then[100];
} cleanups[CLEANUPS];

static char is_aligned[BLOCKS];
static long long mark;

void ngx_cdecl ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, ngx_err_t error, const char *format, ...)
{
	printf("nginx says: %s\n", format);
}

static void ran(void *data);

static void register_cleanup(int pool, int id, const char *then)
{
	PEER(cleanups[id].cleanup = ngx_pool_cleanup_add(pools[pool].pool, 0));
	cleanups[id].cleanup->handler = ran;
	cleanups[id].cleanup->data = (void *)(intptr_t)id;
	cleanups[id].pool = pool;
	strcpy(cleanups[id].then, then);
}

static void ran(void *data)
{
	int id = (int)(intptr_t)data, argument;
	void *memory;

	printf("ran %d\n", id);
	cleanups[id].cleanup = NULL;
	argument = atoi(cleanups[id].then + (cleanups[id].then[0] != '\0'));
	if (cleanups[id].then[0] == 'r') {
		register_cleanup(cleanups[id].pool, argument, "");
	} else if (cleanups[id].then[0] == 'a') {
		PEER(memory = ngx_palloc(pools[cleanups[id].pool].pool, (size_t)argument));
		memset(memory, 0xee, (size_t)argument);
	}
}

static int count_large(ngx_pool_t *pool)
{
	int count = 0;

	for (ngx_pool_large_t *large = pool->large; large; large = large->next) {
		int is_counted = large->alloc != NULL;

		for (int i = 0; i < BLOCKS; i++)
			if (is_aligned[i] && blocks[i].memory && blocks[i].memory == large->alloc)
				is_counted = 0;
		count += is_counted;
	}
	return count;
}

static void check_blocks(int pool, int are_forgotten)
{
	for (int i = 0; i < BLOCKS; i++) {
		if (!blocks[i].memory || blocks[i].pool != pool)
			continue;
		check_block(i);
		if (are_forgotten)
			blocks[i].memory = NULL;
	}
}

static void step(void)
{
	int pool = (int)number(1), id = (int)number(2);
	const char *name = words[0];
	size_t size = (size_t)number(3);
	void *memory;

	if (strcmp(name, "mark") == 0) {
		mark = held;
		return;
	}
	if (strcmp(name, "asked") == 0) {
		printf("asked for %s\n", held > mark ? "more" : "nothing");
		return;
	}
	if (strcmp(name, "distance") == 0) {
		print_distance(pool, id);
		return;
	}
	if (strcmp(name, "root") == 0) {
		PEER(pools[pool].pool = ngx_create_pool((size_t)id, NULL));
		pools[pool].current = pools[pool].pool->current;
		return;
	}
	if (!pools[pool].pool)
		return;
	if (strcmp(name, "alloc") == 0) {
		PEER(memory = ngx_palloc(pools[pool].pool, size));
		check_alignment(memory, 8);
		add_block(id, pool, memory, size);
		is_aligned[id] = 0;
	} else if (strcmp(name, "unaligned") == 0) {
		PEER(memory = ngx_pnalloc(pools[pool].pool, size));
		add_block(id, pool, memory, size);
		is_aligned[id] = 0;
	} else if (strcmp(name, "zeroed") == 0) {
		PEER(memory = ngx_pcalloc(pools[pool].pool, size));
		check_alignment(memory, 8);
		if (!is_filled(memory, 0, size))
			printf("not zeroed\n");
		add_block(id, pool, memory, size);
		is_aligned[id] = 0;
	} else if (strcmp(name, "aligned") == 0) {
		PEER(memory = ngx_pmemalign(pools[pool].pool, size, (size_t)number(4)));
		check_alignment(memory, (size_t)number(4));
		add_block(id, pool, memory, size);
		is_aligned[id] = 1;
	} else if (strcmp(name, "free") == 0) {
		ngx_int_t result;

		if (!blocks[id].memory || blocks[id].pool != pool)
			return;
		check_block(id);
		PEER(result = ngx_pfree(pools[pool].pool, blocks[id].memory));
		blocks[id].memory = NULL;
		printf(is_aligned[id] ? "# %s\n" : "%s\n", result == NGX_OK ? "freed" : "declined");
	} else if (strcmp(name, "cleanup") == 0) {
		register_cleanup(pool, id, word_count > 3 ? words[3] : "");
	} else if (strcmp(name, "cancel") == 0) {
		if (!cleanups[id].cleanup || cleanups[id].pool != pool)
			return;
		cleanups[id].cleanup->handler = NULL;
		cleanups[id].cleanup = NULL;
	} else if (strcmp(name, "large") == 0) {
		printf("large: %d\n", count_large(pools[pool].pool));
	} else if (strcmp(name, "blocks") == 0) {
		int count = 0;

		for (ngx_pool_t *block = pools[pool].pool; block; block = block->d.next)
			count++;
		printf("blocks: %d\n", count);
	} else if (strcmp(name, "current") == 0) {
		printf("current %s\n", pools[pool].pool->current == pools[pool].current ? "stays" : "moves");
		pools[pool].current = pools[pool].pool->current;
	} else if (strcmp(name, "reset") == 0) {
		check_blocks(pool, 1);
		PEER(ngx_reset_pool(pools[pool].pool));
	} else if (strcmp(name, "destroy") == 0) {
		check_blocks(pool, 1);
		PEER(ngx_destroy_pool(pools[pool].pool));
		pools[pool].pool = NULL;
	} else if (strcmp(name, "abandon") == 0) {
		/* Its cleanups point to memory that is used again, and must not be gone through. */
		check_blocks(pool, 1);
		pools[pool].pool->cleanup = NULL;
		PEER(ngx_destroy_pool(pools[pool].pool));
		pools[pool].pool = NULL;
	}
}

static void end(void)
{
	if (held != 0)
		printf("%lld bytes are left\n", held);
	held = 0;
	memset(pools, 0, sizeof(pools));
	memset(cleanups, 0, sizeof(cleanups));
}

__attribute__((constructor)) static void begin(void)
{
	ngx_pagesize = (ngx_uint_t)sysconf(_SC_PAGESIZE);
}
