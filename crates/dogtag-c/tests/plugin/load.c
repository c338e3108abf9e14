/*
 * Opens and closes plug-ins in all ways; prints "ok" if nothing was wrong.
 *
 *     load MODE LIBRARY...
 *
 * What has dogtag in it is the library itself, unless STAYS in the environment says which it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition) \
	((condition) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), exit(1)))

enum { THREADS = 50, SIZE = 100000 };

struct plugin {
	const char *path;
	void *library;
	uint64_t (*work)(size_t);
	uint64_t (*live)(void);
	uint64_t (*calls)(void);
};

static void *symbol(void *library, const char *name)
{
	void *found = dlsym(library, name);

	if (!found) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return found;
}

static struct plugin found(const char *path, void *library)
{
	struct plugin plugin = {.path = path, .library = library};

	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	*(void **)&plugin.work = symbol(plugin.library, "work");
	*(void **)&plugin.live = symbol(plugin.library, "live");
	*(void **)&plugin.calls = symbol(plugin.library, "calls");
	return plugin;
}

static struct plugin open_with(const char *path, int flags)
{
	return found(path, dlopen(path, flags));
}

static struct plugin open_plugin(const char *path)
{
	return open_with(path, RTLD_NOW | RTLD_LOCAL);
}

static void close_plugin(struct plugin plugin)
{
	CHECK(dlclose(plugin.library) == 0);
}

/* Who is closed as often as opened is still there. */
static void expect_loaded(const char *path)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);

	CHECK(library);
	dlclose(library);
}

static void *use(void *path)
{
	struct plugin plugin = open_plugin(path);

	CHECK(plugin.work(SIZE) >= SIZE);
	close_plugin(plugin);
	return NULL;
}

static void *use_and_keep(void *path)
{
	struct plugin plugin = open_plugin(path);
	void (*keep)(void);

	*(void **)&keep = symbol(plugin.library, "keep");
	keep();
	CHECK(plugin.live() >= 100);
	close_plugin(plugin);
	return NULL;
}

static void in_a_thread(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	CHECK(pthread_create(&thread, NULL, run, argument) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
}

/* Threads that use plug-ins while all are there, and end when these are closed. */
static pthread_barrier_t all_have_worked, all_are_closed;
static struct plugin plugins[64];
static int count;

static void *outlive(void *unused)
{
	for (int i = 0; i < count; i++)
		CHECK(plugins[i].work(SIZE) >= SIZE);
	pthread_barrier_wait(&all_have_worked);
	pthread_barrier_wait(&all_are_closed);
	return unused;
}

static void fifty_threads(char **paths)
{
	pthread_t threads[THREADS];

	for (count = 0; paths[count]; count++)
		plugins[count] = open_plugin(paths[count]);
	pthread_barrier_init(&all_have_worked, NULL, THREADS + 1);
	pthread_barrier_init(&all_are_closed, NULL, THREADS + 1);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, outlive, NULL) == 0);
	pthread_barrier_wait(&all_have_worked);
	for (int i = 0; i < count; i++)
		close_plugin(plugins[i]);
	pthread_barrier_wait(&all_are_closed);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	/* Nothing is left of what the threads had but this one's. */
	for (int i = 0; i < count; i++) {
		struct plugin again = open_plugin(paths[i]);
		uint64_t before = again.live();
		CHECK(before == 0 && again.work(SIZE) >= SIZE);
		close_plugin(again);
	}
}

/* Plug-ins that are the same file are one, and others have nothing in common. */
static void several(char **paths)
{
	for (count = 0; paths[count]; count++) {
		plugins[count] = open_plugin(paths[count]);
		CHECK(plugins[count].calls() == 1);
		CHECK(plugins[count].live() == 0);
		uint64_t bytes = plugins[count].work(SIZE);
		CHECK(bytes >= SIZE && bytes < 2 * SIZE);
	}
	for (int i = count; i-- > 0;) {
		close_plugin(plugins[i]);
		struct plugin again = open_plugin(paths[i]);
		CHECK(again.calls() == 2);
		close_plugin(again);
	}
}

static void same(char **paths)
{
	struct plugin one = open_plugin(paths[0]), other = open_plugin(paths[1]);

	CHECK(one.calls() == 1 && other.calls() == 2);
	close_plugin(one);
	CHECK(other.work(SIZE) >= SIZE);
	close_plugin(other);
	in_a_thread(use, paths[1]);
	in_a_thread(use, paths[0]);
}

