/*
 * A program with an operator new and an operator delete of its own, whose blocks come from
 * elsewhere. All other forms call these, as C++ requires.
 */
#include "check.h"

#include <stdlib.h>

void *_Znam(size_t size);
void *_ZnwmRKSt9nothrow_t(size_t size, const void *nothrow);
void *_ZnamRKSt9nothrow_t(size_t size, const void *nothrow);
void *_ZnwmSt11align_val_t(size_t size, size_t alignment);
void *_ZnamSt11align_val_t(size_t size, size_t alignment);
void _ZdaPv(void *block);
void _ZdlPvRKSt9nothrow_t(void *block, const void *nothrow);
void _ZdaPvRKSt9nothrow_t(void *block, const void *nothrow);
void _ZdlPvm(void *block, size_t size);
void _ZdaPvm(void *block, size_t size);
void _ZdlPvSt11align_val_t(void *block, size_t alignment);
void _ZdaPvmSt11align_val_t(void *block, size_t size, size_t alignment);

static _Alignas(16) char arena[1 << 16];
static size_t used;
static int allocated, freed;

void *_Znwm(size_t size)
{
	char *block = arena + used;

	used += (size + 15) / 16 * 16;
	CHECK(used <= sizeof(arena));
	allocated++;
	return block;
}

void _ZdlPv(void *block)
{
	CHECK((char *)block >= arena && (char *)block < arena + sizeof(arena));
	freed++;
}

int main(void)
{
	static const char nothrow;
	dogtag_service *service = dogtag_service_register("replaced");
	dogtag_scope scope = dogtag_enter(service);

	for (size_t size = 1; size < 100; size++) {
		_ZdlPvm(_Znwm(size), size);
		_ZdaPv(_Znam(size));
		_ZdaPvm(_Znam(size), size);
		_ZdlPvRKSt9nothrow_t(_ZnwmRKSt9nothrow_t(size, &nothrow), &nothrow);
		_ZdaPvRKSt9nothrow_t(_ZnamRKSt9nothrow_t(size, &nothrow), &nothrow);
		CHECK_EQUAL(allocated, 5 * size);
		CHECK_EQUAL(freed, 5 * size);
		CHECK_LIVE(service, 0, 0);
		/* The program does not replace these, whose blocks free takes. */
		_ZdlPvSt11align_val_t(_ZnwmSt11align_val_t(size, 64), 64);
		_ZdaPvmSt11align_val_t(_ZnamSt11align_val_t(size, 256), size, 256);
		free(_ZnwmSt11align_val_t(size, 64));
		CHECK_EQUAL(allocated, 5 * size);
		CHECK_EQUAL(freed, 5 * size);
		CHECK_LIVE(service, 0, 0);
	}
	CHECK(dogtag_usage(service).allocated_blocks >= 3 * 99);
	dogtag_leave(scope);
	CHECK_EQUAL(dogtag_verify(), 0);
	dogtag_service_release(service);
	puts("ok");
	return 0;
}
