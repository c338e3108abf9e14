/*
 * `forks THREADS SECONDS`: so many threads fork and wait all the time while as many others
 * allocate, for so many seconds of the processor's time. Prints how much of it a fork took, in
 * microseconds.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int is_over;
static atomic_long forks;

static void *fork_and_wait(void *unused)
{
	while (!is_over) {
		pid_t child = fork();

		if (child == 0)
			_exit(0);
		if (child < 0 || waitpid(child, NULL, 0) != child)
			exit(1);
		forks++;
	}
	return unused;
}

static void *allocate(void *unused)
{
	while (!is_over) {
		char *text = NULL;
		size_t size;
		FILE *stream = open_memstream(&text, &size);

		if (!stream)
			exit(1);
		fclose(stream);
		free(text);
	}
	return unused;
}

static double seconds(int who)
{
	struct rusage usage;

	getrusage(who, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 4;
	double limit = argc > 2 ? atof(argv[2]) : 3, taken;
	pthread_t forkers[64], allocators[64];

	if (threads < 1 || threads > 64)
		return 2;
	for (int i = 0; i < threads; i++) {
		pthread_create(&forkers[i], NULL, fork_and_wait, NULL);
		pthread_create(&allocators[i], NULL, allocate, NULL);
	}
	do {
		usleep(10000);
		taken = seconds(RUSAGE_SELF) + seconds(RUSAGE_CHILDREN);
	} while (taken < limit);
	is_over = 1;
	for (int i = 0; i < threads; i++) {
		pthread_join(forkers[i], NULL);
		pthread_join(allocators[i], NULL);
	}
	printf("%.1f\n", taken * 1e6 / (double)forks);
	return 0;
}
