/* Services and threads, as many as it is told. Its sums are what the tool has to show. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
struct scope { void *words[2]; };
static int services, threads;
static void **all;
static unsigned long held[20000];
static void *(*make)(const char *);
static struct scope (*enter)(void *);
static void (*leave)(struct scope);
static pthread_barrier_t barrier;
static void *work(void *argument) {
    (void)argument;
    for (int i = 0; i < services; i++) {
        struct scope scope = enter(all[i]);
        void *block = malloc(i + 1);
        if (!block) abort();
        // Of C's blocks all that can be used is counted.
        __atomic_fetch_add(&held[i], malloc_usable_size(block), __ATOMIC_RELAXED);
        leave(scope);
    }
    pthread_barrier_wait(&barrier);
    pause();
    return 0;
}
int main(int count, char **words) {
    if (count < 3) return 9;
    services = atoi(words[1]), threads = atoi(words[2]);
    make = dlsym(RTLD_DEFAULT, "dogtag_service_register");
    enter = dlsym(RTLD_DEFAULT, "dogtag_enter");
    leave = dlsym(RTLD_DEFAULT, "dogtag_leave");
    if (!make || !enter || !leave) return 8;
    all = calloc(services, sizeof *all);
    for (int i = 0; i < services; i++) {
        char name[32];
        snprintf(name, sizeof name, "service-%d", i);
        all[i] = make(name);
    }
    pthread_barrier_init(&barrier, 0, threads + 1);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, work, 0)) return 7;
    }
    pthread_barrier_wait(&barrier);
    char line[64];
    printf("%d\n", getpid()), fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "close\n")) {
            for (int i = 3; i < 1024; i++) close(i);
            printf("closed\n");
        } else if (!strcmp(line, "sums\n")) {
            for (int i = 0; i < services; i++) printf("%lu ", held[i]);
            printf("\n");
        } else if (!strcmp(line, "fork\n")) {
            int pid = fork();
            if (pid == 0) { pause(); _exit(0); }
            printf("%d\n", pid);
        } else if (!strcmp(line, "hold\n")) {
            for (int i = 0; i < 64; i++) if (!malloc(100000)) abort();
            printf("held\n");
        }
        fflush(stdout);
    }
    return 0;
}