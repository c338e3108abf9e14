/*
 * C++'s operator new and operator delete in all their forms, called by the names that C++
 * compilers give them, without a C++ library: stand-ins for its functions show that the new-handler
 * is called, and that std::bad_alloc would be thrown.
 */
#include "check.h"

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

void *_Znwm(size_t size);
void *_Znam(size_t size);
void *_ZnwmRKSt9nothrow_t(size_t size, const void *nothrow);
void *_ZnamRKSt9nothrow_t(size_t size, const void *nothrow);
void *_ZnwmSt11align_val_t(size_t size, size_t alignment);
void *_ZnamSt11align_val_t(size_t size, size_t alignment);
void *_ZnwmSt11align_val_tRKSt9nothrow_t(size_t size, size_t alignment, const void *nothrow);
void *_ZnamSt11align_val_tRKSt9nothrow_t(size_t size, size_t alignment, const void *nothrow);
void _ZdlPv(void *block);
void _ZdaPv(void *block);
void _ZdlPvRKSt9nothrow_t(void *block, const void *nothrow);
void _ZdaPvRKSt9nothrow_t(void *block, const void *nothrow);
void _ZdlPvm(void *block, size_t size);
void _ZdaPvm(void *block, size_t size);
void _ZdlPvSt11align_val_t(void *block, size_t alignment);
void _ZdaPvSt11align_val_t(void *block, size_t alignment);
void _ZdlPvSt11align_val_tRKSt9nothrow_t(void *block, size_t alignment, const void *nothrow);
void _ZdaPvSt11align_val_tRKSt9nothrow_t(void *block, size_t alignment, const void *nothrow);
void _ZdlPvmSt11align_val_t(void *block, size_t size, size_t alignment);
void _ZdaPvmSt11align_val_t(void *block, size_t size, size_t alignment);

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static const char nothrow;
static dogtag_service *service;

/* Stand-ins for the C++ library's functions. */

static void (*handler)(void);
static int handled, thrown;
static jmp_buf caught;

void (*_ZSt15get_new_handlerv(void))(void)
{
	return handler;
}

void _ZSt17__throw_bad_allocv(void)
{
	thrown++;
	longjmp(caught, 1);
}

/* Each way to get a block with each way to give it back. */

enum { NEWS = 2, DELETES = 3 };

static void *get(int is_array, int way, size_t size)
{
	switch (2 * way + is_array) {
	case 0:
		return _Znwm(size);
	case 1:
		return _Znam(size);
	case 2:
		return _ZnwmRKSt9nothrow_t(size, &nothrow);
	default:
		return _ZnamRKSt9nothrow_t(size, &nothrow);
	}
}

static void *get_aligned(int is_array, int way, size_t size, size_t alignment)
{
	switch (2 * way + is_array) {
	case 0:
		return _ZnwmSt11align_val_t(size, alignment);
	case 1:
		return _ZnamSt11align_val_t(size, alignment);
	case 2:
		return _ZnwmSt11align_val_tRKSt9nothrow_t(size, alignment, &nothrow);
	default:
		return _ZnamSt11align_val_tRKSt9nothrow_t(size, alignment, &nothrow);
	}
}

static void give(int is_array, int way, void *block, size_t size)
{
	switch (2 * way + is_array) {
	case 0:
		_ZdlPv(block);
		break;
	case 1:
		_ZdaPv(block);
		break;
	case 2:
		_ZdlPvRKSt9nothrow_t(block, &nothrow);
		break;
	case 3:
		_ZdaPvRKSt9nothrow_t(block, &nothrow);
		break;
	case 4:
		_ZdlPvm(block, size);
		break;
	default:
		_ZdaPvm(block, size);
	}
}

static void give_aligned(int is_array, int way, void *block, size_t size, size_t alignment)
{
	switch (2 * way + is_array) {
	case 0:
		_ZdlPvSt11align_val_t(block, alignment);
		break;
	case 1:
		_ZdaPvSt11align_val_t(block, alignment);
		break;
	case 2:
		_ZdlPvSt11align_val_tRKSt9nothrow_t(block, alignment, &nothrow);
		break;
	case 3:
		_ZdaPvSt11align_val_tRKSt9nothrow_t(block, alignment, &nothrow);
		break;
	case 4:
		_ZdlPvmSt11align_val_t(block, size, alignment);
		break;
	default:
		_ZdaPvmSt11align_val_t(block, size, alignment);
	}
}

