/* Carries out scripts on APR's pools. */
#include "driver.h"

#include <apr_general.h>
#include <apr_pools.h>
#include <apr_strings.h>

static struct {
	apr_pool_t *pool;
	int parent;
} pools[POOLS];

static struct {
	int pool;
	int is_registered;
	char then[100];
} cleanups[CLEANUPS];

static long long mark;

static apr_status_t ran(void *data);

static int is_in(int pool, int ancestor)
{
	for (; pool >= 0; pool = pools[pool].parent)
		if (pool == ancestor)
			return 1;
	return 0;
}

/* Of a pool and those below it. */
static void check_blocks(int pool)
{
	for (int i = 0; i < BLOCKS; i++)
		if (blocks[i].memory && is_in(blocks[i].pool, pool))
			check_block(i);
}

static void forget_blocks(int pool)
{
	for (int i = 0; i < BLOCKS; i++)
		if (blocks[i].memory && is_in(blocks[i].pool, pool))
			blocks[i].memory = NULL;
}

static void clear(int pool, int is_destroyed)
{
	long long before = held;

	if (!pools[pool].pool)
		return;
	check_blocks(pool);
	if (is_destroyed)
		PEER(apr_pool_destroy(pools[pool].pool));
	else
		PEER(apr_pool_clear(pools[pool].pool));
	forget_blocks(pool);
	for (int i = 0; i < POOLS; i++)
		if (pools[i].pool && i != pool && is_in(i, pool))
			pools[i].pool = NULL;
	if (is_destroyed)
		pools[pool].pool = NULL;
	printf("system has %s\n", held < before ? "more" : "as much");
}

static void register_cleanup(int pool, int id, int is_pre, const char *then)
{
	cleanups[id].pool = pool;
	cleanups[id].is_registered = 1;
	strcpy(cleanups[id].then, then);
	if (is_pre)
		PEER(apr_pool_pre_cleanup_register(pools[pool].pool, (void *)(intptr_t)id, ran));
	else
		PEER(apr_pool_cleanup_register(pools[pool].pool, (void *)(intptr_t)id, ran,
					       apr_pool_cleanup_null));
}

static void get(int pool, const char *key)
{
	void *data;

	apr_pool_userdata_get(&data, key, pools[pool].pool);
	printf("%s is %ld\n", key, (long)(intptr_t)data);
}

static apr_status_t ran(void *data)
{
	int id = (int)(intptr_t)data, pool = cleanups[id].pool;
	char then[100], *rest = then;

	printf("ran %d\n", id);
	cleanups[id].is_registered = 0;
	strcpy(then, cleanups[id].then);
	for (char *word; (word = strsep(&rest, ",")) != NULL;) {
		int argument = word[0] ? atoi(word + 1) : 0;
		void *memory;

		switch (word[0]) {
		case 'r':
			register_cleanup(pool, argument, 0, "");
			break;
		case 'p':
			register_cleanup(pool, argument, 1, "");
			break;
		case 'k':
			if (cleanups[argument].is_registered && cleanups[argument].pool == pool) {
				apr_pool_cleanup_kill(pools[pool].pool, (void *)(intptr_t)argument, ran);
				cleanups[argument].is_registered = 0;
				printf("killed %d\n", argument);
			}
			break;
		case 'a':
			PEER(memory = apr_palloc(pools[pool].pool, (size_t)argument));
			memset(memory, 0xee, (size_t)argument);
			break;
		case 'x':
			clear(argument, 1);
			break;
		case 'g':
			get(pool, word + 1);
			break;
		}
	}
	return APR_SUCCESS;
}

