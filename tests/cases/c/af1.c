#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int af1(void);
int main(void) { af1(); pid_t p = fork(); if (!p) _exit(0); int s; waitpid(p, &s, 0); printf("child ended with %d\n", s); return s != 0; }