static void is_whole(void *block, size_t size, size_t alignment)
{
	size_t usable = malloc_usable_size(block);

	CHECK(block != NULL);
	CHECK(is_aligned(block, alignment));
	CHECK_USABLE(usable, size);
	CHECK_LIVE(service, usable, 1);
	memset(block, 0x5a, usable);
	errno = ENOTTY;
}

static void pairs(void)
{
	static const size_t SIZES[] = { 0, 1, 2, 6, 7, 8, 13, 14, 15, 16, 24, 100, 1000, 4093, 4094, 4096, 70000, 3 << 20 };

	for (size_t i = 0; i < COUNT(SIZES); i++)
		for (int is_array = 0; is_array < 2; is_array++)
			for (int new = 0; new < NEWS; new++)
				for (int delete = 0; delete < DELETES; delete++) {
					void *block = get(is_array, new, SIZES[i]);

					is_whole(block, SIZES[i], 16);
					give(is_array, delete, block, SIZES[i]);
					for (size_t alignment = 1; alignment <= 1 << 16; alignment *= 4) {
						block = get_aligned(is_array, new, SIZES[i], alignment);
						is_whole(block, SIZES[i], alignment < 16 ? 16 : alignment);
						give_aligned(is_array, delete, block, SIZES[i], alignment);
					}
					CHECK_EQUAL(errno, ENOTTY);
					CHECK_LIVE(service, 0, 0);
					give(is_array, delete, NULL, SIZES[i]);
					give_aligned(is_array, delete, NULL, SIZES[i], 64);
				}
}

/* Where there is no memory */

static void lift_the_limit(void)
{
	if (++handled == 3)
		dogtag_service_set_hard_limit(service, UINT64_MAX);
}

static void give_up(void)
{
	handled++;
	handler = NULL;
}

static void without_memory(void)
{
	static const size_t SIZES[] = { 1 << 20, SIZE_MAX / 2, SIZE_MAX };
	void *volatile block;

	for (volatile size_t i = 0; i < COUNT(SIZES); i++)
		for (volatile int is_array = 0; is_array < 2; is_array++)
			for (volatile int is_aligned = 0; is_aligned < 2; is_aligned++) {
				size_t size = SIZES[i];

				dogtag_service_set_hard_limit(service, 1000);
				/* There is no handler. */
				handler = NULL;
				thrown = handled = 0;
				if (!setjmp(caught)) {
					block = is_aligned ? get_aligned(is_array, 0, size, 64) : get(is_array, 0, size);
					CHECK(!"this was to be thrown");
				}
				CHECK_EQUAL(thrown, 1);
				CHECK(get(is_array, 1, size) == NULL);
				CHECK(get_aligned(is_array, 1, size, 64) == NULL);

				/* The handler gives up. */
				handler = give_up;
				if (!setjmp(caught)) {
					block = is_aligned ? get_aligned(is_array, 0, size, 64) : get(is_array, 0, size);
					CHECK(!"this was to be thrown");
				}
				CHECK_EQUAL(thrown, 2);
				CHECK_EQUAL(handled, 1);

				/* The handler finds memory in the end. */
				if (i == 0) {
					handler = lift_the_limit;
					handled = 0;
					block = is_aligned ? get_aligned(is_array, 0, size, 64) : get(is_array, 0, size);
					CHECK_EQUAL(handled, 3);
					CHECK(block != NULL);
					if (is_aligned)
						give_aligned(is_array, 2, block, size, 64);
					else
						give(is_array, 2, block, size);
				}
				CHECK_EQUAL(thrown, 2);
				dogtag_service_set_hard_limit(service, UINT64_MAX);

				/* No power of two: a handler is of no use. */
				handler = lift_the_limit;
				handled = 0;
				if (!setjmp(caught)) {
					get_aligned(is_array, 0, 10, 48);
					CHECK(!"this was to be thrown");
				}
				CHECK(get_aligned(is_array, 1, 10, 48) == NULL);
				CHECK(get_aligned(is_array, 1, 10, 0) == NULL);
				CHECK_EQUAL(handled, 0);
				CHECK_EQUAL(thrown, 3);
				CHECK_LIVE(service, 0, 0);
			}
}

int main(void)
{
	service = dogtag_service_register("operators");
	CHECK(service != NULL);
	dogtag_scope scope = dogtag_enter(service);
	pairs();
	without_memory();
	dogtag_leave(scope);
	CHECK_EQUAL(dogtag_verify(), 0);
	dogtag_service_release(service);
	puts("ok");
	return 0;
}