/* Each thread of its own opens, uses, closes and ends. */
static void together(char *path)
{
	pthread_t threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, use, path) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

/* What threads of the plug-in's own call: they wait here until it is closed. */
static sem_t is_here, may_go, has_ended;

static void wait_here(void)
{
	sem_post(&is_here);
	sem_wait(&may_go);
}

static void end(void)
{
	sem_post(&has_ended);
}

/* Dogtag's own thread, which begins with the first of these and comes back for the others. */
static void teller(char *path)
{
	for (int i = 0; i < 3; i++) {
		struct plugin plugin = open_plugin(path);
		void (*announce)(void (*)(void));

		*(void **)&announce = symbol(plugin.library, "announce");
		announce(wait_here);
		sem_wait(&is_here);
		close_plugin(plugin);
		sem_post(&may_go);
	}
}

static void thread_of_its_own(char *path)
{
	for (int i = 0; i < 3; i++) {
		struct plugin plugin = open_plugin(path);
		void (*begin)(void (*)(void), void (*)(void));

		*(void **)&begin = symbol(plugin.library, "begin");
		begin(wait_here, end);
		sem_wait(&is_here);
		close_plugin(plugin);
		sem_post(&may_go);
		sem_wait(&has_ended);
	}
}

static void forks(char *path)
{
	use(path);
	for (int i = 0; i < 20; i++) {
		pid_t child = fork();
		int status;

		CHECK(child >= 0);
		if (child == 0) {
			use(path);
			in_a_thread(use, path);
			_exit(0);
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
}

int main(int argc, char **argv)
{
	CHECK(argc > 2);
	char *mode = argv[1], **paths = argv + 2;

	if (!strcmp(mode, "main")) {
		for (int i = 0; i < 3; i++)
			use(*paths);
	} else if (!strcmp(mode, "thread")) {
		for (int i = 0; i < 3; i++)
			in_a_thread(use, *paths);
	} else if (!strcmp(mode, "keep")) {
		for (int i = 0; i < 3; i++)
			in_a_thread(use_and_keep, *paths);
		struct plugin plugin = open_plugin(*paths);
		CHECK(plugin.live() == 0);
		close_plugin(plugin);
	} else if (!strcmp(mode, "flags")) {
		int flags[] = {RTLD_LAZY, RTLD_NOW | RTLD_GLOBAL, RTLD_LAZY | RTLD_DEEPBIND};
		CHECK(paths[0] && paths[1] && paths[2]);
		for (int i = 0; i < 3; i++) {
			struct plugin plugin = open_with(paths[i], flags[i]);
			CHECK(plugin.work(SIZE) >= SIZE);
			close_plugin(plugin);
		}
	} else if (!strcmp(mode, "namespace")) {
		struct plugin plugin = found(*paths, dlmopen(LM_ID_NEWLM, *paths, RTLD_NOW));
		Lmid_t space;
		CHECK(dlinfo(plugin.library, RTLD_DI_LMID, &space) == 0 && space != LM_ID_BASE);
		CHECK(plugin.work(SIZE) >= SIZE);
		close_plugin(plugin);
		/* There, and not here. */
		CHECK(dlmopen(space, *paths, RTLD_NOW | RTLD_NOLOAD));
		CHECK(!dlopen(*paths, RTLD_NOW | RTLD_NOLOAD));
		paths++;
	} else if (!strcmp(mode, "fifty")) {
		fifty_threads(paths);
	} else if (!strcmp(mode, "several")) {
		several(paths);
	} else if (!strcmp(mode, "same")) {
		same(paths);
	} else if (!strcmp(mode, "together")) {
		together(*paths);
	} else if (!strcmp(mode, "own")) {
		thread_of_its_own(*paths);
	} else if (!strcmp(mode, "teller")) {
		teller(*paths);
	} else if (!strcmp(mode, "forks")) {
		forks(*paths);
	} else {
		CHECK(!"a mode");
	}
	if (getenv("STAYS"))
		expect_loaded(getenv("STAYS"));
	else
		for (; *paths; paths++)
			expect_loaded(*paths);
	puts("ok");
	return 0;
}
