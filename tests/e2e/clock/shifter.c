/* Preloaded into a process, it shows it a clock that is CLOCK_AHEAD_SECONDS ahead of the machine's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *at)
{
    static int (*of_machine)(clockid_t, struct timespec *);
    if (!of_machine)
        of_machine = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int answer = of_machine(clock, at);
    const char *ahead = getenv("CLOCK_AHEAD_SECONDS");
    if (answer == 0 && clock == CLOCK_REALTIME && ahead)
        at->tv_sec += atol(ahead);
    return answer;
}
