/*
 * Threads with names, each of which keeps some memory: 100 KiB by one that names itself
 * before it allocates, 200 KiB by one that is named by its parent after it has allocated,
 * 300 KiB by one that names itself another time in between, and 50 KiB by the first, whose
 * name is the program's. Prints its own number.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* A size class, so that a block is as large as it was asked for. */
#define BLOCK_KIB 10

static void keep(int kib)
{
	for (int kept = 0; kept < kib; kept += BLOCK_KIB) {
		if (malloc(BLOCK_KIB * 1024) == NULL)
			abort();
	}
}

static void allocate_a_little(void)
{
	/* The compiler must not see that the block is unused. */
	void *volatile block = malloc(100);

	free(block);
}

static sem_t allocated, named;

static void *named_by_itself(void *unused)
{
	pthread_setname_np(pthread_self(), "named-by-itself");
	keep(100);
	return unused;
}

static void *named_by_other(void *unused)
{
	allocate_a_little();
	sem_post(&allocated);
	sem_wait(&named);
	keep(200);
	return unused;
}

static void *renamed(void *unused)
{
	pthread_setname_np(pthread_self(), "first-name");
	allocate_a_little();
	pthread_setname_np(pthread_self(), "renamed-later");
	keep(300);
	return unused;
}

int main(void)
{
	pthread_t threads[3];

	keep(50);
	sem_init(&allocated, 0, 0);
	sem_init(&named, 0, 0);
	pthread_create(&threads[0], NULL, named_by_itself, NULL);
	pthread_create(&threads[1], NULL, named_by_other, NULL);
	sem_wait(&allocated);
	pthread_setname_np(threads[1], "named-by-other");
	sem_post(&named);
	pthread_create(&threads[2], NULL, renamed, NULL);
	for (int thread = 0; thread < 3; thread++)
		pthread_join(threads[thread], NULL);
	printf("%d\n", getpid());
	return 0;
}