static void step(void)
{
	int pool = (int)number(1);
	const char *name = words[0];
	void *memory = NULL;

	if (strcmp(name, "root") == 0) {
		apr_allocator_t *allocator;

		PEER(apr_allocator_create(&allocator));
		/* Otherwise it is a word about ours. */
		if (word_count > 2 && words[2][0] >= '0' && words[2][0] <= '9')
			apr_allocator_max_free_set(allocator, (apr_size_t)number(2));
		PEER(apr_pool_create_ex(&pools[pool].pool, NULL, NULL, allocator));
		apr_allocator_owner_set(allocator, pools[pool].pool);
		pools[pool].parent = -1;
		return;
	}
	if (strcmp(name, "mark") == 0) {
		mark = held;
		return;
	}
	if (strcmp(name, "asked") == 0) {
		printf("asked for %s\n", held > mark ? "more" : "nothing");
		return;
	}
	if (strcmp(name, "distance") == 0) {
		print_distance((int)number(1), (int)number(2));
		return;
	}
	if (strcmp(name, "held") == 0) {
		printf("# %lld\n", held);
		return;
	}
	if (!pools[pool].pool && strcmp(name, "own") != 0 && strcmp(name, "lasting") != 0)
		return;
	if (strcmp(name, "own") == 0 || strcmp(name, "lasting") == 0) {
		int parent = (int)number(2);

		if (!pools[parent].pool)
			return;
		PEER(apr_pool_create(&pools[pool].pool, pools[parent].pool));
		pools[pool].parent = parent;
	} else if (strcmp(name, "alloc") == 0) {
		PEER(memory = apr_palloc(pools[pool].pool, (size_t)number(3)));
		check_alignment(memory, 8);
		add_block((int)number(2), pool, memory, (size_t)number(3));
	} else if (strcmp(name, "zeroed") == 0) {
		PEER(memory = apr_pcalloc(pools[pool].pool, (size_t)number(3)));
		check_alignment(memory, 8);
		if (!is_filled(memory, 0, (size_t)number(3)))
			printf("not zeroed\n");
		add_block((int)number(2), pool, memory, (size_t)number(3));
	} else if (strcmp(name, "text") == 0) {
		PEER(memory = apr_pstrdup(pools[pool].pool, words[3]));
		printf("%s\n", (char *)memory);
		add_block((int)number(2), pool, memory, strlen(memory));
	} else if (strcmp(name, "format") == 0) {
		PEER(memory = apr_psprintf(pools[pool].pool, "%ld|%s", number(3), words[4]));
		printf("%s\n", (char *)memory);
		add_block((int)number(2), pool, memory, strlen(memory));
	} else if (strcmp(name, "cleanup") == 0) {
		register_cleanup(pool, (int)number(2), 0, word_count > 3 ? words[3] : "");
	} else if (strcmp(name, "pre") == 0) {
		register_cleanup(pool, (int)number(2), 1, word_count > 3 ? words[3] : "");
	} else if (strcmp(name, "cancel") == 0 || strcmp(name, "run") == 0) {
		int id = (int)number(2);

		if (!cleanups[id].is_registered || cleanups[id].pool != pool)
			return;
		cleanups[id].is_registered = 0;
		if (strcmp(name, "run") == 0)
			PEER(apr_pool_cleanup_run(pools[pool].pool, (void *)(intptr_t)id, ran));
		else
			apr_pool_cleanup_kill(pools[pool].pool, (void *)(intptr_t)id, ran);
	} else if (strcmp(name, "call") == 0) {
		/* Of one that is not registered. */
		PEER(apr_pool_cleanup_run(pools[pool].pool, (void *)(intptr_t)number(2), ran));
	} else if (strcmp(name, "set") == 0) {
		PEER(apr_pool_userdata_set((void *)number(3), words[2], NULL, pools[pool].pool));
	} else if (strcmp(name, "get") == 0) {
		get(pool, words[2]);
	} else if (strcmp(name, "above") == 0) {
		int other = (int)number(2);

		if (pools[other].pool)
			printf("above: %d\n", apr_pool_is_ancestor(pools[pool].pool, pools[other].pool) != 0);
	} else if (strcmp(name, "clear") == 0) {
		clear(pool, 0);
		for (int i = 0; i < CLEANUPS; i++)
			if (cleanups[i].pool == pool)
				cleanups[i].is_registered = 0;
	} else if (strcmp(name, "destroy") == 0) {
		clear(pool, 1);
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

/* The library's own pool is no script's. */
__attribute__((constructor)) static void begin(void)
{
	apr_initialize();
}
