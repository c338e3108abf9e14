/*
 * The plug-in's functions in C, linked with C's library, as `src/lib.rs` has them in Rust.
 */
#include <dogtag.h>
#include <string.h>

uint64_t work(size_t size);
uint64_t live(void);
uint64_t calls(void);

static dogtag_service *service(void)
{
	static dogtag_service *volatile known;

	/* Each call gets the same service; the references are never released. */
	if (!known)
		known = dogtag_service_register("extension");
	return known;
}

uint64_t work(size_t size)
{
	dogtag_scope scope = dogtag_enter(service());
	char *block = dogtag_malloc(size);
	uint64_t bytes;

	dogtag_leave(scope);
	if (!block)
		return 0;
	memset(block, 7, size);
	bytes = live();
	dogtag_free(block);
	return bytes;
}

uint64_t live(void)
{
	dogtag_figures figures = dogtag_usage(service());

	return figures.allocated_bytes - figures.freed_bytes;
}

uint64_t calls(void)
{
	static uint64_t calls;

	return __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
}
